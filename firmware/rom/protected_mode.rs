//! 32-bit protected mode: flat segments, the checks of segmentation, 32-bit paging; then to 64
//! bits.
//!
//! A KVM without hardware virtualization runs ring 0 in its instruction emulator, which knows no
//! LSL or VERR. This stage and the real-mode one keep to what it knows, so that such a host is told
//! by the first 64-bit step that it cannot run a kernel, not by a broken real mode.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::rom::hypervisor::{leave_on_tcg, skip_unless};
use crate::rom::layout::{
    ALIAS_PAGE, ALIAS_PT32, CAUGHT_VECTOR, DEMO_FRAME, IDTR32, LONG_MODE, NOTHING_CAUGHT, PD32,
    PROTECTED_MODE, ROM_BASE, SMALL_SEGMENT, STACK_TOP, selector,
};
use crate::rom::paging;
use crate::rom::stage::{Assembled, Emit, Stage, Step, Width};
use crate::rom::trap::{Expected, attempt, catch, exception, handlers32};

/// CR0.PG.
const CR0_PG: u32 = 1 << 31;

/// The stage.
pub fn stage() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits32, PROTECTED_MODE)?;
    let s = &mut stage;
    set_up(s)?;
    flat(s)?;
    segment_limit(s)?;
    bad_selectors(s)?;
    paging_32(s)?;
    paging::build_four_level(s)?;
    paging::enable_long_mode(s)?;
    s.enter(selector::CODE64, Width::Bits64, LONG_MODE)?;
    handlers32(s)?;
    stage.finish_with_steps()
}

fn set_up(s: &mut Stage) -> Emit {
    s.mov(eax, u32::from(selector::DATA32))?;
    for segment in [ds, es, ss, fs, gs] {
        s.mov(segment, ax)?;
    }
    s.mov(esp, STACK_TOP)?;
    s.lidt(ptr(IDTR32 as u32 + ROM_BASE))
}

/// A flat segment reaches the ROM's other copy at the end of 4 GiB.
fn flat(s: &mut Stage) -> Emit {
    let step = Step::new(s, "protected mode");
    s.mov(ebx, 0xFFFF_FFF0_u32)?;
    s.mov(eax, dword_ptr(ebx))?;
    s.cmp(eax, dword_ptr(0xF_FFF0_u32))?;
    s.jne(step.failed)?;
    step.passed(s, "flat 4 GiB segments, the ROM is below 1 MiB and below 4 GiB")
}

/// An access one byte beyond a 256-byte segment is #GP(0); the last byte is not.
///
/// QEMU's TCG checks no data segment limits, and so does a KVM on the SVM that TCG emulates; the
/// guest says so there, and fails elsewhere.
fn segment_limit(s: &mut Stage) -> Emit {
    let step = Step::new(s, "segment limit");
    let mut checked = s.create_label();
    s.mov(eax, u32::from(selector::SMALL))?;
    s.mov(fs, ax)?;
    s.mov(byte_ptr(0xFF).fs(), 0x33)?;
    s.cmp(byte_ptr(SMALL_SEGMENT + 0xFF), 0x33)?;
    s.jne(step.failed)?;
    attempt(s, |s| s.mov(byte_ptr(0x100).fs(), 0x33))?;
    s.cmp(dword_ptr(CAUGHT_VECTOR), NOTHING_CAUGHT)?;
    s.jne(checked)?;
    leave_on_tcg(s, &step)?;
    s.set_label(&mut checked)?;
    let gp0 = Expected { vector: exception::GENERAL_PROTECTION, error: 0 };
    catch(s, &step, gp0, |s| s.mov(byte_ptr(0x100).fs(), 0x33))?;
    catch(s, &step, gp0, |s| s.mov(eax, dword_ptr(0xFD).fs()))?;
    step.passed(s, "byte FF of a 256-byte segment is in, byte 100 is #GP(0)")
}

/// Loading a segment register: absent is #NP, beyond the table #GP, both with the selector.
fn bad_selectors(s: &mut Stage) -> Emit {
    let step = Step::new(s, "selectors");
    let loads = [
        (exception::SEGMENT_NOT_PRESENT, selector::ABSENT),
        (exception::GENERAL_PROTECTION, selector::BEYOND),
    ];
    for (vector, bad) in loads {
        catch(s, &step, Expected { vector, error: u32::from(bad) }, |s| {
            s.mov(eax, u32::from(bad))?;
            s.mov(fs, ax)
        })?;
    }
    step.passed(s, "not present is #NP(68), beyond the GDT #GP(70)")
}

/// 32-bit paging: two linear pages of one frame, and the accessed and dirty bits.
///
/// A KVM that runs without hardware virtualization may refuse CR0.PG outside long mode; the guest
/// says so there, and fails elsewhere.
fn paging_32(s: &mut Stage) -> Emit {
    let step = Step::new(s, "32-bit paging");
    let mut enabled = s.create_label();
    paging::build_two_level(s)?;
    s.mov(eax, PD32)?;
    s.mov(cr3, eax)?;
    attempt(s, |s| set_paging(s, Paging::On))?;
    s.cmp(dword_ptr(CAUGHT_VECTOR), NOTHING_CAUGHT)?;
    s.je(enabled)?;
    skip_unless(s, b"KVMK", step.failed)?;
    step.leave(s, "not offered: this KVM pages in long mode only")?;
    s.set_label(&mut enabled)?;
    alias_page(s, &step)?;
    set_paging(s, Paging::Off)?;
    step.passed(s, "alias page written, accessed and dirty bits set as they should")
}

/// CR0.PG to be.
enum Paging {
    On,
    Off,
}

fn set_paging(s: &mut Stage, paging: Paging) -> Emit {
    s.mov(eax, cr0)?;
    match paging {
        Paging::On => s.or(eax, CR0_PG)?,
        Paging::Off => s.and(eax, !CR0_PG)?,
    }
    s.mov(cr0, eax)
}

fn alias_page(s: &mut Stage, step: &Step) -> Emit {
    const WRITTEN: u32 = paging::DIRTY | paging::ACCESSED;
    s.mov(dword_ptr(ALIAS_PAGE), 0x600D_F00D)?;
    s.cmp(dword_ptr(DEMO_FRAME), 0x600D_F00D)?;
    s.jne(step.failed)?;
    s.cmp(dword_ptr(ALIAS_PT32), DEMO_FRAME | WRITTEN | paging::WRITABLE | paging::PRESENT)?;
    s.jne(step.failed)?;
    // The second page of the table is only read: accessed, not dirty.
    s.mov(eax, dword_ptr(ALIAS_PAGE + 0x1000))?;
    s.mov(eax, dword_ptr(ALIAS_PT32 + 4))?;
    s.and(eax, WRITTEN)?;
    s.cmp(eax, paging::ACCESSED)?;
    s.jne(step.failed)
}
