//! A guest that counts to nine, then answers every byte on COM1 with its number and itself.

use iced_x86::code_asm::*;

use crate::rom::layout::port::COM1;
use crate::rom::print::{print_al, print_decimal};
use crate::rom::stage::{Emit, Stage};

/// Line status register: data ready.
const LSR_DR: u32 = 1;
/// Ctrl-D ends the guest.
const END_OF_TRANSMISSION: u32 = 4;

/// Prints `0 1 2 ... 9` and a line end, then `1:a 2:b ...` for the input `ab...`, until Ctrl-D
/// powers it off.
pub fn run(s: &mut Stage) -> Emit {
    let (mut count, mut next) = (s.create_label(), s.create_label());
    s.xor(ebx, ebx)?;
    s.set_label(&mut count)?;
    s.mov(eax, ebx)?;
    print_decimal(s)?;
    s.say(" ")?;
    s.inc(ebx)?;
    s.cmp(ebx, 10)?;
    s.jne(count)?;
    s.say("\r\n")?;

    s.xor(ebx, ebx)?;
    s.set_label(&mut next)?;
    read_byte(s)?;
    let succeed = s.succeed;
    s.cmp(al, END_OF_TRANSMISSION)?;
    s.je(succeed)?;
    s.movzx(esi, al)?;
    s.inc(ebx)?;
    s.mov(eax, ebx)?;
    print_decimal(s)?;
    s.say(":")?;
    s.mov(eax, esi)?;
    print_al(s)?;
    s.say(" ")?;
    s.jmp(next)
}

/// Waits for a byte and leaves it in AL.
fn read_byte(s: &mut Stage) -> Emit {
    let (mut wait, mut ready) = (s.create_label(), s.create_label());
    s.mov(edx, u32::from(COM1 + 5))?;
    s.set_label(&mut wait)?;
    s.in_(al, dx)?;
    s.test(al, LSR_DR)?;
    s.jne(ready)?;
    s.pause()?;
    s.jmp(wait)?;
    s.set_label(&mut ready)?;
    s.mov(edx, u32::from(COM1))?;
    s.in_(al, dx)
}
