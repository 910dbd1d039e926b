//! Far jumps, calls and returns, IRET, and the instructions that raise an event.

use iced_x86::Code;

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::rflags;
use crate::transfer::Software;
use crate::transfer::stack::Size;

const fn size_of<T: Word>() -> Size {
    match T::BYTES {
        2 => Size::Word,
        4 => Size::Dword,
        _ => Size::Qword,
    }
}

fn immediate_pointer(insn: &Insn) -> (u16, u64) {
    let offset = match insn.iced.code() {
        Code::Jmp_ptr1616 | Code::Call_ptr1616 => u64::from(insn.iced.far_branch16()),
        _ => u64::from(insn.iced.far_branch32()),
    };
    (insn.iced.far_branch_selector(), offset)
}

fn jump(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (selector, offset) = immediate_pointer(insn);
    cpu.far_jump(selector, offset)
}

fn call<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (selector, offset) = immediate_pointer(insn);
    cpu.far_call(selector, offset, size_of::<T>())
}

fn jump_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (offset, selector) = cpu.load_far_pointer::<T>(insn)?;
    cpu.far_jump(selector, offset.to_u64())
}

fn call_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (offset, selector) = cpu.load_far_pointer::<T>(insn)?;
    cpu.far_call(selector, offset.to_u64(), size_of::<T>())
}

fn far_return<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.far_return(size_of::<T>(), insn.imm & 0xffff)
}

fn interrupt_return<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.interrupt_return(size_of::<T>())
}

fn int(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.software_interrupt(insn.imm as u8, Software::IntN)
}

fn int3(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.software_interrupt(3, Software::Int3OrInto)
}

fn into(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.flag(rflags::OF) { cpu.software_interrupt(4, Software::Int3OrInto) } else { Ok(()) }
}

fn int1(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.software_interrupt(1, Software::Int1)
}

#[rustfmt::skip]
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(Jmp_ptr1616, jump);
    table.both(Jmp_ptr1632, jump);
    table.both(Jmp_m1616,   jump_memory::<u16>);
    table.both(Jmp_m1632,   jump_memory::<u32>);
    table.both(Jmp_m1664,   jump_memory::<u64>);
    table.both(Call_ptr1616, call::<u16>);
    table.both(Call_ptr1632, call::<u32>);
    table.both(Call_m1616,   call_memory::<u16>);
    table.both(Call_m1632,   call_memory::<u32>);
    table.both(Call_m1664,   call_memory::<u64>);
    for code in [Retfw, Retfw_imm16] {
        table.both(code, far_return::<u16>);
    }
    for code in [Retfd, Retfd_imm16] {
        table.both(code, far_return::<u32>);
    }
    for code in [Retfq, Retfq_imm16] {
        table.both(code, far_return::<u64>);
    }
    table.both(Iretw, interrupt_return::<u16>);
    table.both(Iretd, interrupt_return::<u32>);
    table.both(Iretq, interrupt_return::<u64>);
    table.both(Int_imm8, int);
    table.both(Int3, int3);
    table.both(Into, into);
    table.both(Int1, int1);
}
