//! A guest whose processors sleep, and are woken by each other's interrupts and their own timers
//! alone: one that is lost stops it for ever, one too many is counted.
//!
//! It is for changes of engine under it. The ball is an interrupt: the first processor sends it,
//! the second (or with one, the first) gets it and sends it back; whoever has it sleeps until a
//! one-shot of its timer first.

use iced_x86::code_asm::*;

use crate::rom::guests::end;
use crate::rom::layout::{
    COUNT_NOW, CPU_COUNT, CPUS_ARRIVED, CPUS_DONE, IDTR64, PARAMETER, ROM_BASE, SCRATCH, vector,
};
use crate::rom::local_apic::{LOCAL_APIC, SVR_ENABLE, register, write};
use crate::rom::power_off::halt_forever;
use crate::rom::print::print_decimal;
use crate::rom::smp::{arrive, read_cpu_count, start_others};
use crate::rom::stage::{Emit, Stage};

/// What each processor has: 16 bytes from here by its number, balls and then timer interrupts.
const COUNTS: u32 = SCRATCH;
const BALLS: i32 = 0;
const TIMERS: i32 = 8;
/// Set before the last ball is sent (u32).
const IS_LAST: u32 = SCRATCH + 0x40;
const BALL: u8 = vector::TIMER + 1;
/// Of the timer, whose clock's rate is 1 GHz about.
const COUNT: u32 = 200_000;
const ICR_HIGH: u32 = 0x310;
const ID: i32 = 0x20;
/// ICR: fixed, level assert; to the other, or to oneself.
const TO_OTHER: u32 = 1 << 14 | BALL as u32;
const TO_SELF: u32 = 1 << 18 | TO_OTHER;
const HPET: u32 = 0xFED0_0000;
const HPET_CONFIGURATION: u32 = HPET + 0x10;
const HPET_COUNTER: u32 = HPET + 0xF0;
/// Where the second processor's stack ends.
const OTHER_STACK: u32 = 0xA000;

/// The first processor.
pub fn run(s: &mut Stage) -> Emit {
    let (mut alone, mut wait) = (s.create_label(), s.create_label());
    let (mut round, mut serve) = (s.create_label(), s.create_label());
    read_cpu_count(s)?;
    set_up(s)?;
    s.mov(eax, HPET_CONFIGURATION)?;
    s.mov(dword_ptr(rax), 1)?;
    s.mov(eax, HPET_COUNTER)?;
    s.mov(r11, qword_ptr(rax))?;
    s.mov(ebx, ROM_BASE + PARAMETER as u32)?;
    s.add(r11, qword_ptr(rbx))?;
    s.cmp(dword_ptr(CPU_COUNT), 1)?;
    s.je(alone)?;
    start_others(s)?;
    s.set_label(&mut wait)?;
    s.pause()?;
    s.cmp(dword_ptr(CPUS_ARRIVED), 1)?;
    s.jb(wait)?;
    s.set_label(&mut alone)?;
    s.mov(dword_ptr(COUNT_NOW), 1)?;
    s.set_label(&mut round)?;
    s.inc(r14)?;
    s.mov(eax, HPET_COUNTER)?;
    s.cmp(qword_ptr(rax), r11)?;
    s.jb(serve)?;
    s.mov(dword_ptr(IS_LAST), 1)?;
    s.set_label(&mut serve)?;
    send(s)?;
    sleep_until(s, BALLS)?;
    rest(s)?;
    s.cmp(dword_ptr(IS_LAST), 0)?;
    s.je(round)?;
    report(s)?;
    handlers(s)
}

/// The second processor.
pub fn run_other(s: &mut Stage) -> Emit {
    let mut round = s.create_label();
    s.mov(esp, OTHER_STACK)?;
    s.lidt(ptr(IDTR64 as u64 + u64::from(ROM_BASE)))?;
    set_up(s)?;
    arrive(s)?;
    s.set_label(&mut round)?;
    s.inc(r14)?;
    sleep_until(s, BALLS)?;
    rest(s)?;
    // The first one has set it before it sent the ball that is here.
    s.mov(ebx, dword_ptr(IS_LAST))?;
    send(s)?;
    s.test(ebx, ebx)?;
    s.je(round)?;
    s.lock().inc(dword_ptr(CPUS_DONE))?;
    halt_forever(s)
}

/// R12: the local APIC, R14: the round, R15: the processor's counts.
fn set_up(s: &mut Stage) -> Emit {
    s.mov(r12d, LOCAL_APIC)?;
    write(s, register::SVR, SVR_ENABLE | u32::from(vector::SPURIOUS))?;
    write(s, register::DIVIDE_CONFIGURATION, 0b1011)?;
    write(s, register::LVT_TIMER, u32::from(vector::TIMER))?;
    s.mov(r15d, dword_ptr(r12 + ID))?;
    s.shr(r15d, 20)?;
    s.add(r15d, COUNTS as i32)?;
    s.xor(r14d, r14d)?;
    s.mov(qword_ptr(r15 + BALLS), 0)?;
    s.mov(qword_ptr(r15 + TIMERS), 0)
}

/// Sends the ball to the other processor, or where there is none to this one.
fn send(s: &mut Stage) -> Emit {
    let (mut alone, mut done) = (s.create_label(), s.create_label());
    s.cmp(dword_ptr(CPU_COUNT), 1)?;
    s.je(alone)?;
    s.mov(eax, dword_ptr(r12 + ID))?;
    s.xor(eax, 1i32 << 24)?;
    s.mov(dword_ptr(r12 + ICR_HIGH as i32), eax)?;
    write(s, register::ICR_LOW, TO_OTHER)?;
    s.jmp(done)?;
    s.set_label(&mut alone)?;
    write(s, register::ICR_LOW, TO_SELF)?;
    s.set_label(&mut done)?;
    s.nop()
}

/// Sleeps until the count at `offset` is that of the round.
fn sleep_until(s: &mut Stage, offset: i32) -> Emit {
    let (mut again, mut done) = (s.create_label(), s.create_label());
    s.set_label(&mut again)?;
    s.cli()?;
    s.cmp(qword_ptr(r15 + offset), r14)?;
    s.jae(done)?;
    s.sti()?;
    s.hlt()?;
    s.jmp(again)?;
    s.set_label(&mut done)?;
    s.sti()
}

/// Sleeps until the timer has run down.
fn rest(s: &mut Stage) -> Emit {
    write(s, register::INITIAL_COUNT, COUNT)?;
    sleep_until(s, TIMERS)
}

/// One line: rounds, and balls and timer interrupts of each processor.
fn report(s: &mut Stage) -> Emit {
    let mut next = s.create_label();
    s.say("relay rounds ")?;
    s.mov(rax, r14)?;
    print_decimal(s)?;
    s.mov(r8d, COUNTS)?;
    s.xor(ebx, ebx)?;
    s.set_label(&mut next)?;
    for (name, offset) in [(" balls ", BALLS), (" timers ", TIMERS)] {
        s.say(name)?;
        s.mov(rax, qword_ptr(r8 + offset))?;
        print_decimal(s)?;
    }
    s.add(r8, 16)?;
    s.inc(ebx)?;
    s.cmp(ebx, dword_ptr(CPU_COUNT))?;
    s.jb(next)?;
    s.say("\r\n")?;
    end(s)
}

fn handlers(s: &mut Stage) -> Emit {
    for (vector, offset) in [(vector::TIMER, TIMERS), (BALL, BALLS)] {
        s.handler(vector, 0)?;
        s.inc(qword_ptr(r15 + offset))?;
        write(s, register::EOI, 0)?;
        s.iretq()?;
    }
    s.handler(vector::SPURIOUS, 0)?;
    s.iretq()
}
