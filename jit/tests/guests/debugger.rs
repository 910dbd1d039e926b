//! A debugger's stops in translated code, and that nothing is paid for where it wants none.

use cpu::debugger::{DebugStop, Resume, WatchKind, Watchpoint};
use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA};
use iced_x86::code_asm::*;
use jit::{JitCpu, Options};

use crate::{all_ways, assemble, bench, run, translator};

const RAX: usize = 0;
/// A function that is called in each round.
const FUNCTION: u64 = CODE + 0x400;

/// A loop of 1000 rounds that stores, loads and calls.
pub fn looping() -> Bench {
    let mut bench = bench();
    let program = assemble(CODE, |a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(ecx, dword_ptr(rbx + 0x2008))?;
        a.call(FUNCTION)?;
        a.cmp(eax, 1000)?;
        a.jne(top)?;
        a.hlt()
    });
    bench.put_code_at(FUNCTION, &[0x90, 0xff, 0xc2, 0xc3]);
    bench.put_code_at(CODE, &program);
    bench
}

fn stop(jit: &mut JitCpu) -> DebugStop {
    let exit = jit.run(u64::MAX);
    assert_eq!(exit, VmExit::Debug, "at {:#x}", jit.state().rip);
    jit.cpu_mut().take_debug_stop().expect("why it stopped")
}

#[test]
fn breakpoints_that_come_and_go_are_met_in_code_that_was_translated_before() {
    for options in all_ways() {
        let bench = looping();
        let mut jit = translator(&bench, &options);
        run(&mut jit);
        jit.set_state(bench.cpu.state.clone());
        // In the middle of a block, at the beginning of one, and behind a call.
        let inside = FUNCTION + 1;
        assert!(jit.cpu_mut().add_breakpoint(inside));
        for round in 1..=5 {
            assert_eq!(stop(&mut jit), DebugStop::Breakpoint(inside), "{options:?}");
            assert_eq!((jit.state().rip, jit.state().gpr[RAX]), (inside, round), "{options:?}");
            jit.cpu_mut().resume_debugged(Resume::Continue, true);
        }
        assert!(jit.cpu_mut().add_breakpoint(FUNCTION));
        assert_eq!(stop(&mut jit), DebugStop::Breakpoint(FUNCTION));
        jit.cpu_mut().resume_debugged(Resume::Step, true);
        assert_eq!((stop(&mut jit), jit.state().rip), (DebugStop::Step, inside));
        jit.cpu_mut().detach_debugger();
        run(&mut jit);
        assert_eq!(jit.state().gpr[RAX], 1000);
    }
}

#[test]
fn watchpoints_stop_behind_the_access_whose_page_was_in_the_tlb() {
    for options in all_ways() {
        for (start, length, kind) in [
            (DATA + 3, 1, WatchKind::Write),
            (DATA + 0x2008, 2, WatchKind::Read),
            (DATA + 0x1fff, 100, WatchKind::Access),
        ] {
            let bench = looping();
            let mut jit = translator(&bench, &options);
            run(&mut jit);
            jit.set_state(bench.cpu.state.clone());
            assert!(jit.cpu_mut().add_watchpoint(Watchpoint { start, length, kind }));
            for round in 1..=5 {
                let stopped = stop(&mut jit);
                assert!(matches!(stopped, DebugStop::Watchpoint(_)), "{stopped:?}, {options:?}");
                assert_eq!(jit.state().gpr[RAX], round, "{options:?}");
                jit.cpu_mut().resume_debugged(Resume::Continue, true);
            }
            jit.cpu_mut().detach_debugger();
            run(&mut jit);
        }
    }
}

/// The code of each block that is translated while the guest runs, by RIP.
fn emitted(prepare: impl Fn(&mut JitCpu)) -> Vec<(u64, Vec<u8>)> {
    let bench = looping();
    let mut jit = translator(&bench, &Options::default());
    prepare(&mut jit);
    run(&mut jit);
    jit.translated().into_iter().map(|block| (block.rip, block.bytes)).collect()
}

#[test]
fn a_debugger_without_points_changes_no_code() {
    let plain = emitted(|_| {});
    let attached = emitted(|jit| jit.cpu_mut().resume_debugged(Resume::Continue, true));
    assert_eq!(plain, attached);
}

#[test]
fn breakpoints_that_are_not_met_change_no_block_but_their_own() {
    let plain = emitted(|_| {});
    // Where no instruction is executed: inside of instructions, behind the end, on other pages.
    let elsewhere = emitted(|jit| {
        for number in 0..100 {
            assert!(jit.cpu_mut().add_breakpoint(CODE + 0x1000 * (number + 1)));
        }
        assert!(jit.cpu_mut().add_breakpoint(CODE + 1));
    });
    assert_eq!(plain, elsewhere);
}

/// A loop through 200 pieces of code, each of which jumps over an INC that is never executed and
/// on to the next one. At its end a load faults, and behind that is one more INC. Gives the
/// addresses of the INCs.
fn with_cold_code() -> (Bench, Vec<u64>) {
    let mut bench = bench();
    let program = assemble(CODE, |a| {
        let mut top = a.create_label();
        a.mov(rdi, 1u64 << 63)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        for _ in 0..200 {
            let mut over = a.create_label();
            a.add(eax, 3)?;
            a.test(ecx, ecx)?;
            a.jnz(over)?;
            a.inc(edx)?;
            a.jmp(over)?;
            a.set_label(&mut over)?;
        }
        a.dec(ecx)?;
        a.jnz(top)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.inc(edx)?;
        a.hlt()
    });
    let decoder = iced_x86::Decoder::with_ip(64, &program, CODE, 0);
    let is_cold = |insn: &iced_x86::Instruction| insn.mnemonic() == iced_x86::Mnemonic::Inc;
    let cold = decoder.into_iter().filter(is_cold).map(|insn| insn.ip()).collect();
    bench.put_code_at(CODE, &program);
    (bench, cold)
}

/// A block's code without what depends on where it lies: where it is left to, and the numbers of
/// its links, which are constants in R15.
pub fn without_place(block: &jit::Translated) -> (u64, Vec<iced_x86::Instruction>) {
    let start = block.position as u64 + (1 << 32);
    let inside = start..start + block.bytes.len() as u64;
    let decoder = iced_x86::Decoder::with_ip(64, &block.bytes, start, 0);
    let normal = |mut insn: iced_x86::Instruction| {
        let target = insn.near_branch_target();
        if target != 0 {
            insn.set_near_branch64(if inside.contains(&target) { target - start } else { 0 });
        }
        if insn.code() == iced_x86::Code::Mov_r32_imm32
            && insn.op0_register() == iced_x86::Register::R15D
        {
            insn.set_immediate32(0);
        }
        insn
    };
    (block.rip, decoder.into_iter().map(normal).collect())
}

#[test]
fn a_hundred_breakpoints_beside_the_way_change_only_the_blocks_that_would_hold_them() {
    let (bench, cold) = with_cold_code();
    let emitted = |breakpoints: &[u64]| {
        // Superblocks come when they come.
        let options = Options { superblock_after: 0, ..Options::default() };
        let mut jit = translator(&bench, &options);
        breakpoints.iter().for_each(|&linear| assert!(jit.cpu_mut().add_breakpoint(linear)));
        run(&mut jit);
        assert_eq!(jit.cpu_mut().take_debug_stop(), None);
        jit.translated().iter().map(without_place).collect::<Vec<_>>()
    };
    // In every other piece, and behind the load.
    let breakpoints: Vec<u64> = cold.iter().copied().step_by(2).collect();
    assert_eq!(breakpoints.len(), 101);
    let (plain, broken) = (emitted(&[]), emitted(&breakpoints));
    let rips = |blocks: &[(u64, Vec<_>)]| blocks.iter().map(|block| block.0).collect::<Vec<_>>();
    assert_eq!(rips(&plain), rips(&broken));
    let (mut changed, mut same) = (0, 0);
    for ((rip, plain), (_, broken)) in plain.iter().zip(&broken) {
        // A piece's block goes on with its own INC, and ends there. The loop's end is a block of
        // its own before the load, which is two bytes long.
        let next = cold.iter().find(|&&linear| linear >= *rip).copied();
        let is_loops_end = next == cold.last().copied() && next.is_some_and(|n| *rip < n - 2);
        if !is_loops_end && next.is_some_and(|linear| breakpoints.contains(&linear)) {
            assert!(broken.len() < plain.len(), "{rip:#x}");
            changed += 1;
        } else {
            assert_eq!(plain, broken, "{rip:#x}");
            same += 1;
        }
    }
    assert!(changed >= 101 && same >= 100, "{changed} {same}");
}

#[test]
fn a_watchpoint_costs_nothing_on_other_pages() {
    let misses = |watched: Option<u64>| {
        let bench = looping();
        let mut jit = translator(&bench, &Options { count_accesses: true, ..Options::default() });
        if let Some(start) = watched {
            let watchpoint = Watchpoint { start, length: 8, kind: WatchKind::Access };
            assert!(jit.cpu_mut().add_watchpoint(watchpoint));
        }
        run(&mut jit);
        jit.statistics().tlb_misses()
    };
    let plain = misses(None);
    assert_eq!(misses(Some(DATA + 0x1000)), plain);
}

#[test]
fn accesses_beside_a_watchpoint_stay_in_translated_code() {
    // Times that code was left or the interpreter called, and accesses that a helper looked at.
    let figures = |watched: &[u64]| {
        let bench = looping();
        let mut jit = translator(&bench, &Options::default());
        for &start in watched {
            let watchpoint = Watchpoint { start, length: 8, kind: WatchKind::Access };
            assert!(jit.cpu_mut().add_watchpoint(watchpoint));
        }
        run(&mut jit);
        let statistics = jit.statistics();
        (statistics.exits() + statistics.interpreted(), statistics.tlb_misses())
    };
    let plain = figures(&[]);
    let one = figures(&[DATA + 0x100]);
    let on_both_pages = figures(&[DATA + 4, DATA + 0x100, DATA + 0x2000, DATA + 0x2010]);
    for watched in [one, on_both_pages] {
        assert_eq!(watched.0, plain.0);
        assert!(watched.1 <= plain.1 + 8, "{watched:?} {plain:?}");
    }
}

/// Where one engine stops, and why, until HLT; at most so often.
fn stops(engine: &mut dyn FnMut() -> Option<(u64, DebugStop)>) -> Vec<(u64, DebugStop)> {
    std::iter::from_fn(engine).take(400).collect()
}

/// What translated code does with memory in every way that it has: alone, by groups, on the stack,
/// in strings, over a page's end, locked, wide and aligned, by the x87 unit.
fn every_way(bench: &mut Bench) {
    let program = assemble(CODE, |a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(r12d, 3)?;
        a.set_label(&mut top)?;
        a.mov(qword_ptr(rbx + 0x20), r12)?;
        a.mov(eax, dword_ptr(rbx + 0x2c))?;
        a.mov(word_ptr(rbx + 0x32), ax)?;
        a.add(byte_ptr(rbx + 0x35), al)?;
        a.mov(ecx, 5)?;
        a.mov(byte_ptr(rbx + rcx * 8 + 0x10), cl)?;
        a.lock().xadd(qword_ptr(rbx + 0x48), rcx)?;
        a.mov(qword_ptr(rbx + 0xffc), r12)?;
        a.mov(rdx, qword_ptr(rbx + 0xffb))?;
        a.lea(rdi, qword_ptr(rbx + 0x60))?;
        a.mov(ecx, 7)?;
        a.rep().stosb()?;
        a.lea(rsi, qword_ptr(rbx + 0x58))?;
        a.lea(rdi, qword_ptr(rbx + 0x70))?;
        a.mov(ecx, 3)?;
        a.rep().movsq()?;
        a.lea(rdi, qword_ptr(rbx + 0x88))?;
        a.mov(ecx, 16)?;
        a.mov(al, 0x77)?;
        a.repne().scasb()?;
        a.lea(rsi, qword_ptr(rbx + 0xa0))?;
        a.lodsb()?;
        a.movups(xmm1, xmmword_ptr(rbx + 0xa7))?;
        a.movaps(xmmword_ptr(rbx + 0xc0), xmm1)?;
        a.fild(qword_ptr(rbx + 0xd0))?;
        a.fistp(qword_ptr(rbx + 0xd8))?;
        a.bts(dword_ptr(rbx + 0xe0), ecx)?;
        a.mov(rsp, DATA + 0x1f0)?;
        a.push(rbx)?;
        a.push(qword_ptr(rbx + 0xe8))?;
        a.pop(rdx)?;
        a.pop(qword_ptr(rbx + 0xf0))?;
        a.dec(r12d)?;
        a.jnz(top)?;
        a.hlt()
    });
    bench.put_code_at(CODE, &program);
}

#[test]
fn watchpoints_are_met_as_by_the_interpreter_wherever_they_are() {
    use cpu::testing::random::Random;
    let mut random = Random::new(0x77a7_c4ed);
    let mut met = 0;
    for round in 0..40 {
        let points: Vec<Watchpoint> = (0..1 + random.below(3))
            .map(|_| Watchpoint {
                start: match random.below(8) {
                    0 => DATA + 0xff0 + random.below(32),
                    1 => DATA + 0x1e0 + random.below(32),
                    _ => DATA + random.below(0x100),
                },
                length: 1 + random.below(12),
                kind: [WatchKind::Write, WatchKind::Read, WatchKind::Access]
                    [random.below(3) as usize],
            })
            .collect();
        let mut bench = bench();
        every_way(&mut bench);
        for options in all_ways() {
            let before = bench.peek::<0x2000>(DATA);
            let mut jit = translator(&bench, &options);
            points.iter().for_each(|&point| assert!(jit.cpu_mut().add_watchpoint(point)));
            let found = stops(&mut || {
                let exit = jit.run(u64::MAX);
                let stop = (jit.state().rip, jit.cpu_mut().take_debug_stop()?);
                assert_eq!(exit, VmExit::Debug);
                jit.cpu_mut().resume_debugged(Resume::Continue, true);
                Some(stop)
            });
            let memory = bench.peek::<0x2000>(DATA);
            bench.poke(DATA, &before);
            let mut other = bench.second_cpu();
            other.set_state(bench.cpu.state.clone());
            points.iter().for_each(|&point| assert!(other.add_watchpoint(point)));
            let expected = stops(&mut || {
                let exit = other.run(1 << 30);
                let stop = (other.state.rip, other.take_debug_stop()?);
                assert_eq!(exit, VmExit::Debug);
                other.resume_debugged(Resume::Continue, true);
                Some(stop)
            });
            assert_eq!(found, expected, "round {round}: {points:x?}, {options:?}");
            met += found.len();
            assert!(memory == bench.peek::<0x2000>(DATA), "round {round}: {points:x?}");
            assert_eq!(jit.state().gpr, other.state.gpr, "round {round}");
            let pointers = |state: &cpu::state::State| (state.fpu.fip, state.fpu.fdp);
            assert_eq!(pointers(jit.state()), pointers(&other.state), "round {round}");
            bench.poke(DATA, &before);
        }
    }
    assert!(met > 500, "{met}");
}
