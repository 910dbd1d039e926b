//! Output on COM1, a 16550 that is polled.
//!
//! The text to print follows the CALL to the routine, which returns behind it. So a text needs no
//! address, and the same form serves code of every width.

use iced_x86::code_asm::*;

use crate::rom::layout::port::COM1;
use crate::rom::stage::{Emit, Stage, Width};

/// Line status register: transmitter holding register empty.
const LSR_THRE: u32 = 0x20;

/// IER=0, then 115200 baud (DLL=1, DLM=0 behind LCR.DLAB), 8N1, FIFOs on and empty, DTR and RTS.
const COM1_SETUP: [(u16, u32); 7] =
    [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07), (4, 0x03)];

/// Initialises COM1.
pub fn set_up_com1(s: &mut Stage) -> Emit {
    for (register, value) in COM1_SETUP {
        s.mov(dx, u32::from(COM1 + register))?;
        s.mov(al, value)?;
        s.out(dx, al)?;
    }
    Ok(())
}

/// The print routine of one width. A macro, because iced-x86 has a register type for each width.
macro_rules! print_routine {
    ($s:ident, $bp:ident, $sp:ident, $si:ident, $ax:ident, $dx:ident, $word:expr) => {{
        let (mut next, mut done, mut ready) =
            ($s.create_label(), $s.create_label(), $s.create_label());
        let mut entry = $s.print;
        $s.set_label(&mut entry)?;
        $s.push($bp)?;
        $s.mov($bp, $sp)?;
        $s.xchg(ptr($bp + $word), $si)?;
        $s.push($ax)?;
        $s.push($dx)?;
        $s.cld()?;
        $s.set_label(&mut next)?;
        $s.mov(al, byte_ptr($si).cs())?;
        $s.inc($si)?;
        $s.test(al, al)?;
        $s.je(done)?;
        $s.mov(ah, al)?;
        $s.mov(dx, u32::from(COM1 + 5))?;
        $s.set_label(&mut ready)?;
        $s.in_(al, dx)?;
        $s.test(al, LSR_THRE)?;
        $s.je(ready)?;
        $s.mov(al, ah)?;
        $s.mov(dx, u32::from(COM1))?;
        $s.out(dx, al)?;
        $s.jmp(next)?;
        $s.set_label(&mut done)?;
        $s.pop($dx)?;
        $s.pop($ax)?;
        $s.xchg(ptr($bp + $word), $si)?;
        $s.pop($bp)?;
        $s.ret()
    }};
}

/// Emits the print routine. It changes no register but the arithmetic flags.
pub fn routine(s: &mut Stage, width: Width) -> Emit {
    match width {
        Width::Bits16 => print_routine!(s, bp, sp, si, ax, dx, 2),
        Width::Bits32 => print_routine!(s, ebp, esp, esi, eax, edx, 4),
        Width::Bits64 => print_routine!(s, rbp, rsp, rsi, rax, rdx, 8),
    }
}

/// Emits 64-bit code that prints AL. Changes RAX.
pub fn print_al(s: &mut Stage) -> Emit {
    s.push(rdx)?;
    s.mov(ah, al)?;
    s.mov(edx, u32::from(COM1 + 5))?;
    s.anonymous_label()?;
    let ready = s.bwd()?;
    s.in_(al, dx)?;
    s.test(al, LSR_THRE)?;
    s.je(ready)?;
    s.mov(al, ah)?;
    s.mov(edx, u32::from(COM1))?;
    s.out(dx, al)?;
    s.pop(rdx)
}

/// Emits 64-bit code that prints RAX in hexadecimal without leading zeros. Changes RAX, RCX, RDX.
pub fn print_hex(s: &mut Stage) -> Emit {
    print_number(s, 16)
}

/// Emits 64-bit code that prints RAX in decimal. Changes RAX, RCX, RDX.
pub fn print_decimal(s: &mut Stage) -> Emit {
    print_number(s, 10)
}

/// Pushes the digits from the last on, then prints them as they come off the stack.
fn print_number(s: &mut Stage, radix: u32) -> Emit {
    let (mut divide, mut show, mut decimal) =
        (s.create_label(), s.create_label(), s.create_label());
    s.push(rbx)?;
    s.mov(ebx, radix)?;
    s.xor(ecx, ecx)?;
    s.set_label(&mut divide)?;
    s.xor(edx, edx)?;
    s.div(rbx)?;
    s.push(rdx)?;
    s.inc(ecx)?;
    s.test(rax, rax)?;
    s.jne(divide)?;
    s.set_label(&mut show)?;
    s.pop(rax)?;
    s.add(al, u32::from(b'0'))?;
    s.cmp(al, u32::from(b'9'))?;
    s.jbe(decimal)?;
    s.add(al, u32::from(b'A' - b'9' - 1))?;
    s.set_label(&mut decimal)?;
    print_al(s)?;
    s.dec(ecx)?;
    s.jne(show)?;
    s.pop(rbx)
}

/// Emits 64-bit code that prints `length` bytes at `address` and skips zeros. Changes RAX, RCX,
/// RSI.
pub fn print_text_at(s: &mut Stage, address: u32, length: u32) -> Emit {
    let (mut next, mut skip) = (s.create_label(), s.create_label());
    s.mov(esi, address)?;
    s.mov(ecx, length)?;
    s.set_label(&mut next)?;
    s.mov(al, byte_ptr(rsi))?;
    s.test(al, al)?;
    s.je(skip)?;
    print_al(s)?;
    s.set_label(&mut skip)?;
    s.inc(rsi)?;
    s.dec(ecx)?;
    s.jne(next)
}
