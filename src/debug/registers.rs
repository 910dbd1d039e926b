//! Every register of a CPU: its name, where it belongs, and how it is read and written.
//!
//! The table is the debugger's; its order is that of gdb's target description and its packets.
//! Writes take the checks of the processor's own instructions (`cpu::edit`): what they refuse is
//! refused. A selector alone is a number: it changes the base where it does so on hardware without
//! a descriptor, in real and virtual-8086 mode, and nothing else.

use std::sync::LazyLock;

use cpu::Cpu;
use cpu::edit::{LDTR, TR};
use cpu::exception::{Exception, Exec};
use cpu::fpu::{FCW_BITS, FCW_ONE, FOP_BITS};
use cpu::state::{Segment, TableRegister, seg};

/// What a debugger shows together; gdb's features, by whom they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// General registers, selectors and x87.
    Core,
    /// XMM0 to XMM15 and MXCSR.
    Sse,
    /// What gdb wants of a Linux process.
    Linux,
    /// The bases of FS and GS.
    SegmentBases,
    /// The upper halves of YMM0 to YMM15.
    Avx,
    /// Opmasks, the rest of ZMM, and registers 16 to 31.
    Avx512,
    /// PKRU.
    Pkeys,
    /// Control and debug registers.
    Control,
    /// Hidden parts of segment registers, and the registers of descriptor tables.
    Segments,
    /// Model-specific registers.
    Msrs,
}

/// How a value is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// A number.
    Integer,
    /// The address of data.
    DataPointer,
    /// The address of code.
    CodePointer,
    /// EFLAGS.
    Flags,
    /// An x87 register.
    Extended,
    /// Part of the x87 environment.
    Environment,
    /// A vector of 128 bits, in any of its shapes.
    Vector,
    /// Two halves of 128 bits.
    VectorPair,
    /// MXCSR.
    Mxcsr,
}

/// A part of the x87 environment, in gdb's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum X87 {
    Control,
    Status,
    Tag,
    CodeSelector,
    CodeOffset,
    DataSelector,
    DataOffset,
    Opcode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Gpr(usize),
    Rip,
    Rflags,
    Selector(usize),
    Base(usize),
    Limit(usize),
    Attributes(usize),
    Stack(usize),
    X87(X87),
    /// So many bytes from one on of a ZMM register.
    Zmm(usize, usize, usize),
    Mxcsr,
    Opmask(usize),
    Pkru,
    /// gdb's mark of a system call to be restarted: there is none.
    OrigRax,
    Gdtr(Table),
    Idtr(Table),
    Cr(u8),
    Xcr0,
    Dr(usize),
    Msr(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Base,
    Limit,
}

/// One register.
#[derive(Clone, Debug)]
pub(crate) struct Register {
    /// gdb's name where it has one, else the manual's in lower case.
    pub(crate) name: String,
    pub(crate) group: Group,
    pub(crate) bits: usize,
    pub(crate) format: Format,
    place: Place,
}

/// All registers.
pub(crate) static REGISTERS: LazyLock<Vec<Register>> = LazyLock::new(list);

const GPRS: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Where the encoding's order has those of [`GPRS`].
const GPR_NUMBERS: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
const SELECTORS: [(&str, usize); 6] = [
    ("cs", seg::CS),
    ("ss", seg::SS),
    ("ds", seg::DS),
    ("es", seg::ES),
    ("fs", seg::FS),
    ("gs", seg::GS),
];
const ENVIRONMENT: [(&str, X87); 8] = [
    ("fctrl", X87::Control),
    ("fstat", X87::Status),
    ("ftag", X87::Tag),
    ("fiseg", X87::CodeSelector),
    ("fioff", X87::CodeOffset),
    ("foseg", X87::DataSelector),
    ("fooff", X87::DataOffset),
    ("fop", X87::Opcode),
];
#[rustfmt::skip]
const MSRS: [(&str, u32); 21] = [
    ("efer", 0xc000_0080), ("star", 0xc000_0081), ("lstar", 0xc000_0082), ("cstar", 0xc000_0083),
    ("fmask", 0xc000_0084), ("kernel_gs_base", 0xc000_0102), ("tsc_aux", 0xc000_0103),
    ("tsc", 0x10), ("apic_base", 0x1b), ("tsc_adjust", 0x3b), ("sysenter_cs", 0x174),
    ("sysenter_esp", 0x175), ("sysenter_eip", 0x176), ("misc_enable", 0x1a0), ("debugctl", 0x1d9),
    ("pat", 0x277), ("mtrr_def_type", 0x2ff), ("mcg_status", 0x17a), ("tsc_deadline", 0x6e0),
    ("pkrs", 0x6e1), ("xss", 0xda0),
];

/// Collects the table.
struct Builder(Vec<Register>);

impl Builder {
    fn add(&mut self, group: Group, name: &str, bits: usize, format: Format, place: Place) {
        self.0.push(Register { name: name.to_owned(), group, bits, format, place });
    }

    fn integer(&mut self, group: Group, name: &str, bits: usize, place: Place) {
        self.add(group, name, bits, Format::Integer, place);
    }

    fn numbered(
        &mut self,
        group: Group,
        names: (&str, &str),
        numbers: std::ops::Range<usize>,
        (bits, format): (usize, Format),
        place: fn(usize) -> Place,
    ) {
        for number in numbers {
            let name = format!("{}{number}{}", names.0, names.1);
            self.add(group, &name, bits, format, place(number));
        }
    }
}

fn list() -> Vec<Register> {
    let mut all = Builder(Vec::new());
    add_core(&mut all);
    add_vectors(&mut all);
    add_system(&mut all);
    all.0
}

fn add_core(all: &mut Builder) {
    for (name, number) in GPRS.into_iter().zip(GPR_NUMBERS) {
        let is_pointer = matches!(name, "rbp" | "rsp");
        let format = if is_pointer { Format::DataPointer } else { Format::Integer };
        all.add(Group::Core, name, 64, format, Place::Gpr(number));
    }
    all.add(Group::Core, "rip", 64, Format::CodePointer, Place::Rip);
    all.add(Group::Core, "eflags", 32, Format::Flags, Place::Rflags);
    for (name, number) in SELECTORS {
        all.integer(Group::Core, name, 32, Place::Selector(number));
    }
    all.numbered(Group::Core, ("st", ""), 0..8, (80, Format::Extended), Place::Stack);
    for (name, part) in ENVIRONMENT {
        all.add(Group::Core, name, 32, Format::Environment, Place::X87(part));
    }
}

fn add_vectors(all: &mut Builder) {
    let low = |number| Place::Zmm(number, 0, 16);
    let middle = |number| Place::Zmm(number, 16, 16);
    let high = |number| Place::Zmm(number, 32, 32);
    let (xmm, ymm, zmm) =
        ((128, Format::Vector), (128, Format::Integer), (256, Format::VectorPair));
    all.numbered(Group::Sse, ("xmm", ""), 0..16, xmm, low);
    all.add(Group::Sse, "mxcsr", 32, Format::Mxcsr, Place::Mxcsr);
    all.integer(Group::Linux, "orig_rax", 64, Place::OrigRax);
    all.integer(Group::SegmentBases, "fs_base", 64, Place::Base(seg::FS));
    all.integer(Group::SegmentBases, "gs_base", 64, Place::Base(seg::GS));
    all.numbered(Group::Avx, ("ymm", "h"), 0..16, ymm, middle);
    all.numbered(Group::Avx512, ("k", ""), 0..8, (64, Format::Integer), Place::Opmask);
    all.numbered(Group::Avx512, ("zmm", "h"), 0..16, zmm, high);
    all.numbered(Group::Avx512, ("xmm", ""), 16..32, xmm, low);
    all.numbered(Group::Avx512, ("ymm", "h"), 16..32, ymm, middle);
    all.numbered(Group::Avx512, ("zmm", "h"), 16..32, zmm, high);
    all.integer(Group::Pkeys, "pkru", 32, Place::Pkru);
}

fn add_system(all: &mut Builder) {
    for number in [0, 2, 3, 4, 8] {
        all.integer(Group::Control, &format!("cr{number}"), 64, Place::Cr(number));
    }
    all.integer(Group::Control, "xcr0", 64, Place::Xcr0);
    for number in [0, 1, 2, 3, 6, 7] {
        all.integer(Group::Control, &format!("dr{number}"), 64, Place::Dr(number));
    }
    for (name, number) in SELECTORS.into_iter().chain([("ldtr", LDTR), ("tr", TR)]) {
        let is_system = matches!(number, LDTR | TR);
        if is_system {
            all.integer(Group::Segments, name, 16, Place::Selector(number));
        }
        if !matches!(number, seg::FS | seg::GS) {
            all.integer(Group::Segments, &format!("{name}_base"), 64, Place::Base(number));
        }
        all.integer(Group::Segments, &format!("{name}_limit"), 32, Place::Limit(number));
        all.integer(Group::Segments, &format!("{name}_attr"), 16, Place::Attributes(number));
    }
    let segments = Group::Segments;
    all.integer(segments, "gdtr_base", 64, Place::Gdtr(Table::Base));
    all.integer(segments, "gdtr_limit", 16, Place::Gdtr(Table::Limit));
    all.integer(segments, "idtr_base", 64, Place::Idtr(Table::Base));
    all.integer(segments, "idtr_limit", 16, Place::Idtr(Table::Limit));
    for (name, number) in MSRS {
        all.integer(Group::Msrs, name, 64, Place::Msr(number));
    }
}

/// The register of that name, which may be `pc` for RIP's.
pub(crate) fn by_name(name: &str) -> Option<&'static Register> {
    let name = if name == "pc" { "rip" } else { name };
    REGISTERS.iter().find(|register| register.name == name)
}

impl Register {
    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bits / 8
    }

    /// Its value, the lowest byte first, in as many bytes as it has. `None` if this processor has
    /// no such register.
    pub(crate) fn read(&self, cpu: &mut Cpu) -> Option<Vec<u8>> {
        let mut value = match self.place {
            Place::Zmm(number, from, count) => {
                cpu.state.fpu.zmm.get(number)?.get(from..from + count)?.to_vec()
            }
            Place::Stack(number) => {
                let physical = (cpu.state.fpu.top() + number) & 7;
                cpu.state.fpu.x87.get(physical)?.get(..10)?.to_vec()
            }
            place => read_number(cpu, place)?.to_le_bytes().to_vec(),
        };
        value.resize(self.bytes(), 0);
        Some(value)
    }

    /// Its value as a number; none if it is longer than 64 bits, or missing.
    pub(crate) fn number(&self, cpu: &mut Cpu) -> Option<u64> {
        let value = self.read(cpu).filter(|value| value.len() <= 8)?;
        Some(value.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Replaces its value by `value`, which has as many bytes.
    pub(crate) fn write(&self, cpu: &mut Cpu, value: &[u8]) -> Exec {
        if value.len() != self.bytes() {
            return Err(Exception::GP0);
        }
        match self.place {
            Place::Zmm(number, from, count) => {
                let register = cpu.state.fpu.zmm.get_mut(number).ok_or(Exception::GP0)?;
                register.get_mut(from..from + count).ok_or(Exception::GP0)?.copy_from_slice(value);
                Ok(())
            }
            Place::Stack(number) => {
                let physical = (cpu.state.fpu.top() + number) & 7;
                let register = cpu.state.fpu.x87.get_mut(physical).ok_or(Exception::GP0)?;
                register.get_mut(..10).ok_or(Exception::GP0)?.copy_from_slice(value);
                cpu.state.fpu.ftw |= 1 << physical;
                Ok(())
            }
            place => {
                let number = value.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
                write_number(cpu, place, number)
            }
        }
    }
}

fn read_number(cpu: &mut Cpu, place: Place) -> Option<u64> {
    let state = &cpu.state;
    Some(match place {
        Place::Gpr(number) => *state.gpr.get(number)?,
        Place::Rip => state.rip,
        Place::Rflags => state.rflags,
        Place::Selector(number) => u64::from(cpu.segment(number).selector),
        Place::Base(number) => cpu.segment(number).base,
        Place::Limit(number) => u64::from(cpu.segment(number).limit),
        Place::Attributes(number) => u64::from(cpu.segment(number).attributes),
        Place::X87(part) => u64::from(read_environment(cpu, part)),
        Place::Mxcsr => u64::from(state.fpu.mxcsr),
        Place::Opmask(number) => *state.fpu.opmask.get(number)?,
        Place::Pkru => u64::from(state.pkru),
        Place::OrigRax => u64::MAX,
        Place::Gdtr(Table::Base) => state.gdtr.base,
        Place::Gdtr(Table::Limit) => u64::from(state.gdtr.limit),
        Place::Idtr(Table::Base) => state.idtr.base,
        Place::Idtr(Table::Limit) => u64::from(state.idtr.limit),
        Place::Cr(number) => cpu.control_register(number)?,
        Place::Xcr0 => state.xcr0,
        Place::Dr(number) => *state.dr.get(number)?,
        Place::Msr(number) => cpu.read_msr(number).ok()?,
        Place::Stack(_) | Place::Zmm(..) => return None,
    })
}

fn write_number(cpu: &mut Cpu, place: Place, value: u64) -> Exec {
    let segment_of = |number: usize| *cpu.segment(number);
    match place {
        Place::Gpr(number) => {
            *cpu.state.gpr.get_mut(number).ok_or(Exception::GP0)? = value;
            Ok(())
        }
        Place::Rip => cpu.set_rip(value),
        Place::Rflags => cpu.set_rflags(value),
        Place::Selector(number) => write_selector(cpu, number, value),
        Place::Base(number) => {
            let segment = Segment { base: value, ..segment_of(number) };
            cpu.set_segment(number, segment)
        }
        Place::Limit(number) => {
            let segment = Segment { limit: narrow(value)?, ..segment_of(number) };
            cpu.set_segment(number, segment)
        }
        Place::Attributes(number) => {
            let segment = Segment { attributes: narrow(value)?, ..segment_of(number) };
            cpu.set_segment(number, segment)
        }
        Place::X87(part) => write_environment(cpu, part, value),
        Place::Mxcsr => cpu.set_mxcsr(narrow(value)?),
        Place::Opmask(number) => {
            *cpu.state.fpu.opmask.get_mut(number).ok_or(Exception::GP0)? = value;
            Ok(())
        }
        Place::Pkru => {
            cpu.set_pkru(narrow(value)?);
            Ok(())
        }
        // gdb marks a changed RIP in it, which needs no mark here.
        Place::OrigRax => Ok(()),
        Place::Gdtr(part) => cpu.set_gdtr(table(cpu.state.gdtr, part, value)?),
        Place::Idtr(part) => cpu.set_idtr(table(cpu.state.idtr, part, value)?),
        Place::Cr(number) => cpu.set_control_register(number, value),
        Place::Xcr0 => cpu.set_xcr0(value),
        Place::Dr(number) => cpu.set_debug_register(number, value),
        Place::Msr(number) => cpu.write_msr(number, value),
        Place::Stack(_) | Place::Zmm(..) => Err(Exception::GP0),
    }
}

fn narrow<T: TryFrom<u64>>(value: u64) -> Result<T, Exception> {
    T::try_from(value).map_err(|_| Exception::GP0)
}

fn table(old: TableRegister, part: Table, value: u64) -> Result<TableRegister, Exception> {
    Ok(match part {
        Table::Base => TableRegister { base: value, ..old },
        Table::Limit => TableRegister { limit: narrow(value)?, ..old },
    })
}

fn write_selector(cpu: &mut Cpu, number: usize, value: u64) -> Exec {
    let mut segment = *cpu.segment(number);
    segment.selector = narrow(value)?;
    if cpu.mode.is_real_or_v86() && number < LDTR {
        segment.base = value << 4;
    }
    cpu.set_segment(number, segment)
}

fn read_environment(cpu: &Cpu, part: X87) -> u32 {
    let fpu = &cpu.state.fpu;
    match part {
        X87::Control => u32::from(fpu.fcw),
        X87::Status => u32::from(fpu.fsw),
        X87::Tag => u32::from(fpu.full_tag()),
        X87::CodeSelector => u32::from(fpu.fcs),
        X87::CodeOffset => fpu.fip as u32,
        X87::DataSelector => u32::from(fpu.fds),
        X87::DataOffset => fpu.fdp as u32,
        X87::Opcode => u32::from(fpu.fop),
    }
}

fn write_environment(cpu: &mut Cpu, part: X87, value: u64) -> Exec {
    let fpu = &mut cpu.state.fpu;
    match part {
        X87::Control => fpu.fcw = narrow::<u16>(value)? & FCW_BITS | FCW_ONE,
        X87::Status => fpu.fsw = narrow(value)?,
        X87::Tag => {
            let tags = narrow::<u16>(value)?;
            fpu.ftw =
                (0..8).filter(|number| tags >> (2 * number) & 3 != 3).fold(0, |w, n| w | 1 << n);
        }
        X87::CodeSelector => fpu.fcs = narrow(value)?,
        X87::CodeOffset => fpu.fip = value,
        X87::DataSelector => fpu.fds = narrow(value)?,
        X87::DataOffset => fpu.fdp = value,
        X87::Opcode => fpu.fop = narrow::<u16>(value)? & FOP_BITS,
    }
    fpu.summarize_exceptions();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accel, Config};
    use crate::vm::Vm;

    #[test]
    fn names_are_unique_and_values_fit() {
        let mut names: Vec<_> = REGISTERS.iter().map(|register| &register.name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(REGISTERS.iter().all(|register| register.bits % 8 == 0));
    }

    #[test]
    fn every_register_is_read_and_takes_its_own_value_back() {
        let config = Config { accel: Accel::Interp, backends: Vec::new(), ..Config::default() };
        let vm = Vm::new(&config).expect("a machine");
        let mut engine = vm.first_cpu().expect("a CPU");
        let cpu = engine.cpu_mut();
        for register in REGISTERS.iter() {
            let Some(value) = register.read(cpu) else { continue };
            // The local APIC takes a deadline only in its deadline mode, and drops it silently.
            register.write(cpu, &value).unwrap_or_else(|_| panic!("{} is refused", register.name));
            if !register.name.starts_with("tsc") {
                assert_eq!(register.read(cpu), Some(value), "{}", register.name);
            }
        }
    }

    #[test]
    fn what_instructions_refuse_is_refused() {
        let config = Config { accel: Accel::Interp, backends: Vec::new(), ..Config::default() };
        let vm = Vm::new(&config).expect("a machine");
        let mut engine = vm.first_cpu().expect("a CPU");
        let cpu = engine.cpu_mut();
        #[rustfmt::skip]
        let rows: [(&str, u64); 8] = [
            ("cr0", 0x8000_0000), ("cr4", 1 << 40), ("mxcsr", 0xffff_0000), ("rip", 1 << 40),
            ("efer", 1 << 63), ("dr7", 1 << 33), ("cs_attr", 1 << 10), ("xcr0", 0),
        ];
        for (name, value) in rows {
            let register = by_name(name).expect(name);
            let before = register.read(cpu);
            let bytes = value.to_le_bytes();
            assert!(register.write(cpu, &bytes[..register.bytes()]).is_err(), "{name}");
            assert_eq!(register.read(cpu), before, "{name}");
        }
    }
}
