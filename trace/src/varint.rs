//! Numbers in as few bytes as they need, and a cursor that never reads past its end.

/// Why a number cannot be read.
pub(crate) type Damage = &'static str;

/// The bytes end too early.
pub(crate) const SHORT: Damage = "it ends within a record";

/// Appends `value` as a varint.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a difference.
pub(crate) fn put_signed(out: &mut Vec<u8>, difference: u64) {
    let signed = difference as i64;
    put(out, (signed << 1 ^ signed >> 63) as u64);
}

/// Appends a string with its length.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Bytes that are read from their start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Damage> {
        let (&first, rest) = self.bytes.split_first().ok_or(SHORT)?;
        self.bytes = rest;
        Ok(first)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(SHORT)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Damage> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too large")
    }

    /// A difference.
    pub(crate) fn signed(&mut self) -> Result<u64, Damage> {
        let value = self.varint()?;
        Ok(value >> 1 ^ (value & 1).wrapping_neg())
    }

    /// A varint that is at most `max`.
    pub(crate) fn at_most(&mut self, max: u64, what: Damage) -> Result<u64, Damage> {
        self.varint().and_then(|value| if value <= max { Ok(value) } else { Err(what) })
    }

    /// A string of at most `max` bytes.
    pub(crate) fn text(&mut self, max: u64) -> Result<String, Damage> {
        let length = self.at_most(max, "a text is too long")?;
        let bytes = self.bytes(length as usize)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text is no UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, difference: u64) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            put_signed(&mut bytes, difference);
            let mut cursor = Cursor::new(&bytes);
            prop_assert_eq!(cursor.varint(), Ok(value));
            prop_assert_eq!(cursor.signed(), Ok(difference));
            prop_assert_eq!(cursor.left(), 0);
        }
    }

    #[test]
    fn numbers_past_64_bits_are_refused() {
        assert!(Cursor::new(&[0xff; 10]).varint().is_err());
        assert!(
            Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2])
                .varint()
                .is_err()
        );
        assert_eq!(Cursor::new(&[0x80]).varint(), Err(SHORT));
    }
}
