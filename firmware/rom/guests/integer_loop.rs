//! A loop of integer work for benches: add, xor, shifts, load, store, a branch, a call.
//!
//! `src/guests.rs` holds the same loop in Rust, as the model of its result and length.

use iced_x86::code_asm::*;

use crate::rom::guests::end;
use crate::rom::layout::{CHECKSUM, PARAMETER, ROM_BASE, SCRATCH};
use crate::rom::print::print_hex;
use crate::rom::stage::{Emit, Stage};

/// Bytes of the table that the loop loads from and stores to.
const TABLE_BYTES: u32 = 0x1000;
/// Which bits of the accumulator choose the table's element.
const INDEX_MASK: u32 = 0xFF8;

/// The loop of one width. A macro, because iced-x86 has a register type for each width.
macro_rules! integer_loop {
    ($s:ident, $count:ident, $ax:ident, $bx:ident, $cx:ident, $dx:ident, $si:ident, $di:ident) => {{
        let (mut again, mut even, mut mix, mut done) =
            ($s.create_label(), $s.create_label(), $s.create_label(), $s.create_label());
        $s.xor(eax, eax)?;
        $s.xor(esi, esi)?;
        $s.mov(ebx, SCRATCH)?;
        $s.set_label(&mut again)?;
        $s.add($ax, $cx)?;
        $s.mov($dx, $ax)?;
        $s.shl($dx, 7)?;
        $s.xor($ax, $dx)?;
        $s.mov($dx, $ax)?;
        $s.shr($dx, 9)?;
        $s.xor($ax, $dx)?;
        $s.mov($di, $ax)?;
        $s.and($di, INDEX_MASK as i32)?;
        $s.add($ax, ptr($bx + $di))?;
        $s.mov(ptr($bx + $di), $ax)?;
        $s.test(al, 1)?;
        $s.je(even)?;
        $s.call(mix)?;
        $s.set_label(&mut even)?;
        $s.dec($count)?;
        $s.jne(again)?;
        $s.jmp(done)?;
        $s.set_label(&mut mix)?;
        $s.add($si, $ax)?;
        $s.rol($si, 5)?;
        $s.ret()?;
        $s.set_label(&mut done)?;
    }};
}

/// The 64-bit loop and its report.
pub fn run_64(s: &mut Stage) -> Emit {
    s.mov(edi, SCRATCH)?;
    s.mov(ecx, TABLE_BYTES)?;
    s.xor(eax, eax)?;
    s.rep().stosb()?;
    s.mov(rcx, qword_ptr(ROM_BASE + PARAMETER as u32))?;
    integer_loop!(s, rcx, rax, rbx, rcx, rdx, rsi, rdi);
    s.mov(qword_ptr(CHECKSUM), rsi)?;
    report(s)
}

/// The 16-bit loop, in real mode; the 64-bit stage reports.
pub fn run_16(s: &mut Stage) -> Emit {
    s.mov(di, SCRATCH)?;
    s.mov(cx, TABLE_BYTES)?;
    s.xor(ax, ax)?;
    s.rep().stosb()?;
    s.mov(ecx, dword_ptr(PARAMETER as u32).cs())?;
    integer_loop!(s, ecx, ax, bx, cx, dx, si, di);
    s.mov(word_ptr(CHECKSUM), si)
}

/// Prints the checksum and ends.
pub fn report(s: &mut Stage) -> Emit {
    s.say("checksum ")?;
    s.mov(rax, qword_ptr(CHECKSUM))?;
    print_hex(s)?;
    s.say("\r\n")?;
    end(s)
}
