//! A 256-bit register with one bit for each vector: IRR, ISR, TMR.

use serde::{Deserialize, Serialize};

/// One bit for each interrupt vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VectorSet([u32; 8]);

// A vector shifted right by five is below eight, so no index here can miss.
impl VectorSet {
    /// The members by the words of the eight registers.
    pub(super) fn of_words(word: impl Fn(u32) -> u32) -> Self {
        let mut words = std::array::from_fn(|index| word(index as u32));
        words[0] &= !0xFFFF;
        Self(words)
    }

    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn assign(&mut self, vector: u8, is_member: bool) {
        if is_member { self.insert(vector) } else { self.remove(vector) }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The member of the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let index = self.0.iter().rposition(|&word| word != 0)?;
        let bit = 31 - self.0[index].leading_zeros();
        u8::try_from(index as u32 * 32 + bit).ok()
    }

    /// The members, the lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|&vector| self.contains(vector))
    }

    /// The 32 bits that the register at `index` of eight shows; zero beyond.
    pub(super) fn word(&self, index: u32) -> u32 {
        self.0.get(index as usize).copied().unwrap_or(0)
    }

    /// True if a vector that no interrupt may have (0 to 15) is a member.
    pub(super) fn has_illegal(&self) -> bool {
        self.0[0] & 0xFFFF != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_is_found_where_it_was_put() {
        for vector in 0..=255 {
            let mut set = VectorSet::default();
            assert_eq!(set.highest(), None);
            set.insert(vector);
            assert!(set.contains(vector) && !set.is_empty());
            assert_eq!((set.highest(), set.len()), (Some(vector), 1));
            assert_eq!(set.word(u32::from(vector) / 32), 1 << (vector % 32));
            assert_eq!(set.has_illegal(), vector < 16);
            set.remove(vector);
            assert!(set.is_empty());
        }
    }

    #[test]
    fn the_highest_of_many_is_the_largest_number() {
        let mut set = VectorSet::default();
        for vector in [0x31, 0xEF, 0x40] {
            set.insert(vector);
        }
        assert_eq!((set.highest(), set.len()), (Some(0xEF), 3));
        assert_eq!(set.word(8), 0);
    }
}
