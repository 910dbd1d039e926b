//! What the tables share: descriptors, gates and a TSS on the bench.

use cpu::engine::Vcpu;
use cpu::exception::Exec;
use cpu::state::{Segment, attr, gpr, rflags};
use cpu::testing::{Bench, GDT, IDT};

/// Makes a bench.
pub type Make = fn() -> Bench;
/// An outcome that depends on a selector.
pub type Outcome = fn(u16) -> Exec;

/// Where handlers are; each is a HLT.
pub const HANDLER: u64 = 0x18_0000;
/// Where the TSS is.
pub const TSS: u64 = 0x4_0000;
/// The stack that the TSS has for level 0.
pub const INNER_STACK: u64 = 0x28_0000;
/// The first selector behind the bench's own GDT.
pub const FREE: u16 = 0x38;

/// Access bytes of descriptors: present, by type and DPL.
pub const INTERRUPT_GATE: u64 = 0x8e;
pub const TRAP_GATE: u64 = 0x8f;
pub const USER_INTERRUPT_GATE: u64 = 0xee;
pub const TASK_GATE: u64 = 0x85;

/// Puts `raw` into the GDT and makes its limit reach it.
pub fn set_gdt(bench: &mut Bench, selector: u16, raw: u64) {
    bench.poke(GDT + u64::from(selector & !7), &raw.to_le_bytes());
    let limit = (selector | 7).max(bench.cpu.state.gdtr.limit);
    bench.cpu.state.gdtr.limit = limit;
}

/// The descriptor at `selector`.
pub fn gdt(bench: &Bench, selector: u16) -> u64 {
    u64::from_le_bytes(bench.peek(GDT + u64::from(selector & !7)))
}

/// Makes of a protected-mode bench a virtual-8086 task in its low memory, with more flags.
pub fn enter_virtual_8086(bench: &mut Bench, iopl: u64, cr4: u64, flags: u64) {
    let state = &mut bench.cpu.state;
    for segment in &mut state.segments {
        segment.selector = 0;
        segment.limit = 0xffff;
        segment.attributes = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DPL;
    }
    state.cpl = 3;
    state.cr4 |= cr4;
    state.rflags |= rflags::VM | iopl << 12 | flags;
    state.gpr[gpr::RSP] = 0x8000;
    bench.cpu.mode_changed();
}

/// A flat 32-bit or 64-bit segment with access byte `access`; `flags` are G, D, L and AVL.
pub fn flat(access: u64, flags: u64) -> u64 {
    0x000f_0000_0000_ffff | access << 40 | flags << 52
}

/// A gate of eight bytes: the whole of a legacy one, the low half of a long one.
pub fn gate(access: u64, selector: u16, offset: u64, low_bits: u64) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | (low_bits & 0x1f) << 32
        | access << 40
        | (offset & 0xffff_0000) << 32
}

/// Writes IDT entry `vector` of long mode.
pub fn set_idt64(bench: &Bench, vector: u64, access: u64, selector: u16, ist: u64) {
    let low = gate(access, selector, HANDLER, ist);
    bench.poke(IDT + 16 * vector, &low.to_le_bytes());
    bench.poke(IDT + 16 * vector + 8, &(HANDLER >> 32).to_le_bytes());
    bench.poke(HANDLER, &[0xf4]);
}

/// Writes IDT entry `vector` of protected mode.
pub fn set_idt32(bench: &Bench, vector: u64, access: u64, selector: u16) {
    bench.poke(IDT + 8 * vector, &gate(access, selector, HANDLER, 0).to_le_bytes());
    bench.poke(HANDLER, &[0xf4]);
}

/// A busy 32-bit (in long mode 64-bit) TSS at [`TSS`], with [`INNER_STACK`] for level 0.
pub fn install_tss(bench: &mut Bench) {
    bench.cpu.state.tr =
        Segment { selector: FREE, attributes: attr::P | 0xb, limit: 0x67, base: TSS };
    bench.poke(TSS + 4, &INNER_STACK.to_le_bytes());
}

/// As [`install_tss`], with the SS that a 32-bit TSS names.
pub fn install_tss32(bench: &mut Bench, ss0: u16) {
    install_tss(bench);
    bench.poke(TSS + 8, &u64::from(ss0).to_le_bytes());
    set_gdt(bench, FREE, 0x0000_8b04_0000_0067);
}

/// Runs `code` with events delivered, until one instruction has retired.
pub fn run(bench: &mut Bench, code: &[u8]) {
    bench.put_code_at(cpu::testing::CODE, code);
    bench.cpu.run(1);
}

/// `N` quadwords at physical `at`.
pub fn quadwords<const N: usize>(bench: &Bench, at: u64) -> [u64; N] {
    std::array::from_fn(|n| u64::from_le_bytes(bench.peek(at + 8 * n as u64)))
}

/// `N` doublewords at physical `at`.
pub fn doublewords<const N: usize>(bench: &Bench, at: u64) -> [u32; N] {
    std::array::from_fn(|n| u32::from_le_bytes(bench.peek(at + 4 * n as u64)))
}
