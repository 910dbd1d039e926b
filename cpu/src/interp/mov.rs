//! Moves between general registers and memory: MOV, MOVZX, MOVSX, MOVSXD, MOVBE, LEA, BSWAP, XLAT,
//! CBW and its kin, MOVNTI, MOVDIRI, LAHF, SAHF. (MOV to and from segment, control and debug
//! registers are elsewhere.)

use decoder::Vendor;
use iced_x86::{Code, Mnemonic};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::{Forms, Table};
use crate::interp::insn::{Handler, Insn};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::state::gpr::{RAX, RBX, RDX};
use crate::state::rflags::{AF, CF, FIXED, PF, SF, ZF};

const ACCUMULATOR: u8 = RAX as u8;

fn mov_register_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, cpu.reg::<T>(insn.src));
    Ok(())
}

fn mov_register_immediate<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, T::from_u64(insn.imm));
    Ok(())
}

fn mov_register_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<T>(&insn.mem)?;
    cpu.set_reg(insn.dst, value);
    Ok(())
}

fn mov_memory_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.reg::<T>(insn.src);
    cpu.store(&insn.mem, value)
}

fn mov_memory_immediate<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.store(&insn.mem, T::from_u64(insn.imm))
}

/// MOV between general registers and memory; `None` for the forms with other registers.
fn mov_forms(form: &Form) -> Option<Forms> {
    if form.width == 0 && !is_offset_store(form.code)
        || form.source_width == 0 && !is_offset_load(form.code)
    {
        return None;
    }
    let width = form.width.max(form.source_width);
    let register: Handler = if form.has_immediate {
        by_width!(form.width, mov_register_immediate)
    } else {
        by_width!(width, mov_register_register)
    };
    let memory: Handler = if form.has_immediate {
        by_width!(form.width, mov_memory_immediate)
    } else if form.is_rm_first || is_offset_store(form.code) {
        by_width!(width, mov_memory_register)
    } else {
        by_width!(width, mov_register_memory)
    };
    Some(Forms { register, memory })
}

/// A2 and A3: the accumulator to an absolute offset.
fn is_offset_store(code: Code) -> bool {
    use Code::*;
    matches!(code, Mov_moffs8_AL | Mov_moffs16_AX | Mov_moffs32_EAX | Mov_moffs64_RAX)
}

/// A0 and A1: an absolute offset to the accumulator.
fn is_offset_load(code: Code) -> bool {
    use Code::*;
    matches!(code, Mov_AL_moffs8 | Mov_AX_moffs16 | Mov_EAX_moffs32 | Mov_RAX_moffs64)
}

fn extend_register<S: Word, const SIGNED: bool, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.reg::<S>(insn.src);
    cpu.set_reg(insn.dst, extend::<S, SIGNED, T>(value));
    Ok(())
}

fn extend_memory<S: Word, const SIGNED: bool, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<S>(&insn.mem)?;
    cpu.set_reg(insn.dst, extend::<S, SIGNED, T>(value));
    Ok(())
}

#[inline(always)]
fn extend<S: Word, const SIGNED: bool, T: Word>(value: S) -> T {
    T::from_u64(if SIGNED { value.sign_extend() } else { value.to_u64() })
}

fn extend_forms<S: Word, const SIGNED: bool>(form: &Form) -> Forms {
    match form.width {
        2 => Forms {
            register: extend_register::<S, SIGNED, u16>,
            memory: extend_memory::<S, SIGNED, u16>,
        },
        4 => Forms {
            register: extend_register::<S, SIGNED, u32>,
            memory: extend_memory::<S, SIGNED, u32>,
        },
        _ => Forms {
            register: extend_register::<S, SIGNED, u64>,
            memory: extend_memory::<S, SIGNED, u64>,
        },
    }
}

fn any_extend_forms<const SIGNED: bool>(form: &Form) -> Forms {
    match form.source_width {
        1 => extend_forms::<u8, SIGNED>(form),
        2 => extend_forms::<u16, SIGNED>(form),
        _ => extend_forms::<u32, SIGNED>(form),
    }
}

/// MOVSXD to 16 bits: AMD's CPUs read 32 bits all the same, Intel's 16 (SDM Vol. 2B, "MOVSXD").
fn movsxd16_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = match cpu.env.cpuid.vendor() {
        Vendor::Amd => cpu.load::<u32>(&insn.mem)? as u16,
        Vendor::Intel => cpu.load::<u16>(&insn.mem)?,
    };
    cpu.set_reg(insn.dst, value);
    Ok(())
}

fn swap_bytes<T: Word>(value: T) -> T {
    T::from_u64(value.to_u64().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<T>(&insn.mem)?;
    cpu.set_reg(insn.dst, swap_bytes(value));
    Ok(())
}

fn movbe_store<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.reg::<T>(insn.src);
    cpu.store(&insn.mem, swap_bytes(value))
}

/// BSWAP. Of a 16-bit register the manuals leave the result undefined; CPUs give zero.
fn bswap<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.reg::<T>(insn.dst);
    cpu.set_reg(insn.dst, if T::BYTES == 2 { T::default() } else { swap_bytes(value) });
    Ok(())
}

fn lea<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.effective_address(&insn.mem);
    cpu.set_reg(insn.dst, T::from_u64(offset));
    Ok(())
}

/// XLAT: the index is AL, added to rBX in the address size.
fn xlat(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let address = cpu.state.gpr[RBX].wrapping_add(cpu.state.gpr[RAX] & 0xff);
    let mask = u64::MAX >> (64 - 8 * u32::from(insn.mem.address_size));
    let value: u8 = cpu.read(usize::from(insn.mem.segment), address & mask)?;
    cpu.set_reg(ACCUMULATOR, value);
    Ok(())
}

/// CBW, CWDE, CDQE: `S` to `T` in the accumulator.
fn convert<S: Word, T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let value = cpu.reg::<S>(ACCUMULATOR).sign_extend();
    cpu.set_reg(ACCUMULATOR, T::from_u64(value));
    Ok(())
}

/// CWD, CDQ, CQO: the accumulator's sign into rDX.
fn convert_double<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let is_negative = cpu.reg::<T>(ACCUMULATOR).to_u64() & T::SIGN != 0;
    cpu.set_reg(RDX as u8, T::from_u64(if is_negative { u64::MAX } else { 0 }));
    Ok(())
}

const AH: u8 = 16;
const LOW_FLAGS: u64 = SF | ZF | AF | PF | CF;

fn lahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flags = cpu.state.rflags & LOW_FLAGS | FIXED;
    cpu.set_reg(AH, flags as u8);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Insn) -> Exec {
    let flags = u64::from(cpu.reg::<u8>(AH));
    cpu.set_flags(LOW_FLAGS, flags);
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let forms = match form.mnemonic {
            Mnemonic::Mov => match mov_forms(form) {
                Some(forms) => forms,
                None => return,
            },
            Mnemonic::Movzx => any_extend_forms::<false>(form),
            Mnemonic::Movsx => any_extend_forms::<true>(form),
            Mnemonic::Movsxd if form.width == 2 => {
                Forms { register: mov_register_register::<u16>, memory: movsxd16_memory }
            }
            Mnemonic::Movsxd => extend_forms::<u32, true>(form),
            Mnemonic::Movbe | Mnemonic::Movnti | Mnemonic::Movdiri => {
                return table_memory(table, form);
            }
            Mnemonic::Bswap => same(by_width!(form.width, bswap)),
            Mnemonic::Lea => same(by_width!(form.width, lea)),
            _ => return,
        };
        table.forms(form.code, forms.register, forms.memory);
    });
    table.both(Code::Xlat_m8, xlat);
    table.both(Code::Cbw, convert::<u8, u16>);
    table.both(Code::Cwde, convert::<u16, u32>);
    table.both(Code::Cdqe, convert::<u32, u64>);
    table.both(Code::Cwd, convert_double::<u16>);
    table.both(Code::Cdq, convert_double::<u32>);
    table.both(Code::Cqo, convert_double::<u64>);
    table.both(Code::Lahf, lahf);
    table.both(Code::Sahf, sahf);
}

fn same(handler: Handler) -> Forms {
    Forms { register: handler, memory: handler }
}

/// Forms with a memory operand only.
fn table_memory(table: &mut Table, form: &Form) {
    let width = form.width.max(form.source_width);
    let handler: Handler = match (form.mnemonic, form.width) {
        (Mnemonic::Movbe, 0) => by_width!(width, movbe_store),
        (Mnemonic::Movbe, _) => by_width!(width, movbe_load),
        _ => by_width!(width, mov_memory_register),
    };
    table.both(form.code, handler);
}
