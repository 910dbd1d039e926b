//! Hints and order: no-operations, prefetches, PAUSE, fences, and the flushes of cache lines.

use decoder::Vendor;
use iced_x86::{Code, Mnemonic};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::interp::shape::for_each_form;
use crate::mmu::Access;

/// NOP, PAUSE, ENDBR, RDSSP without shadow stacks, prefetches, fences: the interpreter keeps
/// program order, and locked accesses are the host's own.
fn nop(_: &mut Cpu, _: &Insn) -> Exec {
    Ok(())
}

/// PREFETCH with a register: a no-operation to Intel, #UD to AMD (APM Vol. 3, "PREFETCHlevel").
fn prefetch_register(cpu: &mut Cpu, _: &Insn) -> Exec {
    match cpu.env.cpuid.vendor() {
        Vendor::Intel => Ok(()),
        Vendor::Amd => Err(Exception::UD),
    }
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

/// CLFLUSH, CLFLUSHOPT, CLWB: nothing is cached, but the address is read as by a byte load.
fn flush_line(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let offset = cpu.effective_address(&insn.mem);
    cpu.check_access(usize::from(insn.mem.segment), offset, 1, Access::Read)
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
            _ => return,
        };
        table.both(form.code, handler);
    });
    table.both(Code::Nopd, nop);
    for code in [
        Code::Reservednop_rm16_r16_0F0D,
        Code::Reservednop_rm32_r32_0F0D,
        Code::Reservednop_rm64_r64_0F0D,
    ] {
        table.forms(code, prefetch_register, nop);
    }
}
