//! A guest that only halts, with the 8254 ticking at 100 Hz through the 8259A.

use iced_x86::code_asm::*;

use crate::rom::layout::{TICKS, port, vector};
use crate::rom::local_apic::{LOCAL_APIC, SVR_ENABLE, register, write};
use crate::rom::stage::{Emit, Stage};

/// The 8254's count for 100 Hz: 1.193182 MHz / 100.
const COUNT_100_HZ: u32 = 11_932;
/// LVT LINT0 in ExtINT mode: the 8259A supplies the vector.
const LINT0_EXTINT: u32 = 0b111 << 8;

/// Port writes that start the tick: 8259A ICW1 to ICW4 and OCW1 (only IRQ 0), then the 8254's
/// channel 0 in mode 2.
const SETUP: [(u16, u32); 8] = [
    (port::PIC1_COMMAND, 0x11),
    (port::PIC1_MASK, vector::TIMER as u32),
    (port::PIC1_MASK, 0x04),
    (port::PIC1_MASK, 0x01),
    (port::PIC1_MASK, 0xFE),
    (port::PIT_CONTROL, 0x34),
    (port::PIT_COUNTER0, COUNT_100_HZ & 0xFF),
    (port::PIT_COUNTER0, COUNT_100_HZ >> 8),
];

/// Prints `idle`, and `ticking` after ten ticks; then it is silent.
pub fn run(s: &mut Stage) -> Emit {
    let mut again = s.create_label();
    s.say("idle\r\n")?;
    s.mov(r12d, LOCAL_APIC)?;
    write(s, register::SVR, SVR_ENABLE | u32::from(vector::SPURIOUS))?;
    write(s, register::LVT_LINT0, LINT0_EXTINT)?;
    for (to, value) in SETUP {
        s.mov(edx, u32::from(to))?;
        s.mov(al, value)?;
        s.out(dx, al)?;
    }
    s.set_label(&mut again)?;
    s.sti()?;
    s.hlt()?;
    s.cli()?;
    s.cmp(dword_ptr(TICKS), 10)?;
    s.jne(again)?;
    s.say("ticking\r\n")?;
    // Past ten, so that it is said once.
    s.inc(dword_ptr(TICKS))?;
    s.jmp(again)?;
    tick(s)
}

fn tick(s: &mut Stage) -> Emit {
    const END_OF_INTERRUPT: u32 = 0x20;
    s.handler(vector::TIMER, 0)?;
    s.push(rax)?;
    s.inc(dword_ptr(TICKS))?;
    s.mov(al, END_OF_INTERRUPT)?;
    s.out(u32::from(port::PIC1_COMMAND), al)?;
    s.pop(rax)?;
    s.iretq()?;
    s.handler(vector::SPURIOUS, 0)?;
    s.iretq()
}
