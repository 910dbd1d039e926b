//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE for general operands. (Segment registers and flags are
//! elsewhere.)

use iced_x86::Code;

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mmu::Access;
use crate::state::gpr::{RBP, RSP};
use crate::state::seg;

fn push_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.push(cpu.reg::<T>(insn.dst))
}

/// The operand's address is computed, and read, before rSP moves.
fn push_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.load::<T>(&insn.mem)?;
    cpu.push(value)
}

fn push_immediate<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.push(T::from_u64(insn.imm))
}

/// POP rSP leaves the popped value: rSP moves first.
fn pop_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.pop::<T>()?;
    cpu.set_reg(insn.dst, value);
    Ok(())
}

/// An operand addressed through rSP sees it already moved; a fault of the store puts it back.
fn pop_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let before = cpu.state.gpr[RSP];
    let value = cpu.pop::<T>()?;
    let result = cpu.store(&insn.mem, value);
    if result.is_err() {
        cpu.state.gpr[RSP] = before;
    }
    result
}

/// rSP moves only behind the last store. What a fault leaves below it is no part of the stack, and
/// is stored again when the instruction is repeated; CPUs leave it there too.
fn pusha<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let mask = cpu.stack_mask();
    let top = cpu.stack_pointer();
    let slot = |n: u64| top.wrapping_sub((n + 1) * T::BYTES) & mask;
    for n in 0..8u8 {
        let value = cpu.reg::<T>(n);
        cpu.write(seg::SS, slot(u64::from(n)), value)?;
    }
    cpu.set_stack_pointer(slot(7));
    Ok(())
}

/// rSP's slot is read and thrown away, and rSP moves last: registers loaded before a fault are
/// loaded again when the instruction is repeated, as on CPUs.
fn popa<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let mask = cpu.stack_mask();
    let bottom = cpu.stack_pointer();
    for (slot, register) in (0u64..8).zip((0u8..8).rev()) {
        let value = cpu.read::<T>(seg::SS, bottom.wrapping_add(slot * T::BYTES) & mask)?;
        if usize::from(register) != RSP {
            cpu.set_reg(register, value);
        }
    }
    cpu.set_stack_pointer(bottom.wrapping_add(8 * T::BYTES));
    Ok(())
}

/// ENTER (SDM Vol. 2A): the frame is built below rSP and nothing is committed until its last byte
/// is known to be writable.
fn enter<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let bytes = u64::from(insn.iced.immediate16());
    let level = u64::from(insn.iced.immediate8_2nd() & 31);
    let mask = cpu.stack_mask();
    let frame = cpu.stack_pointer().wrapping_sub(T::BYTES) & mask;
    cpu.write(seg::SS, frame, cpu.reg::<T>(RBP as u8))?;
    let mut top = frame;
    for n in 1..level {
        let from = cpu.state.gpr[RBP].wrapping_sub(n * T::BYTES) & mask;
        let value = cpu.read::<T>(seg::SS, from)?;
        top = top.wrapping_sub(T::BYTES) & mask;
        cpu.write(seg::SS, top, value)?;
    }
    if level > 0 {
        top = top.wrapping_sub(T::BYTES) & mask;
        cpu.write(seg::SS, top, T::from_u64(frame))?;
    }
    let top = top.wrapping_sub(bytes) & mask;
    cpu.check_access(seg::SS, top, T::BYTES, Access::Write)?;
    cpu.set_reg(RBP as u8, T::from_u64(frame));
    cpu.set_stack_pointer(top);
    Ok(())
}

fn leave<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let frame = cpu.state.gpr[RBP] & cpu.stack_mask();
    let value = cpu.read::<T>(seg::SS, frame)?;
    cpu.set_stack_pointer(frame.wrapping_add(T::BYTES));
    cpu.set_reg(RBP as u8, value);
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(Push_r16, push_register::<u16>);
    table.both(Push_r32, push_register::<u32>);
    table.both(Push_r64, push_register::<u64>);
    table.forms(Push_rm16, push_register::<u16>, push_memory::<u16>);
    table.forms(Push_rm32, push_register::<u32>, push_memory::<u32>);
    table.forms(Push_rm64, push_register::<u64>, push_memory::<u64>);
    for code in [Push_imm16, Pushw_imm8] {
        table.both(code, push_immediate::<u16>);
    }
    for code in [Pushd_imm32, Pushd_imm8] {
        table.both(code, push_immediate::<u32>);
    }
    for code in [Pushq_imm32, Pushq_imm8] {
        table.both(code, push_immediate::<u64>);
    }
    table.both(Pop_r16, pop_register::<u16>);
    table.both(Pop_r32, pop_register::<u32>);
    table.both(Pop_r64, pop_register::<u64>);
    table.forms(Pop_rm16, pop_register::<u16>, pop_memory::<u16>);
    table.forms(Pop_rm32, pop_register::<u32>, pop_memory::<u32>);
    table.forms(Pop_rm64, pop_register::<u64>, pop_memory::<u64>);
    table.both(Pushaw, pusha::<u16>);
    table.both(Pushad, pusha::<u32>);
    table.both(Popaw, popa::<u16>);
    table.both(Popad, popa::<u32>);
    table.both(Enterw_imm16_imm8, enter::<u16>);
    table.both(Enterd_imm16_imm8, enter::<u32>);
    table.both(Enterq_imm16_imm8, enter::<u64>);
    table.both(Leavew, leave::<u16>);
    table.both(Leaved, leave::<u32>);
    table.both(Leaveq, leave::<u64>);
}
