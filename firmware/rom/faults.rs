//! Exceptions in 64-bit mode: vector, error code and saved RIP of each.

use iced_x86::code_asm::*;

use crate::rom::hypervisor::leave_on_tcg;
use crate::rom::layout::CAUGHT_ERROR;
use crate::rom::stage::{Emit, Stage, Step};
use crate::rom::trap::SavedIp::{OfInstruction, OfNext};
use crate::rom::trap::{Expected, attempt, catch_at, exception};

/// A vector that the IDT does not reach.
const BEYOND_IDT: u8 = 0xC0;

/// The steps.
pub fn steps(s: &mut Stage) -> Emit {
    let step = Step::new(s, "#UD");
    let expected = Expected { vector: exception::INVALID_OPCODE, error: 0 };
    catch_at(s, &step, expected, OfInstruction, |s| s.ud2())?;
    // LOCK on a register destination. SDM Vol. 2A, "LOCK".
    catch_at(s, &step, expected, OfInstruction, |s| s.db(&[0xF0, 0x01, 0xC0]))?;
    step.passed(s, "UD2 and LOCK ADD EAX,EAX refused")?;

    let step = Step::new(s, "#DE");
    let expected = Expected { vector: exception::DIVIDE_ERROR, error: 0 };
    s.xor(ecx, ecx)?;
    catch_at(s, &step, expected, OfInstruction, |s| s.div(rcx))?;
    // The most negative number by -1: the quotient has no room.
    s.mov(rax, i64::MIN)?;
    s.cqo()?;
    s.mov(rcx, -1_i64)?;
    catch_at(s, &step, expected, OfInstruction, |s| s.idiv(rcx))?;
    step.passed(s, "division by zero and quotient overflow")?;

    let step = Step::new(s, "#BP");
    let expected = Expected { vector: exception::BREAKPOINT, error: 0 };
    catch_at(s, &step, expected, OfNext, |s| s.int3())?;
    step.passed(s, "INT3 is a trap: RIP is the next instruction's")?;

    let step = Step::new(s, "#GP");
    let expected = Expected { vector: exception::GENERAL_PROTECTION, error: 0 };
    s.mov(rbx, 1_i64 << 47)?;
    catch_at(s, &step, expected, OfInstruction, |s| s.mov(al, byte_ptr(rbx)))?;
    beyond_idt(s, &step)?;
    step.passed(s, "non-canonical address refused, INT C0h names vector C0h beyond the IDT")
}

/// INT of a vector that the IDT does not reach is #GP with 8 times the vector. The TCG of QEMU 7.2
/// has 16 times, and the guest says so there.
fn beyond_idt(s: &mut Stage, step: &Step) -> Emit {
    const OF_IDT: u32 = 2;
    let vector = u32::from(BEYOND_IDT);
    let mut is_checked = s.create_label();
    attempt(s, |s| s.int(i32::from(BEYOND_IDT)))?;
    s.cmp(dword_ptr(CAUGHT_ERROR), vector << 4 | OF_IDT)?;
    s.jne(is_checked)?;
    leave_on_tcg(s, step)?;
    s.set_label(&mut is_checked)?;
    let expected = Expected { vector: exception::GENERAL_PROTECTION, error: vector << 3 | OF_IDT };
    catch_at(s, step, expected, OfInstruction, |s| s.int(i32::from(BEYOND_IDT)))
}
