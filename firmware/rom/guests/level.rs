//! A guest for level-triggered interrupts: COM1's, by the I/O APIC. While the line stays up it
//! comes again behind each EOI; when the line is down it does not, and nothing is left in service.

use iced_x86::code_asm::*;

use crate::rom::guests::end;
use crate::rom::layout::{SCRATCH, TICKS, port, vector};
use crate::rom::local_apic::{LOCAL_APIC, SVR_ENABLE, register, write};
use crate::rom::print::print_decimal;
use crate::rom::stage::{Emit, Stage};

const IO_APIC: u32 = 0xFEC0_0000;
/// From IOREGSEL to IOWIN.
const WINDOW: i32 = 0x10;
/// The low half of the entry of input 4, COM1's; the high half is behind it.
const ENTRY: u32 = 0x10 + 2 * 4;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;
/// 16550: interrupt enable, and the interrupt when the transmitter is empty.
const IER: u16 = port::COM1 + 1;
const TRANSMITTER_EMPTY: u32 = 2;
/// Interrupt identification: a read ends the transmitter's interrupt.
const IIR: u16 = port::COM1 + 2;
/// Modem control: DTR, RTS, and OUT2, which lets interrupts through.
const MCR: u16 = port::COM1 + 4;
const INTERRUPTS_OUT: u32 = 0b1011;
/// How often the line is found up before the handler takes it down.
const TIMES: u32 = 3;
/// Rounds of a PAUSE loop in which one more would come.
const QUIET: u32 = 20_000;

/// Prints how often the interrupt came, and remote IRR behind it, for the line up and up again.
pub fn run(s: &mut Stage) -> Emit {
    s.mov(r12d, LOCAL_APIC)?;
    write(s, register::SVR, SVR_ENABLE | u32::from(vector::SPURIOUS))?;
    s.mov(r13d, IO_APIC)?;
    for (number, value) in [(ENTRY + 1, 0), (ENTRY, LEVEL | u32::from(vector::TIMER))] {
        s.mov(dword_ptr(r13), number as i32)?;
        s.mov(dword_ptr(r13 + WINDOW), value as i32)?;
    }
    out(s, MCR, INTERRUPTS_OUT)?;
    for (place, times) in [(SCRATCH, TIMES), (SCRATCH + 8, TIMES + 1)] {
        raise(s, times)?;
        note(s, place)?;
    }
    for (place, text) in [(SCRATCH, "level interrupts "), (SCRATCH + 8, ", then ")] {
        s.say(text)?;
        s.mov(eax, dword_ptr(place))?;
        print_decimal(s)?;
        s.say(" with remote IRR ")?;
        s.mov(eax, dword_ptr(place + 4))?;
        print_decimal(s)?;
    }
    s.say("\r\n")?;
    end(s)?;
    handler(s)
}

fn out(s: &mut Stage, port: u16, value: u32) -> Emit {
    s.mov(edx, u32::from(port))?;
    s.mov(eax, value)?;
    s.out(dx, al)
}

/// Raises the line, waits until there were `times` interrupts in all, and for one too many.
fn raise(s: &mut Stage, times: u32) -> Emit {
    let (mut again, mut quiet) = (s.create_label(), s.create_label());
    out(s, IER, TRANSMITTER_EMPTY)?;
    s.sti()?;
    s.set_label(&mut again)?;
    s.pause()?;
    s.cmp(dword_ptr(TICKS), times as i32)?;
    s.jb(again)?;
    s.mov(ecx, QUIET)?;
    s.set_label(&mut quiet)?;
    s.pause()?;
    s.dec(ecx)?;
    s.jne(quiet)?;
    s.cli()?;
    out(s, IER, 0)
}

/// Stores the number of interrupts and whether the entry waits for an EOI.
fn note(s: &mut Stage, place: u32) -> Emit {
    s.mov(eax, dword_ptr(TICKS))?;
    s.mov(dword_ptr(place), eax)?;
    s.mov(dword_ptr(r13), ENTRY as i32)?;
    s.mov(eax, dword_ptr(r13 + WINDOW))?;
    s.and(eax, REMOTE_IRR)?;
    s.shr(eax, REMOTE_IRR.trailing_zeros())?;
    s.mov(dword_ptr(place + 4), eax)
}

fn handler(s: &mut Stage) -> Emit {
    let mut stays = s.create_label();
    s.handler(vector::TIMER, 0)?;
    s.push(rax)?;
    s.push(rdx)?;
    s.inc(dword_ptr(TICKS))?;
    s.cmp(dword_ptr(TICKS), TIMES as i32)?;
    s.jb(stays)?;
    s.mov(edx, u32::from(IIR))?;
    s.in_(al, dx)?;
    s.set_label(&mut stays)?;
    write(s, register::EOI, 0)?;
    s.pop(rdx)?;
    s.pop(rax)?;
    s.iretq()?;
    s.handler(vector::SPURIOUS, 0)?;
    s.iretq()
}
