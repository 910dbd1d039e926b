//! What comes next: the block that followed the last three the last time, or the last one.
//!
//! A finite-context predictor: a table by a hash of the last three blocks, in which the newest wins
//! a place (M. Burtscher, "VPC3: A Fast and Effective Trace-Compression Algorithm"). Writer and
//! reader keep the same tables; loops of any shape are runs of hits after their first turns. A hit
//! changes no table: it is what a writer does some hundred million times a second.

/// Bits of a place in the table of the long context.
const PLACE_BITS: u32 = 16;
/// How far a block's share of the context moves with each that follows: out of it with the third.
const CONTEXT_SHIFT: u32 = 11;

/// What had been expected of a block that followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guess {
    /// By the last three blocks.
    ByThree,
    /// By the last one, and not by the last three.
    ByOne,
    /// Something else.
    Wrong,
}

/// The predictors of one stream.
#[derive(Clone, Debug)]
pub(crate) struct Predictor {
    by_three: Box<[u32; 1 << PLACE_BITS]>,
    by_one: Vec<u32>,
    last: u32,
    /// The last three blocks, mixed.
    context: u32,
}

impl Predictor {
    pub(crate) fn new() -> Self {
        let by_three = Box::new([0; 1 << PLACE_BITS]);
        Self { by_three, by_one: Vec::new(), last: 0, context: 0 }
    }

    /// The guess by the last three blocks.
    #[inline]
    pub(crate) fn by_three(&self) -> u32 {
        self.by_three.get(self.place()).copied().unwrap_or(0)
    }

    /// The guess by the last block.
    pub(crate) fn by_one(&self) -> u32 {
        self.by_one.get(self.last as usize).copied().unwrap_or(0)
    }

    /// True if block `id`, which follows, is the guess by the last three; else nothing has changed.
    #[inline]
    pub(crate) fn hits(&mut self, id: u32) -> bool {
        let is_hit = self.by_three() == id;
        if is_hit {
            self.pass(id);
        }
        is_hit
    }

    /// Block `id` follows. It is below [`crate::BLOCKS_MAX`].
    pub(crate) fn follow(&mut self, id: u32) -> Guess {
        if self.hits(id) {
            return Guess::ByThree;
        }
        let guess = if self.by_one() == id { Guess::ByOne } else { Guess::Wrong };
        self.learn(id);
        self.pass(id);
        guess
    }

    fn learn(&mut self, id: u32) {
        let place = self.place();
        if let Some(entry) = self.by_three.get_mut(place) {
            *entry = id;
        }
        let last = self.last as usize;
        if self.by_one.len() <= last {
            self.by_one.resize(last + 1, 0);
        }
        if let Some(entry) = self.by_one.get_mut(last) {
            *entry = id;
        }
    }

    #[inline]
    fn place(&self) -> usize {
        (self.context >> (u32::BITS - PLACE_BITS)) as usize
    }

    #[inline]
    fn pass(&mut self, id: u32) {
        self.context = self.context << CONTEXT_SHIFT ^ id.wrapping_mul(0x9e37_79b1);
        self.last = id;
    }
}

const _: () = assert!(3 * CONTEXT_SHIFT >= u32::BITS, "only three blocks are in a context");
