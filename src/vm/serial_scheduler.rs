//! The serial scheduler: all vCPUs on one thread, in fixed slices of instructions.
//!
//! CPUs run in turn, each for [`SLICE`] instructions or until it sleeps. Timers run between slices,
//! and a slice ends where the next deadline is when time is counted, so that a run repeats exactly:
//! nothing but counted time, seeded entropy and recorded input decides what happens when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cpu::engine::VmExit;
use cpu::events::Events;
use machine::clock::Clock;
use machine::timers::Timers;

use super::adapters::Slice;
use super::control::{Control, Quit, Request};
use super::threads::{SharedCpu, lock};

/// Instructions of a turn.
const SLICE: u64 = 10_000;
/// The longest sleep while every CPU is halted and no timer is armed: input wakes nobody earlier.
const IDLE_POLL: Duration = Duration::from_millis(10);

/// All CPUs of a machine, run in turn.
pub(crate) struct SerialScheduler<'a> {
    pub(crate) cpus: &'a [SharedCpu],
    pub(crate) clock: &'a Clock,
    pub(crate) timers: &'a Timers,
    pub(crate) slice: &'a Slice,
    pub(crate) control: &'a Arc<Control>,
}

impl SerialScheduler<'_> {
    /// Runs the machine until a request waits.
    pub(crate) fn run(&self) -> Request {
        loop {
            let mut is_any_awake = false;
            for cpu in self.cpus {
                self.timers.run_expired();
                if let Some(request) = self.control.take_request() {
                    return request;
                }
                is_any_awake |= self.turn(cpu);
            }
            if !is_any_awake {
                pass_time(self.clock, self.timers);
            }
        }
    }

    /// Runs one CPU for a slice. False if it sleeps and nothing waits for it.
    fn turn(&self, cpu: &SharedCpu) -> bool {
        let mut engine = lock(cpu);
        let cpu = engine.vcpu_mut();
        let before = cpu.retired();
        self.slice.retired_at_start.store(before, Ordering::Relaxed);
        let exit = cpu.run(self.budget());
        let used = cpu.retired().wrapping_sub(before);
        let ns = self.slice.ns_per_instruction.load(Ordering::Relaxed);
        self.slice.retired_at_start.store(cpu.retired(), Ordering::Relaxed);
        if self.clock.is_counted() {
            // A turn that retires nothing still costs time, or a CPU that only faults would stop
            // it.
            let cost = if matches!(exit, VmExit::Budget) { used.max(1) } else { used };
            self.clock.advance_to(self.clock.now_ns().saturating_add(cost.saturating_mul(ns)));
        }
        let pending = cpu.events().peek();
        match exit {
            VmExit::Requested | VmExit::Budget => true,
            VmExit::Held => false,
            VmExit::Debug => {
                self.control.request_debugger();
                true
            }
            VmExit::Halt { wake } => used != 0 || pending & wake != 0,
            VmExit::WaitForSipi => pending & (Events::SIPI | Events::INIT) != 0,
            VmExit::Shutdown => {
                self.control.request(Request::TripleFault);
                true
            }
            VmExit::Failed => {
                self.control.request(Request::Quit(Quit::Internal));
                true
            }
        }
    }

    /// The instructions of the next turn: up to the next deadline when time is counted.
    fn budget(&self) -> u64 {
        let ns = self.slice.ns_per_instruction.load(Ordering::Relaxed);
        match self.timers.next_deadline_ns() {
            Some(deadline_ns) if ns != 0 => {
                let left_ns = deadline_ns.saturating_sub(self.clock.now_ns());
                SLICE.min(left_ns.div_ceil(ns).max(1))
            }
            _ => SLICE,
        }
    }
}

/// Nothing runs: counted time jumps to the next deadline, host time is waited for.
pub(crate) fn pass_time(clock: &Clock, timers: &Timers) {
    match timers.next_deadline_ns() {
        Some(deadline_ns) if clock.is_counted() => clock.advance_to(deadline_ns),
        Some(deadline_ns) => {
            let pause = Duration::from_nanos(deadline_ns.saturating_sub(clock.now_ns()));
            std::thread::park_timeout(pause.min(IDLE_POLL));
        }
        None => std::thread::park_timeout(IDLE_POLL),
    }
}
