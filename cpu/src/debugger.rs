//! What a debugger outside of the guest wants of a CPU: where to stop, and how to go on.
//!
//! It is no part of the architecture: the guest's debug registers ([`crate::debug`]) are its own,
//! and no byte of guest memory changes. A CPU stops at an instruction boundary, before the
//! instruction of a breakpoint and behind the one that met a watchpoint, and its engine's `run`
//! then gives [`VmExit::Debug`] until the debugger lets it go on.
//!
//! Cost: one flag is looked at for each block; with breakpoints the interpreter goes by single
//! instructions only close before one. Pages with watchpoints are kept out of every translation
//! cache, so that their accesses take the slow path, which compares byte ranges; other pages cost
//! nothing.
//!
//! Known departure: an access that is checked and then not made (its instruction faults at a later
//! operand) counts as made, as with the guest's own data breakpoints.

use std::collections::BTreeSet;

use memory::PAGE_SIZE;

use crate::Cpu;
use crate::engine::VmExit;
use crate::events::Events;
use crate::mmu::Access;
use crate::state::Activity;

/// Breakpoints of a CPU at most: a bound on what a hostile debugger makes the process keep.
pub const BREAKPOINTS_MAX: usize = 1 << 16;
/// Watchpoints of a CPU at most: each access to a watched page is compared with all of them.
pub const WATCHPOINTS_MAX: usize = 4096;
/// The longest block of the interpreter, in bytes and rounded up: a breakpoint further on is in
/// another one.
const NEAR_BYTES: u64 = 512;
/// Pages of changed code that are told one by one.
const CHANGED_PAGES_MAX: usize = 1024;

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

/// Why a CPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// It is before the instruction at this linear address, which has a breakpoint.
    Breakpoint(u64),
    /// The last instruction met a watchpoint.
    Watchpoint(WatchHit),
    /// The step is done.
    Step,
}

/// How a CPU goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Until something stops it.
    #[default]
    Continue,
    /// One instruction. Maskable interrupts are held back meanwhile, or a step would lead into
    /// their handlers; a CPU in HLT is awaited.
    Step,
    /// Instructions until RIP is outside of this range.
    StepInside {
        /// The first RIP in it.
        start: u64,
        /// The first behind it.
        end: u64,
    },
    /// Not at all.
    Hold,
}

/// Code that an engine may have made something of and must look at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangedCode {
    /// On these linear pages.
    Pages(BTreeSet<u64>),
    /// All.
    All,
}

impl Default for ChangedCode {
    fn default() -> Self {
        Self::Pages(BTreeSet::new())
    }
}

/// A debugger's wishes for one CPU, and what came of them.
#[derive(Default)]
pub struct Debugger {
    /// Something below is not as it is without a debugger.
    is_on: bool,
    breakpoints: BTreeSet<u64>,
    watchpoints: Vec<Watchpoint>,
    resume: Resume,
    /// The breakpoint at this linear address does not count for the next instruction.
    passed: Option<u64>,
    stop: Option<DebugStop>,
    changed: ChangedCode,
}

impl Debugger {
    fn update(&mut self) {
        self.is_on = !self.breakpoints.is_empty()
            || !self.watchpoints.is_empty()
            || self.resume != Resume::Continue
            || self.passed.is_some()
            || self.stop.is_some();
    }

    /// The breakpoints, by address.
    pub fn breakpoints(&self) -> &BTreeSet<u64> {
        &self.breakpoints
    }

    /// The watchpoints.
    pub fn watchpoints(&self) -> &[Watchpoint] {
        &self.watchpoints
    }

    /// Why the CPU stopped, if it did.
    pub fn stop(&self) -> Option<DebugStop> {
        self.stop
    }

    fn is_single_stepping(&self) -> bool {
        self.passed.is_some() || !matches!(self.resume, Resume::Continue)
    }

    /// True if some watchpoint is on the page of `linear`.
    pub(crate) fn watches_page(&self, linear: u64) -> bool {
        let page = linear & !(PAGE_SIZE - 1);
        self.watchpoints.iter().any(|watchpoint| watchpoint.overlaps(page, PAGE_SIZE))
    }

    fn note_changed(&mut self, linear: u64) {
        if let ChangedCode::Pages(pages) = &mut self.changed {
            pages.insert(linear & !(PAGE_SIZE - 1));
            if pages.len() > CHANGED_PAGES_MAX {
                self.changed = ChangedCode::All;
            }
        }
    }
}

/// What a debugger does to a CPU that does not run.
impl Cpu {
    /// The debugger's wishes.
    pub fn debugger(&self) -> &Debugger {
        &self.debugger
    }

    /// Sets a breakpoint before the instruction at a linear address. False if there are too many.
    pub fn add_breakpoint(&mut self, linear: u64) -> bool {
        if self.debugger.breakpoints.len() >= BREAKPOINTS_MAX {
            return false;
        }
        if self.debugger.breakpoints.insert(linear) {
            self.debugger.note_changed(linear);
            self.debugger.update();
        }
        true
    }

    /// Takes a breakpoint away. False if there was none.
    pub fn remove_breakpoint(&mut self, linear: u64) -> bool {
        let is_removed = self.debugger.breakpoints.remove(&linear);
        if is_removed {
            self.debugger.note_changed(linear);
            self.debugger.update();
        }
        is_removed
    }

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

    /// Says how the CPU goes on when it runs next. With `is_passing` a breakpoint at the current
    /// instruction does not count: who has seen the CPU stop there wants to get on.
    ///
    /// A breakpoint that it stopped at before counts anew; a watchpoint that it met still stops it,
    /// so that what nobody was told of is not lost.
    pub fn resume_debugged(&mut self, resume: Resume, is_passing: bool) {
        let linear = self.linear_ip();
        let is_at_breakpoint = self.debugger.breakpoints.contains(&linear);
        let debugger = &mut self.debugger;
        debugger.stop = debugger.stop.filter(|stop| matches!(stop, DebugStop::Watchpoint(_)));
        debugger.resume = resume;
        debugger.passed = (is_passing && is_at_breakpoint).then_some(linear);
        debugger.update();
    }

    /// Takes why the CPU stopped.
    pub fn take_debug_stop(&mut self) -> Option<DebugStop> {
        let stop = self.debugger.stop.take();
        self.debugger.update();
        stop
    }

    /// The debugger goes: nothing stops the CPU any more.
    pub fn detach_debugger(&mut self) {
        for linear in std::mem::take(&mut self.debugger.breakpoints) {
            self.debugger.note_changed(linear);
        }
        if !self.debugger.watchpoints.is_empty() {
            self.flush_translations();
        }
        let changed = std::mem::take(&mut self.debugger.changed);
        self.debugger = Debugger { changed, ..Debugger::default() };
    }
}

/// What engines ask.
impl Cpu {
    /// Code in which breakpoints came or went since the last call.
    pub fn take_changed_code(&mut self) -> ChangedCode {
        std::mem::take(&mut self.debugger.changed)
    }

    /// True if the instruction at linear address `linear` has a breakpoint.
    #[inline]
    pub fn has_breakpoint(&self, linear: u64) -> bool {
        self.debugger.is_on && self.debugger.breakpoints.contains(&linear)
    }

    /// True if the next instruction is to be executed alone.
    #[inline]
    pub fn is_single_stepped(&self) -> bool {
        self.debugger.is_on && self.debugger.is_single_stepping()
    }

    /// True if accesses to the page of `linear` must be looked at one by one.
    #[inline]
    pub(crate) fn is_watched_page(&self, linear: u64) -> bool {
        self.debugger.is_on && self.debugger.watches_page(linear)
    }

    /// Has the debugger stop the CPU for what another engine has found.
    pub fn note_debug_stop(&mut self, stop: DebugStop) {
        self.debugger.stop.get_or_insert(stop);
        self.debugger.update();
        self.break_block = true;
    }

    /// Before the events of a boundary: a CPU that has stopped takes none.
    pub(crate) fn held_by_debugger(&mut self) -> Option<VmExit> {
        let is_held = self.debugger.resume == Resume::Hold;
        if self.debugger.stop.is_none() && !is_held {
            return None;
        }
        Some(match self.env.events.take(Events::EXIT) {
            0 if self.debugger.stop.is_some() => VmExit::Debug,
            0 => VmExit::Held,
            _ => VmExit::Requested,
        })
    }

    /// Behind the events of a boundary: whether the debugger stops the CPU before the instruction
    /// that comes. `was_asleep` says that an event has just woken it.
    pub(crate) fn stopped_by_debugger(&mut self, was_asleep: bool) -> Option<VmExit> {
        let linear = self.linear_ip();
        let is_stepping = matches!(self.debugger.resume, Resume::Step | Resume::StepInside { .. });
        let stop = if self.debugger.passed != Some(linear)
            && self.debugger.breakpoints.contains(&linear)
        {
            DebugStop::Breakpoint(linear)
        } else if is_stepping && was_asleep {
            DebugStop::Step
        } else {
            return None;
        };
        self.note_debug_stop(stop);
        Some(VmExit::Debug)
    }

    /// True if maskable interrupts wait until the next instruction is done.
    pub(crate) fn debugger_holds_interrupts(&self) -> bool {
        self.is_single_stepped() && self.state.activity == Activity::Active
    }

    /// How many of `count` instructions may be executed before the debugger looks again.
    pub(crate) fn undisturbed_count(&self, count: u64) -> u64 {
        let linear = self.linear_ip();
        let is_near = || {
            let near = linear..=linear.saturating_add(NEAR_BYTES);
            self.debugger.breakpoints.range(near).next().is_some()
        };
        if self.debugger.is_single_stepping() || is_near() { count.min(1) } else { count }
    }

    /// True while the debugger wants something.
    #[inline]
    pub(crate) fn is_debugged(&self) -> bool {
        self.debugger.is_on
    }

    /// Behind executed instructions, the first of which may have been passed or stepped.
    pub(crate) fn finish_debugged(&mut self) {
        self.debugger.passed = None;
        let rip = self.state.rip;
        let is_done = match self.debugger.resume {
            Resume::Step => true,
            Resume::StepInside { start, end } => !(start..end).contains(&rip),
            Resume::Continue | Resume::Hold => false,
        };
        if is_done {
            self.note_debug_stop(DebugStop::Step);
        }
        self.debugger.update();
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
        let mut value = [0; 8];
        let shown = value.get_mut(..watchpoint.length.min(8) as usize).unwrap_or_default();
        let is_read = self.inspect_bytes(watchpoint.start, shown) == shown.len();
        let old = is_read.then(|| u64::from_le_bytes(value));
        let hit = WatchHit { watchpoint, address: linear, old };
        self.note_debug_stop(DebugStop::Watchpoint(hit));
    }
}
