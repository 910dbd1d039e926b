//! Per-page flags and code generations: who must be told that bytes changed.
//!
//! The problem: an engine keeps something derived from guest bytes (decoded instructions, host
//! code) and must stop using it when another thread, a device or the guest itself writes those
//! bytes, while a store to plain data must cost one comparison.
//!
//! A page is in one of three states. *Plain*: no mark; a store that finds the flags
//! [`PageFlags::PLAIN_DIRTY`] does no more. *Settled*: `CODE | SETTLED`, with a bit for each line
//! of 64 bytes that something was derived from; a store beside those lines costs a fence. *Between
//! two states*: `CODE` alone, under the marks' lock. A store over a marked line takes all lines
//! away; the next store, which finds no line marked, takes `CODE` away: a frame that held code once
//! is plain again after two stores, and code that is written and run in turn never pays for another
//! barrier.
//!
//! # What an engine does
//!
//! 1. It reads [`PageFlags::generation`] of the page.
//! 2. It reads the bytes and derives.
//! 3. It calls [`PageFlags::mark_code`] for exactly the bytes used.
//! 4. It reads the bytes again. Others than before: start over, or use the thing once.
//!
//! What was derived is good while the generation is still the one of step 1. An engine that does
//! not look at the generation at every use waits for [`CodeWatcher::code_written`]; it looks at the
//! generation once more after it has put the thing where that call finds it.
//!
//! # Why that is enough
//!
//! *A store that step 4 does not see sees the mark.* The writer stores, then reads the flags. If it
//! read them before the barrier of the marking, its store was done before that barrier too, and
//! step 4 sees it; a shortcut past the flags is gone by then ([`CodeWatcher`]). If it saw `CODE`,
//! it passes a fence and reads the lines, while the engine marks lines by a locked instruction and
//! then reads the bytes: one of them sees the other.
//!
//! *A mark is not lost.* Taking marks away is, in this order and under the lock: clear `SETTLED`;
//! move the generation; tell the watchers; clear the lines; set `SETTLED` again. An engine whose
//! step 1 reads the moved generation finds `SETTLED` clear in step 3 and waits for the lock, so its
//! mark comes behind the clearing. One whose step 1 came before has an old generation and keeps
//! nothing. That is why the generation is read first, and why it may not move before `SETTLED` is
//! clear. Taking `CODE` away moves no generation: `SETTLED` is cleared, and then the lines are
//! looked at; an engine that marks meanwhile either is seen there, or sees `SETTLED` gone when it
//! looks again behind its mark.
//!
//! *Whoever finds a mark gone finds it known.* The generation has moved and the watchers have been
//! told before a line's bit or `CODE` goes away, so a thread whose store finds nothing marked any
//! more, since another's store was faster, finds the generation moved when it next looks.
//!
//! Known departure: that thread is not told by the store itself. It may go on with what it is
//! executing until its next look, even if its own store has changed that (another thread must have
//! written marked code in the same page since it began).

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::{PAGE_SHIFT, PAGE_SIZE};

/// Bytes of a page that one bit of its code lines stands for.
const LINE_SHIFT: u32 = PAGE_SHIFT - u64::BITS.ilog2();

/// Whoever keeps something derived from code bytes, or stores past [`PageFlags::note_store`].
///
/// Both are called with the marks' lock held: neither may call [`PageFlags::mark_code`],
/// [`PageFlags::note_store`] (so no store to RAM), [`PageFlags::take_dirty`] or
/// [`PageFlags::add_watcher`], nor wait for a lock whose holder does. A thread that waits for the
/// marks' lock, in one of those functions, is using no shortcut.
pub trait CodeWatcher: Send + Sync {
    /// Stores to `page` are about to count again, because it becomes code or its dirty flag was
    /// taken: forget every shortcut by which stores to it escape [`PageFlags::note_store`], and
    /// return when no thread can use one any more. The caller may be a thread that owns such
    /// shortcuts itself.
    ///
    /// The flags have changed already. Who makes a shortcut looks at [`PageFlags::is_plain`] again,
    /// behind a full fence, after it is where this call finds it.
    fn stores_must_be_noted(&self, page: u64);

    /// Bytes of `page` that something was derived from have changed and the marks go: whatever was
    /// derived from the page must not be used any more after the next safe point. The generation
    /// has moved.
    ///
    /// A store of another thread that finds the marks gone comes after this call: that thread can
    /// see what the call left for it, and should look before it goes on behind a store that it
    /// noted, and before it makes a shortcut.
    fn code_written(&self, page: u64);
}

/// The marks' lock: held while a page changes between plain and code.
struct Watchers(Vec<Weak<dyn CodeWatcher>>);

impl Watchers {
    /// Calls every watcher that still lives, and forgets the others.
    fn tell(&mut self, tell: impl Fn(&dyn CodeWatcher)) {
        self.0.retain(|watcher| watcher.upgrade().inspect(|watcher| tell(&**watcher)).is_some());
    }
}

/// Flags of every page of RAM and ROM, indexed by `ram_offset >> PAGE_SHIFT`.
///
/// A store may skip [`PageFlags::note_store`] only while the page's byte reads exactly
/// [`PageFlags::PLAIN_DIRTY`]. What engines that cache something derived from code bytes do is at
/// the head of this file: read [`PageFlags::generation`], read the bytes, [`PageFlags::mark_code`],
/// read the bytes again; the copy is good while the generation has not moved.
pub struct PageFlags {
    flags: Box<[AtomicU8]>,
    generations: Box<[AtomicU32]>,
    /// Bit n of a page: some engine keeps something derived from bytes `64 * n..64 * n + 64`.
    code_lines: Box<[AtomicU64]>,
    marks: Mutex<Watchers>,
}

/// One page's part of the flags.
#[derive(Clone, Copy)]
struct Page<'a> {
    number: u64,
    flags: &'a AtomicU8,
    generation: &'a AtomicU32,
    code_lines: &'a AtomicU64,
}

impl PageFlags {
    /// Written since the flag was last cleared.
    pub const DIRTY: u8 = 1;
    /// An engine caches something derived from the page's bytes, or did until the last store.
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
            code_lines: crate::ram::zeroed_slice::<AtomicU64>(page_count),
            marks: Mutex::new(Watchers(Vec::new())),
        }
    }

    /// Calls `watcher` from now on, for as long as it lives.
    pub fn add_watcher(&self, watcher: Weak<dyn CodeWatcher>) {
        self.lock().0.push(watcher);
    }

    /// The marks' lock. What a panicking watcher leaves is a page that is not settled, which the
    /// next marking settles.
    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, number: u64) -> Option<Page<'_>> {
        let index = number as usize;
        Some(Page {
            number,
            flags: self.flags.get(index)?,
            generation: self.generations.get(index)?,
            code_lines: self.code_lines.get(index)?,
        })
    }

    /// The flags of `page`; a page that does not exist reads as [`Self::PLAIN_DIRTY`].
    #[inline]
    pub fn get(&self, page: u64) -> u8 {
        self.flags.get(page as usize).map_or(Self::PLAIN_DIRTY, |f| f.load(Ordering::Acquire))
    }

    /// True if a store to `page` may skip [`Self::note_store`].
    #[inline]
    pub fn is_plain(&self, page: u64) -> bool {
        self.get(page) == Self::PLAIN_DIRTY
    }

    /// The code generation of `page`: moves after every store over bytes marked as code.
    #[inline]
    pub fn generation(&self, page: u64) -> u32 {
        self.generations.get(page as usize).map_or(0, |g| g.load(Ordering::Acquire))
    }

    /// Marks `byte_count` bytes of `page` from `first_byte` on as code. Call after
    /// [`Self::generation`] and before the bytes are read for the last time.
    #[inline]
    pub fn mark_code(&self, page: u64, first_byte: u64, byte_count: u64) {
        let Some(page) = self.page(page) else { return };
        let mask = line_mask(first_byte, byte_count);
        if page.is_settled() {
            page.code_lines.fetch_or(mask, Ordering::SeqCst);
            // The last store may have taken the mark between the two lines above.
            if page.is_settled() {
                return;
            }
        }
        if mask != 0 {
            self.mark_slow(page, mask);
        }
    }

    #[cold]
    fn mark_slow(&self, page: Page<'_>, mask: u64) {
        let mut watchers = self.lock();
        let was_settled = page.is_settled();
        page.flags.fetch_or(Self::CODE, Ordering::SeqCst);
        page.code_lines.fetch_or(mask, Ordering::SeqCst);
        if !was_settled {
            watchers.tell(|watcher| watcher.stores_must_be_noted(page.number));
            crate::ram::full_barrier_on_all_threads();
            page.flags.fetch_or(Self::SETTLED, Ordering::SeqCst);
        }
    }

    /// Records a store to `byte_count` bytes of `page` from `first_byte` on, after the bytes were
    /// written. True if something was derived from lines it touched: whoever executes what is
    /// derived from guest bytes looks at the generation before it goes on.
    #[inline]
    pub fn note_store(&self, page: u64, first_byte: u64, byte_count: u64) -> bool {
        let Some(flags) = self.flags.get(page as usize) else { return false };
        let old = flags.load(Ordering::Acquire);
        if old & Self::DIRTY == 0 {
            flags.fetch_or(Self::DIRTY, Ordering::Relaxed);
        }
        old & Self::CODE != 0 && self.note_store_to_code(page, line_mask(first_byte, byte_count))
    }

    #[inline(never)]
    fn note_store_to_code(&self, page: u64, mask: u64) -> bool {
        let Some(page) = self.page(page) else { return false };
        // The store before the look at the lines, against the mark before the look at the bytes.
        fence(Ordering::SeqCst);
        let lines = page.code_lines.load(Ordering::Acquire);
        if lines == 0 {
            let _watchers = self.lock();
            page.make_plain();
        } else if lines & mask != 0 {
            page.take_marks(&mut self.lock());
            return true;
        }
        false
    }

    /// Gives the dirty ones of `pages` and clears their flags. A store that is not yet visible when
    /// this returns sets the flag again: what the caller reads of a page from then on is either
    /// current or will be reported the next time.
    pub fn take_dirty(&self, pages: Range<u64>) -> Vec<u64> {
        let existing = pages.start..pages.end.min(self.page_count() as u64);
        let dirty: Vec<u64> = existing.filter(|&page| self.clear_dirty(page)).collect();
        if !dirty.is_empty() {
            let mut watchers = self.lock();
            watchers.tell(|watcher| dirty.iter().for_each(|&p| watcher.stores_must_be_noted(p)));
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

impl Page<'_> {
    fn is_settled(self) -> bool {
        const BOTH: u8 = PageFlags::CODE | PageFlags::SETTLED;
        self.flags.load(Ordering::SeqCst) & BOTH == BOTH
    }

    /// Takes all marks away, under the marks' lock, after a store over some of them. Keeps the
    /// order that the head of this file argues from.
    fn take_marks(self, watchers: &mut Watchers) {
        let old = self.flags.fetch_and(!PageFlags::SETTLED, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        watchers.tell(|watcher| watcher.code_written(self.number));
        self.code_lines.store(0, Ordering::SeqCst);
        // CODE stays, so every thread still has it in view, and no shortcut can have come about.
        self.flags.fetch_or(old & PageFlags::SETTLED, Ordering::SeqCst);
    }

    /// Takes CODE away, under the marks' lock, unless a line is marked.
    fn make_plain(self) {
        let old = self.flags.fetch_and(!PageFlags::SETTLED, Ordering::SeqCst);
        if self.code_lines.load(Ordering::SeqCst) == 0 {
            self.flags.fetch_and(!PageFlags::CODE, Ordering::SeqCst);
        } else {
            self.flags.fetch_or(old & PageFlags::SETTLED, Ordering::SeqCst);
        }
    }
}

/// The lines that `byte_count` bytes from `first_byte` of a page on touch; what lies outside the
/// page does not count.
#[inline]
fn line_mask(first_byte: u64, byte_count: u64) -> u64 {
    if byte_count == 0 || first_byte >= PAGE_SIZE {
        return 0;
    }
    let last_byte = first_byte.saturating_add(byte_count - 1).min(PAGE_SIZE - 1);
    let (first, last) = (first_byte >> LINE_SHIFT, last_byte >> LINE_SHIFT);
    u64::MAX >> (63 - (last - first)) << first
}

#[cfg(test)]
mod tests {
    use super::{PAGE_SIZE, line_mask};

    #[test]
    fn a_mask_has_the_lines_that_are_touched() {
        let cases = [
            (0, 0, 0),
            (0, 1, 1),
            (0, 64, 1),
            (0, 65, 3),
            (63, 1, 1),
            (63, 2, 3),
            (64, 64, 2),
            (130, 200, 0b11_1100),
            (4095, 1, 1 << 63),
            (4032, u64::MAX, 1 << 63),
            (0, PAGE_SIZE, u64::MAX),
            (1, u64::MAX, u64::MAX),
            (PAGE_SIZE, 1, 0),
        ];
        for (first, count, mask) in cases {
            assert_eq!(line_mask(first, count), mask, "{count} bytes from {first}");
        }
    }
}
