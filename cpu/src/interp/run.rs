//! The loop: events between blocks, instructions inside them, exceptions behind them.

use std::sync::Arc;

use decoder::Vendor;

use crate::Cpu;
use crate::debug::DR6_BS;
use crate::engine::{Vcpu, VmExit};
use crate::events::Events;
use crate::exception::Exception;
use crate::state::{Activity, InterruptShadow, State, rflags};

/// Exceptions in a row, with nothing retired between them, after which a guest that does nothing
/// else gives its thread back.
const STORM: u32 = 1024;

impl Vcpu for Cpu {
    fn run(&mut self, budget: u64) -> VmExit {
        let end = self.retired.saturating_add(budget);
        let mut barren = 0;
        self.enter_guest();
        let exit = loop {
            if let Some(exit) = self.boundary() {
                break exit;
            }
            if self.retired >= end || barren == STORM {
                break VmExit::Budget;
            }
            let before = self.retired;
            self.run_block(end - before);
            barren = if self.retired == before { barren + 1 } else { 0 };
        };
        self.pause_recording(exit != VmExit::Budget);
        self.leave_guest();
        exit
    }

    fn retired(&self) -> u64 {
        self.retired
    }

    fn state(&self) -> &State {
        &self.state
    }

    fn set_state(&mut self, state: State) {
        self.sync_pv_eoi();
        self.state = state;
        self.all_changed();
    }

    fn events(&self) -> &Arc<Events> {
        &self.env.events
    }
}

impl Cpu {
    /// Between two instructions: takes what waits, in the order of SDM Vol. 3A, "Priority Among
    /// Concurrent Events".
    #[inline]
    pub(crate) fn boundary(&mut self) -> Option<VmExit> {
        if self.is_debugged() {
            return self.debugged_boundary();
        }
        self.undisturbed_boundary()
    }

    /// The same with a debugger, before and behind it.
    #[cold]
    fn debugged_boundary(&mut self) -> Option<VmExit> {
        if let Some(exit) = self.held_by_debugger() {
            return Some(exit);
        }
        let was_asleep = self.state.activity != Activity::Active;
        self.undisturbed_boundary().or_else(|| self.stopped_by_debugger(was_asleep))
    }

    #[inline]
    fn undisturbed_boundary(&mut self) -> Option<VmExit> {
        let pending = self.env.events.peek();
        let is_closed = self.state.rflags & rflags::IF == 0;
        let is_quiet = (pending == 0 || pending == Events::INTERRUPT && is_closed)
            && self.state.activity == Activity::Active
            && self.state.nmis_pending == 0;
        if is_quiet && !self.has_new_space() {
            return None;
        }
        self.boundary_slow()
    }

    /// True if some physical address may have become another thing since the CPU last looked.
    #[inline]
    pub(crate) fn has_new_space(&self) -> bool {
        self.mmu.space_generation != self.env.space.generation()
    }

    #[cold]
    fn boundary_slow(&mut self) -> Option<VmExit> {
        if self.has_new_space() {
            self.physical_space_changed();
        }
        self.take_signals();
        if self.state.activity == Activity::Halted && self.take_kick() {
            self.state.activity = Activity::Active;
        }
        self.take_interrupts();
        match self.state.activity {
            _ if self.env.events.take(Events::EXIT) != 0 => Some(VmExit::Requested),
            Activity::Active => None,
            Activity::Halted => Some(VmExit::Halt { wake: self.wake_mask() }),
            Activity::WaitForSipi => Some(VmExit::WaitForSipi),
            Activity::Shutdown => Some(VmExit::Shutdown),
        }
    }

    /// Takes what no local APIC holds back out of the mailbox.
    pub(crate) fn take_signals(&mut self) {
        let events = Arc::clone(&self.env.events);
        if events.take(Events::INIT) != 0 {
            self.init();
        }
        if events.take(Events::SIPI) != 0 && self.state.activity == Activity::WaitForSipi {
            self.startup(events.sipi_vector());
        }
        self.note_nmis(events.take_nmis());
        if events.take(Events::KICK) != 0 {
            self.kicked();
        }
    }

    /// Behind an NMI whose handler runs one more is remembered (SDM Vol. 3A, "Handling Multiple
    /// NMIs").
    fn note_nmis(&mut self, posted: u8) {
        let most = if self.state.nmi_blocked { 1 } else { 2 };
        self.state.nmis_pending = self.state.nmis_pending.saturating_add(posted).min(most);
    }

    /// The events that end HLT as things are.
    fn wake_mask(&self) -> u32 {
        let mut mask = Events::INIT | Events::EXIT | Events::KICK;
        if self.state.rflags & rflags::IF != 0 {
            mask |= Events::INTERRUPT;
        }
        if !self.state.nmi_blocked {
            mask |= Events::NMI;
        }
        mask
    }

    /// Delivers an NMI or a maskable interrupt, if the CPU takes one now.
    fn take_interrupts(&mut self) {
        let is_awake = matches!(self.state.activity, Activity::Active | Activity::Halted);
        // The shadow of STI holds NMIs back too, as processors may (SDM Vol. 2B, "STI").
        if !is_awake || self.state.shadow != InterruptShadow::None {
            return;
        }
        if self.state.nmis_pending != 0 && !self.state.nmi_blocked {
            self.state.nmis_pending -= 1;
            self.state.nmi_blocked = true;
            self.state.activity = Activity::Active;
            self.deliver_nmi();
            return;
        }
        if self.state.rflags & rflags::IF == 0 || self.debugger_holds_interrupts() {
            return;
        }
        // The mark goes first: an interrupt that comes after the look sets it again.
        if self.env.events.take(Events::INTERRUPT) == 0 {
            return;
        }
        self.sync_pv_eoi();
        if let Some(vector) = self.env.lapic.acknowledge() {
            self.env.events.post(Events::INTERRUPT);
            self.state.activity = Activity::Active;
            self.before_interrupt(vector);
            self.deliver_interrupt(vector);
        }
    }

    /// Executes one block, or one instruction where every boundary counts; at most `budget`.
    #[inline]
    pub(crate) fn run_block(&mut self, budget: u64) {
        if self.is_debugged() {
            return self.run_debugged(budget);
        }
        self.run_undisturbed(budget);
    }

    /// The same with a debugger that may want less executed at a time.
    #[cold]
    fn run_debugged(&mut self, budget: u64) {
        self.run_undisturbed(self.undisturbed_count(budget));
        self.finish_debugged();
    }

    #[inline]
    fn run_undisturbed(&mut self, budget: u64) {
        let shadow = std::mem::take(&mut self.state.shadow);
        let is_single = shadow != InterruptShadow::None
            || self.state.rflags & (rflags::TF | rflags::RF) != 0
            || self.mmu.breakpoints().has_instruction;
        if is_single {
            return self.run_single(shadow);
        }
        self.execute(budget);
        if self.pending_dr6 != 0 {
            self.debug_trap();
        }
    }

    /// True if instruction breakpoints count behind `shadow`: AMD processors take them behind MOV
    /// SS too (SDM Vol. 3A, "Masking Exceptions and Interrupts When Switching Stacks").
    fn takes_breakpoints_behind(&self, shadow: InterruptShadow) -> bool {
        shadow != InterruptShadow::MovSs || self.env.cpuid.vendor() == Vendor::Amd
    }

    /// Forgets why the last block ended.
    #[inline]
    pub(crate) fn begin_block(&mut self) {
        (self.break_block, self.device_written) = (false, false);
    }

    /// Executes at most `count` instructions of the block at RIP.
    #[inline]
    fn execute(&mut self, count: u64) {
        if self.is_recorded() {
            return self.execute_recorded(count);
        }
        let taken = match self.take_block() {
            Ok(taken) => taken,
            Err(exception) => return self.deliver_exception(exception),
        };
        self.begin_block();
        self.trace_digest = fold(self.trace_digest, self.state.rip);
        let mut fault = None;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for insn in taken.block.insns.iter().take(count) {
            self.next_rip = insn.next_ip;
            match (insn.handler)(self, insn) {
                Ok(()) => {
                    self.state.rip = self.next_rip;
                    self.retired += 1;
                    if self.break_block || self.device_written {
                        break;
                    }
                }
                Err(exception) => {
                    fault = Some(exception);
                    break;
                }
            }
        }
        self.blocks.put(taken);
        if let Some(exception) = fault {
            self.deliver_exception(exception);
        }
    }

    /// The same, with a trace that is told.
    #[cold]
    fn execute_recorded(&mut self, count: u64) {
        self.settle_recording();
        let count = self.unrecorded_count(count);
        let mut taken = match self.take_block() {
            Ok(taken) => taken,
            Err(exception) => return self.deliver_exception(exception),
        };
        self.begin_block();
        self.trace_digest = fold(self.trace_digest, self.state.rip);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (is_told, count) = self.record_block(&mut taken.block, count);
        let mut left = taken.block.insns.len() as u64;
        let mut fault = None;
        for insn in taken.block.insns.iter().take(count) {
            self.set_recorded_left(if is_told { left } else { 0 });
            self.next_rip = insn.next_ip;
            match (insn.handler)(self, insn) {
                Ok(()) => {
                    self.state.rip = self.next_rip;
                    self.retired += 1;
                    left -= 1;
                    self.record_registers(if is_told { left as u32 } else { 0 });
                    if self.break_block || self.device_written {
                        break;
                    }
                }
                Err(exception) => {
                    fault = Some(exception);
                    break;
                }
            }
        }
        self.set_recorded_left(0);
        if is_told {
            self.record_cut(left);
        }
        self.blocks.put(taken);
        if let Some(exception) = fault {
            self.deliver_exception(exception);
        }
    }

    /// Executes one instruction with everything that can happen at its two boundaries.
    #[cold]
    fn run_single(&mut self, shadow: InterruptShadow) {
        let is_resumed = self.state.rflags & rflags::RF != 0;
        let is_stepped = self.state.rflags & rflags::TF != 0;
        if !is_resumed && self.takes_breakpoints_behind(shadow) {
            let hits = self.instruction_breakpoints(self.linear_ip());
            if hits != 0 {
                self.pending_dr6 |= hits;
                return self.deliver_exception(Exception::DB);
            }
        }
        self.state.rflags &= !rflags::RF;
        self.suppress_step = false;
        let before = self.retired;
        self.execute(1);
        let is_complete = self.retired != before;
        // A REP string instruction under TF does one iteration at a time and so traps after each.
        // MOV SS loses its own single-step trap: the one of the instruction behind it comes.
        let is_shadowing = self.state.shadow == InterruptShadow::MovSs;
        if is_complete && is_stepped && !is_shadowing && !self.suppress_step {
            self.pending_dr6 |= DR6_BS;
        }
        if self.pending_dr6 != 0 {
            self.debug_trap();
        }
    }

    /// Delivers #DB as a trap for what waits in `pending_dr6`; behind MOV SS it goes on waiting.
    #[cold]
    fn debug_trap(&mut self) {
        if self.state.shadow != InterruptShadow::MovSs {
            self.deliver_exception(Exception::DB);
        }
    }
}

/// Folds the start of a block into the trace's digest.
#[inline]
fn fold(digest: u64, rip: u64) -> u64 {
    (digest.rotate_left(5) ^ rip).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
