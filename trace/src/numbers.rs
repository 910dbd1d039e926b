//! Numbers of blocks and of their parts in a segment, by the recorder's numbers of blocks.
//!
//! Most parts are beginnings: a block is left early, at one of few places. Those are found without
//! a hash, as whole blocks are, for it is done for each block that is executed.

use rustc_hash::FxHashMap;

/// No number.
pub(crate) const UNDEFINED: u32 = u32::MAX;

/// A block as the recorder knows it.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// Its instructions.
    pub(crate) length: u32,
    /// Where the numbers of its beginnings are.
    beginnings: u32,
}

impl Known {
    /// Where the number of its first `count` instructions is.
    #[inline]
    fn place(self, count: u32) -> Option<usize> {
        let is_some = (1..=self.length).contains(&count);
        is_some.then(|| self.beginnings as usize + count as usize - 1)
    }
}

/// The numbers of a stream.
#[derive(Default)]
pub(crate) struct Numbers {
    known: Vec<Known>,
    /// Of each block, its beginnings with one instruction, with two, and so on to all of it.
    beginnings: Vec<u32>,
    /// Other parts: block, first instruction and how many.
    others: FxHashMap<(u32, u32, u32), u32>,
}

impl Numbers {
    /// Makes the recorder's next block known.
    pub(crate) fn add(&mut self, length: u32) {
        let beginnings = self.beginnings.len();
        self.beginnings.resize(beginnings + length as usize, UNDEFINED);
        self.known.push(Known { length, beginnings: beginnings as u32 });
    }

    /// Begins a segment.
    pub(crate) fn forget(&mut self) {
        self.beginnings.fill(UNDEFINED);
        self.others.clear();
    }

    /// The recorder's block `raw`.
    #[inline]
    pub(crate) fn block(&self, raw: u32) -> Option<Known> {
        self.known.get(raw as usize).copied()
    }

    /// The number of the first `count` instructions of `known`, if it has one.
    #[inline]
    pub(crate) fn beginning(&self, known: Known, count: u32) -> u32 {
        let number = known.place(count).and_then(|place| self.beginnings.get(place));
        number.copied().unwrap_or(UNDEFINED)
    }

    /// The number of `count` instructions of block `raw` from number `first` on, if it has one.
    pub(crate) fn part(&self, raw: u32, first: u32, count: u32) -> Option<u32> {
        let id = match first {
            0 => self.beginning(self.block(raw)?, count),
            _ => self.others.get(&(raw, first, count)).copied()?,
        };
        (id != UNDEFINED).then_some(id)
    }

    /// Gives that part number `id`.
    pub(crate) fn set(&mut self, raw: u32, first: u32, count: u32, id: u32) {
        let Some(known) = self.block(raw) else { return };
        if first != 0 {
            self.others.insert((raw, first, count), id);
        } else if let Some(place) = known.place(count)
            && let Some(number) = self.beginnings.get_mut(place)
        {
            *number = id;
        }
    }
}
