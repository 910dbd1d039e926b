//! From the reset vector through real mode to 16-bit protected mode.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::rom::layout::{
    CAUGHT_IP, CAUGHT_VECTOR, GDT, GDT_TEMPLATE, GDTR, IVT_TEMPLATE, MAILBOX, MAILBOX_BYTES,
    PROTECTED_MODE, REAL_MODE, RESET_VECTOR, RESUME, ROM_SEGMENT, SCRATCH, SMALL_SEGMENT,
    STACK_TOP, port, selector, vector,
};
use crate::rom::print::set_up_com1;
use crate::rom::stage::{Assembled, Emit, Stage, Step, Width};
use crate::rom::tables::{GDT_BYTES, IVT_BYTES};
use crate::rom::trap::attempt;

/// CR0.PE.
pub const CR0_PE: u32 = 1;

/// What the INT 60h handler adds to AX.
const CALL_ANSWER: u32 = 0x1111;

/// The 16 bytes at the reset vector: a far jump, which also leaves CS's reset base.
pub fn reset_vector() -> Result<Vec<u8>, IcedError> {
    let mut stage = Stage::new(Width::Bits16, RESET_VECTOR)?;
    stage.enter(ROM_SEGMENT, Width::Bits16, REAL_MODE)?;
    Ok(stage.finish()?.code)
}

/// The stage.
pub fn stage() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits16, REAL_MODE)?;
    let s = &mut stage;
    set_up(s)?;
    a20(s)?;
    interrupt_call(s)?;
    divide_error(s)?;
    strings(s)?;
    segment_wrap(s)?;
    protected_16(s)?;
    s.enter(selector::CODE32, Width::Bits32, PROTECTED_MODE)?;
    handlers(s)?;
    stage.finish_with_steps()
}

/// Segments, stack, a clear mailbox, the tables in RAM, the serial port, no PIC interrupts.
fn set_up(s: &mut Stage) -> Emit {
    clear_mailbox(s)?;
    s.mov(ax, cs)?;
    s.mov(ds, ax)?;
    copy_table(s, GDT_TEMPLATE, GDT, GDT_BYTES)?;
    copy_table(s, IVT_TEMPLATE, 0, IVT_BYTES)?;
    s.xor(ax, ax)?;
    s.mov(ds, ax)?;
    set_up_com1(s)?;
    s.mov(al, 0xFF)?;
    s.out(u32::from(port::PIC1_MASK), al)?;
    s.out(u32::from(port::PIC2_MASK), al)?;
    s.say("\r\nvolvelle: the built-in guest\r\n")
}

/// ES and SS of 0, a stack, and a clear mailbox.
pub fn clear_mailbox(s: &mut Stage) -> Emit {
    s.cli()?;
    s.cld()?;
    s.xor(ax, ax)?;
    s.mov(es, ax)?;
    s.mov(ss, ax)?;
    s.mov(sp, STACK_TOP)?;
    s.mov(di, MAILBOX)?;
    s.mov(cx, MAILBOX_BYTES)?;
    s.rep().stosb()
}

/// Copies from the ROM, which DS holds, to low memory.
pub fn copy_table(s: &mut Stage, rom_offset: usize, to: u32, bytes: usize) -> Emit {
    s.mov(si, rom_offset as u32)?;
    s.mov(di, to)?;
    s.mov(cx, bytes as u32)?;
    s.rep().movsb()
}

/// 1 MiB and 0 are different places once A20 is open.
fn a20(s: &mut Stage) -> Emit {
    let step = Step::new(s, "real mode");
    s.in_(al, u32::from(port::SYSTEM_CONTROL_A))?;
    s.or(al, 2)?;
    s.and(al, 0xFE)?;
    s.out(u32::from(port::SYSTEM_CONTROL_A), al)?;
    s.mov(ax, 0xFFFF)?;
    s.mov(es, ax)?;
    // FFFF:8010 is 100000h + SCRATCH.
    s.mov(word_ptr(SCRATCH), 0x1234)?;
    s.mov(word_ptr(SCRATCH + 0x10).es(), 0x5678)?;
    s.cmp(word_ptr(SCRATCH), 0x1234)?;
    s.jne(step.failed)?;
    s.cmp(word_ptr(SCRATCH + 0x10).es(), 0x5678)?;
    s.jne(step.failed)?;
    step.passed(s, "started at the reset vector, A20 open")
}

/// INT pushes FLAGS, CS and IP, clears IF, and IRET takes them back.
fn interrupt_call(s: &mut Stage) -> Emit {
    let step = Step::new(s, "INT 60h");
    s.mov(bx, sp)?;
    s.mov(ax, 0x2222)?;
    s.stc()?;
    s.int(i32::from(vector::REAL_MODE_CALL))?;
    s.jae(step.failed)?;
    s.cmp(ax, 0x2222 + CALL_ANSWER)?;
    s.jne(step.failed)?;
    s.cmp(bx, sp)?;
    s.jne(step.failed)?;
    step.passed(s, "called through the IVT, IRET restored FLAGS and SP")
}

/// The saved IP of a divide error is the DIV's own.
fn divide_error(s: &mut Stage) -> Emit {
    let step = Step::new(s, "real-mode #DE");
    attempt(s, |s| {
        s.mov(ax, 1)?;
        s.xor(cx, cx)?;
        s.div(cx)
    })?;
    s.cmp(word_ptr(CAUGHT_VECTOR), 0)?;
    s.jne(step.failed)?;
    // The saved IP must point at the bytes of DIV CX.
    s.mov(bx, word_ptr(CAUGHT_IP))?;
    s.cmp(word_ptr(bx).cs(), 0xF1F7_u32 as i32)?;
    s.jne(step.failed)?;
    step.passed(s, "DIV by zero went through vector 0 with its own IP")
}

/// REP MOVSB upwards and downwards over overlapping ranges, REPE CMPSB, and the counts left.
fn strings(s: &mut Stage) -> Emit {
    let step = Step::new(s, "string");
    s.xor(ax, ax)?;
    s.mov(es, ax)?;
    s.mov(di, SCRATCH)?;
    s.mov(al, 0x5A)?;
    s.stosb()?;
    // One byte upwards by overlap: the first byte fills the whole range.
    s.mov(si, SCRATCH)?;
    s.mov(cx, 0xFF)?;
    s.rep().movsb()?;
    s.mov(byte_ptr(SCRATCH + 0xFF), 0xA5)?;
    s.mov(di, SCRATCH)?;
    s.mov(cx, 0x200)?;
    s.repe().scasb()?;
    s.cmp(di, SCRATCH + 0x100)?;
    s.jne(step.failed)?;
    s.cmp(cx, 0x100)?;
    s.jne(step.failed)?;
    // Downwards the same overlap copies without smearing.
    s.std()?;
    s.mov(si, SCRATCH + 0xFF)?;
    s.mov(di, SCRATCH + 0x100)?;
    s.mov(cx, 0x100)?;
    s.rep().movsb()?;
    s.cld()?;
    s.cmp(word_ptr(SCRATCH + 0xFF), 0xA55A_u32 as i32)?;
    s.jne(step.failed)?;
    s.cmp(si, SCRATCH - 1)?;
    s.jne(step.failed)?;
    step.passed(s, "REP MOVSB up and down over itself, REPE SCASB stopped in place")
}

/// Offsets are 16 bits wide: base plus index, DI of a string instruction, and SP all wrap.
fn segment_wrap(s: &mut Stage) -> Emit {
    let step = Step::new(s, "segment wrap");
    s.mov(ax, SMALL_SEGMENT >> 4)?;
    s.mov(es, ax)?;
    s.mov(byte_ptr(1).es(), 0x77)?;
    s.mov(bx, 0xFFFF)?;
    s.mov(si, 2)?;
    s.cmp(byte_ptr(bx + si).es(), 0x77)?;
    s.jne(step.failed)?;
    s.mov(di, 0xFFFF)?;
    s.mov(al, 0x66)?;
    s.mov(cx, 2)?;
    s.rep().stosb()?;
    s.cmp(di, 1)?;
    s.jne(step.failed)?;
    s.cmp(byte_ptr(0).es(), 0x66)?;
    s.jne(step.failed)?;
    step.passed(s, "[BX+SI] and DI wrap at 64 KiB")
}

/// 16-bit protected mode: the same code goes on with selectors.
fn protected_16(s: &mut Stage) -> Emit {
    let step = Step::new(s, "16-bit protected mode");
    s.lgdt(ptr(GDTR as u32).cs())?;
    s.mov(eax, cr0)?;
    s.or(eax, CR0_PE)?;
    s.mov(cr0, eax)?;
    load_cs(s, selector::CODE16)?;
    s.mov(ax, u32::from(selector::DATA16))?;
    for segment in [ds, es, ss] {
        s.mov(segment, ax)?;
    }
    s.mov(ax, cs)?;
    s.cmp(ax, u32::from(selector::CODE16))?;
    s.jne(step.failed)?;
    // ES has a base of its own now; DS still starts at 0.
    s.mov(ax, u32::from(selector::SMALL))?;
    s.mov(es, ax)?;
    s.mov(word_ptr(0x10).es(), 0x4321)?;
    s.cmp(word_ptr(SMALL_SEGMENT + 0x10), 0x4321)?;
    s.jne(step.failed)?;
    step.passed(s, "CS=8 runs the ROM, ES=28 has its descriptor's base")
}

/// Goes on with a new CS. A far return, because a CALL can push its offset and a far jump to a
/// label is beyond the assembler.
fn load_cs(s: &mut Stage, selector: u16) -> Emit {
    let (mut far_return, mut arrived) = (s.create_label(), s.create_label());
    s.push(i32::from(selector))?;
    s.call(far_return)?;
    s.jmp(arrived)?;
    s.set_label(&mut far_return)?;
    s.retf()?;
    s.set_label(&mut arrived)?;
    s.nop()
}

/// Real-mode handlers. Every vector that no step expects ends the guest.
fn handlers(s: &mut Stage) -> Emit {
    s.handler(vector::REAL_MODE_CALL, 0)?;
    s.add(ax, CALL_ANSWER)?;
    s.iret()?;

    s.handler(0, 0)?;
    s.push(bp)?;
    s.mov(bp, sp)?;
    s.push(ax)?;
    s.mov(ax, word_ptr(bp + 2))?;
    s.mov(word_ptr(CAUGHT_IP), ax)?;
    s.mov(ax, word_ptr(RESUME))?;
    s.mov(word_ptr(bp + 2), ax)?;
    s.mov(word_ptr(CAUGHT_VECTOR), 0)?;
    s.pop(ax)?;
    s.pop(bp)?;
    s.iret()?;

    s.handler(UNEXPECTED, 0)?;
    s.say("volvelle: unexpected interrupt in real mode, FAILED\r\n")?;
    let give_up = s.give_up;
    s.jmp(give_up)
}

/// The vector whose handler stands for all that have none.
pub const UNEXPECTED: u8 = 0xFF;
