//! Code that changes while it runs.

use std::sync::atomic::{AtomicBool, Ordering};

use cpu::engine::Vcpu;
use cpu::state::cr4;
use cpu::testing::{Bench, CODE, DATA, PT, page};
use iced_x86::code_asm::*;
use jit::Options;

use crate::{assemble, bench, compare, run, translator, with_program};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
/// A page that shows the first code page again.
const AGAIN: u64 = CODE + 0x7000;

fn with_alias(mut bench: Bench) -> Bench {
    bench.poke(PT + 8 * (AGAIN >> 12), &(CODE | 7).to_le_bytes());
    bench.control_changed();
    bench
}

/// A loop that adds an immediate which it increments itself, by a store to `address` of it.
fn self_incrementing(turns: u32, address: impl Fn(u64) -> u64) -> Bench {
    with_alias(with_program(|a| {
        let mut top = a.create_label();
        a.mov(ecx, turns)?;
        // The immediate of the ADD below is 21 bytes behind the start.
        a.mov(rdi, address(CODE + 21))?;
        a.set_label(&mut top)?;
        a.inc(dword_ptr(rdi))?;
        // 81 C0 imm32 has its immediate behind two bytes; 05 imm32 behind one.
        a.db(&[0x81, 0xc0, 0x80, 0, 0, 0])?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    }))
}

#[test]
fn a_block_that_changes_its_next_instruction() {
    let code = self_incrementing(5, |address| address);
    assert_eq!(code.peek::<2>(CODE + 17), [0x81, 0xc0], "the program has another layout");
    let expected = |turns: u64| (1..=turns).map(|turn| 0x80 + turn).sum::<u64>();
    for turns in [1, 2, 3, 200] {
        let state = compare(|| self_incrementing(turns, |address| address - 2));
        assert_eq!(state.gpr[RAX], expected(u64::from(turns)), "{turns} turns");
    }
}

#[test]
fn a_change_by_another_mapping_is_seen() {
    let state = compare(|| self_incrementing(50, |address| address - 2 - CODE + AGAIN));
    assert_eq!(state.gpr[RAX], (1..=50).map(|turn| 0x80 + turn).sum::<u64>());
}

#[test]
fn an_instruction_over_two_pages_changes_in_its_second() {
    let state = compare(|| {
        let mut bench = bench();
        // The immediate of the ADD begins in the second page.
        let at = CODE + 0x1000 - 2;
        let code = assemble(at, |a| {
            let mut next = a.create_label();
            a.db(&[0x81, 0xc0, 1, 0, 0, 0])?;
            a.set_label(&mut next)?;
            a.inc(dword_ptr(rdi))?;
            a.dec(ecx)?;
            a.jne(at)?;
            a.hlt()
        });
        bench.put_code_at(at, &code);
        bench.cpu.state.gpr[1] = 40;
        bench.cpu.state.gpr[7] = CODE + 0x1000;
        bench
    });
    assert_eq!(state.gpr[RAX], (1..=40).sum::<u64>());
}

/// As where a kernel's entry code, which is global, ends: the page behind it is global in one space
/// and not in another. Its number is another one then, and a block that was made with the first
/// must not be entered for ever.
#[test]
fn an_instruction_over_two_pages_whose_second_becomes_global_and_back() {
    const GLOBAL: i32 = 1 << 8;
    let state = compare(|| {
        let mut bench = bench();
        bench.cpu.state.cr4 |= cr4::PGE;
        bench.control_changed();
        let second = CODE + 0x1000;
        let at = second - 2;
        let code = assemble(at, |a| {
            // The immediate begins in the second page.
            a.db(&[0x81, 0xc0, 1, 0, 0, 0])?;
            a.xor(dword_ptr(rdi), GLOBAL)?;
            a.invlpg(byte_ptr(rsi))?;
            a.dec(ecx)?;
            a.jne(at)?;
            a.hlt()
        });
        bench.put_code_at(at, &code);
        bench.cpu.state.gpr[RCX] = 40;
        (bench.cpu.state.gpr[6], bench.cpu.state.gpr[7]) = (second, PT + 8 * (second >> 12));
        bench
    });
    assert_eq!(state.gpr[RAX], 40);
}

/// What a guest's own translator does: writes a function, calls it, writes it anew.
#[test]
fn functions_that_are_written_again_and_again() {
    let state = compare(|| {
        with_program(|a| {
            let mut top = a.create_label();
            a.mov(ecx, 300)?;
            a.mov(rdi, DATA)?;
            a.set_label(&mut top)?;
            // MOV EDX, imm32; RET
            a.mov(byte_ptr(rdi), 0xba)?;
            a.mov(dword_ptr(rdi + 1), ecx)?;
            a.mov(byte_ptr(rdi + 5), 0xc3)?;
            a.call(rdi)?;
            a.add(rax, rdx)?;
            // The next one overlaps this one, and now and then begins anew.
            a.lea(rdi, qword_ptr(rdi + 3))?;
            a.and(rdi, !0x200)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        })
    });
    assert_eq!(state.gpr[RAX], (1..=300).sum::<u64>());
}

#[test]
fn code_is_copied_over_code() {
    let state = compare(|| {
        let bench = with_program(|a| {
            let mut top = a.create_label();
            a.mov(ebx, 20)?;
            a.set_label(&mut top)?;
            a.mov(rdi, DATA + 0x2000)?;
            a.call(rdi)?;
            // One function or the other.
            a.mov(esi, ebx)?;
            a.and(esi, 1)?;
            a.shl(esi, 8)?;
            a.add(rsi, DATA as i32)?;
            a.mov(ecx, 16)?;
            a.rep().movsb()?;
            a.dec(ebx)?;
            a.jne(top)?;
            a.hlt()
        });
        for (place, value) in [(DATA, 1), (DATA + 0x100, 1000), (DATA + 0x2000, 1_000_000)] {
            let code = assemble(place, |a| {
                a.add(rax, value)?;
                a.ret()
            });
            bench.poke(place, &code);
        }
        bench
    });
    assert_eq!(state.gpr[RAX], 1_000_000 + 9 * 1000 + 10);
}

/// Code that a device writes between two runs.
#[test]
fn code_that_was_written_from_outside() {
    let bench = with_program(|a| {
        let mut end = a.create_label();
        a.call(end)?;
        a.hlt()?;
        a.set_label(&mut end)?;
        a.mov(eax, 1)?;
        a.ret()
    });
    let mut jit = translator(&bench, &Options::default());
    for value in 1..50u32 {
        bench.poke(CODE + 7, &value.to_le_bytes());
        jit.cpu_mut().state = bench.cpu.state.clone();
        jit.cpu_mut().mode_changed();
        run(&mut jit);
        assert_eq!(jit.state().gpr[RAX], u64::from(value));
    }
}

/// A page loses the right to be executed while its code is linked.
#[test]
fn code_that_may_not_be_executed_any_more() {
    const NX: [u8; 1] = [0x80];
    let state = compare(|| {
        let bench = with_program(|a| {
            let mut top = a.create_label();
            a.mov(ebx, 3)?;
            a.set_label(&mut top)?;
            a.call(CODE + 0x1000)?;
            a.cmp(ebx, 2)?;
            let mut next = a.create_label();
            a.jne(next)?;
            a.mov(rdi, PT + 8 * ((CODE + 0x1000) >> 12))?;
            a.mov(byte_ptr(rdi + 7), i32::from(NX[0]) - 256)?;
            a.mov(rdi, CODE + 0x1000)?;
            a.invlpg(byte_ptr(rdi))?;
            a.set_label(&mut next)?;
            a.dec(ebx)?;
            a.jne(top)?;
            a.hlt()
        });
        bench.poke(
            CODE + 0x1000,
            &assemble(CODE + 0x1000, |a| {
                a.inc(eax)?;
                a.ret()
            }),
        );
        bench
    });
    assert_eq!((state.gpr[RAX], state.cr2), (2, CODE + 0x1000));
    let _ = page::NX;
}

/// By the interpreter's handler, since its addresses have 32 bits; whether the handler knows the
/// page already makes no difference.
#[test]
fn a_rep_that_overwrites_itself_stops_where_the_interpreter_does() {
    let source = DATA + 0x1000 - 32;
    let state = compare(|| {
        let mut bench = with_program(|a| {
            a.xor(edx, edx)?;
            a.mov(ecx, 64)?;
            a.mov(esi, source as u32)?;
            a.mov(dword_ptr(rdi + 64), 7)?;
            a.db(&[0x67, 0xf3, 0xa5])?; // rep movsd, by ESI and EDI
            a.hlt()
        });
        // Onto itself, INC EDX and HLTs; eight of them from the first page.
        bench.poke(source, &[0xff, 0xc2, 0xf4, 0xf4].repeat(64));
        bench.cpu.state.gpr[7] = CODE + 19;
        bench
    });
    assert_eq!(state.gpr[RDX], 1);
    assert_eq!(state.gpr[RCX], 64 - 8, "one run, to the end of the page");
}

/// Another thread has all code dropped, again and again, while steps wait for their helpers too.
#[test]
fn code_that_is_dropped_under_a_step() {
    const TURNS: u32 = 300_000;
    let program = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.mov(ecx, TURNS)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.invlpg(byte_ptr(rdi))?;
        a.add(rax, qword_ptr(rdi))?;
        a.inc(qword_ptr(rdi + 8))?;
        a.invlpg(byte_ptr(rsp))?;
        a.push(rcx)?;
        a.push(rax)?;
        a.cpuid()?;
        a.pop(rax)?;
        a.pop(rcx)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    };
    let mut bench = with_program(program);
    bench.poke(DATA, &3u128.to_le_bytes());
    bench.cpu.state.gpr[7] = DATA;
    let mut jit = translator(&bench, &Options::default());
    let (drop_all, is_done) = (jit.dropper(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for pause in
                (0..20_000).step_by(7).cycle().take_while(|_| !is_done.load(Ordering::SeqCst))
            {
                drop_all();
                (0..pause).for_each(|_| std::hint::spin_loop());
            }
        });
        run(&mut jit);
        is_done.store(true, Ordering::SeqCst);
    });
    assert_eq!(jit.state().gpr[RAX], 3 * u64::from(TURNS));
    assert_eq!(bench.peek::<8>(DATA + 8), u64::from(TURNS).to_le_bytes());
}
