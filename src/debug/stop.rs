//! Why and where a CPU stopped, for people.

use std::fmt;
use std::sync::Arc;

use cpu::Cpu;
use cpu::debugger::{DebugStop, WatchHit};
use symbols::Symbols;

use super::disassembly::Disassembly;
use super::machine::Machine;
use crate::names::Named;

/// What stopped a CPU, in a few words.
pub(crate) struct Why<'a>(pub(crate) &'a DebugStop);

impl fmt::Display for Why<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DebugStop::Step => out.write_str("step"),
            DebugStop::Breakpoint(_) => out.write_str("breakpoint"),
            DebugStop::Watchpoint(hit) => write!(out, "access at {:#x}", hit.address),
            DebugStop::Caught(caught) => write!(out, "caught {caught}"),
        }
    }
}

/// A CPU that stopped.
pub(crate) struct StopReport {
    cpu: usize,
    /// Why; none if somebody asked for it.
    reason: Option<DebugStop>,
    /// The number that the monitor gave the point.
    number: Option<u32>,
    /// What a watchpoint met.
    met: Option<Met>,
    /// The instruction that comes.
    next: Disassembly,
}

impl StopReport {
    /// About CPU `index` of a stopped machine, if there is one.
    pub(crate) fn of(machine: &Machine, index: usize, reason: Option<DebugStop>) -> Option<Self> {
        let point = reason.as_ref().and_then(|stop| machine.point_of(index, stop));
        let number = point.and_then(|point| machine.number_of(point));
        machine.with(index, |cpu| {
            let names = machine.names().settle(cpu);
            let met = match reason {
                Some(DebugStop::Watchpoint(hit)) => Some(Met::of(cpu, hit, Arc::clone(&names))),
                _ => None,
            };
            let next = Disassembly::of(cpu, names, cpu.linear_ip(), 1);
            Self { cpu: index, reason, number, met, next }
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
            Some(DebugStop::Watchpoint(_)) => {
                write!(out, ": watchpoint{number}")?;
                let met = self.met.as_ref();
                met.map_or(Ok(()), |met| write!(out, ": {met}"))?;
                writeln!(out)?;
            }
        }
        write!(out, "{}", self.next)
    }
}

/// An access that met a watchpoint, and what the watched bytes were and are.
pub(crate) struct Met {
    hit: WatchHit,
    new: Option<u64>,
    names: Arc<Symbols>,
}

impl Met {
    /// About an access, with what is there by the CPU's paging now.
    pub(crate) fn of(cpu: &mut Cpu, hit: WatchHit, names: Arc<Symbols>) -> Self {
        Self { hit, new: cpu.watched_value(hit.watchpoint), names }
    }
}

impl fmt::Display for Met {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, at) = (self.hit.watchpoint.start, self.hit.address);
        let name = Named(self.names.at(at));
        let shown = |value: Option<u64>| {
            value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:#x}"))
        };
        let (old, new) = (shown(self.hit.old), shown(self.new));
        write!(out, "an access at {at:#x}{name}; at {start:#x} was {old}, is {new}")
    }
}
