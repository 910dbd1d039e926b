//! The local APIC (SDM Vol. 3A, "Advanced Programmable Interrupt Controller"): its timer, CR8, HLT.

use iced_x86::code_asm::*;

use crate::rom::layout::{TICKS, vector};
use crate::rom::stage::{Emit, Stage, Step};

/// Where the registers are after reset.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Register offsets.
pub mod register {
    /// End of interrupt.
    pub const EOI: u32 = 0xB0;
    /// Spurious-interrupt vector; bit 8 enables the APIC.
    pub const SVR: u32 = 0xF0;
    /// Interrupt request register, vectors 64 to 95.
    pub const IRR_64: u32 = 0x220;
    /// Interrupt command, low half.
    pub const ICR_LOW: u32 = 0x300;
    /// LVT entry of the timer.
    pub const LVT_TIMER: u32 = 0x320;
    /// LVT entry of LINT0.
    pub const LVT_LINT0: u32 = 0x350;
    /// Timer's initial count.
    pub const INITIAL_COUNT: u32 = 0x380;
    /// Timer's divider; 1011b divides by 1.
    pub const DIVIDE_CONFIGURATION: u32 = 0x3E0;
}
/// SVR: APIC software enable.
pub const SVR_ENABLE: u32 = 1 << 8;
/// Timer counts until an interrupt: a fraction of a millisecond on common clocks.
const TIMER_COUNT: u32 = 100_000;
/// Rounds of a waiting loop until the step fails.
pub const PATIENCE: u32 = 1 << 28;

/// The steps.
pub fn steps(s: &mut Stage) -> Emit {
    enable(s)?;
    timer(s)?;
    task_priority(s)?;
    halt(s)
}

fn enable(s: &mut Stage) -> Emit {
    s.mov(r12d, LOCAL_APIC)?;
    write(s, register::SVR, SVR_ENABLE | u32::from(vector::SPURIOUS))?;
    write(s, register::DIVIDE_CONFIGURATION, 0b1011)?;
    write(s, register::LVT_TIMER, u32::from(vector::TIMER))
}

/// Writes a register of the local APIC, whose base is in R12.
pub fn write(s: &mut Stage, register: u32, value: u32) -> Emit {
    s.mov(dword_ptr(r12 + register as i32), value as i32)
}

/// Arms the timer for one interrupt.
fn arm(s: &mut Stage) -> Emit {
    write(s, register::INITIAL_COUNT, TIMER_COUNT)
}

/// Repeats until `holds` set ZF; runs out of [`PATIENCE`] into `step.failed`. Changes ECX.
pub fn wait_until(s: &mut Stage, step: &Step, holds: impl FnOnce(&mut Stage) -> Emit) -> Emit {
    let (mut again, mut done) = (s.create_label(), s.create_label());
    s.mov(ecx, PATIENCE)?;
    s.set_label(&mut again)?;
    holds(s)?;
    s.je(done)?;
    s.pause()?;
    s.dec(ecx)?;
    s.jne(again)?;
    s.jmp(step.failed)?;
    s.set_label(&mut done)?;
    s.nop()
}

/// A one-shot interrupt arrives in a loop that waits for it.
fn timer(s: &mut Stage) -> Emit {
    let step = Step::new(s, "timer");
    arm(s)?;
    s.sti()?;
    wait_until(s, &step, |s| s.cmp(dword_ptr(TICKS), 1))?;
    s.cli()?;
    step.passed(s, "local APIC one-shot interrupt taken")
}

/// CR8 holds an interrupt back in IRR and lets it go when lowered.
fn task_priority(s: &mut Stage) -> Emit {
    let step = Step::new(s, "CR8");
    s.mov(eax, 15)?;
    s.mov(cr8, rax)?;
    s.sti()?;
    arm(s)?;
    wait_until(s, &step, |s| {
        s.mov(eax, dword_ptr(r12 + register::IRR_64 as i32))?;
        s.and(eax, 1 << (vector::TIMER - 64))?;
        s.cmp(eax, 1 << (vector::TIMER - 64))
    })?;
    s.cmp(dword_ptr(TICKS), 1)?;
    s.jne(step.failed)?;
    s.xor(eax, eax)?;
    s.mov(cr8, rax)?;
    wait_until(s, &step, |s| s.cmp(dword_ptr(TICKS), 2))?;
    s.cli()?;
    step.passed(s, "priority 15 held the interrupt in IRR, 0 let it go")
}

/// STI holds interrupts back for one instruction, so HLT cannot miss the one it waits for.
fn halt(s: &mut Stage) -> Emit {
    let step = Step::new(s, "hlt");
    arm(s)?;
    s.sti()?;
    s.hlt()?;
    s.cli()?;
    s.cmp(dword_ptr(TICKS), 3)?;
    s.jne(step.failed)?;
    step.passed(s, "woken by the timer")
}

/// The interrupt handlers.
pub fn handlers(s: &mut Stage) -> Emit {
    s.handler(vector::TIMER, 0)?;
    s.inc(dword_ptr(TICKS))?;
    s.push(rbx)?;
    s.mov(ebx, LOCAL_APIC)?;
    s.mov(dword_ptr(rbx + register::EOI as i32), 0)?;
    s.pop(rbx)?;
    s.iretq()?;
    s.handler(vector::SPURIOUS, 0)?;
    s.iretq()
}
