//! XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use iced_x86::{Code, Mnemonic};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::{self, Word};
use crate::interp::dispatch::Table;
use crate::interp::insn::{Handler, Insn};
use crate::interp::shape::{Form, by_width, for_each_form};
use crate::state::gpr::{RAX, RBX, RCX, RDX};
use crate::state::rflags::ZF;

const ACCUMULATOR: u8 = RAX as u8;

fn xchg_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, b) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
    cpu.set_reg(insn.dst, b);
    cpu.set_reg(insn.src, a);
    Ok(())
}

/// XCHG with memory locks with or without the prefix. Operand order does not matter to iced: the
/// register is `dst` or `src`, whichever is one.
fn xchg_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = insn.dst.min(insn.src);
    let value = cpu.reg::<T>(register);
    let offset = cpu.effective_address(&insn.mem);
    let old = cpu.modify(usize::from(insn.mem.segment), offset, true, |old: T| (value, old))?;
    cpu.set_reg(register, old);
    Ok(())
}

fn xadd_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (a, b) = (cpu.reg::<T>(insn.dst), cpu.reg::<T>(insn.src));
    let (sum, status) = flags::add(a, b, 0);
    // The destination is written last and wins if both are the same register.
    cpu.set_reg(insn.src, a);
    cpu.set_reg(insn.dst, sum);
    cpu.set_status_flags(status);
    Ok(())
}

fn xadd_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let b = cpu.reg::<T>(insn.src);
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let (old, status) = cpu.modify(segment, offset, insn.is_locked(), |a: T| {
        let (sum, status) = flags::add(a, b, 0);
        (sum, (a, status))
    })?;
    cpu.set_reg(insn.src, old);
    cpu.set_status_flags(status);
    Ok(())
}

fn cmpxchg_register<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (expected, found) = (cpu.reg::<T>(ACCUMULATOR), cpu.reg::<T>(insn.dst));
    let (_, status) = flags::sub(expected, found, 0);
    if expected == found {
        cpu.set_reg(insn.dst, cpu.reg::<T>(insn.src));
    } else {
        cpu.set_reg(ACCUMULATOR, found);
    }
    cpu.set_status_flags(status);
    Ok(())
}

fn cmpxchg_memory<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (expected, new) = (cpu.reg::<T>(ACCUMULATOR), cpu.reg::<T>(insn.src));
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let found = cpu.modify_maybe(segment, offset, insn.is_locked(), |found: T| {
        ((found == expected).then_some(new), found)
    })?;
    if found != expected {
        cpu.set_reg(ACCUMULATOR, found);
    }
    cpu.set_status_flags(flags::sub(expected, found, 0).1);
    Ok(())
}

/// EDX:EAX against memory, ECX:EBX the new value.
fn cmpxchg8b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        cpu.state.gpr[high] << 32 | cpu.state.gpr[low] & 0xffff_ffff
    };
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    let found = cpu.modify_maybe(segment, offset, insn.is_locked(), |found: u64| {
        ((found == expected).then_some(new), found)
    })?;
    if found != expected {
        cpu.set_reg(ACCUMULATOR, found as u32);
        cpu.set_reg(RDX as u8, (found >> 32) as u32);
    }
    cpu.set_flags(ZF, if found == expected { ZF } else { 0 });
    Ok(())
}

/// RDX:RAX against 16 aligned bytes, RCX:RBX the new value. Atomic with or without LOCK.
fn cmpxchg16b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let pair = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.state.gpr[high]) << 64 | u128::from(cpu.state.gpr[low])
    };
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let offset = cpu.effective_address(&insn.mem);
    let segment = usize::from(insn.mem.segment);
    // Alignment comes before the end of the address space: #GP even through rSP and rBP.
    let linear = cpu.linear(segment, offset, 1, crate::mmu::Access::Write)?;
    if linear & 15 != 0 {
        return Err(Exception::GP0);
    }
    match cpu.compare_exchange_16(segment, offset, expected, new)? {
        Ok(_) => cpu.set_flags(ZF, ZF),
        Err(found) => {
            cpu.state.gpr[RAX] = found as u64;
            cpu.state.gpr[RDX] = (found >> 64) as u64;
            cpu.set_flags(ZF, 0);
        }
    }
    Ok(())
}

fn handlers(form: &Form) -> Option<(Handler, Handler)> {
    // XCHG's register may stand first (90+r) or second (86, 87): the width is either's.
    let width = form.width.max(form.source_width);
    Some(match form.mnemonic {
        Mnemonic::Xchg => (by_width!(width, xchg_register), by_width!(width, xchg_memory)),
        Mnemonic::Xadd => (by_width!(width, xadd_register), by_width!(width, xadd_memory)),
        Mnemonic::Cmpxchg => (by_width!(width, cmpxchg_register), by_width!(width, cmpxchg_memory)),
        _ => return None,
    })
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        if let Some((register, memory)) = handlers(form) {
            table.forms(form.code, register, memory);
        }
    });
    table.both(Code::Cmpxchg8b_m64, cmpxchg8b);
    table.both(Code::Cmpxchg16b_m128, cmpxchg16b);
}
