//! The 256 pieces of text that names are made of.

use crate::memory::u32_at;
use crate::table::NAME_MAX;

/// Tokens that a byte can stand for.
const TOKENS: usize = 256;
/// Bytes of a token at most, its end included.
const TOKEN_MAX: usize = 512;

/// The tokens of the digits, in a row: all digits occur in names, and so stand for themselves.
pub const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Where digits are in `bytes`.
pub fn digits(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let windows = bytes.windows(DIGITS.len()).enumerate();
    windows
        .filter(|(_, window)| window.first() == Some(&b'0') && window == DIGITS)
        .map(|(at, _)| at)
}

/// Where in `head`, which ends before the digits, the table may start, counted from the end of
/// `head`: as many tokens end before the first digit as its code says, and tables start at
/// multiples of 8, of which `digits` is the address of the first digit.
pub fn starts(head: &[u8], digits: u64) -> impl Iterator<Item = u64> {
    let mut ends = head.iter().rev().enumerate().filter(|(_, byte)| **byte == 0);
    // The end of the first token, and of what is before it.
    let first = ends.nth(usize::from(b'0') - 1).map(|(up, _)| up as u64);
    let before = ends.next().map(|(up, _)| up as u64);
    let range = first.map_or(0..0, |first| {
        first + 1..before.unwrap_or(first + 1).min(first + TOKEN_MAX as u64) + 1
    });
    range.filter(move |up| digits.wrapping_sub(*up).is_multiple_of(8))
}

/// A table of tokens.
#[derive(Debug)]
pub struct Tokens {
    ends: Vec<(usize, usize)>,
    text: Vec<u8>,
    /// Bytes of the table and its index.
    pub bytes: usize,
}

impl Tokens {
    /// How far before the digits the table starts at most.
    pub const BEFORE_DIGITS: u64 = (b'0' as usize * TOKEN_MAX) as u64;

    /// Bytes of the table and its index at most.
    pub const BYTES_MAX: usize = TOKENS * TOKEN_MAX + 2 * TOKENS + 8;

    /// Reads the table at the start of `bytes`, and sees that the index behind it is of this table.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut ends = Vec::with_capacity(TOKENS);
        let mut at = 0;
        for _ in 0..TOKENS {
            let rest = bytes.get(at..)?;
            let count = rest.iter().take(TOKEN_MAX).position(|&byte| byte == 0)?;
            ends.push((at, at + count));
            at += count + 1;
        }
        let text = bytes.get(..at)?.to_vec();
        let index = at.next_multiple_of(8);
        for (number, (start, _)) in ends.iter().enumerate() {
            let pair = u32_at(bytes, index + number / 2 * 4)?;
            let offset = if number % 2 == 0 { pair & 0xffff } else { pair >> 16 };
            if offset as usize != *start {
                return None;
            }
        }
        Some(Self { ends, text, bytes: index + 2 * TOKENS })
    }

    /// Writes what `compressed` stands for to `out`: a symbol's letter and its name.
    pub fn expand(&self, compressed: &[u8], out: &mut Vec<u8>) -> Option<()> {
        out.clear();
        for &byte in compressed {
            let (start, end) = *self.ends.get(usize::from(byte))?;
            out.extend_from_slice(self.text.get(start..end)?);
            if out.len() > NAME_MAX {
                return None;
            }
        }
        Some(())
    }
}
