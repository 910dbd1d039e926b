//! What one engine hands to another when a CPU changes engines: everything that is not derived.
//!
//! The two engines have a [`Cpu`] each, with the same local APIC, mailbox and memory behind it;
//! only one of them runs at a time. What is in the mailbox stays there.

use crate::Cpu;
use crate::debugger::Debugger;
use crate::pv::Paravirtual;
use crate::recording::Recording;
use crate::state::State;

/// A CPU between two engines, at an instruction boundary.
pub struct Handover {
    state: State,
    pending_dr6: u64,
    paravirtual: Paravirtual,
    debugger: Debugger,
    recording: Option<Box<Recording>>,
    retired: u64,
    trace_digest: u64,
}

impl Cpu {
    /// Gives the CPU away. What is left must not run before it takes one over.
    pub fn hand_over(&mut self) -> Handover {
        Handover {
            state: self.state.clone(),
            pending_dr6: self.pending_dr6,
            paravirtual: std::mem::take(&mut self.pv),
            debugger: std::mem::take(&mut self.debugger),
            recording: self.recording.take(),
            retired: self.retired,
            trace_digest: self.trace_digest,
        }
    }

    /// Goes on as the CPU that was handed over. Whatever was derived of an older state is dropped:
    /// the other engine may have changed memory and mappings without a word.
    pub fn take_over(&mut self, handover: Handover) {
        let Handover {
            state,
            pending_dr6,
            paravirtual,
            debugger,
            recording,
            retired,
            trace_digest,
        } = handover;
        self.state = state;
        self.pv = paravirtual;
        self.debugger = debugger;
        self.recording = recording;
        self.forget_recorded();
        self.has_new_recording = true;
        self.retired = retired;
        self.trace_digest = trace_digest;
        self.physical_space_changed();
        self.all_changed();
        self.pending_dr6 = pending_dr6;
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{Vcpu, VmExit};
    use crate::state::gpr;
    use crate::testing::{Bench, CODE};

    #[test]
    fn a_breakpoint_goes_with_the_cpu() {
        let mut bench = Bench::long64();
        bench.put_code_at(CODE, &[0x90, 0x90, 0x90]);
        let mut other = bench.second_cpu();
        assert!(bench.cpu.add_breakpoint(CODE + 2));
        other.take_over(bench.cpu.hand_over());
        assert_eq!(other.run(10), VmExit::Debug);
        assert_eq!(other.state.rip, CODE + 2);
        assert!(bench.cpu.debugger().breakpoints().is_empty());
    }

    /// MOV EAX, 1 / INC EAX / ADD EAX, EAX, one at a time on the one CPU and the other.
    #[test]
    fn a_cpu_goes_on_where_the_other_was() {
        let mut bench = Bench::long64();
        bench.put_code_at(CODE, &[0xb8, 1, 0, 0, 0, 0xff, 0xc0, 0x01, 0xc0]);
        let mut other = bench.second_cpu();
        bench.cpu.run(1);
        other.take_over(bench.cpu.hand_over());
        other.run(1);
        bench.cpu.take_over(other.hand_over());
        bench.cpu.run(1);
        assert_eq!(bench.cpu.state.gpr[gpr::RAX], 4);
        assert_eq!(bench.cpu.retired(), 3);
    }
}
