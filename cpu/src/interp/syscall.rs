//! SYSCALL, SYSRET, SYSENTER and SYSEXIT.
//!
//! Sources: SDM Vol. 2, "SYSCALL", "SYSRET", "SYSENTER", "SYSEXIT"; APM Vol. 3, the same, for what
//! AMD's processors do otherwise:
//!
//! | | Intel | AMD |
//! |---|---|---|
//! | SYSENTER, SYSEXIT in long mode | work | #UD |
//! | SYSCALL, SYSRET outside 64-bit mode | #UD | work, by CSTAR in compatibility mode |
//! | SYSRET to a RIP that is not canonical | #GP(0) at level 0 | faults at the target |
//! | SYSRET and the hidden part of SS | flat, as loaded | as it was |

use decoder::Vendor;
use iced_x86::Code;

use crate::Cpu;
use crate::debug::DR6_BS;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::{Segment, attr, cr0, efer, gpr, rflags, seg};
use crate::transfer::code::Target;

const FLAT: u16 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G;
const R11: usize = 11;
/// The flags that SYSRET can set: not RF, not VM.
const SYSRET_FLAGS: u64 = rflags::ALL & !(rflags::RF | rflags::VM);

/// A flat code segment at `cpl`; `size` is [`attr::L`] or [`attr::DB`].
fn flat_code(selector: u16, cpl: u8, size: u16) -> Segment {
    let attributes = FLAT | attr::CODE | size | u16::from(cpl) << attr::DPL_SHIFT;
    Segment { selector: selector & !3 | u16::from(cpl), attributes, limit: u32::MAX, base: 0 }
}

/// A flat stack segment at `cpl`.
fn flat_stack(selector: u16, cpl: u8) -> Segment {
    let attributes = FLAT | attr::DB | u16::from(cpl) << attr::DPL_SHIFT;
    Segment { selector: selector & !3 | u16::from(cpl), attributes, limit: u32::MAX, base: 0 }
}

impl Cpu {
    fn is_amd(&self) -> bool {
        self.env.cpuid.vendor() == Vendor::Amd
    }

    fn check_syscall(&self) -> Exec {
        let is_offered = self.state.msrs.efer & efer::SCE != 0
            && self.state.cr0 & cr0::PE != 0
            && (self.mode.is_64() || self.is_amd());
        if is_offered { Ok(()) } else { Err(Exception::UD) }
    }
}

fn syscall(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_syscall()?;
    let msrs = &cpu.state.msrs;
    let selector = (msrs.star >> 32) as u16;
    let is_long = cpu.mode.is_long();
    let entry = match (is_long, cpu.mode.is_64()) {
        (true, true) => msrs.lstar,
        (true, false) => msrs.cstar,
        (false, _) => msrs.star & 0xffff_ffff,
    };
    let flags = cpu.state.rflags & !rflags::RF;
    cpu.state.gpr[gpr::RCX] = cpu.next_rip;
    if is_long {
        cpu.state.gpr[R11] = flags;
        cpu.state.rflags = flags & !cpu.state.msrs.sfmask | rflags::FIXED;
    } else {
        cpu.state.rflags = flags & !(rflags::IF | rflags::VM);
    }
    let size = if is_long { attr::L } else { attr::DB };
    cpu.state.segments[seg::SS] = flat_stack((selector & !3).wrapping_add(8), 0);
    cpu.enter(&Target { cs: flat_code(selector, 0, size), cpl: 0, rip: entry });
    // The trap behind SYSCALL goes by the flags behind it.
    cpu.suppress_step = !cpu.flag(rflags::TF);
    Ok(())
}

/// SYSRET to 64-bit mode (`LONG`) or to a 32-bit segment.
fn sysret<const LONG: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_syscall()?;
    if cpu.state.cpl != 0 {
        return Err(Exception::GP0);
    }
    let rcx = cpu.state.gpr[gpr::RCX];
    if LONG && !cpu.is_amd() && !cpu.mode.is_canonical(rcx) {
        return Err(Exception::GP0);
    }
    let base = (cpu.state.msrs.star >> 48) as u16;
    let (cs, rip) = if LONG {
        (flat_code(base.wrapping_add(16), 3, attr::L), rcx)
    } else {
        (flat_code(base, 3, attr::DB), rcx & 0xffff_ffff)
    };
    let ss = flat_stack(base.wrapping_add(8), 3);
    let old = cpu.state.segments[seg::SS];
    cpu.state.segments[seg::SS] =
        if cpu.is_amd() { Segment { selector: ss.selector, ..old } } else { ss };
    if cpu.mode.is_long() {
        cpu.state.rflags = cpu.state.gpr[R11] & SYSRET_FLAGS | rflags::FIXED;
    } else {
        cpu.state.rflags |= rflags::IF;
    }
    cpu.enter(&Target { cs, cpl: 3, rip });
    // The trap behind SYSRET goes by the flags behind it, too.
    cpu.suppress_step = true;
    if cpu.flag(rflags::TF) {
        cpu.pending_dr6 |= DR6_BS;
    }
    Ok(())
}

impl Cpu {
    /// The selector in SYSENTER_CS, if SYSENTER and SYSEXIT can be used.
    fn sysenter_selector(&self) -> Exec<u16> {
        if self.mode.is_long() && self.is_amd() {
            return Err(Exception::UD);
        }
        let selector = self.state.msrs.sysenter_cs as u16;
        if self.state.cr0 & cr0::PE == 0 || selector & !3 == 0 {
            return Err(Exception::GP0);
        }
        Ok(selector & !3)
    }
}

fn sysenter(cpu: &mut Cpu, _: &Insn) -> Exec {
    let selector = cpu.sysenter_selector()?;
    let is_long = cpu.mode.is_long();
    let mask = if is_long { u64::MAX } else { 0xffff_ffff };
    let size = if is_long { attr::L } else { attr::DB };
    let msrs = &cpu.state.msrs;
    let (rip, rsp) = (msrs.sysenter_eip & mask, msrs.sysenter_esp & mask);
    cpu.state.gpr[gpr::RSP] = rsp;
    cpu.state.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    cpu.state.segments[seg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.enter(&Target { cs: flat_code(selector, 0, size), cpl: 0, rip });
    Ok(())
}

fn sysexit<const LONG: bool>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let selector = cpu.sysenter_selector()?;
    let (rip, rsp) = (cpu.state.gpr[gpr::RDX], cpu.state.gpr[gpr::RCX]);
    if LONG && !(cpu.mode.is_canonical(rip) && cpu.mode.is_canonical(rsp)) {
        return Err(Exception::GP0);
    }
    let (mask, size, above) =
        if LONG { (u64::MAX, attr::L, 32) } else { (0xffff_ffff, attr::DB, 16) };
    let code = selector.wrapping_add(above);
    cpu.state.gpr[gpr::RSP] = rsp & mask;
    cpu.state.segments[seg::SS] = flat_stack(code.wrapping_add(8), 3);
    cpu.enter(&Target { cs: flat_code(code, 3, size), cpl: 3, rip: rip & mask });
    Ok(())
}

pub(crate) fn register(table: &mut Table) {
    table.both(Code::Syscall, syscall);
    table.both(Code::Sysretd, sysret::<false>);
    table.both(Code::Sysretq, sysret::<true>);
    table.both(Code::Sysenter, sysenter);
    table.both(Code::Sysexitd, sysexit::<false>);
    table.both(Code::Sysexitq, sysexit::<true>);
}
