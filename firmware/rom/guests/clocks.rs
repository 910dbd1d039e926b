//! A guest that computes and looks at clocks on all processors until the HPET says that its time is
//! over, and reports for each what it has computed and seen.
//!
//! It is for changes of engine under it: `src/guests.rs` holds the same computation in Rust, and a
//! clock that goes back, on one processor or from one to another, is counted.

use iced_x86::code_asm::*;

use crate::rom::guests::end;
use crate::rom::layout::{COUNT_NOW, CPU_COUNT, CPUS_ARRIVED, CPUS_DONE, PARAMETER, ROM_BASE};
use crate::rom::local_apic::LOCAL_APIC;
use crate::rom::power_off::halt_forever;
use crate::rom::print::{print_decimal, print_hex};
use crate::rom::smp::{arrive, read_cpu_count, start_others};
use crate::rom::stage::{Emit, Stage};

/// What each processor has, by its number: 8 KiB from here.
const BLOCKS: u32 = 0x20_0000;
const BLOCK_SHIFT: u32 = 13;
/// What all have of each clock: the last value that anybody has seen.
const SEEN: u32 = 0x1F_0000;

/// Offsets in a processor's block.
mod block {
    pub const ITERATIONS: u32 = 0;
    pub const CHECKSUM: u32 = 8;
    pub const VECTOR: u32 = 16;
    pub const X87: u32 = 24;
    /// How often a clock went back.
    pub const BACKWARDS: u32 = 32;
    /// By clock: its first value and its last.
    pub const CLOCKS: u32 = 64;
    /// `pvclock_vcpu_time_info`.
    pub const PVCLOCK: u32 = 0x100;
    pub const TABLE: u32 = 0x1000;
}

/// The factor of the checksum.
const FACTOR: u64 = 0x5851_F42D_4C95_7F2D;
/// Iterations between two looks at the clocks.
const BETWEEN_LOOKS: u32 = 64;
/// What a look that nothing came between takes at most, on the time stamp, and how often a better
/// one is tried for.
const AT_ONCE_TICKS: i32 = 900_000;
const TRIES: u32 = 3_000;
const HPET: u32 = 0xFED0_0000;
const HPET_CONFIGURATION: u32 = HPET + 0x10;
const HPET_COUNTER: u32 = HPET + 0xF0;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4B56_4D01;
/// OSFXSR and OSXMMEXCPT.
const CR4_SSE: u32 = 0x600;

/// The first processor: starts the others, works, and reports when all are done.
pub fn run(s: &mut Stage) -> Emit {
    let (mut alone, mut wait) = (s.create_label(), s.create_label());
    s.mov(eax, HPET_CONFIGURATION)?;
    s.mov(dword_ptr(rax), 1)?;
    read_cpu_count(s)?;
    s.cmp(dword_ptr(CPU_COUNT), 1)?;
    s.je(alone)?;
    s.mov(r12d, LOCAL_APIC)?;
    start_others(s)?;
    s.mov(ebx, dword_ptr(CPU_COUNT))?;
    s.dec(ebx)?;
    s.set_label(&mut wait)?;
    s.pause()?;
    s.cmp(dword_ptr(CPUS_ARRIVED), ebx)?;
    s.jne(wait)?;
    s.set_label(&mut alone)?;
    s.mov(dword_ptr(COUNT_NOW), 1)?;
    work(s)?;
    let mut wait = s.create_label();
    s.set_label(&mut wait)?;
    s.pause()?;
    s.mov(ebx, dword_ptr(CPU_COUNT))?;
    s.cmp(dword_ptr(CPUS_DONE), ebx)?;
    s.jne(wait)?;
    report(s)
}

/// Another processor.
pub fn run_other(s: &mut Stage) -> Emit {
    arrive(s)?;
    work(s)?;
    halt_forever(s)
}

/// R8: the block, R9: iterations, R10: checksum, R11: when the HPET ends it, R12: the factor,
/// XMM0: the sum of all checksums, ST(0): the count of looks.
fn work(s: &mut Stage) -> Emit {
    let (mut again, mut look) = (s.create_label(), s.create_label());
    set_up(s)?;
    s.set_label(&mut again)?;
    s.inc(r9)?;
    s.rol(r10, 5)?;
    s.xor(r10, r9)?;
    s.imul_2(r10, r12)?;
    s.mov(rax, r10)?;
    s.shr(rax, 56)?;
    s.add(r10, qword_ptr(r8 + 8 * rax + block::TABLE))?;
    s.mov(qword_ptr(r8 + 8 * rax + block::TABLE), r10)?;
    s.movq(xmm1, r10)?;
    s.paddq(xmm0, xmm1)?;
    s.test(r9d, BETWEEN_LOOKS - 1)?;
    s.je(look)?;
    s.jmp(again)?;
    s.set_label(&mut look)?;
    s.fld1()?;
    s.faddp(st1, st0)?;
    look_at_clocks(s)?;
    s.cmp(rax, r11)?;
    s.jb(again)?;
    look_at_once(s)?;
    s.mov(qword_ptr(r8 + block::ITERATIONS), r9)?;
    s.mov(qword_ptr(r8 + block::CHECKSUM), r10)?;
    s.movq(qword_ptr(r8 + block::VECTOR), xmm0)?;
    s.fistp(qword_ptr(r8 + block::X87))?;
    s.lock().inc(dword_ptr(CPUS_DONE))
}

fn set_up(s: &mut Stage) -> Emit {
    s.mov(rax, cr4)?;
    s.or(eax, CR4_SSE)?;
    s.mov(cr4, rax)?;
    s.mov(eax, 1)?;
    s.cpuid()?;
    s.shr(ebx, 24)?;
    s.shl(ebx, BLOCK_SHIFT)?;
    s.lea(r8d, dword_ptr(rbx + BLOCKS))?;
    s.mov(edi, r8d)?;
    s.xor(eax, eax)?;
    s.mov(ecx, 1u32 << BLOCK_SHIFT)?;
    s.rep().stosb()?;
    s.lea(eax, dword_ptr(r8 + (block::PVCLOCK | 1)))?;
    s.xor(edx, edx)?;
    s.mov(ecx, MSR_KVM_SYSTEM_TIME_NEW)?;
    s.wrmsr()?;
    s.xor(r9d, r9d)?;
    s.mov(r10d, 1)?;
    s.mov(r12, FACTOR)?;
    s.pxor(xmm0, xmm0)?;
    s.fninit()?;
    s.fldz()?;
    look_at_once(s)?;
    for clock in 0..3 {
        let first = block::CLOCKS + 16 * clock;
        s.mov(rbx, qword_ptr(r8 + first + 8))?;
        s.mov(qword_ptr(r8 + first), rbx)?;
    }
    s.mov(r11, rax)?;
    s.mov(ebx, ROM_BASE + PARAMETER as u32)?;
    s.add(r11, qword_ptr(rbx))
}

/// Looks at all clocks until nothing came between: a host that runs something else meanwhile, or a
/// change of engine, is no difference of the clocks. Gives up on a host that is always so slow.
fn look_at_once(s: &mut Stage) -> Emit {
    let (mut again, mut done) = (s.create_label(), s.create_label());
    let clock = |number: u32| block::CLOCKS + 16 * number + 8;
    s.mov(r13d, TRIES)?;
    s.set_label(&mut again)?;
    look_at_clocks(s)?;
    s.lfence()?;
    s.rdtsc()?;
    s.shl(rdx, 32)?;
    s.or(rax, rdx)?;
    s.sub(rax, qword_ptr(r8 + clock(0)))?;
    s.cmp(rax, AT_ONCE_TICKS)?;
    s.jb(done)?;
    s.dec(r13d)?;
    s.jne(again)?;
    s.set_label(&mut done)?;
    s.mov(rax, qword_ptr(r8 + clock(2)))
}

/// Looks at all clocks; the HPET's time is in RAX then. Changes RBX, RCX, RDX, RSI, RDI.
fn look_at_clocks(s: &mut Stage) -> Emit {
    look(s, 0, |s| {
        s.lfence()?;
        s.rdtsc()?;
        s.shl(rdx, 32)?;
        s.or(rax, rdx)
    })?;
    look(s, 1, read_kvmclock)?;
    look(s, 2, |s| {
        s.lfence()?;
        s.mov(eax, HPET_COUNTER)?;
        s.mov(rax, qword_ptr(rax))
    })
}

/// Reads clock `number` into RAX by `read` and compares it with what this processor, and then any,
/// has seen of it before. Whoever stores an older value than another makes the check no wrong.
fn look(s: &mut Stage, number: u32, read: impl FnOnce(&mut Stage) -> Emit) -> Emit {
    let (mut back, mut done) = (s.create_label(), s.create_label());
    let last = block::CLOCKS + 16 * number + 8;
    let seen = SEEN + 64 * number;
    s.mov(rdi, qword_ptr(seen))?;
    read(s)?;
    s.cmp(rax, rdi)?;
    s.jb(back)?;
    s.cmp(rax, qword_ptr(r8 + last))?;
    s.jb(back)?;
    s.mov(qword_ptr(seen), rax)?;
    s.jmp(done)?;
    s.set_label(&mut back)?;
    s.inc(qword_ptr(r8 + block::BACKWARDS))?;
    s.set_label(&mut done)?;
    s.mov(qword_ptr(r8 + last), rax)
}

/// RAX: kvmclock's time, as Linux reads it.
fn read_kvmclock(s: &mut Stage) -> Emit {
    let (mut again, mut left, mut scale) = (s.create_label(), s.create_label(), s.create_label());
    s.lea(rbx, qword_ptr(r8 + block::PVCLOCK))?;
    s.set_label(&mut again)?;
    s.mov(esi, dword_ptr(rbx))?;
    s.test(esi, 1)?;
    s.jne(again)?;
    s.lfence()?;
    s.rdtsc()?;
    s.shl(rdx, 32)?;
    s.or(rax, rdx)?;
    s.sub(rax, qword_ptr(rbx + 8))?;
    s.movsx(ecx, byte_ptr(rbx + 28))?;
    s.test(ecx, ecx)?;
    s.jns(left)?;
    s.neg(ecx)?;
    s.shr(rax, cl)?;
    s.jmp(scale)?;
    s.set_label(&mut left)?;
    s.shl(rax, cl)?;
    s.set_label(&mut scale)?;
    s.mov(edx, dword_ptr(rbx + 24))?;
    s.mul(rdx)?;
    s.shrd(rax, rdx, 32)?;
    s.add(rax, qword_ptr(rbx + 16))?;
    s.cmp(esi, dword_ptr(rbx))?;
    s.jne(again)
}

/// A line for each processor: what it is, then numbers in hexadecimal.
fn report(s: &mut Stage) -> Emit {
    let mut next = s.create_label();
    s.mov(r8d, BLOCKS)?;
    s.xor(ebx, ebx)?;
    s.set_label(&mut next)?;
    s.say("cpu ")?;
    s.mov(eax, ebx)?;
    print_decimal(s)?;
    for (name, offset) in [
        (" iterations ", block::ITERATIONS),
        (" checksum ", block::CHECKSUM),
        (" vector ", block::VECTOR),
        (" x87 ", block::X87),
        (" backwards ", block::BACKWARDS),
    ] {
        s.say(name)?;
        s.mov(rax, qword_ptr(r8 + offset))?;
        print_hex(s)?;
    }
    for (name, clock) in [(" tsc ", 0), (" kvmclock ", 1), (" hpet ", 2)] {
        let first = block::CLOCKS + 16 * clock;
        s.say(name)?;
        s.mov(rax, qword_ptr(r8 + first + 8))?;
        s.sub(rax, qword_ptr(r8 + first))?;
        print_hex(s)?;
    }
    tsc_frequency(s)?;
    s.say("\r\n")?;
    s.add(r8, 1i32 << BLOCK_SHIFT)?;
    s.inc(ebx)?;
    s.cmp(ebx, dword_ptr(CPU_COUNT))?;
    s.jne(next)?;
    end(s)
}

/// CPUID.15H: the crystal's frequency times the ratio.
fn tsc_frequency(s: &mut Stage) -> Emit {
    s.say(" hz ")?;
    s.mov(esi, ebx)?;
    s.mov(eax, 0x15)?;
    s.xor(ecx, ecx)?;
    s.cpuid()?;
    s.mov(edi, eax)?;
    s.mov(eax, ecx)?;
    s.mov(ecx, ebx)?;
    s.mul(rcx)?;
    s.div(rdi)?;
    s.mov(ebx, esi)?;
    print_hex(s)
}
