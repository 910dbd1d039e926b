//! 64-bit mode: the processor's identity and clock, then the steps of the other files.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::rom::layout::{
    CPUID_TEXT, IDTR64, LONG_MODE, RING0_STACK_TOP, ROM_BASE, STACK_TOP, STEPS, TSS, selector,
};
use crate::rom::paging::IA32_EFER;
use crate::rom::print::{print_decimal, print_text_at};
use crate::rom::stage::{Assembled, Emit, Stage, Step, Width};
use crate::rom::trap::handlers64;
use crate::rom::{arithmetic, faults, local_apic, page_faults, ring3, smp};

/// The stage.
pub fn stage() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits64, LONG_MODE)?;
    let s = &mut stage;
    set_up(s)?;
    long_mode(s)?;
    descriptors(s)?;
    cpuid(s)?;
    time_stamp(s)?;
    arithmetic::steps(s)?;
    faults::steps(s)?;
    page_faults::steps(s)?;
    local_apic::steps(s)?;
    ring3::steps(s)?;
    smp::step(s)?;
    all_passed(s)?;
    handlers64(s)?;
    local_apic::handlers(s)?;
    ring3::handlers(s)?;
    stage.finish_with_steps()
}

fn set_up(s: &mut Stage) -> Emit {
    s.mov(eax, u32::from(selector::DATA64))?;
    for segment in [ds, es, ss, fs, gs] {
        s.mov(segment, ax)?;
    }
    s.mov(esp, STACK_TOP)?;
    s.lidt(ptr(IDTR64 as u64 + u64::from(ROM_BASE)))?;
    s.mov(qword_ptr(TSS + 4), RING0_STACK_TOP as i32)?;
    // The I/O map base at the TSS's limit: there is no map, and ring 3 may use no port.
    s.mov(word_ptr(TSS + 102), 104)?;
    s.mov(eax, u32::from(selector::TSS))?;
    s.ltr(ax)
}

/// IA32_EFER.LMA is set, and 64-bit registers, REX registers and RIP-relative addresses work.
fn long_mode(s: &mut Stage) -> Emit {
    const EFER_LMA: u32 = 1 << 10;
    let step = Step::new(s, "long mode");
    let mut constant = s.create_label();
    s.mov(ecx, IA32_EFER)?;
    s.rdmsr()?;
    s.test(eax, EFER_LMA)?;
    s.je(step.failed)?;
    // The eight bytes read are the MOV's: two of opcode, then the low six of its immediate.
    s.mov(r15, qword_ptr(constant))?;
    s.set_label(&mut constant)?;
    s.mov(rax, 0x8765_CBA9_8765_4321_u64)?;
    s.shr(r15, 16)?;
    s.shl(rax, 16)?;
    s.shr(rax, 16)?;
    s.cmp(r15, rax)?;
    s.jne(step.failed)?;
    // A 32-bit result clears the upper half.
    s.mov(r15d, r15d)?;
    s.shr(r15, 32)?;
    s.jne(step.failed)?;
    step.passed(s, "EFER.LMA set, 4-level paging, TSS loaded")
}

/// LSL and LAR read descriptors, VERR and VERW judge them; ZF says whether they could.
fn descriptors(s: &mut Stage) -> Emit {
    let step = Step::new(s, "LSL and VERR");
    s.mov(eax, u32::from(selector::SMALL))?;
    s.lsl(ebx, eax)?;
    s.jne(step.failed)?;
    s.cmp(ebx, 0xFF)?;
    s.jne(step.failed)?;
    s.lar(ebx, eax)?;
    s.jne(step.failed)?;
    // Present, DPL 0, writable data, accessed; D/B.
    s.cmp(ebx, 0x0040_9300)?;
    s.jne(step.failed)?;
    s.mov(eax, u32::from(selector::CODE64))?;
    s.verr(ax)?;
    s.jne(step.failed)?;
    s.verw(ax)?;
    s.je(step.failed)?;
    s.mov(eax, u32::from(selector::BEYOND))?;
    s.lsl(ebx, eax)?;
    s.je(step.failed)?;
    step.passed(s, "limit and rights read; code is not writable, beyond the GDT is nothing")
}

/// Prints vendor, brand string and hypervisor; they are the only words that vary with the host.
fn cpuid(s: &mut Stage) -> Emit {
    const LEAF1_EDX_NEEDED: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 25 | 1 << 26;
    let step = Step::new(s, "cpuid");
    s.xor(eax, eax)?;
    s.cpuid()?;
    for (index, register) in [ebx, edx, ecx].into_iter().enumerate() {
        s.mov(dword_ptr(CPUID_TEXT + index as u32 * 4), register)?;
    }
    brand_string(s)?;
    s.mov(eax, 1)?;
    s.cpuid()?;
    s.and(edx, LEAF1_EDX_NEEDED)?;
    s.cmp(edx, LEAF1_EDX_NEEDED as i32)?;
    s.jne(step.failed)?;
    step.passed_with(s, |s| {
        print_text_at(s, CPUID_TEXT, 12)?;
        s.say(", ")?;
        print_text_at(s, CPUID_TEXT + 28, 48)?;
        hypervisor(s)
    })
}

fn brand_string(s: &mut Stage) -> Emit {
    for leaf in 0..3 {
        s.mov(eax, 0x8000_0002_u32 + leaf)?;
        s.cpuid()?;
        for (index, register) in [eax, ebx, ecx, edx].into_iter().enumerate() {
            s.mov(dword_ptr(CPUID_TEXT + 28 + leaf * 16 + index as u32 * 4), register)?;
        }
    }
    Ok(())
}

fn hypervisor(s: &mut Stage) -> Emit {
    let mut bare = s.create_label();
    s.mov(eax, 1)?;
    s.cpuid()?;
    s.test(ecx, 1 << 31)?;
    s.je(bare)?;
    s.mov(eax, 0x4000_0000)?;
    s.cpuid()?;
    for (index, register) in [ebx, ecx, edx].into_iter().enumerate() {
        s.mov(dword_ptr(CPUID_TEXT + 12 + index as u32 * 4), register)?;
    }
    s.say(", hypervisor ")?;
    print_text_at(s, CPUID_TEXT + 12, 12)?;
    s.set_label(&mut bare)?;
    s.nop()
}

/// The time-stamp counter never goes back, and moves while a loop runs.
fn time_stamp(s: &mut Stage) -> Emit {
    let step = Step::new(s, "rdtsc");
    read_tsc(s)?;
    s.mov(rbx, rax)?;
    s.mov(rsi, rax)?;
    s.mov(ecx, 1000)?;
    let mut again = s.create_label();
    s.set_label(&mut again)?;
    read_tsc(s)?;
    s.cmp(rax, rbx)?;
    s.jb(step.failed)?;
    s.mov(rbx, rax)?;
    s.dec(ecx)?;
    s.jne(again)?;
    s.cmp(rbx, rsi)?;
    s.je(step.failed)?;
    step.passed(s, "1000 readings, none below the one before, and time moved")
}

/// RAX = TSC; RDX is lost.
fn read_tsc(s: &mut Stage) -> Emit {
    s.rdtsc()?;
    s.shl(rdx, 32)?;
    s.or(rax, rdx)
}

fn all_passed(s: &mut Stage) -> Emit {
    s.say("volvelle: all ")?;
    s.mov(eax, dword_ptr(STEPS))?;
    print_decimal(s)?;
    s.say(" steps passed\r\n")?;
    let succeed = s.succeed;
    s.jmp(succeed)
}
