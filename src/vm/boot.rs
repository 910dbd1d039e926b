//! The state of CPU 0 at a loader's entry, in the CPU's terms.

use cpu::Cpu;
use cpu::engine::Vcpu;
use cpu::msr::Mtrrs;
use cpu::state::{Segment, State, TableRegister, attr, cr0, cr4, efer, gpr, rflags, seg};
use machine::layout;
use machine::loader::{BootState, FlatRegisters};

const FLAT_LIMIT: u32 = 0xffff_ffff;
const DATA: u16 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DB | attr::G;
const CODE32: u16 = DATA | attr::CODE;
const CODE64: u16 = CODE32 & !attr::DB | attr::L;
/// A busy 32-bit (in long mode 64-bit) TSS.
const BUSY_TSS: u16 = attr::P | 0xb;
const TSS_LIMIT: u32 = 0x67;

/// Puts CPU 0, which is as after reset, into the state a loader promises its guest.
pub(crate) fn enter(cpu: &mut Cpu, boot: &BootState) {
    let mut state = cpu.state().clone();
    match *boot {
        BootState::RealModeReset => return,
        BootState::RealMode { segment, offset } => {
            state.segments = [Segment::real(0); 6];
            let code = Segment::real(segment);
            state.segments[seg::CS] = Segment { attributes: code.attributes | attr::CODE, ..code };
            state.rip = u64::from(offset);
            state.cr0 &= !(cr0::CD | cr0::NW);
        }
        BootState::Protected32 { entry, registers, gdt } => {
            flat(&mut state, CODE32, gdt.is_some());
            state.rip = u64::from(entry);
            state.gdtr = gdt.map_or(state.gdtr, table);
            load(&mut state, &registers);
        }
        BootState::Long64 { entry, registers, cr3, gdt } => {
            flat(&mut state, CODE64, true);
            state.rip = entry;
            state.gdtr = table(gdt);
            state.cr0 |= cr0::PG;
            state.cr3 = cr3;
            state.cr4 = cr4::PAE;
            state.msrs.efer = efer::LME | efer::LMA;
            load(&mut state, &registers);
        }
    }
    cpu.set_state(state);
}

/// Does what firmware does on every CPU before it starts an operating system: memory types. A guest
/// that brings its own firmware finds them as after reset.
pub(crate) fn set_up_as_firmware(cpu: &mut Cpu, boot: &BootState) {
    if *boot == BootState::RealModeReset {
        return;
    }
    let physical_bits = cpu.env.cpuid.physical_bits();
    cpu.state.msrs.mtrrs = Mtrrs::as_firmware_leaves(layout::PCI_WINDOW_BASE as u32, physical_bits);
}

fn table(register: machine::loader::TableRegister) -> TableRegister {
    TableRegister { base: register.base, limit: register.limit }
}

/// Protected mode with flat segments; selectors are zero where the protocol promises no GDT.
fn flat(state: &mut State, code: u16, has_gdt: bool) {
    let selector = |selector: u16| if has_gdt { selector } else { 0 };
    let segment = |number: u16, attributes: u16| Segment {
        selector: selector(number),
        attributes,
        limit: FLAT_LIMIT,
        base: 0,
    };
    state.segments = [segment(BootState::DATA_SELECTOR, DATA); 6];
    state.segments[seg::CS] = segment(BootState::CODE_SELECTOR, code);
    state.tr = Segment {
        selector: selector(BootState::TASK_SELECTOR),
        attributes: BUSY_TSS,
        limit: TSS_LIMIT,
        base: 0,
    };
    state.cr0 = cr0::PE | cr0::ET;
    state.rflags = rflags::FIXED;
    state.cpl = 0;
}

fn load(state: &mut State, registers: &FlatRegisters) {
    state.gpr = [0; 16];
    state.gpr[gpr::RAX] = registers.rax;
    state.gpr[gpr::RBX] = registers.rbx;
    state.gpr[gpr::RSI] = registers.rsi;
    state.gpr[gpr::RSP] = registers.rsp;
}
