//! Two vCPUs on two threads at the same memory.

use cpu::engine::Vcpu;
use cpu::testing::{Bench, CODE, DATA, STACK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::{JitCpu, Options};

use crate::{assemble, bench, run_all, translator};

const RAX: usize = 0;
const RBX: usize = 3;
const FIRST: u64 = CODE;
const SECOND: u64 = CODE + 0x8000;
/// Words by which the two talk, each in a line of its own.
const REQUEST: u64 = DATA;
const ANSWER: u64 = DATA + 0x80;
/// Where functions are written.
const WRITTEN: u64 = 0x40_0000;

type Program<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Two vCPUs with a program each.
fn pair(bench: &mut Bench, programs: [Program<'_>; 2], options: &Options) -> Vec<JitCpu> {
    let places = [(FIRST, STACK), (SECOND, STACK - 0x4000)];
    let mut cpus = Vec::new();
    for ((place, stack), program) in places.into_iter().zip(programs) {
        bench.put_code_at(place, &assemble(place, program));
        bench.cpu.state.gpr[4] = stack;
        cpus.push(translator(bench, options));
    }
    cpus
}

fn all_options() -> [Options; 4] {
    let plain = Options::default();
    [
        plain.clone(),
        Options { block_size: 1, ..plain.clone() },
        Options { trash_helpers: true, ..plain.clone() },
        Options { superblock_after: 1, ..plain },
    ]
}

/// One writes functions, each at a place of its own; the other calls each as soon as it is told of
/// it, and finds it whole. Then the same function changes, and is called again.
#[test]
#[expect(clippy::too_many_lines, reason = "two programs beside each other")]
fn code_that_one_writes_while_the_other_translates_it() {
    const COUNT: u32 = 3000;
    let writer: Program<'_> = &|a| {
        let (mut top, mut wait, mut again) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rdi, WRITTEN)?;
        a.mov(r8, REQUEST)?;
        a.mov(r9, ANSWER)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut top)?;
        // MOV EAX, ECX's value; RET
        a.mov(byte_ptr(rdi), 0xb8u32)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.mov(byte_ptr(rdi + 5), 0xc3u32)?;
        a.mov(dword_ptr(r8), ecx)?;
        // While the other translates: another immediate in one store.
        a.lea(edx, dword_ptr(rcx + COUNT as i32))?;
        a.mov(dword_ptr(rdi + 1), edx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(r9), ecx)?;
        a.jne(wait)?;
        // Now the other must see it.
        a.mov(dword_ptr(r8 + 4), ecx)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(r9 + 4), ecx)?;
        a.jne(again)?;
        a.add(rdi, 24)?;
        a.inc(ecx)?;
        a.cmp(ecx, COUNT as i32 + 1)?;
        a.jne(top)?;
        a.hlt()
    };
    let caller: Program<'_> = &|a| {
        let (mut top, mut fine) = (a.create_label(), a.create_label());
        let (mut again, mut bad) = (a.create_label(), a.create_label());
        a.mov(rdi, WRITTEN)?;
        a.mov(r8, REQUEST)?;
        a.mov(r9, ANSWER)?;
        a.mov(r10d, 1)?;
        a.set_label(&mut top)?;
        a.pause()?;
        a.cmp(dword_ptr(r8), r10d)?;
        a.jne(top)?;
        a.call(rdi)?;
        // The old value or the new one.
        a.cmp(eax, r10d)?;
        a.je(fine)?;
        a.sub(eax, COUNT as i32)?;
        a.cmp(eax, r10d)?;
        a.jne(bad)?;
        a.set_label(&mut fine)?;
        a.mov(dword_ptr(r9), r10d)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(r8 + 4), r10d)?;
        a.jne(again)?;
        // As the manuals ask before code that another processor has changed.
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(rdi)?;
        a.sub(eax, COUNT as i32)?;
        a.cmp(eax, r10d)?;
        a.jne(bad)?;
        a.mov(dword_ptr(r9 + 4), r10d)?;
        a.add(rdi, 24)?;
        a.inc(r10d)?;
        a.cmp(r10d, COUNT as i32 + 1)?;
        a.jne(top)?;
        a.mov(ebx, 0x600d)?;
        a.set_label(&mut bad)?;
        a.hlt()
    };
    for options in all_options() {
        let mut bench = bench();
        let mut cpus = pair(&mut bench, [writer, caller], &options);
        // A caller that has found something bad leaves the writer waiting: the answers go on.
        run_all(&mut cpus);
        let state = cpus[1].state();
        assert_eq!(state.gpr[RBX], 0x600d, "at {}: {:#x}", state.gpr[10], state.gpr[RAX]);
    }
}

/// The low half of the counter is the last of a page, the high half the first of the next.
#[test]
fn locked_increments_over_two_pages() {
    const COUNT: u32 = 20_000;
    const COUNTER: u64 = DATA + 0x1000 - 4;
    let program: Program<'_> = &|a| {
        let mut top = a.create_label();
        a.mov(rdi, COUNTER)?;
        a.mov(ecx, COUNT)?;
        a.set_label(&mut top)?;
        a.lock().add(qword_ptr(rdi), 0x7fff_ffff)?;
        a.mov(eax, 1)?;
        a.lock().xadd(qword_ptr(rdi), rax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    };
    for options in all_options() {
        let mut bench = bench();
        let mut cpus = pair(&mut bench, [program, program], &options);
        run_all(&mut cpus);
        let count = u64::from_le_bytes(bench.peek(COUNTER));
        assert_eq!(count, 2 * u64::from(COUNT) * 0x8000_0000, "{options:?}");
    }
}

/// Locked instructions that stay in a page.
#[test]
fn locked_increments_in_a_page() {
    const COUNT: u32 = 200_000;
    let program: Program<'_> = &|a| {
        let mut top = a.create_label();
        a.mov(rdi, DATA)?;
        a.mov(ecx, COUNT)?;
        a.set_label(&mut top)?;
        a.lock().inc(qword_ptr(rdi))?;
        a.mov(eax, 1)?;
        a.lock().xadd(dword_ptr(rdi + 13), eax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    };
    for options in all_options() {
        let mut bench = bench();
        let mut cpus = pair(&mut bench, [program, program], &options);
        run_all(&mut cpus);
        assert_eq!(u64::from_le_bytes(bench.peek(DATA)), 2 * u64::from(COUNT));
        assert_eq!(u32::from_le_bytes(bench.peek(DATA + 13)), 2 * COUNT);
    }
}

/// One runs a loop, the other stores a number into it that only ever grows: it is seen growing, and
/// its last value is seen.
#[test]
fn a_store_into_a_loop_that_runs() {
    const LAST: u32 = 2000;
    // MOV EAX, imm32 is the loop's first instruction, its immediate in one store.
    const IMMEDIATE: u64 = SECOND + 0x100;
    let writer: Program<'_> = &|a| {
        let (mut top, mut wait) = (a.create_label(), a.create_label());
        a.mov(rdi, IMMEDIATE)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut top)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.mov(edx, 200)?;
        a.set_label(&mut wait)?;
        a.dec(edx)?;
        a.jne(wait)?;
        a.inc(ecx)?;
        a.cmp(ecx, LAST as i32 + 1)?;
        a.jne(top)?;
        a.hlt()
    };
    let looping: Program<'_> = &|a| {
        let (mut top, mut bad) = (a.create_label(), a.create_label());
        a.jmp(IMMEDIATE - 1)?;
        a.nops_with_size((IMMEDIATE - 1 - SECOND - 5) as usize)?;
        a.set_label(&mut top)?;
        a.db(&[0xb8, 0, 0, 0, 0])?;
        a.cmp(eax, ebx)?;
        a.jb(bad)?;
        a.mov(ebx, eax)?;
        a.cmp(eax, LAST as i32)?;
        a.jne(top)?;
        a.mov(esi, 0x600d)?;
        a.set_label(&mut bad)?;
        a.hlt()
    };
    for options in all_options() {
        let mut bench = bench();
        let mut cpus = pair(&mut bench, [writer, looping], &options);
        assert_eq!(bench.peek::<1>(IMMEDIATE - 1), [0xb8], "the loop has another layout");
        run_all(&mut cpus);
        let state = cpus[1].state();
        assert_eq!(state.gpr[6], 0x600d, "{:#x} behind {:#x}", state.gpr[RAX], state.gpr[RBX]);
    }
}

/// Each writes data into the page that the other's code is in: stores that are noted one by one,
/// beside code that goes on.
#[test]
fn data_beside_the_code_of_the_other() {
    const COUNT: u32 = 3000;
    let program = |other: u64| {
        move |a: &mut CodeAssembler| {
            let mut top = a.create_label();
            a.mov(rdi, other + 0x800)?;
            a.mov(ecx, COUNT)?;
            a.set_label(&mut top)?;
            a.inc(qword_ptr(rdi))?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        }
    };
    for options in all_options() {
        let mut bench = bench();
        let mut cpus = pair(&mut bench, [&program(SECOND), &program(FIRST)], &options);
        run_all(&mut cpus);
        for place in [FIRST, SECOND] {
            assert_eq!(u64::from_le_bytes(bench.peek(place + 0x800)), u64::from(COUNT));
        }
    }
}
