//! Commands on the CPUs and their registers.

use std::fmt;
use std::sync::Arc;

use cpu::Cpu;
use cpu::debugger::DebugStop;
use cpu::mode::OperatingMode;
use cpu::state::Activity;

use symbols::Symbols;

use super::{Answer, Call, Command, cpu_number, reply};
use crate::debug::Why;
use crate::debug::machine::Machine;
use crate::debug::registers::{Group, REGISTERS, Register};
use crate::names::Named;

pub(super) const COMMANDS: &[Command] = &[
    Command::new("cpu", &[], "[N]", "the CPU that commands are about", choose),
    Command::new("info cpus", &[], "", "what each CPU does", |call| reply(cpus(call.machine))),
    Command::new(
        "info registers",
        &["info r"],
        "[all]",
        "registers, system registers and MSRs; all: vectors too",
        info_registers,
    ),
];

fn choose(call: &mut Call<'_>) -> Answer {
    let (machine, number) = (call.machine, call.arguments);
    if !number.is_empty() {
        call.context.cpu = cpu_number(machine, number)?;
    }
    reply(cpu_summary(machine, call.context.cpu).map(|cpu| format!("{cpu}\n")).unwrap_or_default())
}

fn info_registers(call: &mut Call<'_>) -> Answer {
    let shown = match call.arguments {
        "" => Shown::NoVectors,
        "all" => Shown::All,
        other => return Err(format!("info registers {other}: take all, or nothing")),
    };
    reply(call.on_cpu(|cpu| registers(cpu, shown))?)
}

/// What a CPU does.
pub(crate) struct CpuSummary {
    index: usize,
    mode: OperatingMode,
    activity: Activity,
    rip: u64,
    linear: u64,
    cpl: u8,
    names: Arc<Symbols>,
    /// Why it stands by itself, if it does.
    held: Option<Option<DebugStop>>,
}

/// What CPU `index` does, if there is one.
pub(crate) fn cpu_summary(machine: &Machine, index: usize) -> Option<CpuSummary> {
    let held = machine.why_held(index);
    machine.with(index, |cpu| CpuSummary {
        index,
        held,
        mode: cpu.mode.operating,
        activity: cpu.state.activity,
        rip: cpu.state.rip,
        linear: cpu.linear_ip(),
        cpl: cpu.state.cpl,
        names: machine.names().settle(cpu),
    })
}

impl fmt::Display for CpuSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, mode, activity, rip, linear, cpl, names, held } = self;
        let activity = match activity {
            Activity::Active => "active",
            Activity::Halted => "halted",
            Activity::Shutdown => "shut down",
            Activity::WaitForSipi => "waits for a start-up IPI",
        };
        write!(out, "CPU {index}: {activity}, {mode}, CPL {cpl}, RIP {rip:#x}")?;
        if rip != linear {
            write!(out, ", linear {linear:#x}")?;
        }
        write!(out, "{}", Named(names.at(*linear)))?;
        match held {
            None => Ok(()),
            Some(None) => out.write_str("; stands"),
            Some(Some(why)) => write!(out, "; stands: {}", Why(why)),
        }
    }
}

/// What all CPUs do.
pub(crate) struct Cpus(Vec<CpuSummary>);

/// What all CPUs do.
pub(crate) fn cpus(machine: &Machine) -> Cpus {
    Cpus((0..machine.cpu_count()).filter_map(|index| cpu_summary(machine, index)).collect())
}

impl fmt::Display for Cpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|cpu| writeln!(out, "{cpu}"))
    }
}

/// Registers with their values, the lowest byte first.
pub(crate) struct Registers(Vec<(&'static str, Group, Vec<u8>)>);

/// Which registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Not those of vectors, which fill a screen.
    NoVectors,
    /// All.
    All,
}

/// The registers that the processor has.
pub(crate) fn registers(cpu: &mut Cpu, shown: Shown) -> Registers {
    let is_shown = |register: &&Register| {
        let is_vector = matches!(register.group, Group::Sse | Group::Avx | Group::Avx512);
        shown == Shown::All || !is_vector
    };
    let value = |register: &'static Register| {
        Some((register.name.as_str(), register.group, register.read(cpu)?))
    };
    Registers(REGISTERS.iter().filter(is_shown).filter_map(value).collect())
}

impl fmt::Display for Registers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COLUMNS: usize = 4;
        let (mut column, mut gap) = (0, 0);
        let mut group = None;
        for (name, of, value) in &self.0 {
            let is_wide = value.len() > 8;
            let is_new = group.replace(*of).is_some_and(|last| last != *of);
            if column != 0 && (is_new || is_wide || column == COLUMNS) {
                writeln!(out)?;
                column = 0;
            }
            let digits: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            // The last of a line is not filled up.
            if column != 0 {
                write!(out, "{:1$}", "", gap)?;
            }
            write!(out, "{name:<15}{digits}")?;
            gap = 18usize.saturating_sub(digits.len());
            column = if is_wide { COLUMNS } else { column + 1 };
        }
        writeln!(out)
    }
}
