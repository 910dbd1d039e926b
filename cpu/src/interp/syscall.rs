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
use crate::translator::FastSystemCalls;

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

    /// CS and CPL behind SYSCALL; SS is loaded.
    fn syscall_segments(&mut self, size: u16) -> Segment {
        let selector = (self.state.msrs.star >> 32) as u16;
        self.state.segments[seg::SS] = flat_stack((selector & !3).wrapping_add(8), 0);
        flat_code(selector, 0, size)
    }

    /// CS behind SYSRET, to 64-bit mode if `is_long`; SS is loaded.
    fn sysret_segments(&mut self, is_long: bool) -> Segment {
        let base = (self.state.msrs.star >> 48) as u16;
        let ss = flat_stack(base.wrapping_add(8), 3);
        let old = self.state.segments[seg::SS];
        self.state.segments[seg::SS] =
            if self.is_amd() { Segment { selector: ss.selector, ..old } } else { ss };
        if is_long {
            flat_code(base.wrapping_add(16), 3, attr::L)
        } else {
            flat_code(base, 3, attr::DB)
        }
    }

    /// What SYSCALL does now, and that SYSRETQ works, for a translator that executes them itself;
    /// `None` if they are to be interpreted. Such a SYSCALL leaves TF, IF, DF, IOPL, NT, AC clear.
    pub fn fast_system_calls(&self) -> Option<FastSystemCalls> {
        const CLEARED: u64 =
            rflags::TF | rflags::IF | rflags::DF | rflags::IOPL | rflags::NT | rflags::AC;
        let msrs = &self.state.msrs;
        let is_fast = self.check_syscall().is_ok()
            && self.mode.is_64()
            && self.state.rflags & rflags::IOPL == 0
            && msrs.sfmask & CLEARED == CLEARED;
        is_fast.then_some(FastSystemCalls { entry: msrs.lstar, mask: msrs.sfmask })
    }

    /// Catches up with a translator that has executed SYSCALL (`has_called`) and SYSRETQ behind it
    /// (`has_returned`), and has set RFLAGS.AC to `alignment_flag`: segments, CPL and mode.
    pub fn follow_system_calls(
        &mut self,
        has_called: bool,
        has_returned: bool,
        alignment_flag: u64,
    ) {
        if has_called {
            self.state.segments[seg::CS] = self.syscall_segments(attr::L);
            self.state.cpl = 0;
        }
        if has_returned {
            self.state.segments[seg::CS] = self.sysret_segments(true);
            self.state.cpl = 3;
        }
        self.set_flags(rflags::AC, alignment_flag);
        self.mode_changed();
    }
}

fn syscall(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.check_syscall()?;
    let msrs = &cpu.state.msrs;
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
    let cs = cpu.syscall_segments(size);
    cpu.enter(&Target { cs, cpl: 0, rip: entry });
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
    let cs = cpu.sysret_segments(LONG);
    let rip = if LONG { rcx } else { rcx & 0xffff_ffff };
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
