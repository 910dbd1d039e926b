//! Commands on the chips: each shows what the chip itself says of its registers.

use std::fmt;

use machine::ioapic::InputSnapshot;
use machine::lapic::{LapicSnapshot, LvtEntry};
use machine::pci::DevFn;
use machine::pci::bar::{BarKind, BarSnapshot};
use machine::pic8259::PicSnapshot;
use memory::Width;

use super::{Answer, Call, Command, no_cpu, reply};
use crate::debug::Machine;

pub(super) const COMMANDS: &[Command] = &[
    Command::new("info pic", &[], "", "the 8259A pair", |call| {
        reply(Pics(call.machine.board().pc.pic().snapshot()))
    }),
    Command::new("info ioapic", &[], "", "the I/O APIC", |call| {
        let (id, inputs) = call.machine.board().pc.ioapic().snapshot();
        reply(IoApic { id, inputs })
    }),
    Command::new("info lapic", &[], "[APIC ID]", "the CPU's local APIC, or another one", lapic),
    Command::new("info irq", &[], "", "how often each interrupt line has risen", |call| {
        reply(Irqs(call.machine.board().pc.interrupt_counts()))
    }),
    Command::new("info pci", &[], "", "PCI functions, and what they decode", |call| {
        reply(pci(call.machine))
    }),
    Command::new("info mtree", &[], "", "what is at which physical address and port", |call| {
        reply(tree(call.machine))
    }),
    Command::new("info qtree", &["info chips"], "", "the chips by name", |call| {
        let chips = call.machine.board().pc.chips();
        reply(Chips(chips.iter().map(|chip| chip.name().to_owned()).collect()))
    }),
    Command::new("info clock", &["info time"], "", "guest time, and who waits for it", |call| {
        reply(clock(call.machine))
    }),
];

/// The 8259A pair.
struct Pics([PicSnapshot; 2]);

impl fmt::Display for Pics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pic) in self.0.iter().enumerate() {
            let PicSnapshot { irr, isr, imr, lines, elcr, vector_base, highest, .. } = pic;
            writeln!(
                out,
                "pic{index}: irr={irr:02x} imr={imr:02x} isr={isr:02x} hprio={highest} \
                 irq_base={vector_base:02x} rr_sel={} elcr={elcr:02x} fnm={} aeoi={} \
                 lines={lines:02x}",
                u8::from(pic.is_reading_isr),
                u8::from(pic.is_special_fully_nested),
                u8::from(pic.is_auto_eoi),
            )?;
        }
        Ok(())
    }
}

/// The I/O APIC.
struct IoApic {
    id: u32,
    inputs: Vec<InputSnapshot>,
}

impl fmt::Display for IoApic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "ioapic id={:#x}", self.id)?;
        for input in &self.inputs {
            let InputSnapshot { pin, entry, vector, destination, .. } = input;
            let delivery = input.delivery.map_or_else(|| "?".into(), |mode| format!("{mode:?}"));
            let word = |is_set: bool, word: &'static str| if is_set { word } else { "" };
            write!(out, "pin {pin:<2} {entry:#018x} vec={vector:<3} dest={destination:#x}")?;
            writeln!(
                out,
                " {} {delivery} {}{}{}{}",
                if input.is_logical { "logical" } else { "physical" },
                if input.is_level { "level" } else { "edge" },
                word(input.is_masked, " masked"),
                word(input.has_remote_irr, " remote-irr"),
                word(input.is_asserted, " asserted"),
            )?;
        }
        Ok(())
    }
}

/// A CPU's local APIC.
struct Lapic(LapicSnapshot);

fn lapic(call: &mut Call<'_>) -> Answer {
    let apics = call.machine.board().pc.apics();
    let mut all = apics.apics().iter().map(|apic| (apic.cpu(), apic.snapshot()));
    let found = if call.arguments.is_empty() {
        all.find(|(cpu, _)| usize::try_from(*cpu) == Ok(call.context.cpu))
    } else {
        let id = crate::debug::parse::number(call.arguments);
        all.find(|(_, apic)| Some(u64::from(apic.id)) == id)
    };
    match found {
        Some((_, apic)) => reply(Lapic(apic)),
        None if call.arguments.is_empty() => Err(no_cpu(call.machine)),
        None => Err(format!("info lapic {}: no local APIC has this ID", call.arguments)),
    }
}

impl fmt::Display for Lapic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LapicSnapshot { base, id, tpr, ppr, ldr, dfr, svr, esr, icr, .. } = &self.0;
        writeln!(out, "base={base:#x} id={id:#x} ldr={ldr:#010x} dfr={dfr:#010x} svr={svr:#x}")?;
        writeln!(out, "tpr={tpr:#04x} ppr={ppr:#04x} esr={esr:#x} icr={icr:#018x}")?;
        for (name, vectors) in [("isr", &self.0.isr), ("irr", &self.0.irr), ("tmr", &self.0.tmr)] {
            let vectors: Vec<_> = vectors.iter().map(u8::to_string).collect();
            writeln!(
                out,
                "{name} {}",
                if vectors.is_empty() { "-".into() } else { vectors.join(" ") }
            )?;
        }
        for (entry, value) in &self.0.lvt {
            let is_masked = value & 1 << 16 != 0;
            write!(out, "{:<9} {value:#010x} vec={}", lvt_name(*entry), value & 0xff)?;
            let delivery = value >> 8 & 7;
            writeln!(out, " mode={delivery}{}", if is_masked { " masked" } else { "" })?;
        }
        let (initial, divide) = (self.0.timer_initial, self.0.timer_divide);
        write!(out, "timer initial={initial:#x} divide={divide:#x}")?;
        match self.0.timer_deadline_ns {
            Some(ns) => writeln!(out, ", due at {ns} ns"),
            None => writeln!(out, ", stopped"),
        }
    }
}

fn lvt_name(entry: LvtEntry) -> &'static str {
    match entry {
        LvtEntry::Timer => "LVTT",
        LvtEntry::Thermal => "LVTTHMR",
        LvtEntry::PerformanceMonitoring => "LVTPC",
        LvtEntry::Lint0 => "LVT0",
        LvtEntry::Lint1 => "LVT1",
        LvtEntry::Error => "LVTERR",
    }
}

/// Interrupt lines with how often they have risen.
struct Irqs(Vec<(u32, u64)>);

impl fmt::Display for Irqs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let risen = self.0.iter().filter(|(_, count)| *count != 0);
        risen.clone().try_for_each(|(line, count)| writeln!(out, "{line:>2}: {count}"))?;
        if risen.count() == 0 { writeln!(out, "no line has risen") } else { Ok(()) }
    }
}

/// A PCI function.
struct Function {
    at: DevFn,
    name: String,
    vendor: u32,
    device: u32,
    class: u32,
    line: u32,
    /// 0 for none, 1 for INTA#.
    pin: u32,
    bars: Vec<BarSnapshot>,
}

/// The functions of the bus.
struct Functions(Vec<Function>);

fn pci(machine: &Machine) -> Functions {
    let functions = machine.board().pc.pci().functions();
    Functions(
        functions
            .map(|(at, function)| {
                let read = |offset, width| function.config_read(offset, width);
                Function {
                    at,
                    name: function.name().to_owned(),
                    vendor: read(0, Width::Word),
                    device: read(2, Width::Word),
                    class: read(0xa, Width::Word),
                    line: read(0x3c, Width::Byte),
                    pin: read(0x3d, Width::Byte),
                    bars: function.bars(),
                }
            })
            .collect(),
    )
}

impl fmt::Display for Functions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for function in &self.0 {
            let (device, number) = (function.at.device(), function.at.function());
            let Function { name, vendor, class, .. } = function;
            writeln!(out, "  Bus  0, device {device:>3}, function {number}: {name}")?;
            writeln!(
                out,
                "    class {class:04x}, PCI device {vendor:04x}:{:04x}",
                function.device
            )?;
            if function.pin != 0 {
                let pin = b"?ABCD".get(function.pin as usize).copied().unwrap_or(b'?');
                writeln!(out, "    IRQ {}, pin {}", function.line, char::from(pin))?;
            }
            for BarSnapshot { index, kind, bytes, base } in &function.bars {
                let kind = match kind {
                    BarKind::Io => "I/O",
                    BarKind::Memory32 => "32 bit memory",
                    BarKind::Memory64 => "64 bit memory",
                };
                write!(out, "    BAR{index}: {kind}, {bytes:#x} bytes")?;
                match base {
                    Some(base) => writeln!(out, " at {base:#x}")?,
                    None => writeln!(out, ", not mapped")?,
                }
            }
        }
        Ok(())
    }
}

/// What is where: first, last, and what.
struct Tree {
    memory: Vec<(u64, u64, &'static str)>,
    ports: Vec<(u16, u16, &'static str)>,
    is_a20_masked: bool,
}

fn tree(machine: &Machine) -> Tree {
    let pc = &machine.board().pc;
    Tree {
        memory: pc.space().regions(),
        ports: pc.ports().ranges(),
        is_a20_masked: !pc.space().is_a20_enabled(),
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "memory{}", if self.is_a20_masked { ", A20 masked" } else { "" })?;
        for (first, last, what) in &self.memory {
            writeln!(out, "  {first:016x}-{last:016x} {what}")?;
        }
        writeln!(out, "ports")?;
        for (first, last, what) in &self.ports {
            writeln!(out, "  {first:04x}-{last:04x} {what}")?;
        }
        Ok(())
    }
}

/// Chips by name.
struct Chips(Vec<String>);

impl fmt::Display for Chips {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| writeln!(out, "{name}"))
    }
}

/// Guest time.
struct Clock {
    now_ns: u64,
    unix_ns: i64,
    is_counted: bool,
    tsc_hz: u64,
    next_deadline_ns: Option<u64>,
}

fn clock(machine: &Machine) -> Clock {
    let timers = &machine.board().timers;
    Clock {
        now_ns: timers.clock().now_ns(),
        unix_ns: timers.clock().unix_ns(),
        is_counted: timers.clock().is_counted(),
        tsc_hz: machine.board().pc.config().tsc_hz,
        next_deadline_ns: timers.next_deadline_ns(),
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NS: u64 = 1_000_000_000;
        let (seconds, ns) = (self.now_ns / NS, self.now_ns % NS);
        let source = if self.is_counted { "counted by instructions" } else { "the host's" };
        writeln!(out, "guest time {seconds}.{ns:09} s, {source}")?;
        writeln!(out, "wall clock {} s since 1970 UTC", self.unix_ns.div_euclid(NS as i64))?;
        writeln!(out, "TSC {} Hz", self.tsc_hz)?;
        match self.next_deadline_ns {
            Some(deadline) => {
                let left = deadline.saturating_sub(self.now_ns);
                writeln!(out, "next timer in {left} ns")
            }
            None => writeln!(out, "no timer is armed"),
        }
    }
}
