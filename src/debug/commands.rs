//! The monitor's commands on a stopped machine: functions that give data, and the text of it.

use std::fmt;

use cpu::Cpu;
use cpu::debugger::WatchHit;
use cpu::mmu::{MappedRange, PageWalk};
use cpu::mode::OperatingMode;
use cpu::state::{Activity, cr0};
use memory::GuestPhysical;

use super::disassembly::Disassembly;
use super::machine::Machine;
use super::parse::{self, Layout, Style};
use super::registers::{Group, REGISTERS, Register};

/// What the commands of one debugger keep from one to the next.
#[derive(Default)]
pub(crate) struct Context {
    /// The CPU that commands are about.
    pub(crate) cpu: usize,
    /// The machine goes on when the debugger vanishes.
    pub(crate) goes_on_alone: bool,
    /// The last watchpoint that was met.
    pub(crate) last_watch: Option<WatchHit>,
}

/// What a command leads to.
pub(crate) enum Effect {
    /// It answers.
    Reply(Box<dyn fmt::Display>),
    /// The run is to end.
    Quit,
}

/// What `help` says.
const HELP: &str = "\
cpu [N]               the CPU that commands are about
info registers [all]  its registers, system registers and MSRs included; all: vectors too
info cpus             what each CPU does
info mem              what is mapped, with its rights
info jit              figures of its translator
info breakpoints      where it stops
info watch            the access that met a watchpoint last
x[/COUNT FORMAT SIZE] [ADDRESS]
                      memory at a linear address; x/i without an address: from here on
xp[/...] ADDRESS      memory at a physical address
translate ADDRESS     the page walk, level by level
vanish continue|stay  what the guest does if the debugger vanishes while it is stopped
quit                  end the run
An ADDRESS is made of numbers and $registers: x/4i $cs_base+$rip-2
";

/// Runs one command line.
pub(crate) fn run(machine: &Machine, context: &mut Context, line: &str) -> Result<Effect, String> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let (word, format) = word.split_once('/').unwrap_or((word, ""));
    let cpu = context.cpu;
    match (word, rest) {
        ("" | "help" | "h" | "?", _) => reply(HELP),
        ("quit" | "q", "") => Ok(Effect::Quit),
        ("cpu", _) => choose(machine, context, rest),
        ("info", _) => info(machine, context, rest),
        ("x", _) => reply(on(machine, cpu, |cpu| examine(cpu, format, rest))??),
        ("xp", _) => reply(on(machine, cpu, |cpu| examine_physical(cpu, format, rest))??),
        ("translate" | "gva2gpa", _) => {
            let walk = |cpu: &mut Cpu| {
                let linear = parse::address(rest, cpu)?;
                Ok::<_, String>(translate(cpu, linear))
            };
            reply(on(machine, cpu, walk)??)
        }
        ("vanish", "continue" | "stay") => {
            context.goes_on_alone = rest == "continue";
            reply(format!("{rest}\n"))
        }
        ("vanish", _) => Err("vanish: take continue or stay".into()),
        _ => Err(format!("{line}: no such command; `help` lists what there is")),
    }
}

fn reply(view: impl fmt::Display + 'static) -> Result<Effect, String> {
    Ok(Effect::Reply(Box::new(view)))
}

fn on<T>(machine: &Machine, cpu: usize, act: impl FnOnce(&mut Cpu) -> T) -> Result<T, String> {
    machine.with(cpu, act).ok_or_else(|| no_cpu(machine))
}

fn no_cpu(machine: &Machine) -> String {
    format!("no such CPU; there are 0 to {}", machine.cpu_count().saturating_sub(1))
}

fn choose(machine: &Machine, context: &mut Context, number: &str) -> Result<Effect, String> {
    if !number.is_empty() {
        let index = number.parse().ok().filter(|&index: &usize| index < machine.cpu_count());
        context.cpu = index.ok_or_else(|| format!("cpu {number}: {}", no_cpu(machine)))?;
    }
    reply(cpu_summary(machine, context.cpu).map(|cpu| format!("{cpu}\n")).unwrap_or_default())
}

fn info(machine: &Machine, context: &Context, what: &str) -> Result<Effect, String> {
    match what {
        "registers" => reply(on(machine, context.cpu, |cpu| registers(cpu, Shown::NoVectors))?),
        "registers all" => reply(on(machine, context.cpu, |cpu| registers(cpu, Shown::All))?),
        "cpus" => reply(cpus(machine)),
        "mem" => reply(on(machine, context.cpu, |cpu| mapped(cpu))?),
        "jit" => reply(machine.engine_figures(context.cpu).ok_or_else(|| no_cpu(machine))?),
        "breakpoints" | "b" => reply(on(machine, context.cpu, points)?),
        "watch" => reply(watch(context)),
        _ => {
            Err(format!("info {what}: take registers [all], cpus, mem, jit, breakpoints or watch"))
        }
    }
}

/// What a CPU does.
pub(crate) struct CpuSummary {
    index: usize,
    mode: OperatingMode,
    activity: Activity,
    rip: u64,
    linear: u64,
    cpl: u8,
}

/// What CPU `index` does, if there is one.
pub(crate) fn cpu_summary(machine: &Machine, index: usize) -> Option<CpuSummary> {
    machine.with(index, |cpu| CpuSummary {
        index,
        mode: cpu.mode.operating,
        activity: cpu.state.activity,
        rip: cpu.state.rip,
        linear: cpu.linear_ip(),
        cpl: cpu.state.cpl,
    })
}

impl fmt::Display for CpuSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, mode, activity, rip, linear, cpl } = self;
        let mode = match mode {
            OperatingMode::Real => "real mode",
            OperatingMode::Virtual8086 => "virtual-8086 mode",
            OperatingMode::Protected => "protected mode",
            OperatingMode::Compatibility => "compatibility mode",
            OperatingMode::Long64 => "64-bit mode",
        };
        let activity = match activity {
            Activity::Active => "active",
            Activity::Halted => "halted",
            Activity::Shutdown => "shut down",
            Activity::WaitForSipi => "waits for a start-up IPI",
        };
        write!(out, "CPU {index}: {activity}, {mode}, CPL {cpl}, RIP {rip:#x}")?;
        if rip == linear { Ok(()) } else { write!(out, ", linear {linear:#x}") }
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
        let mut column = 0;
        let mut group = None;
        for (name, of, value) in &self.0 {
            let is_wide = value.len() > 8;
            let is_new = group.replace(*of).is_some_and(|last| last != *of);
            if column != 0 && (is_new || is_wide || column == COLUMNS) {
                writeln!(out)?;
                column = 0;
            }
            let digits: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            write!(out, "{name:<14}{digits:<17}")?;
            column = if is_wide { COLUMNS } else { column + 1 };
        }
        writeln!(out)
    }
}

/// Where a CPU stops.
pub(crate) struct Points {
    breakpoints: Vec<u64>,
    watchpoints: Vec<cpu::debugger::Watchpoint>,
}

/// Where the CPU stops.
pub(crate) fn points(cpu: &mut Cpu) -> Points {
    Points {
        breakpoints: cpu.debugger().breakpoints().iter().copied().collect(),
        watchpoints: cpu.debugger().watchpoints().to_vec(),
    }
}

impl fmt::Display for Points {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for linear in &self.breakpoints {
            writeln!(out, "break {linear:#x}")?;
        }
        for watchpoint in &self.watchpoints {
            let (start, length) = (watchpoint.start, watchpoint.length);
            writeln!(out, "watch {start:#x}, {length} bytes, {:?}", watchpoint.kind)?;
        }
        if self.breakpoints.is_empty() && self.watchpoints.is_empty() {
            writeln!(out, "it stops nowhere")?;
        }
        Ok(())
    }
}

fn watch(context: &Context) -> String {
    let Some(hit) = context.last_watch else { return "no watchpoint was met\n".into() };
    let (start, at) = (hit.watchpoint.start, hit.address);
    let old = hit.old.map_or_else(|| "unknown".into(), |old| format!("{old:#x}"));
    format!("an access at {at:#x} met the watchpoint at {start:#x}, where was {old}\n")
}

/// Ranges of [`Mapped`] at most.
const RANGES_MAX: usize = 1024;

/// What is mapped.
pub(crate) struct Mapped {
    ranges: Vec<MappedRange>,
    /// Where it goes on, if that is not all.
    rest: Option<u64>,
    has_paging: bool,
}

/// What is mapped for the CPU.
pub(crate) fn mapped(cpu: &Cpu) -> Mapped {
    let (ranges, rest) = cpu.mapped_ranges(0, RANGES_MAX);
    Mapped { ranges, rest, has_paging: cpu.state.cr0 & cr0::PG != 0 }
}

impl fmt::Display for Mapped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.has_paging {
            return writeln!(out, "there is no paging");
        }
        for range in &self.ranges {
            let right = |is_given: bool, letter: char| if is_given { letter } else { '-' };
            let (user, write) = (right(range.is_user, 'u'), right(range.is_writable, 'w'));
            let execute = right(range.is_executable, 'x');
            let (start, last) = (range.start, range.last);
            writeln!(out, "{start:#018x}-{last:#018x} {user}r{write}{execute}")?;
        }
        match self.rest {
            Some(rest) => writeln!(out, "and more from {rest:#x} on"),
            None => Ok(()),
        }
    }
}

/// A page walk.
pub(crate) struct Translation {
    linear: u64,
    walk: PageWalk,
}

/// Where linear address `linear` is.
pub(crate) fn translate(cpu: &Cpu, linear: u64) -> Translation {
    Translation { linear, walk: cpu.inspect(linear) }
}

/// Bits of a paging-structure entry, from the highest.
#[rustfmt::skip]
const ENTRY_BITS: &[(u32, &str)] = &[
    (63, "XD"), (8, "G"), (7, "PS/PAT"), (6, "D"), (5, "A"), (4, "PCD"), (3, "PWT"), (2, "U"),
    (1, "W"), (0, "P"),
];

impl fmt::Display for Translation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for level in &self.walk.levels {
            let bits: Vec<&str> = ENTRY_BITS
                .iter()
                .filter(|(bit, _)| level.entry >> bit & 1 != 0)
                .map(|(_, name)| *name)
                .collect();
            let (shift, at, entry) = (level.shift, level.at.0, level.entry);
            writeln!(
                out,
                "bit {shift:>2} up: entry at {at:#x} is {entry:#018x} {}",
                bits.join(" ")
            )?;
        }
        match self.walk.found {
            Some((GuestPhysical(at), shift)) if !self.walk.levels.is_empty() => {
                writeln!(
                    out,
                    "{:#x} is at {at:#x}, in a page of {} KiB",
                    self.linear,
                    1 << (shift - 10)
                )
            }
            Some((GuestPhysical(at), _)) => {
                writeln!(out, "{:#x} is at {at:#x}, without paging", self.linear)
            }
            None => writeln!(out, "{:#x} is not mapped", self.linear),
        }
    }
}

/// Memory as items.
pub(crate) struct Dump {
    start: u64,
    layout: Layout,
    bytes: Vec<u8>,
}

fn examine(cpu: &mut Cpu, format: &str, address: &str) -> Result<Box<dyn fmt::Display>, String> {
    let layout = parse::layout(format)?;
    let linear = match address {
        "" => cpu.linear_ip(),
        address => parse::address(address, cpu)?,
    };
    if layout.style == Style::Instruction {
        return Ok(Box::new(Disassembly::of(cpu, linear, layout.count)));
    }
    let mut bytes = vec![0; layout.count * layout.size];
    let count = cpu.inspect_bytes(linear, &mut bytes);
    bytes.truncate(count);
    Ok(Box::new(Dump { start: linear, layout, bytes }))
}

fn examine_physical(cpu: &mut Cpu, format: &str, address: &str) -> Result<Dump, String> {
    let layout = parse::layout(format)?;
    if layout.style == Style::Instruction {
        return Err("xp/i: code is at linear addresses; take x/i".into());
    }
    let start = parse::address(address, cpu)?;
    let mut bytes = Vec::new();
    // Item by item: an item that is not there ends it.
    for index in 0..layout.count as u64 {
        let mut item = [0; 8];
        let item = item.get_mut(..layout.size).unwrap_or_default();
        let at = start.wrapping_add(index * layout.size as u64);
        let is_read = (0..).zip(item.iter_mut()).all(|(offset, byte)| {
            cpu.inspect_physical(GuestPhysical(at.wrapping_add(offset)), std::slice::from_mut(byte))
        });
        if !is_read {
            break;
        }
        bytes.extend_from_slice(item);
    }
    Ok(Dump { start, layout, bytes })
}

impl fmt::Display for Dump {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LINE_BYTES: usize = 16;
        let Self { start, layout, bytes } = self;
        let mut at = *start;
        for line in bytes.chunks(LINE_BYTES) {
            write!(out, "{at:#x}:")?;
            for item in line.chunks_exact(layout.size) {
                write!(out, " {}", shown(item, layout.style))?;
            }
            writeln!(out)?;
            at = at.wrapping_add(line.len() as u64);
        }
        if bytes.len() < layout.count * layout.size {
            writeln!(out, "{at:#x}: nothing is mapped there, or a device")?;
        }
        Ok(())
    }
}

fn shown(item: &[u8], style: Style) -> String {
    let value = item.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let bits = 8 * item.len() as u32;
    match style {
        Style::Hexadecimal | Style::Instruction => {
            format!("{value:#0width$x}", width = 2 + 2 * item.len())
        }
        Style::Signed => ((value << (64 - bits)) as i64 >> (64 - bits)).to_string(),
        Style::Unsigned => value.to_string(),
        Style::Octal => format!("{value:#o}"),
        Style::Binary => format!("{value:0width$b}", width = bits as usize),
        Style::Character => format!("{:?}", char::from(item.first().copied().unwrap_or(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accel, Config};
    use crate::vm::Vm;

    /// A machine, and the one whose CPUs are in it.
    fn machine() -> (Vm, Machine) {
        let config = Config { accel: Accel::Interp, cpus: 2, ..Config::default() };
        let vm = Vm::new(&config).expect("a machine");
        let machine = Machine::new(vm.cpus());
        (vm, machine)
    }

    fn answer(machine: &Machine, context: &mut Context, line: &str) -> Result<String, String> {
        match run(machine, context, line)? {
            Effect::Reply(view) => Ok(view.to_string()),
            Effect::Quit => Ok("the end".into()),
        }
    }

    #[test]
    fn commands_answer_by_data_of_the_machine() {
        let ((_vm, machine), mut context) = (machine(), Context::default());
        let mut ask = |line: &str| answer(&machine, &mut context, line).expect(line);
        assert!(ask("help").contains("translate"));
        let cpus = ask("info cpus");
        assert!(cpus.contains("CPU 0: active, real mode"), "{cpus}");
        assert!(cpus.contains("CPU 1: waits for a start-up IPI"), "{cpus}");
        assert!(ask("info registers").contains("cs_base"));
        assert!(ask("x/i").contains("jmp 0xf000:0x1000"));
        assert_eq!(ask("x/2xb $cs_base+$rip"), "0xfffffff0: 0xea 0x00\n");
        assert!(ask("translate 0x1234").contains("without paging"));
        assert_eq!(ask("info mem"), "there is no paging\n");
        assert_eq!(ask("info jit"), "the machine was made without the translator\n");
        assert!(ask("xp/4dw 0x1000").contains("0x1000: 0 0 0 0"));
        assert!(ask("x 0xe0000000").contains("nothing is mapped"));
        assert!(ask("cpu 1").starts_with("CPU 1"));
        assert_eq!(ask("info breakpoints"), "it stops nowhere\n");
        assert_eq!(ask("quit"), "the end");
        assert_eq!(context.cpu, 1);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let ((_vm, machine), mut context) = (machine(), Context::default());
        for (line, part) in [
            ("fly", "no such command"),
            ("cpu 2", "0 to 1"),
            ("info weather", "take registers"),
            ("x/4097i", "1 to 4096"),
            ("x/q 0", "formats are"),
            ("x 12z", "give a number"),
            ("x $nothing", "no such register"),
            ("x $xmm0", "is no number"),
            ("xp/i 0", "take x/i"),
            ("translate", "give a number"),
            ("vanish", "continue or stay"),
        ] {
            let error = answer(&machine, &mut context, line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
