//! Why and where a CPU stopped, for people.

use std::fmt;

use cpu::debugger::DebugStop;

use super::disassembly::Disassembly;
use super::machine::Machine;

/// A CPU that stopped.
pub(crate) struct StopReport {
    cpu: usize,
    /// Why; none if somebody asked for it.
    reason: Option<DebugStop>,
    /// The number that the monitor gave the point.
    number: Option<u32>,
    /// The instruction that comes.
    next: Disassembly,
}

impl StopReport {
    /// About CPU `index` of a stopped machine, if there is one.
    pub(crate) fn of(machine: &Machine, index: usize, reason: Option<DebugStop>) -> Option<Self> {
        let point = reason.as_ref().and_then(|stop| machine.point_of(index, stop));
        let number = point.and_then(|point| machine.number_of(point));
        machine.with(index, |cpu| Self {
            cpu: index,
            reason,
            number,
            next: {
                let names = machine.names().settle(cpu);
                Disassembly::of(cpu, names, cpu.linear_ip(), 1)
            },
        })
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number.map_or_else(String::new, |number| format!(" {number}"));
        write!(out, "CPU {}", self.cpu)?;
        match &self.reason {
            None => writeln!(out, ": stopped")?,
            Some(DebugStop::Step) => writeln!(out, ":")?,
            Some(DebugStop::Breakpoint(_)) => writeln!(out, ": breakpoint{number}")?,
            Some(DebugStop::Caught(caught)) => writeln!(out, ": caught {caught}")?,
            Some(DebugStop::Watchpoint(hit)) => {
                let old = hit.old.map_or_else(|| "unknown".into(), |old| format!("{old:#x}"));
                let (start, at) = (hit.watchpoint.start, hit.address);
                writeln!(
                    out,
                    ": watchpoint{number}: an access at {at:#x}; at {start:#x} was {old}"
                )?;
            }
        }
        write!(out, "{}", self.next)
    }
}
