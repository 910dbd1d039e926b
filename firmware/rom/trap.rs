//! Provoking exceptions and catching them.
//!
//! A step that wants a fault leaves the address to go on at in `RESUME`; the handler records what
//! it saw in the mailbox and returns there instead of to the faulting instruction. With `RESUME`
//! zero an exception is unexpected, and its handler reports it and ends the guest.

use iced_x86::code_asm::*;

use crate::rom::layout::{
    CAUGHT_CR2, CAUGHT_ERROR, CAUGHT_IP, CAUGHT_VECTOR, MAP_ON_FAULT, NOTHING_CAUGHT, PAGES_MAPPED,
    RESUME,
};
use crate::rom::page_faults::DEMO_PTE;
use crate::rom::print::print_hex;
use crate::rom::stage::{Emit, Stage, Step};

/// Exception vectors (SDM Vol. 3A, "Exception and Interrupt Vectors").
pub mod exception {
    /// #DE.
    pub const DIVIDE_ERROR: u32 = 0;
    /// #BP.
    pub const BREAKPOINT: u32 = 3;
    /// #UD.
    pub const INVALID_OPCODE: u32 = 6;
    /// #NP.
    pub const SEGMENT_NOT_PRESENT: u32 = 11;
    /// #GP.
    pub const GENERAL_PROTECTION: u32 = 13;
    /// #PF.
    pub const PAGE_FAULT: u32 = 14;
    /// Vectors reserved for exceptions.
    pub const COUNT: u8 = 32;
    /// Vectors that push an error code, as a bit set.
    pub const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1F << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
}

/// An exception as the guest shall see it.
#[derive(Clone, Copy)]
pub struct Expected {
    /// Vector.
    pub vector: u32,
    /// Error code, 0 where there is none.
    pub error: u32,
}

/// Which instruction pointer the exception shall save.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SavedIp {
    /// The provoking instruction's.
    OfInstruction,
    /// The next instruction's.
    OfNext,
    /// Not checked here.
    Elsewhere,
}

/// Runs `provoke` with `RESUME` behind it. Code of any width; a CALL supplies the address.
pub fn attempt(s: &mut Stage, provoke: impl FnOnce(&mut Stage) -> Emit) -> Emit {
    let (mut provoking, mut after) = (s.create_label(), s.create_label());
    s.mov(dword_ptr(CAUGHT_VECTOR), NOTHING_CAUGHT)?;
    s.call(provoking)?;
    s.jmp(after)?;
    s.set_label(&mut provoking)?;
    if s.bitness() == 16 {
        s.pop(word_ptr(RESUME))?;
    } else if s.bitness() == 32 {
        s.pop(dword_ptr(RESUME))?;
    } else {
        s.pop(qword_ptr(RESUME))?;
    }
    provoke(s)?;
    s.set_label(&mut after)?;
    s.mov(dword_ptr(RESUME), 0)
}

/// Provokes an exception and checks what was caught (32-bit and 64-bit code).
pub fn catch(
    s: &mut Stage,
    step: &Step,
    expected: Expected,
    provoke: impl FnOnce(&mut Stage) -> Emit,
) -> Emit {
    attempt(s, provoke)?;
    s.cmp(dword_ptr(CAUGHT_VECTOR), expected.vector)?;
    s.jne(step.failed)?;
    s.cmp(dword_ptr(CAUGHT_ERROR), expected.error)?;
    s.jne(step.failed)
}

/// Like [`catch`], and checks the saved instruction pointer too (64-bit code only).
pub fn catch_at(
    s: &mut Stage,
    step: &Step,
    expected: Expected,
    saved: SavedIp,
    provoke: impl FnOnce(&mut Stage) -> Emit,
) -> Emit {
    let (mut instruction, mut next) = (s.create_label(), s.create_label());
    catch(s, step, expected, |s| {
        s.set_label(&mut instruction)?;
        provoke(s)?;
        s.set_label(&mut next)?;
        s.nop()
    })?;
    match saved {
        SavedIp::OfInstruction => s.lea(rax, ptr(instruction))?,
        SavedIp::OfNext => s.lea(rax, ptr(next))?,
        SavedIp::Elsewhere => return Ok(()),
    }
    s.cmp(qword_ptr(CAUGHT_IP), rax)?;
    s.jne(step.failed)
}

/// Emits the entries of all exception handlers; each leaves vector and error code on the stack.
fn entries(s: &mut Stage, common: CodeLabel) -> Emit {
    for vector in 0..exception::COUNT {
        // INT3 and INT1 may come from ring 3.
        s.handler(vector, if vector == 3 { 3 } else { 0 })?;
        if exception::WITH_ERROR_CODE >> vector & 1 == 0 {
            s.push(0)?;
        }
        s.push(i32::from(vector))?;
        s.jmp(common)?;
    }
    Ok(())
}

/// Emits the exception handlers of the 32-bit stage.
///
/// They drop the frame and jump instead of IRETD, which KVM's instruction emulator lacks in
/// protected mode; no step depends on EFLAGS.
pub fn handlers32(s: &mut Stage) -> Emit {
    let (mut common, mut unexpected) = (s.create_label(), s.create_label());
    entries(s, common)?;
    s.set_label(&mut common)?;
    s.pop(dword_ptr(CAUGHT_VECTOR))?;
    s.pop(dword_ptr(CAUGHT_ERROR))?;
    s.pop(dword_ptr(CAUGHT_IP))?;
    // CS and EFLAGS.
    s.add(esp, 8)?;
    s.cmp(dword_ptr(RESUME), 0)?;
    s.je(unexpected)?;
    s.jmp(dword_ptr(RESUME))?;
    s.set_label(&mut unexpected)?;
    s.say("volvelle: unexpected exception in 32-bit code, FAILED\r\n")?;
    let give_up = s.give_up;
    s.jmp(give_up)
}

/// Emits the exception handlers of the 64-bit stage.
pub fn handlers64(s: &mut Stage) -> Emit {
    let (mut common, mut resume, mut unexpected) =
        (s.create_label(), s.create_label(), s.create_label());
    entries(s, common)?;
    s.set_label(&mut common)?;
    s.pop(qword_ptr(CAUGHT_VECTOR))?;
    s.pop(qword_ptr(CAUGHT_ERROR))?;
    s.push(rax)?;
    s.mov(rax, cr2)?;
    s.mov(qword_ptr(CAUGHT_CR2), rax)?;
    s.mov(rax, qword_ptr(rsp + 8))?;
    s.mov(qword_ptr(CAUGHT_IP), rax)?;
    map_if_asked(s, resume)?;
    s.pop(rax)?;
    s.iretq()?;
    s.set_label(&mut resume)?;
    s.mov(rax, qword_ptr(RESUME))?;
    s.test(rax, rax)?;
    s.je(unexpected)?;
    s.mov(qword_ptr(rsp + 8), rax)?;
    s.pop(rax)?;
    s.iretq()?;
    s.set_label(&mut unexpected)?;
    report_unexpected(s)
}

/// Maps the demonstration page on a #PF when a step asked for it; else goes to `resume`.
fn map_if_asked(s: &mut Stage, resume: CodeLabel) -> Emit {
    s.cmp(dword_ptr(CAUGHT_VECTOR), exception::PAGE_FAULT)?;
    s.jne(resume)?;
    s.mov(rax, qword_ptr(MAP_ON_FAULT))?;
    s.test(rax, rax)?;
    s.je(resume)?;
    s.mov(qword_ptr(DEMO_PTE), rax)?;
    s.mov(qword_ptr(MAP_ON_FAULT), 0)?;
    s.inc(qword_ptr(PAGES_MAPPED))
}

/// Tells all there is to know about an exception that no step asked for.
fn report_unexpected(s: &mut Stage) -> Emit {
    const FIELDS: [(&str, u32); 4] = [
        ("volvelle: unexpected exception, FAILED: vector=", CAUGHT_VECTOR),
        (" error=", CAUGHT_ERROR),
        (" RIP=", CAUGHT_IP),
        (" CR2=", CAUGHT_CR2),
    ];
    for (name, field) in FIELDS {
        s.say(name)?;
        s.mov(rax, qword_ptr(field))?;
        print_hex(s)?;
    }
    s.say("\r\n")?;
    let give_up = s.give_up;
    s.jmp(give_up)
}
