//! Per-page flags and code generations.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Flags of every page of RAM and ROM, indexed by `ram_offset >> PAGE_SHIFT`.
///
/// A store may skip [`PageFlags::note_store`] only while the page's byte reads exactly
/// [`PageFlags::PLAIN_DIRTY`]. Protocol for engines that cache something derived from code bytes:
/// [`PageFlags::mark_code`] *before* the bytes are read; the cached copy is good while
/// [`PageFlags::generation`] has not moved since before the bytes were read. `mark_code` runs a
/// membarrier on the first marking of a page, so that a store by another thread is either visible
/// to the reader or sees the mark; a second thread that marks meanwhile runs one of its own, since
/// the first one's may not have happened yet.
pub struct PageFlags {
    flags: Box<[AtomicU8]>,
    generations: Box<[AtomicU32]>,
}

impl PageFlags {
    /// Written since the flag was last cleared.
    pub const DIRTY: u8 = 1;
    /// An engine caches something derived from the page's bytes.
    pub const CODE: u8 = 2;
    /// [`Self::CODE`] was set before a barrier that every thread has passed.
    const SETTLED: u8 = 4;
    /// The flags of a page whose stores need no further care.
    pub const PLAIN_DIRTY: u8 = Self::DIRTY;

    pub(crate) fn new(page_count: usize) -> Self {
        // Zero pages of the host until they are touched: a large guest starts at once.
        Self {
            flags: crate::ram::zeroed_slice::<AtomicU8>(page_count),
            generations: crate::ram::zeroed_slice::<AtomicU32>(page_count),
        }
    }

    /// The flags of `page`; a page that does not exist reads as [`Self::PLAIN_DIRTY`].
    #[inline]
    pub fn get(&self, page: u64) -> u8 {
        self.flags.get(page as usize).map_or(Self::PLAIN_DIRTY, |f| f.load(Ordering::Relaxed))
    }

    /// The code generation of `page`: moves after every store to it while it is marked as code.
    #[inline]
    pub fn generation(&self, page: u64) -> u32 {
        self.generations.get(page as usize).map_or(0, |g| g.load(Ordering::Acquire))
    }

    /// Marks `page` as code. Call before its bytes are read.
    pub fn mark_code(&self, page: u64) {
        let Some(flags) = self.flags.get(page as usize) else { return };
        if flags.load(Ordering::Acquire) & Self::SETTLED == 0 {
            flags.fetch_or(Self::CODE, Ordering::SeqCst);
            crate::ram::full_barrier_on_all_threads();
            flags.fetch_or(Self::SETTLED, Ordering::Release);
        }
    }

    /// Records a store to `page`, after the bytes were written. True if the page is code.
    #[inline]
    pub fn note_store(&self, page: u64) -> bool {
        let Some(flags) = self.flags.get(page as usize) else { return false };
        let old = flags.load(Ordering::Relaxed);
        if old & Self::DIRTY == 0 {
            flags.fetch_or(Self::DIRTY, Ordering::Relaxed);
        }
        if old & Self::CODE == 0 {
            return false;
        }
        if let Some(generation) = self.generations.get(page as usize) {
            generation.fetch_add(1, Ordering::Release);
        }
        true
    }

    /// Gives the dirty ones of `pages` and clears their flags. A store that is not yet visible when
    /// this returns sets the flag again: what the caller reads of a page from then on is either
    /// current or will be reported the next time.
    pub fn take_dirty(&self, pages: Range<u64>) -> Vec<u64> {
        let existing = pages.start..pages.end.min(self.page_count() as u64);
        let dirty: Vec<u64> = existing.filter(|&page| self.clear_dirty(page)).collect();
        if !dirty.is_empty() {
            // A store whose thread read the old flag may still be in that thread's store buffer.
            crate::ram::full_barrier_on_all_threads();
        }
        dirty
    }

    fn clear_dirty(&self, page: u64) -> bool {
        self.flags.get(page as usize).is_some_and(|flags| {
            flags.load(Ordering::Relaxed) & Self::DIRTY != 0
                && flags.fetch_and(!Self::DIRTY, Ordering::SeqCst) & Self::DIRTY != 0
        })
    }

    /// The number of pages.
    pub fn page_count(&self) -> usize {
        self.flags.len()
    }
}
