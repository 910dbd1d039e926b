//! What the slow path of a memory access asks of its helper.

/// What an access wants, as its slow path says it in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Bytes, of the access or of its group.
    pub(crate) size: u32,
    /// Some access of them writes.
    pub(crate) is_write: bool,
    /// An address that is no multiple of the size is #GP.
    pub(crate) is_aligned: bool,
    /// A page fault of the step's own access is what the step raises.
    pub(crate) raises: bool,
    /// The step's own access writes.
    pub(crate) own_writes: bool,
    /// The step is an x87 instruction.
    pub(crate) is_x87: bool,
    /// It is the first of as many accesses, in a row, as RCX says; they end in the page.
    pub(crate) is_run: bool,
    /// Where in a group the step's own access is.
    pub(crate) own_offset: u32,
}

impl Wanted {
    /// The bit of a word for what writes.
    pub(crate) const WRITES: u64 = 1 << 16;
    /// The bit of a word for what is aligned.
    pub(crate) const ALIGNED: u64 = 1 << 17;
    /// The bit of a word for a run.
    pub(crate) const RUN: u64 = 1 << 21;

    /// More than any page has: the helper leaves it to the interpreter.
    pub(crate) const NOTHING: Self = Self {
        size: 0xffff,
        is_write: true,
        is_aligned: false,
        raises: false,
        own_writes: false,
        is_x87: false,
        is_run: false,
        own_offset: 0,
    };

    /// The word.
    pub(crate) fn word(self) -> u64 {
        let Self { is_write, is_aligned, raises, own_writes, is_x87, is_run, .. } = self;
        let flags = [is_write, is_aligned, raises, own_writes, is_x87, is_run];
        let flags = flags.iter().rev().fold(0, |word, &flag| word << 1 | u64::from(flag));
        u64::from(self.size) | flags << 16 | u64::from(self.own_offset) << 22
    }

    /// What the word says.
    pub(crate) fn of(word: u64) -> Self {
        let flag = |number: u32| word >> (16 + number) & 1 != 0;
        Self {
            size: (word & 0xffff) as u32,
            is_write: flag(0),
            is_aligned: flag(1),
            raises: flag(2),
            own_writes: flag(3),
            is_x87: flag(4),
            is_run: flag(5),
            own_offset: (word >> 22) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_all() {
        for flags in 0..64 {
            let wanted = Wanted {
                size: 1024,
                is_write: flags & 1 != 0,
                is_aligned: flags & 2 != 0,
                raises: flags & 4 != 0,
                own_writes: flags & 8 != 0,
                is_x87: flags & 16 != 0,
                is_run: flags & 32 != 0,
                own_offset: 1016,
            };
            let word = wanted.word();
            assert_eq!(Wanted::of(word), wanted);
            assert_eq!(word & Wanted::WRITES != 0, wanted.is_write);
            assert_eq!(word & Wanted::ALIGNED != 0, wanted.is_aligned);
            assert_eq!(word & Wanted::RUN != 0, wanted.is_run);
        }
    }
}
