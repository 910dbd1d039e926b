//! What a fuzzed guest starts with: mode, control registers, tables, registers, code.

use super::input::Input;
use crate::state::{Segment, attr, cr0, cr4, efer, gpr, rflags, seg};
use crate::testing::{
    Bench, CODE, DATA, GDT, IDT, PAGE_OPEN, PD, PDPT, PML4, PT, RAM_BYTES, STACK, selector,
};

/// Page directory of 32-bit paging, by pages of 4 MiB.
const PD_32: u64 = 0x6000;
/// Page-directory-pointer table of PAE paging.
const PDPT_PAE: u64 = 0x7000;
/// The task-state segment.
const TSS: u64 = 0x1_2000;
/// Selector of the TSS; a second one for task gates, a call gate and an LDT follow.
const TSS_SELECTOR: u16 = 0x38;
/// Last byte of the GDT.
const GDT_LIMIT: u16 = 0x17f;
/// Where handlers of interrupts are: one every 16 bytes.
const HANDLERS: u64 = 0x18_0000;
/// Code below 64 KiB, for real and virtual-8086 mode and for start-up IPIs.
const LOW_CODE: u64 = 0x8000;
/// The longest code.
const CODE_MAX: usize = 4096;

/// Addresses at which something happens.
const POINTERS: [u64; 16] = [
    DATA,
    DATA + 0xff8,
    DATA + 0xfff,
    CODE,
    STACK - 8,
    0,
    1,
    u64::MAX,
    0x7fff_ffff_ffff,
    0xffff_8000_0000_0000,
    GDT,
    IDT,
    PML4,
    RAM_BYTES - 1,
    0xffff_fffc,
    0xfee0_0000,
];

/// A bench as the input's head says, with its code in place.
pub(super) fn bench(input: &mut Input<'_>) -> Bench {
    let mode = input.byte();
    let mut bench = in_mode(mode % 9);
    control_registers(&mut bench, input);
    registers(&mut bench, input);
    tables(&mut bench, input);
    damage(&bench, input);
    bench.cpu.flush_translations();
    bench.cpu.mode_changed();
    code(&mut bench, input);
    bench
}

fn in_mode(number: u8) -> Bench {
    match number {
        0 => Bench::real16(),
        1 => virtual_8086(),
        2 => protected_16(),
        3 => Bench::protected32(),
        4 => paged_32(),
        5 => pae(),
        6 => Bench::compatibility32(),
        _ => Bench::long64(),
    }
}

fn protected_16() -> Bench {
    let mut bench = Bench::protected32();
    for segment in &mut bench.cpu.state.segments {
        segment.attributes &= !(attr::DB | attr::G);
        segment.limit = 0xffff;
    }
    bench
}

fn paged_32() -> Bench {
    const PAGE_SIZE_BIT: u64 = 1 << 7;
    let mut bench = Bench::protected32();
    for page in 0..RAM_BYTES >> 22 {
        let entry = (page << 22 | PAGE_OPEN | PAGE_SIZE_BIT) as u32;
        bench.poke(PD_32 + 4 * page, &entry.to_le_bytes());
    }
    bench.cpu.state.cr3 = PD_32;
    bench.cpu.state.cr4 |= cr4::PSE;
    bench.cpu.state.cr0 |= cr0::PG;
    bench
}

fn pae() -> Bench {
    let mut bench = Bench::protected32();
    bench.poke(PDPT_PAE, &(PD | 1).to_le_bytes());
    let state = &mut bench.cpu.state;
    state.cr3 = PDPT_PAE;
    state.pdpte = [PD | 1, 0, 0, 0];
    state.cr4 |= cr4::PAE;
    state.cr0 |= cr0::PG;
    bench
}

fn virtual_8086() -> Bench {
    let mut bench = paged_32();
    let state = &mut bench.cpu.state;
    state.rflags |= rflags::VM | rflags::IOPL;
    state.cpl = 3;
    state.segments = [Segment { attributes: 0xf3, ..Segment::real(0) }; 6];
    state.gpr[gpr::RSP] = 0xf000;
    bench
}

/// Turns bits of control registers over that a guest could have turned over in this mode.
fn control_registers(bench: &mut Bench, input: &mut Input<'_>) {
    const CR0_FREE: u64 = cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM;
    const CR4_FREE: u64 = cr4::VME
        | cr4::PVI
        | cr4::TSD
        | cr4::DE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT
        | cr4::UMIP
        | cr4::FSGSBASE
        | cr4::OSXSAVE
        | cr4::SMEP
        | cr4::SMAP
        | cr4::PKE;
    let (thin, flips) = (input.byte(), input.dword());
    // Mostly everything is on: with SSE off half the maps are one #UD.
    let flips = if thin & 3 == 0 { u64::from(flips) } else { 0 };
    let state = &mut bench.cpu.state;
    state.cr0 ^= flips & CR0_FREE;
    state.cr4 ^= flips.rotate_left(7) & CR4_FREE;
    state.msrs.efer ^= flips & (efer::SCE | efer::NXE);
    if thin & 4 != 0 {
        state.xcr0 = input.choose(&[1, 3, 7, 0xe7, 0x2e7]);
    }
}

fn registers(bench: &mut Bench, input: &mut Input<'_>) {
    const FLAGS: u64 = rflags::STATUS
        | rflags::TF
        | rflags::IF
        | rflags::DF
        | rflags::IOPL
        | rflags::NT
        | rflags::RF
        | rflags::AC
        | rflags::ID;
    let is_protected = bench.cpu.state.cr0 & cr0::PE != 0;
    let is_v86 = bench.cpu.state.rflags & rflags::VM != 0;
    let (privilege, flags, kinds) = (input.byte(), input.dword(), input.dword());
    if is_protected && !is_v86 && privilege & 3 == 3 {
        bench.set_cpl(3);
    }
    let mask = bench.cpu.native.mxcsr_mask();
    let state = &mut bench.cpu.state;
    state.rflags ^= u64::from(flags & flags >> 8) & FLAGS;
    for number in (0..16).filter(|&number| number != gpr::RSP || kinds & 0x7000_0000 == 0) {
        let is_pointer = kinds >> number & 1 == 0;
        state.gpr[number] = if is_pointer { input.choose(&POINTERS) } else { input.qword() };
    }
    let extra = input.byte();
    if extra & 1 != 0 {
        state.fpu.fcw = input.word() & 0x1f7f | 0x40;
        state.fpu.fsw = input.word();
        state.fpu.ftw = input.byte();
        state.fpu.summarize_exceptions();
        state.fpu.mxcsr = u32::from(input.word()) & mask;
    }
    if extra & 6 == 6 {
        state.dr[..4].copy_from_slice(&[CODE + 1, DATA, STACK - 8, u64::from(input.dword())]);
        state.dr[7] = u64::from(input.dword()) & 0xffff_2bff | 0x400;
    }
    for register in &mut state.fpu.zmm[..8] {
        *register = [input.byte(); 64];
    }
}

/// GDT, TSS and IDT: proper ones, or ones with random contents.
fn tables(bench: &mut Bench, input: &mut Input<'_>) {
    let is_long = bench.cpu.mode.is_long();
    let state = &mut bench.cpu.state;
    if state.cr0 & cr0::PE == 0 {
        return low_vectors(bench, input);
    }
    state.gdtr.limit = GDT_LIMIT;
    let attributes = attr::P | if is_long { 0xb } else { input.choose(&[0xb, 0x3]) };
    state.tr = Segment { selector: TSS_SELECTOR, attributes, limit: 0x20ff, base: TSS };
    state.ldtr =
        Segment { selector: 0x68, attributes: attr::P | 2, limit: 0x3f, base: GDT + 0x100 };
    let tss = [0x0000_8900_2000_20ff_u64 | (TSS & 0xff_0000) << 16, 0];
    let other = [0x0000_8901_3000_2067_u64, 0];
    let call_gate = [gate(selector::CODE32, 0xec, HANDLERS), 0];
    let ldt = [0x0000_8201_0100_003f_u64, 0];
    for (at, pair) in (0x38..).step_by(16).zip([tss, other, call_gate, ldt]) {
        bench.poke(GDT + at, &pair.map(u64::to_le_bytes).concat());
    }
    for at in (0x78..=u64::from(GDT_LIMIT)).step_by(8) {
        bench.poke(GDT + at, &input.qword().to_le_bytes());
    }
    task_state(bench, is_long);
    let kind = input.byte();
    for vector in 0..256_u64 {
        let (code, types) = if is_long {
            (selector::CODE64, [0x8e, 0xee, 0x8f, 0xef, 0x8e, 0xee, 0x8e, 0x85])
        } else {
            (selector::CODE32, [0x8e, 0xee, 0x8f, 0xef, 0x86, 0xe7, 0xe5, 0x85])
        };
        let kind_of_gate = match kind & 7 {
            0 => continue,
            1..=4 => 0x8e | u64::from(kind & 0x60),
            _ => types[(vector as usize ^ usize::from(kind >> 3)) & 7],
        };
        let is_task = kind_of_gate & 0x1f == 5;
        let target = if is_task { TSS_SELECTOR + 16 } else { code };
        let descriptor = gate(target, kind_of_gate, HANDLERS + 16 * vector);
        let at = IDT + vector * if is_long { 16 } else { 8 };
        bench.poke(at, &descriptor.to_le_bytes());
    }
}

/// A gate of type `attributes` to `selector:offset`.
const fn gate(selector: u16, attributes: u64, offset: u64) -> u64 {
    offset & 0xffff | (selector as u64) << 16 | attributes << 40 | (offset >> 16 & 0xffff) << 48
}

/// Interrupt vectors of real mode, all into low code.
fn low_vectors(bench: &mut Bench, input: &mut Input<'_>) {
    bench.cpu.state.idtr.limit = input.choose(&[0x3ff, 0x3ff, 0x3ff, 0x1f, 0]);
    for vector in 0..256 {
        let target = LOW_CODE as u32 + 16 * (vector & 31);
        bench.poke(4 * u64::from(vector), &target.to_le_bytes());
    }
}

/// Stacks for the inner level, an I/O map in the TSS, and a task to switch to.
fn task_state(bench: &mut Bench, is_long: bool) {
    let stack = STACK - 0x1000;
    if is_long {
        bench.poke(TSS + 4, &stack.to_le_bytes());
        bench.poke(TSS + 36, &(stack - 0x1000).to_le_bytes());
    } else {
        bench.poke(TSS + 4, &(stack as u32).to_le_bytes());
        bench.poke(TSS + 8, &selector::DATA.to_le_bytes());
    }
    bench.poke(TSS + 102, &104_u16.to_le_bytes());
    // The other task, 32-bit: flat segments and the handlers' code.
    let task = TSS + 0x1000;
    for (at, value) in [(28, PD_32 as u32), (32, HANDLERS as u32), (36, 2), (56, stack as u32)] {
        bench.poke(task + at, &value.to_le_bytes());
    }
    for at in (72..=92).step_by(4) {
        bench.poke(task + at, &selector::DATA.to_le_bytes());
    }
    bench.poke(task + 76, &selector::CODE32.to_le_bytes());
}

/// Holes in the page tables, and random words in any table.
fn damage(bench: &Bench, input: &mut Input<'_>) {
    let counts = input.byte();
    for _ in 0..counts & 3 {
        let page = input.choose(&[DATA, DATA + 0x1000, STACK - 0x1000, CODE, CODE + 0x1000]) >> 12;
        let bits = u64::from(input.byte()) | u64::from(input.byte() & 0x80) << 56;
        bench.poke(PT + 8 * page, &(page << 12 | bits).to_le_bytes());
    }
    for _ in 0..(counts >> 2 & 15).saturating_sub(11) {
        let table = input.choose(&[PML4, PDPT, PD, PT, PD_32, PDPT_PAE, GDT, IDT, TSS]);
        bench.poke(table + u64::from(input.byte()) * 8, &input.bytes::<8>());
    }
}

/// Puts what is left of the input where RIP and the handlers are.
fn code(bench: &mut Bench, input: &mut Input<'_>) {
    let bytes = input.slice(CODE_MAX);
    let handler_start = bytes.len() / 2;
    bench.poke(HANDLERS, bytes.get(handler_start..).unwrap_or(&[]));
    bench.poke(LOW_CODE, bytes);
    let is_low = bench.cpu.state.segments[seg::CS].limit == 0xffff;
    bench.put_code_at(if is_low { LOW_CODE } else { CODE }, bytes);
}
