//! The 64 KiB image and the rule that nothing in it overlaps.

use crate::rom::layout::ROM_BYTES;

/// A ROM being filled.
pub struct Image {
    bytes: Vec<u8>,
    taken: Vec<(usize, usize)>,
}

impl Image {
    /// A ROM of zeros.
    pub fn new() -> Self {
        Self { bytes: vec![0; ROM_BYTES], taken: Vec::new() }
    }

    /// Puts `bytes` at ROM offset `start`; an overlap or an overrun is an error of the layout.
    pub fn place(&mut self, start: usize, bytes: &[u8]) -> Result<(), String> {
        let end = start + bytes.len();
        if let Some((from, to)) = self.taken.iter().find(|(from, to)| start < *to && *from < end) {
            return Err(format!("{start:#x}..{end:#x} overlaps {from:#x}..{to:#x}"));
        }
        let room = self.bytes.get_mut(start..end);
        let room = room.ok_or_else(|| format!("{start:#x}..{end:#x} is outside the ROM"))?;
        room.copy_from_slice(bytes);
        self.taken.push((start, end));
        Ok(())
    }

    /// The finished ROM.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
