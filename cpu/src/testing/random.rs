//! Reproducible random values, with a taste for the ones at which arithmetic changes its mind.

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators"): every seed
/// is as good as any other, so a seed names a state.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bits() as u8
    }

    /// From 0 to `limit - 1`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, of which there is one at least.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An operand: any bits, a small number, or one beside a power of two, of either sign.
    pub fn operand(&mut self) -> u64 {
        let value = match self.below(8) {
            0..=2 => return self.bits(),
            3 => self.below(16),
            4 => 1 << self.below(64),
            5 => (1 << self.below(64)) - 1,
            6 => {
                self.pick(&[0, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000])
            }
            _ => self.bits() >> self.below(64),
        };
        if self.chance(25) { value.wrapping_neg() } else { value }
    }
}
