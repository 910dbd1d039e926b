//! Ring 3 by IRETQ, back by SYSCALL and SYSRET, and for good by INT 80h.
//!
//! Ring 3 cannot print. It collects what it saw as bits of EBX and hands them to INT 80h.

use iced_x86::code_asm::*;

use crate::rom::layout::{
    KERNEL_STACK, RING0_STACK_TOP, RING3_STACK_TOP, SUPERVISOR_PAGE, port, selector, vector,
};
use crate::rom::page_faults::error;
use crate::rom::stage::{Emit, Stage, Step};
use crate::rom::trap::{Expected, attempt, exception};

/// IA32_STAR.
const IA32_STAR: u32 = 0xC000_0081;
/// IA32_LSTAR.
const IA32_LSTAR: u32 = 0xC000_0082;
/// IA32_FMASK.
const IA32_FMASK: u32 = 0xC000_0084;
/// CF, IF and DF: what SYSCALL shall clear.
const SYSCALL_CLEARS: u32 = 1 | 1 << 9 | 1 << 10;
/// Ring 3's CS and SS.
const USER_CS: u32 = selector::USER_CODE64 as u32 | 3;
const USER_SS: u32 = selector::USER_DATA as u32 | 3;
/// RFLAGS of ring 3: only the bit that is always set; interrupts stay off.
const RFLAGS_RESERVED_1: u32 = 2;
/// What ring 3 asks SYSCALL and what it is answered.
const QUESTION: i32 = 0x1234;
const ANSWER: u32 = 0x5678;

/// What ring 3 saw, as bits of EBX.
mod saw {
    pub const CPL_3: u32 = 1;
    pub const OUT_REFUSED: u32 = 1 << 1;
    pub const PAGE_REFUSED: u32 = 1 << 2;
    pub const SYSCALL_RETURNED: u32 = 1 << 3;
    pub const ALL: u32 = (1 << 4) - 1;
}

/// The steps.
pub fn steps(s: &mut Stage) -> Emit {
    let (mut back, mut user, mut call) = (s.create_label(), s.create_label(), s.create_label());
    set_up_syscall(s, call)?;
    let ring3 = Step::new(s, "ring 3");
    let failed = ring3.failed;
    s.lea(rax, ptr(back))?;
    s.push(rax)?;
    s.mov(qword_ptr(KERNEL_STACK), rsp)?;
    enter(s, user)?;

    s.set_label(&mut user)?;
    ring3_code(s)?;
    s.set_label(&mut call)?;
    syscall_handler(s)?;

    // INT 80h's handler returns here with ring 3's findings in EBX and its verdict in CF.
    s.set_label(&mut back)?;
    s.jb(failed)?;
    s.mov(esi, ebx)?;
    judge(s, ring3)
}

/// Closes the three steps with what ring 3 saw, in ESI.
fn judge(s: &mut Stage, ring3: Step) -> Emit {
    const REFUSED: u32 = saw::CPL_3 | saw::OUT_REFUSED | saw::PAGE_REFUSED;
    s.mov(eax, esi)?;
    s.and(eax, REFUSED as i32)?;
    s.cmp(eax, REFUSED as i32)?;
    s.jne(ring3.failed)?;
    ring3.passed(s, "entered by IRETQ, OUT is #GP(0), the supervisor's page #PF(5)")?;
    let step = Step::new(s, "syscall");
    s.cmp(esi, saw::ALL as i32)?;
    s.jne(step.failed)?;
    step.passed(s, "RCX, R11 and FMASK as they should, SYSRET back to ring 3")?;
    let step = Step::new(s, "INT 80h");
    s.mov(eax, cs)?;
    s.test(eax, 3)?;
    s.jne(step.failed)?;
    step.passed(s, "left ring 3 by a gate of DPL 3, on the TSS's stack")
}

fn set_up_syscall(s: &mut Stage, entry: CodeLabel) -> Emit {
    s.mov(ecx, IA32_STAR)?;
    s.xor(eax, eax)?;
    s.mov(edx, u32::from(selector::USER_CODE32 | 3) << 16 | u32::from(selector::CODE64))?;
    s.wrmsr()?;
    s.mov(ecx, IA32_LSTAR)?;
    s.lea(rax, ptr(entry))?;
    s.xor(edx, edx)?;
    s.wrmsr()?;
    s.mov(ecx, IA32_FMASK)?;
    s.mov(eax, SYSCALL_CLEARS)?;
    s.wrmsr()
}

/// IRETQ to ring 3.
fn enter(s: &mut Stage, user: CodeLabel) -> Emit {
    s.push(USER_SS as i32)?;
    s.push(RING3_STACK_TOP as i32)?;
    s.push(RFLAGS_RESERVED_1 as i32)?;
    s.push(USER_CS as i32)?;
    s.lea(rax, ptr(user))?;
    s.push(rax)?;
    s.iretq()
}

fn ring3_code(s: &mut Stage) -> Emit {
    let mut hand_over = s.create_label();
    s.xor(ebx, ebx)?;
    s.mov(eax, cs)?;
    s.cmp(eax, USER_CS as i32)?;
    s.jne(hand_over)?;
    s.or(ebx, saw::CPL_3 as i32)?;

    s.mov(edx, u32::from(port::COM1))?;
    let expected = Expected { vector: exception::GENERAL_PROTECTION, error: 0 };
    note(s, expected, saw::OUT_REFUSED, |s| s.out(dx, al))?;
    let error = error::USER | error::PROTECTION;
    let expected = Expected { vector: exception::PAGE_FAULT, error };
    note(s, expected, saw::PAGE_REFUSED, |s| s.mov(al, byte_ptr(SUPERVISOR_PAGE)))?;
    call_and_check(s, hand_over)?;
    s.or(ebx, saw::SYSCALL_RETURNED as i32)?;
    s.set_label(&mut hand_over)?;
    s.int(i32::from(vector::RING3_CALL))?;
    // INT 80h does not return; if it does, the #UD is reported.
    s.ud2()
}

/// Provokes an exception in ring 3 and sets `bit` if it was the expected one.
fn note(
    s: &mut Stage,
    expected: Expected,
    bit: u32,
    provoke: impl FnOnce(&mut Stage) -> Emit,
) -> Emit {
    use crate::rom::layout::{CAUGHT_ERROR, CAUGHT_VECTOR};
    let mut other = s.create_label();
    attempt(s, provoke)?;
    s.cmp(dword_ptr(CAUGHT_VECTOR), expected.vector as i32)?;
    s.jne(other)?;
    s.cmp(dword_ptr(CAUGHT_ERROR), expected.error as i32)?;
    s.jne(other)?;
    s.or(ebx, bit as i32)?;
    s.set_label(&mut other)?;
    s.nop()
}

/// SYSCALL with carry set: the answer, RCX = the return address, and carry back from R11.
fn call_and_check(s: &mut Stage, failed: CodeLabel) -> Emit {
    let mut after = s.create_label();
    s.lea(r8, ptr(after))?;
    s.mov(eax, QUESTION)?;
    s.stc()?;
    s.syscall()?;
    s.set_label(&mut after)?;
    s.jae(failed)?;
    s.cmp(eax, ANSWER as i32)?;
    s.jne(failed)?;
    s.cmp(rcx, r8)?;
    s.jne(failed)?;
    s.mov(eax, cs)?;
    s.cmp(eax, USER_CS as i32)?;
    s.jne(failed)?;
    s.mov(eax, ss)?;
    s.cmp(eax, USER_SS as i32)?;
    s.jne(failed)
}

/// Ring 0, still on ring 3's stack. It answers only if all that SYSCALL should do was done.
fn syscall_handler(s: &mut Stage) -> Emit {
    let mut refuse = s.create_label();
    s.jb(refuse)?;
    s.cmp(eax, QUESTION)?;
    s.jne(refuse)?;
    s.test(r11d, 1)?;
    s.je(refuse)?;
    s.mov(edx, cs)?;
    s.cmp(edx, i32::from(selector::CODE64))?;
    s.jne(refuse)?;
    s.mov(edx, ss)?;
    s.cmp(edx, i32::from(selector::DATA64))?;
    s.jne(refuse)?;
    s.mov(eax, ANSWER)?;
    s.set_label(&mut refuse)?;
    s.sysretq()
}

/// INT 80h: checks its frame, leaves ring 3 and returns to the step with CF clear if all is well.
pub fn handlers(s: &mut Stage) -> Emit {
    const FRAME_BYTES: u32 = 5 * 8;
    let (mut wrong, mut leave) = (s.create_label(), s.create_label());
    s.handler(vector::RING3_CALL, 3)?;
    s.cmp(rsp, (RING0_STACK_TOP - FRAME_BYTES) as i32)?;
    s.jne(wrong)?;
    s.cmp(qword_ptr(rsp + 8), USER_CS as i32)?;
    s.jne(wrong)?;
    s.cmp(qword_ptr(rsp + 24), RING3_STACK_TOP as i32)?;
    s.jne(wrong)?;
    s.cmp(qword_ptr(rsp + 32), USER_SS as i32)?;
    s.jne(wrong)?;
    s.clc()?;
    s.jmp(leave)?;
    s.set_label(&mut wrong)?;
    s.stc()?;
    s.set_label(&mut leave)?;
    s.mov(rsp, qword_ptr(KERNEL_STACK))?;
    s.ret()
}
