//! Page faults: not present (mapped by the handler, and retried), read-only, no-execute.

use iced_x86::code_asm::*;

use crate::rom::layout::{
    CAUGHT_CR2, CAUGHT_ERROR, CAUGHT_VECTOR, DEMO_FRAME, DEMO_PAGE, DEMO_PT, MAP_ON_FAULT,
    NOTHING_CAUGHT, PAGES_MAPPED,
};
use crate::rom::paging::{PRESENT, WRITABLE};
use crate::rom::print::print_hex;
use crate::rom::stage::{Emit, Stage, Step};
use crate::rom::trap::SavedIp::{Elsewhere, OfInstruction};
use crate::rom::trap::{Expected, catch_at, exception};

/// The page-table entry of the demonstration page.
pub const DEMO_PTE: u32 = DEMO_PT + ((DEMO_PAGE >> 12) as u32 & 0x1FF) * 8;

/// Error code bits (SDM Vol. 3A, "Page-Fault Exceptions").
pub mod error {
    /// P: the page was present.
    pub const PROTECTION: u32 = 1;
    /// W/R: a write.
    pub const WRITE: u32 = 1 << 1;
    /// U/S: from ring 3.
    pub const USER: u32 = 1 << 2;
    /// I/D: an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// Where in the page the steps write.
const OFFSET: i32 = 0x128;

/// The steps.
pub fn steps(s: &mut Stage) -> Emit {
    s.mov(rbx, DEMO_PAGE)?;
    map_and_retry(s)?;
    write_protect(s)?;
    no_execute(s)
}

/// The write that faults happens when it is retried, once, and in the frame the handler mapped.
fn map_and_retry(s: &mut Stage) -> Emit {
    let step = Step::new(s, "page fault");
    s.mov(qword_ptr(MAP_ON_FAULT), (DEMO_FRAME | PRESENT | WRITABLE) as i32)?;
    s.mov(dword_ptr(DEMO_FRAME + OFFSET as u32), 0)?;
    s.mov(dword_ptr(CAUGHT_VECTOR), NOTHING_CAUGHT as i32)?;
    // A plain store: TCG on one processor reports a read-modify-write's fault as a read.
    s.mov(dword_ptr(rbx + OFFSET), 42)?;
    s.cmp(dword_ptr(DEMO_FRAME + OFFSET as u32), 42)?;
    s.jne(step.failed)?;
    s.cmp(dword_ptr(PAGES_MAPPED), 1)?;
    s.jne(step.failed)?;
    s.cmp(dword_ptr(CAUGHT_VECTOR), exception::PAGE_FAULT as i32)?;
    s.jne(step.failed)?;
    check_address_and_error(s, &step, OFFSET, error::WRITE)?;
    print_address_and_error(s, step, "mapped and retried")
}

/// With CR0.WP ring 0 may not write a read-only page, even one whose old entry the TLB may hold.
fn write_protect(s: &mut Stage) -> Emit {
    let step = Step::new(s, "write protection");
    s.and(dword_ptr(DEMO_PTE), !(WRITABLE as i32))?;
    s.invlpg(byte_ptr(rbx))?;
    s.cmp(dword_ptr(rbx + OFFSET), 42)?;
    s.jne(step.failed)?;
    let error = error::WRITE | error::PROTECTION;
    let expected = Expected { vector: exception::PAGE_FAULT, error };
    catch_at(s, &step, expected, OfInstruction, |s| s.inc(dword_ptr(rbx + OFFSET)))?;
    check_address_and_error(s, &step, OFFSET, error)?;
    s.cmp(dword_ptr(rbx + OFFSET), 42)?;
    s.jne(step.failed)?;
    print_address_and_error(s, step, "and nothing was written")
}

/// EFER.NXE: fetching from a page with the XD bit.
fn no_execute(s: &mut Stage) -> Emit {
    let step = Step::new(s, "no execute");
    s.or(dword_ptr(DEMO_PTE + 4), i32::MIN)?;
    s.invlpg(byte_ptr(rbx))?;
    let error = error::FETCH | error::PROTECTION;
    let expected = Expected { vector: exception::PAGE_FAULT, error };
    catch_at(s, &step, expected, Elsewhere, |s| s.jmp(rbx))?;
    check_address_and_error(s, &step, 0, error)?;
    print_address_and_error(s, step, "on a jump into the page")
}

fn check_address_and_error(s: &mut Stage, step: &Step, offset: i32, error: u32) -> Emit {
    s.lea(rax, ptr(rbx + offset))?;
    s.cmp(qword_ptr(CAUGHT_CR2), rax)?;
    s.jne(step.failed)?;
    s.cmp(dword_ptr(CAUGHT_ERROR), error as i32)?;
    s.jne(step.failed)
}

/// Closes a step with what the handler saw.
fn print_address_and_error(s: &mut Stage, step: Step, then: &str) -> Emit {
    step.passed_with(s, |s| {
        for (name, field) in [("CR2=", CAUGHT_CR2), (" error=", CAUGHT_ERROR)] {
            s.say(name)?;
            s.mov(rax, qword_ptr(field))?;
            print_hex(s)?;
        }
        s.say(", ")?;
        s.say(then)
    })
}
