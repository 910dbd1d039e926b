//! Near JMP, CALL and RET.

use decoder::Vendor;
use iced_x86::Code;

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mmu::Access;
use crate::state::seg;

fn jump_relative(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.branch_to(insn.imm)
}

fn jump_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.branch_to(cpu.reg::<T>(insn.dst).to_u64())
}

fn jump_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.load::<T>(&insn.mem)?;
    cpu.branch_to(target.to_u64())
}

/// A fault of the stack comes before one of the target. If the target is not allowed, the return
/// address has been stored on Intel's processors and has not on AMD's; rSP moves only if both
/// succeed.
fn call<T: Word>(cpu: &mut Cpu, insn: &Insn, target: u64) -> Exec {
    let pointer = cpu.stack_pointer().wrapping_sub(T::BYTES) & cpu.stack_mask();
    if let Err(exception) = cpu.branch_to(target) {
        match cpu.env.cpuid.vendor() {
            Vendor::Intel => cpu.write(seg::SS, pointer, T::from_u64(insn.next_ip))?,
            Vendor::Amd => cpu.check_access(seg::SS, pointer, T::BYTES, Access::Write)?,
        }
        return Err(exception);
    }
    cpu.write(seg::SS, pointer, T::from_u64(insn.next_ip))?;
    cpu.set_stack_pointer(pointer);
    Ok(())
}

fn call_relative<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    call::<T>(cpu, insn, insn.imm)
}

fn call_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.reg::<T>(insn.dst).to_u64();
    call::<T>(cpu, insn, target)
}

fn call_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let target = cpu.load::<T>(&insn.mem)?.to_u64();
    call::<T>(cpu, insn, target)
}

/// RET and RET imm16: rSP moves only if the target passes.
fn ret<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let pointer = cpu.stack_pointer();
    let target = cpu.read::<T>(seg::SS, pointer)?;
    cpu.branch_to(target.to_u64())?;
    cpu.set_stack_pointer(pointer.wrapping_add(T::BYTES).wrapping_add(insn.imm & 0xffff));
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    for code in [Jmp_rel8_16, Jmp_rel8_32, Jmp_rel8_64, Jmp_rel16, Jmp_rel32_32, Jmp_rel32_64] {
        table.both(code, jump_relative);
    }
    table.forms(Jmp_rm16, jump_register::<u16>, jump_memory::<u16>);
    table.forms(Jmp_rm32, jump_register::<u32>, jump_memory::<u32>);
    table.forms(Jmp_rm64, jump_register::<u64>, jump_memory::<u64>);
    table.both(Call_rel16, call_relative::<u16>);
    table.both(Call_rel32_32, call_relative::<u32>);
    table.both(Call_rel32_64, call_relative::<u64>);
    table.forms(Call_rm16, call_register::<u16>, call_memory::<u16>);
    table.forms(Call_rm32, call_register::<u32>, call_memory::<u32>);
    table.forms(Call_rm64, call_register::<u64>, call_memory::<u64>);
    for code in [Retnw, Retnw_imm16] {
        table.both(code, ret::<u16>);
    }
    for code in [Retnd, Retnd_imm16] {
        table.both(code, ret::<u32>);
    }
    for code in [Retnq, Retnq_imm16] {
        table.both(code, ret::<u64>);
    }
}
