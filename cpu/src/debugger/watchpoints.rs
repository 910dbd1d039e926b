//! Watchpoints: ranges of linear addresses whose accesses stop a CPU.
//!
//! Pages with watchpoints are kept out of the translation caches, so that their accesses take the
//! slow path, which compares byte ranges; other pages cost nothing. A translator asks which bytes
//! around an access nobody watches ([`Cpu::unwatched_around`]) and leaves only for the others.
//!
//! Known departure: an access that is checked and then not made (its instruction faults at a later
//! operand) counts as made, as with the guest's own data breakpoints.

use memory::PAGE_SIZE;

use super::DebugStop;
use crate::Cpu;
use crate::mmu::Access;

/// Watchpoints of a CPU at most: each access to a watched page is compared with all of them.
pub const WATCHPOINTS_MAX: usize = 4096;

/// Which accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Both.
    Access,
}

/// A range of linear addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watchpoint {
    /// The first byte.
    pub start: u64,
    /// How many; the range may end at the end of the address space and not go on behind it.
    pub length: u64,
    /// What it stops at.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// True if some of `bytes` bytes at `linear` are in the range.
    fn overlaps(&self, linear: u64, bytes: u64) -> bool {
        linear.wrapping_sub(self.start) < self.length || self.start.wrapping_sub(linear) < bytes
    }

    fn stops(&self, access: Access) -> bool {
        match access {
            Access::Write => self.kind != WatchKind::Read,
            Access::Read => self.kind != WatchKind::Write,
            Access::Execute => false,
        }
    }
}

/// An access that met a watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchHit {
    /// The watchpoint.
    pub watchpoint: Watchpoint,
    /// The first byte of the access.
    pub address: u64,
    /// What the first eight bytes of the range (or all, if it has less) were before, as far as they
    /// could be read.
    pub old: Option<u64>,
}

impl Cpu {
    /// Sets a watchpoint. False if there are too many, or if it is empty or has no end.
    pub fn add_watchpoint(&mut self, watchpoint: Watchpoint) -> bool {
        let is_range =
            watchpoint.length != 0 && watchpoint.start.checked_add(watchpoint.length - 1).is_some();
        if !is_range || self.debugger.watchpoints.len() >= WATCHPOINTS_MAX {
            return false;
        }
        if !self.debugger.watchpoints.contains(&watchpoint) {
            self.debugger.watchpoints.push(watchpoint);
            self.debugger.update();
            self.flush_translations();
        }
        true
    }

    /// Takes a watchpoint away. False if there was none.
    pub fn remove_watchpoint(&mut self, watchpoint: Watchpoint) -> bool {
        let before = self.debugger.watchpoints.len();
        self.debugger.watchpoints.retain(|known| *known != watchpoint);
        let is_removed = self.debugger.watchpoints.len() != before;
        if is_removed {
            self.debugger.update();
            self.flush_translations();
        }
        is_removed
    }

    /// What the first eight bytes of a watchpoint's range are (or all, if it has less), if they can
    /// be read.
    pub fn watched_value(&mut self, watchpoint: Watchpoint) -> Option<u64> {
        let mut value = [0; 8];
        let bytes = value.get_mut(..watchpoint.length.min(8) as usize).unwrap_or_default();
        let is_read = self.inspect_bytes(watchpoint.start, bytes) == bytes.len();
        is_read.then(|| u64::from_le_bytes(value))
    }

    /// True if accesses to the page of `linear` must be looked at one by one.
    #[inline]
    pub(crate) fn is_watched_page(&self, linear: u64) -> bool {
        let page = linear & !(PAGE_SIZE - 1);
        let watches = |watchpoint: &Watchpoint| watchpoint.overlaps(page, PAGE_SIZE);
        self.debugger.is_on && self.debugger.watchpoints.iter().any(watches)
    }

    /// The bytes of a page around the `bytes` bytes at `linear` that no watchpoint meets by
    /// `access`: the first one, and how many. The error is a watchpoint that meets these bytes, or
    /// may.
    pub fn unwatched_around(
        &self,
        linear: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(u64, u64), Watchpoint> {
        let page = linear & !(PAGE_SIZE - 1);
        // Offsets in the page, so that its end is a number on the last page too.
        let (offset, mut low, mut high) = (linear - page, 0, PAGE_SIZE);
        let is_met = |watchpoint: &&Watchpoint| {
            // What writes may read too, in an instruction that changes its operand.
            access == Access::Write || watchpoint.stops(access)
        };
        for watchpoint in self.debugger.watchpoints.iter().filter(is_met) {
            if watchpoint.overlaps(linear, bytes) {
                return Err(*watchpoint);
            }
            if !watchpoint.overlaps(page, PAGE_SIZE) {
                continue;
            }
            if watchpoint.start > linear {
                high = high.min(watchpoint.start - page);
            } else {
                low = low.max(watchpoint.start.wrapping_add(watchpoint.length).wrapping_sub(page));
            }
        }
        debug_assert!(low <= offset && offset + bytes <= high, "inside of a page");
        Ok((page + low, high - low))
    }

    /// Notes the watchpoint that an access meets; the CPU stops behind the instruction.
    #[inline]
    pub(crate) fn check_watchpoints(&mut self, linear: u64, bytes: u64, access: Access) {
        if self.debugger.is_on && !self.debugger.watchpoints.is_empty() {
            self.check_watchpoints_slow(linear, bytes, access);
        }
    }

    #[cold]
    fn check_watchpoints_slow(&mut self, linear: u64, bytes: u64, access: Access) {
        let meets = |watchpoint: &&Watchpoint| {
            watchpoint.stops(access) && watchpoint.overlaps(linear, bytes)
        };
        let Some(&watchpoint) = self.debugger.watchpoints.iter().find(meets) else { return };
        let old = self.watched_value(watchpoint);
        let hit = WatchHit { watchpoint, address: linear, old };
        self.note_debug_stop(DebugStop::Watchpoint(hit));
    }
}
