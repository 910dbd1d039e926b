//! What comes next: the block that followed the last three the last time, or the last one.
//!
//! A finite-context predictor: a table by a hash of the last three blocks, in which the newest wins
//! a place (M. Burtscher, "VPC3: A Fast and Effective Trace-Compression Algorithm"). Writer and
//! reader keep the same tables; loops of any shape are runs of hits after their first turns.

/// Entries of the table of the long context.
const ENTRIES: usize = 1 << 16;

/// The predictors of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Predictor {
    by_three: Box<[u32]>,
    by_one: Vec<u32>,
    last: [u32; 3],
}

impl Predictor {
    pub(crate) fn new() -> Self {
        Self { by_three: vec![0; ENTRIES].into(), by_one: Vec::new(), last: [0; 3] }
    }

    /// Where the long context is.
    #[inline]
    fn place(&self) -> usize {
        let [first, second, third] = self.last;
        let mixed = first.wrapping_mul(0x9e37_79b1)
            ^ second.wrapping_mul(0x85eb_ca6b).rotate_left(11)
            ^ third.wrapping_mul(0xc2b2_ae35).rotate_left(22);
        (mixed >> 16) as usize % ENTRIES
    }

    /// The guess by the long context, and by the last block.
    #[inline]
    pub(crate) fn guesses(&self) -> (u32, u32) {
        let long = self.by_three.get(self.place()).copied().unwrap_or(0);
        let short = self.by_one.get(self.last[0] as usize).copied().unwrap_or(0);
        (long, short)
    }

    /// The guess by the long context.
    #[inline]
    pub(crate) fn guess(&self) -> u32 {
        self.by_three.get(self.place()).copied().unwrap_or(0)
    }

    /// Block `id` has followed. It is below [`crate::BLOCKS_MAX`].
    #[inline]
    pub(crate) fn learn(&mut self, id: u32) {
        let place = self.place();
        if let Some(entry) = self.by_three.get_mut(place) {
            *entry = id;
        }
        let last = self.last[0] as usize;
        if self.by_one.len() <= last {
            self.by_one.resize(last + 1, 0);
        }
        if let Some(entry) = self.by_one.get_mut(last) {
            *entry = id;
        }
        self.last = [id, self.last[0], self.last[1]];
    }
}
