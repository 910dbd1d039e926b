//! Hot loops: when they become superblocks, and that nothing else changes by it.

use cpu::engine::Vcpu;
use cpu::testing::{Bench, DATA};
use iced_x86::code_asm::*;
use jit::Options;

use crate::{compare, run, translator, with_program};

const RAX: usize = 0;
const RBX: usize = 3;

/// Runs `bench` where loops become hot after `superblock_after` turns; the figures, and RAX.
fn run_hot(bench: &Bench, superblock_after: u32) -> (String, u64) {
    let mut jit = translator(bench, &Options { superblock_after, ..Options::default() });
    run(&mut jit);
    (jit.statistics().to_string(), jit.state().gpr[RAX])
}

/// How many superblocks there were, by the figures.
fn superblocks_in(figures: &str) -> u64 {
    let number = figures.split_once(" superblocks").and_then(|(head, _)| head.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).expect("a figure")
}

/// Sums up an array.
fn summing(turns: u32) -> Bench {
    let bench = with_program(|a| {
        let mut top = a.create_label();
        a.mov(ecx, turns)?;
        a.mov(rbx, DATA)?;
        a.set_label(&mut top)?;
        a.add(rax, qword_ptr(rbx))?;
        a.add(rbx, 8)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    let words: Vec<u8> = (0..u64::from(turns)).flat_map(u64::to_le_bytes).collect();
    bench.poke(DATA, &words);
    bench
}

#[test]
fn a_loop_becomes_one_at_the_threshold() {
    for (after, superblocks) in [(0, 0), (1, 1), (50, 1), (100, 0)] {
        let (figures, sum) = run_hot(&summing(100), after);
        assert_eq!(sum, (0..100).sum::<u64>(), "after {after}");
        assert_eq!(superblocks_in(&figures), superblocks, "after {after}: {figures}");
    }
}

/// The group's check is for all turns of a superblock: the array goes over pages, at any offset.
#[test]
fn accesses_of_all_turns_share_a_check_up_to_the_end_of_a_page() {
    for offset in 0..16 {
        let state = compare(|| {
            let bench = with_program(|a| {
                let mut top = a.create_label();
                a.mov(ecx, 1500)?;
                a.mov(rbx, DATA + offset)?;
                a.set_label(&mut top)?;
                a.add(rax, qword_ptr(rbx))?;
                a.mov(word_ptr(rbx), cx)?;
                a.add(rbx, 7)?;
                a.dec(ecx)?;
                a.jne(top)?;
                a.hlt()
            });
            let bytes: Vec<u8> = (0..0x3000u32).map(|n| (n * 7 + (n >> 8)) as u8).collect();
            bench.poke(DATA, &bytes);
            bench
        });
        assert_eq!(state.gpr[RBX], DATA + offset + 1500 * 7);
    }
}

/// Two ways through a loop, and a loop in a loop, each way hot for a while.
#[test]
fn ways_that_become_hot_later_get_their_own() {
    let program = || {
        with_program(|a| {
            let (mut top, mut other, mut join, mut inner) =
                (a.create_label(), a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 4000)?;
            a.set_label(&mut top)?;
            a.test(ecx, 0x200)?;
            a.jne(other)?;
            a.add(rax, rcx)?;
            a.jmp(join)?;
            a.set_label(&mut other)?;
            a.mov(edx, 3)?;
            a.set_label(&mut inner)?;
            a.lea(rax, qword_ptr(rax + rax * 2))?;
            a.xor(rax, rdx)?;
            a.dec(edx)?;
            a.jne(inner)?;
            a.set_label(&mut join)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        })
    };
    let expected = compare(program).gpr[RAX];
    let (figures, sum) = run_hot(&program(), 50);
    assert_eq!(sum, expected);
    let count = superblocks_in(&figures);
    assert!((2..=8).contains(&count), "{figures}");
}

/// A store into a superblock's second piece, which its path has jumped to.
#[test]
fn code_behind_a_followed_jump_changes() {
    let state = compare(|| {
        with_program(|a| {
            let (mut top, mut far, mut patch) =
                (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 3000)?;
            a.lea(rdi, ptr(patch))?;
            a.set_label(&mut top)?;
            a.jmp(far)?;
            a.db(&[0xcc; 0x180])?;
            a.set_label(&mut far)?;
            a.nop()?;
            // ADD RAX, imm32 in its long form: the immediate is 3 bytes behind the label.
            a.set_label(&mut patch)?;
            a.db(&[0x48, 0x81, 0xc0, 1, 0, 0, 0])?;
            a.mov(edx, ecx)?;
            a.and(edx, 0x3ff)?;
            let mut same = a.create_label();
            a.jne(same)?;
            a.inc(dword_ptr(rdi + 3))?;
            a.set_label(&mut same)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        })
    });
    // The immediate is 1, 2 behind the turn with 2048 to go, and 3 behind the one with 1024.
    assert_eq!(state.gpr[RAX], 3000 + 2047 + 1023);
}
