//! What a debugger outside of the guest wants of a CPU: where to stop, and how to go on.
//!
//! It is no part of the architecture: the guest's debug registers ([`crate::debug`]) are its own,
//! and no byte of guest memory changes. A CPU stops at an instruction boundary, before the
//! instruction of a breakpoint ([`breakpoints`]), behind the one that met a watchpoint
//! ([`watchpoints`]) and behind an event that is caught ([`catchpoints`]), and its engine's `run`
//! then gives [`VmExit::Debug`] until the debugger lets it go on.
//!
//! Cost: one flag is looked at for each block; with breakpoints the interpreter goes by single
//! instructions only close before one.

mod breakpoints;
mod catchpoints;
mod watchpoints;

use std::collections::BTreeSet;

use memory::PAGE_SIZE;

use crate::Cpu;
use crate::engine::VmExit;
use crate::events::Events;
use crate::mode::OperatingMode;
use crate::state::Activity;

pub use breakpoints::{Breakpoint, Breakpoints, CodeAddress, Condition};
pub use catchpoints::{CATCHPOINTS_MAX, Catchpoint, Caught};
pub use watchpoints::{WATCHPOINTS_MAX, WatchHit, WatchKind, Watchpoint};

use breakpoints::Found;

/// Breakpoints of a CPU at most: a bound on what a hostile debugger makes the process keep.
pub const BREAKPOINTS_MAX: usize = 1 << 16;
/// The longest block of the interpreter, in bytes and rounded up: a breakpoint further on is in
/// another one.
const NEAR_BYTES: u64 = 512;
/// Pages of changed code that are told one by one.
const CHANGED_PAGES_MAX: usize = 1024;

/// Why a CPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// It is before the instruction at this linear address, which has a breakpoint.
    Breakpoint(u64),
    /// The last instruction met a watchpoint.
    Watchpoint(WatchHit),
    /// This has just happened.
    Caught(Caught),
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
    breakpoints: Breakpoints,
    watchpoints: Vec<Watchpoint>,
    catchpoints: Vec<Catchpoint>,
    /// The mode at the last boundary, while changes of it are caught.
    mode: Option<OperatingMode>,
    resume: Resume,
    /// The breakpoint at this linear address does not count for the next instruction.
    passed: Option<u64>,
    stop: Option<DebugStop>,
    /// The breakpoint that stopped the CPU last.
    met: Option<(CodeAddress, u32)>,
    changed: ChangedCode,
}

impl Debugger {
    fn update(&mut self) {
        self.is_on = !self.breakpoints.is_empty()
            || !self.watchpoints.is_empty()
            || !self.catchpoints.is_empty()
            || self.resume != Resume::Continue
            || self.passed.is_some()
            || self.stop.is_some();
    }

    /// The breakpoints, by address.
    pub fn breakpoints(&self) -> &Breakpoints {
        &self.breakpoints
    }

    /// The watchpoints.
    pub fn watchpoints(&self) -> &[Watchpoint] {
        &self.watchpoints
    }

    /// What is caught.
    pub fn catchpoints(&self) -> &[Catchpoint] {
        &self.catchpoints
    }

    fn is_catching(&self) -> bool {
        !self.catchpoints.is_empty()
    }

    /// The breakpoint that stopped the CPU last: where it is, and which of those there.
    pub fn met(&self) -> Option<(CodeAddress, u32)> {
        self.met
    }

    /// Why the CPU stopped, if it did.
    pub fn stop(&self) -> Option<DebugStop> {
        self.stop
    }

    fn is_single_stepping(&self) -> bool {
        self.passed.is_some() || !matches!(self.resume, Resume::Continue)
    }

    fn note_changed(&mut self, at: CodeAddress) {
        let ChangedCode::Pages(pages) = &mut self.changed else { return };
        match at {
            CodeAddress::Linear(linear) if pages.len() < CHANGED_PAGES_MAX => {
                pages.insert(linear & !(PAGE_SIZE - 1));
            }
            // Where it is mapped is not known.
            _ => self.changed = ChangedCode::All,
        }
    }
}

/// What a debugger does to a CPU that does not run.
impl Cpu {
    /// The debugger's wishes.
    pub fn debugger(&self) -> &Debugger {
        &self.debugger
    }

    /// Sets a breakpoint without a condition before the instruction at a linear address. False if
    /// there are too many.
    pub fn add_breakpoint(&mut self, linear: u64) -> bool {
        self.set_breakpoint(Breakpoint::plain(linear))
    }

    /// Takes such a breakpoint away. False if there was none.
    pub fn remove_breakpoint(&mut self, linear: u64) -> bool {
        self.clear_breakpoint(CodeAddress::Linear(linear), 0)
    }

    /// Sets a breakpoint, in place of the one with the same number at the same address. False if
    /// there are too many.
    pub fn set_breakpoint(&mut self, breakpoint: Breakpoint) -> bool {
        let at = breakpoint.at;
        let is_new = !self.debugger.breakpoints.has(at, breakpoint.number);
        if is_new && self.debugger.breakpoints.len() >= BREAKPOINTS_MAX {
            return false;
        }
        self.debugger.breakpoints.insert(breakpoint);
        if is_new {
            self.debugger.note_changed(at);
            self.debugger.update();
        }
        true
    }

    /// Takes a breakpoint away. False if there was none.
    pub fn clear_breakpoint(&mut self, at: CodeAddress, number: u32) -> bool {
        let is_removed = self.debugger.breakpoints.remove(at, number);
        if is_removed {
            self.debugger.note_changed(at);
            self.debugger.update();
        }
        is_removed
    }

    /// Catches something more. False if that is too much.
    pub fn add_catchpoint(&mut self, catchpoint: Catchpoint) -> bool {
        if self.debugger.catchpoints.contains(&catchpoint) {
            return true;
        }
        if self.debugger.catchpoints.len() >= CATCHPOINTS_MAX {
            return false;
        }
        self.debugger.catchpoints.push(catchpoint);
        self.debugger.mode = Some(self.mode.operating);
        self.debugger.update();
        true
    }

    /// Catches something no more. False if it was not caught.
    pub fn remove_catchpoint(&mut self, catchpoint: Catchpoint) -> bool {
        let before = self.debugger.catchpoints.len();
        self.debugger.catchpoints.retain(|known| *known != catchpoint);
        self.debugger.update();
        self.debugger.catchpoints.len() != before
    }

    /// Says how the CPU goes on when it runs next. With `is_passing` a breakpoint at the current
    /// instruction does not count: who has seen the CPU stop there wants to get on.
    ///
    /// A breakpoint that it stopped at before counts anew; a watchpoint that it met or an event
    /// that was caught still stops it, so that what nobody was told of is not lost.
    pub fn resume_debugged(&mut self, resume: Resume, is_passing: bool) {
        let linear = self.linear_ip();
        let is_at_breakpoint = self.is_breakpoint(linear);
        // What somebody has done to it from outside is no change of mode.
        self.debugger.mode = self.debugger.is_catching().then_some(self.mode.operating);
        let debugger = &mut self.debugger;
        let is_kept =
            |stop: &DebugStop| matches!(stop, DebugStop::Watchpoint(_) | DebugStop::Caught(_));
        debugger.stop = debugger.stop.filter(is_kept);
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
        let breakpoints = std::mem::take(&mut self.debugger.breakpoints);
        breakpoints.iter().for_each(|(at, ..)| self.debugger.note_changed(at));
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
        self.debugger.is_on && self.is_breakpoint(linear)
    }

    /// True if the next instruction is to be executed alone.
    #[inline]
    pub fn is_single_stepped(&self) -> bool {
        self.debugger.is_on && self.debugger.is_single_stepping()
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
        self.catch_mode();
        if self.debugger.stop.is_some() {
            // An event was caught on the way here.
            return Some(VmExit::Debug);
        }
        let linear = self.linear_ip();
        let is_stepping = matches!(self.debugger.resume, Resume::Step | Resume::StepInside { .. });
        if self.debugger.passed != Some(linear) {
            match self.find_breakpoint(linear) {
                Found::None => {}
                Found::Passed => self.debugger.passed = Some(linear),
                Found::Met(at, number) => {
                    self.debugger.met = Some((at, number));
                    self.note_debug_stop(DebugStop::Breakpoint(linear));
                    return Some(VmExit::Debug);
                }
            }
        }
        if is_stepping && was_asleep {
            self.note_debug_stop(DebugStop::Step);
            return Some(VmExit::Debug);
        }
        None
    }

    /// True if maskable interrupts wait until the next instruction is done.
    pub(crate) fn debugger_holds_interrupts(&self) -> bool {
        self.is_single_stepped() && self.state.activity == Activity::Active
    }

    /// How many of `count` instructions may be executed before the debugger looks again.
    pub(crate) fn undisturbed_count(&self, count: u64) -> u64 {
        let linear = self.linear_ip();
        let is_near = self.debugger.is_single_stepping()
            || !self.debugger.breakpoints.is_empty() && self.is_near_breakpoint(linear, NEAR_BYTES);
        if is_near { count.min(1) } else { count }
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
}
