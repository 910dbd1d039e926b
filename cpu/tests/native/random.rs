//! Random states with a liking for what is special in floating point.

use cpu::fpu::FpuState;
use cpu::testing::special::{EXPONENTS, SINGLES, x87_register};

/// A small generator (xorshift64*), so that a failure repeats.
pub struct Random(u64);

const DOUBLES: [u64; 12] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    1,
    0x800f_ffff_ffff_ffff,
    0x7fef_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
];
impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next_u64() >> 32) % limit
    }
    /// Eight bytes of vector: two singles, a double, integers, or anything.
    fn lane(&mut self) -> u64 {
        match self.below(5) {
            0 => u64::from(self.single()) << 32 | u64::from(self.single()),
            1 => DOUBLES[self.below(12) as usize],
            2 => (self.below(0x3000) as f64 - 6000.5).to_bits(),
            3 => self.below(256) * 0x0101_0101_0101_0101,
            _ => self.next_u64(),
        }
    }
    fn single(&mut self) -> u32 {
        match self.below(2) {
            0 => SINGLES[self.below(12) as usize],
            _ => (self.below(0x3000) as f32 / 7.0 - 500.0).to_bits(),
        }
    }
    /// 64 bytes of operand.
    pub fn operand(&mut self) -> [u8; 64] {
        let mut bytes = [0; 64];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.lane().to_le_bytes());
        }
        if self.below(4) == 0 {
            bytes[..10].copy_from_slice(&self.extended()[..10]);
        }
        bytes
    }
    /// An x87 register.
    fn extended(&mut self) -> [u8; 16] {
        let significand = match self.below(4) {
            0 => 0,
            1 => 1 << 63,
            2 => self.next_u64() | 1 << 63,
            _ => self.next_u64(),
        };
        let exponent = match self.below(3) {
            0 => EXPONENTS[self.below(8) as usize],
            1 => 0x3fe0 + self.below(64) as u16,
            _ => self.next_u64() as u16,
        };
        x87_register(exponent, significand)
    }
    /// Vector, mask and x87 registers. Half of the control words and three
    /// quarters of the MXCSRs mask every exception; `is_x87`
    /// fills the x87 stack more.
    pub fn fpu(&mut self, is_x87: bool) -> FpuState {
        let mut fpu = FpuState::default();
        for register in &mut fpu.zmm {
            *register = self.operand();
        }
        fpu.opmask = std::array::from_fn(|_| self.next_u64());
        fpu.x87 = std::array::from_fn(|_| self.extended());
        fpu.ftw = if is_x87 && self.below(4) != 0 { 0xff } else { self.next_u64() as u8 };
        fpu.fsw = self.next_u64() as u16 & 0x7f40;
        fpu.fcw = self.next_u64() as u16 & 0x0f00 | 0x40;
        fpu.fcw |= if self.below(2) == 0 { 0x3f } else { self.next_u64() as u16 & 0x3f };
        fpu.mxcsr = self.next_u64() as u32 & 0xe07f | 0x1f80;
        if self.below(4) == 0 {
            fpu.mxcsr &= !0x1f80 | self.next_u64() as u32;
        }
        fpu
    }
}
