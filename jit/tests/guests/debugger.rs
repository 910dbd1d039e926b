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
fn looping() -> Bench {
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
    // The page itself is looked at each time.
    assert!(misses(Some(DATA + 0x100)) > plain + 900);
}
