//! What is left of the general-purpose set: no-operations, CLC and its kin, BOUND, INTO and UD,
//! RDRAND and RDSEED, fences, cache hints and CLZERO, MOVDIR64B.

use iced_x86::{Code, Mnemonic};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::{Table, undefined};
use crate::interp::insn::{Insn, register_number};
use crate::interp::shape::{by_width, for_each_form};
use crate::mmu::Access;
use crate::state::gpr::RAX;
use crate::state::rflags::{CF, DF, STATUS};
use crate::state::seg;

/// NOP, PAUSE, ENDBR, RDSSP without shadow stacks, prefetches, fences: the interpreter keeps program order, and locked
/// accesses are the host's own.
fn nop(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// MFENCE and its kin order what other CPUs see of this one's plain stores: the host's do.
fn fence(_: &mut Cpu, _: &Insn) -> Exec {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// PAUSE lets the host run somebody else: the lock that is spun on may be held by a vCPU that
/// waits for this core.
fn pause(_: &mut Cpu, _: &Insn) -> Exec {
    std::hint::spin_loop();
    Ok(())
}

fn clc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(CF, 0);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(CF, CF);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.rflags ^= CF;
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(DF, 0);
    Ok(())
}

fn std(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(DF, DF);
    Ok(())
}

fn salc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let value: u8 = if cpu.flag(CF) { 0xff } else { 0 };
    cpu.set_reg(RAX as u8, value);
    Ok(())
}

/// BOUND: a signed index against a pair of signed bounds in memory.
fn bound<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let segment = usize::from(insn.mem.segment);
    let offset = cpu.effective_address(&insn.mem);
    let lower = cpu.read::<T>(segment, offset)?.sign_extend() as i64;
    let upper = cpu.read::<T>(segment, offset.wrapping_add(T::BYTES))?.sign_extend() as i64;
    let index = cpu.reg::<T>(insn.dst).sign_extend() as i64;
    if index < lower || index > upper { Err(Exception::BR) } else { Ok(()) }
}

/// RDRAND and RDSEED always deliver: CF set, the other status flags clear.
fn random<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.env.platform.entropy();
    cpu.set_reg(insn.dst, T::from_u64(value));
    cpu.set_flags(STATUS, CF);
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: nothing is cached, but the address is read as by a byte load.
fn flush_line(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.effective_address(&insn.mem);
    cpu.check_access(usize::from(insn.mem.segment), offset, 1, Access::Read)
}

/// CLZERO: the 64-byte line that holds rAX.
fn clzero(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let bits = match insn.iced.op0_register().size() {
        2 => 16,
        4 => 32,
        _ => 64,
    };
    let address = cpu.state.gpr[RAX] & u64::MAX >> (64 - bits) & !63;
    let segment = match insn.iced.segment_prefix() {
        iced_x86::Register::FS => seg::FS,
        iced_x86::Register::GS => seg::GS,
        _ => seg::DS,
    };
    cpu.write_bytes(segment, address, &[0; 64])
}

/// MOVDIR64B: 64 bytes from the operand to ES:reg, which must be aligned.
fn movdir64b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = insn.iced.op0_register();
    let mask = u64::MAX >> (64 - 8 * register.size() as u32);
    let target = cpu.state.gpr[usize::from(register_number(register) & 15)] & mask;
    let linear = cpu.linear(seg::ES, target, 64, Access::Write)?;
    if linear & 63 != 0 {
        return Err(Exception::GP0);
    }
    let mut line = [0; 64];
    let offset = cpu.effective_address(&insn.mem);
    cpu.read_bytes(usize::from(insn.mem.segment), offset, &mut line)?;
    cpu.write_bytes(seg::ES, target, &line)
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
            | Mnemonic::Cldemote
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Lfence => nop,
            Mnemonic::Mfence | Mnemonic::Sfence => fence,
            Mnemonic::Pause => pause,
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
            Mnemonic::Clzero => clzero,
            Mnemonic::Movdir64b => movdir64b,
            Mnemonic::Rdrand | Mnemonic::Rdseed => by_width!(form.width, random),
            Mnemonic::Bound => by_width!(form.width, bound),
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => undefined,
            Mnemonic::Clc => clc,
            Mnemonic::Stc => stc,
            Mnemonic::Cmc => cmc,
            Mnemonic::Cld => cld,
            Mnemonic::Std => std,
            Mnemonic::Salc => salc,
            _ => return,
        };
        table.both(form.code, handler);
    });
    table.both(Code::Nopd, nop);
}
