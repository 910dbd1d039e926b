//! Numbers that floating point treats in a way of their own: zeroes, ones, infinities, NaNs, the
//! smallest and the largest, the first that an integer cannot hold.

/// Single precision.
pub const SINGLES: [u32; 12] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x0000_0001,
    0x807f_ffff,
    0x7f7f_ffff,
    0x4f00_0000,
];
/// Exponents of x87 registers, biased.
pub const EXPONENTS: [u16; 8] = [0, 1, 0x3fff, 0x4000, 0x403e, 0x7ffe, 0x7fff, 0xbfff];

/// An x87 register as FXSAVE writes it; the exponent has the sign.
pub fn x87_register(exponent: u16, significand: u64) -> [u8; 16] {
    let mut register = [0; 16];
    register[..8].copy_from_slice(&significand.to_le_bytes());
    register[8..10].copy_from_slice(&exponent.to_le_bytes());
    register
}
