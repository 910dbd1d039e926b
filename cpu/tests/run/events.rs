//! Interrupts, NMIs, HLT and the instruction budget.
//!
//! Source: SDM Vol. 3A, "Priority Among Concurrent Events", "Masking Maskable Hardware Interrupts",
//! "Masking Exceptions and Interrupts When Switching Stacks", "Nonmaskable Interrupt (NMI)".

use std::sync::atomic::Ordering;

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::state::{Activity, gpr, rflags};
use cpu::testing::{Bench, CODE, selector};

use crate::bench::*;

/// The local APIC has vector 20H.
fn raise(bench: &Bench) {
    bench.lapic.vector.store(0x20, Ordering::SeqCst);
    bench.cpu.env.events.post(Events::INTERRUPT);
}

#[test]
fn an_interrupt_waits_for_if() {
    let mut bench = bench(&[0x90, 0x90, 0x90]);
    raise(&bench);
    bench.cpu.run(2);
    assert_eq!((bench.cpu.state.rip, vector(&bench)), (CODE + 2, 0));
    bench.cpu.state.rflags |= rflags::IF;
    bench.cpu.run(1);
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE + 2, 0x20));
    assert_eq!(bench.cpu.state.rflags & rflags::IF, 0);
}

/// sti; nop; nop: the interrupt comes behind the first NOP.
#[test]
fn sti_holds_interrupts_for_one_instruction() {
    let mut bench = bench(&[0xfb, 0x90, 0x90]);
    raise(&bench);
    bench.cpu.run(3);
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE + 2, 0x20));
}

/// sti; cli: none comes. sti with IF set holds nothing.
#[test]
fn sti_then_cli_lets_no_interrupt_in() {
    let mut both = bench(&[0xfb, 0xfa, 0x90]);
    raise(&both);
    both.cpu.run(3);
    assert_eq!((both.cpu.state.rip, vector(&both)), (CODE + 3, 0));

    let mut again = bench(&[0xfb, 0x90, 0x90]);
    again.cpu.state.rflags |= rflags::IF;
    again.cpu.run(1);
    raise(&again);
    again.cpu.run(1);
    assert_eq!((frame(&again).0, vector(&again)), (CODE + 1, 0x20));
}

/// mov ss, ax holds both kinds; a second one right behind it holds them too on our CPU, as the
/// manual allows, but then lets them in.
#[test]
fn mov_ss_holds_interrupts_and_nmi_for_one_instruction() {
    for is_nmi in [false, true] {
        let mut bench = bench(&[0x8e, 0xd0, 0x90, 0x90]);
        bench.cpu.state.gpr[gpr::RAX] = u64::from(selector::DATA);
        bench.cpu.state.rflags |= rflags::IF;
        bench.cpu.run(1);
        assert_eq!(bench.cpu.state.rip, CODE + 2);
        if is_nmi {
            bench.cpu.env.events.post(Events::NMI);
        } else {
            raise(&bench);
        }
        bench.cpu.run(2);
        assert_eq!(frame(&bench).0, CODE + 3, "NMI: {is_nmi}");
        assert_eq!(vector(&bench), if is_nmi { 2 } else { 0x20 });
    }
}

#[test]
fn an_nmi_comes_before_an_interrupt_and_blocks_the_next_until_iret() {
    let mut bench = bench(&[0x90]);
    bench.cpu.state.rflags |= rflags::IF;
    raise(&bench);
    bench.cpu.env.events.post(Events::NMI);
    assert!(matches!(bench.cpu.run(2), VmExit::Budget | VmExit::Halt { .. }));
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE, 2));
    assert!(bench.cpu.state.nmi_blocked);

    // Another NMI waits, and does not wake the CPU.
    bench.cpu.env.events.post(Events::NMI);
    let VmExit::Halt { wake } = bench.cpu.run(10) else { panic!("the handler halts") };
    assert_eq!(wake & Events::NMI, 0);
    assert_eq!(bench.cpu.state.activity, Activity::Halted);
    assert_eq!(bench.cpu.state.nmis_pending, 1);
    // iretq lets it in at once, ahead of the interrupt that still waits.
    bench.cpu.state.activity = Activity::Active;
    bench.put_code_at(CODE + 0x100, &[0x48, 0xcf]);
    bench.cpu.run(1);
    assert_eq!((frame(&bench).0, bench.cpu.state.rip), (CODE, HANDLERS + 2 * 16));
    assert_ne!(bench.lapic.vector.load(Ordering::SeqCst), 0);
}

#[test]
fn an_interrupt_ends_hlt_and_returns_behind_it() {
    // sti; hlt; nop
    let mut bench = bench(&[0xfb, 0xf4, 0x90]);
    let VmExit::Halt { wake } = bench.cpu.run(10) else { panic!("no halt") };
    assert_eq!(bench.cpu.retired(), 2);
    let all = Events::INIT | Events::EXIT | Events::KICK | Events::INTERRUPT | Events::NMI;
    assert_eq!(wake, all);
    raise(&bench);
    bench.cpu.run(1);
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE + 2, 0x20));
}

/// sti; hlt with the interrupt already there: HLT is the shadowed instruction, and is left at once.
#[test]
fn an_interrupt_that_waits_does_not_get_lost_in_sti_hlt() {
    let mut bench = bench(&[0xfb, 0xf4, 0x90]);
    raise(&bench);
    bench.cpu.run(3);
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE + 2, 0x20));
}

#[test]
fn hlt_without_if_waits_for_others() {
    let mut bench = bench(&[0xf4]);
    let VmExit::Halt { wake } = bench.cpu.run(10) else { panic!("no halt") };
    assert_eq!(wake, Events::INIT | Events::EXIT | Events::KICK | Events::NMI);
    // A masked interrupt neither wakes it nor gets lost.
    raise(&bench);
    assert!(matches!(bench.cpu.run(10), VmExit::Halt { .. }));
    assert_eq!(bench.lapic.vector.load(Ordering::SeqCst), 0x20);
    bench.cpu.env.events.post(Events::NMI);
    bench.cpu.run(1);
    assert_eq!((frame(&bench).0, vector(&bench)), (CODE + 1, 2));
}

#[test]
fn a_requested_exit_is_taken_once_and_before_the_next_instruction() {
    let mut bench = bench(&[0x90, 0x90]);
    bench.cpu.env.events.request_exit();
    assert_eq!(bench.cpu.run(10), VmExit::Requested);
    assert_eq!((bench.cpu.retired(), bench.cpu.state.rip), (0, CODE));
    assert_eq!(bench.cpu.run(1), VmExit::Budget);
}

#[test]
fn a_request_from_another_thread_ends_a_loop() {
    // jmp to itself
    let mut bench = bench(&[0xeb, 0xfe]);
    let events = bench.cpu.env.events.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || events.request_exit());
        assert_eq!(bench.cpu.run(u64::MAX), VmExit::Requested);
    });
}

#[test]
fn a_budget_stops_at_exactly_that_many_instructions() {
    // 40 NOPs, more than a block holds, then a loop to the start.
    let mut code = vec![0x90; 40];
    code.extend([0xeb, 0xd6]);
    for step in [1, 2, 3, 7, 31, 32, 33, 41, 42, 100] {
        let mut bench = bench(&code);
        for round in 1..=5 {
            assert_eq!(bench.cpu.run(step), VmExit::Budget);
            assert_eq!(bench.cpu.retired(), step * round);
            let place = step * round % 41;
            assert_eq!(bench.cpu.state.rip, CODE + place, "steps of {step}, {round}");
        }
    }
}

#[test]
fn a_budget_of_nothing_runs_nothing() {
    let mut bench = bench(&[0x90]);
    assert_eq!(bench.cpu.run(0), VmExit::Budget);
    assert_eq!((bench.cpu.retired(), bench.cpu.state.rip), (0, CODE));
}

/// A REP counts once for each part that it runs without a look at events; the registers tell how
/// far it is, and all of it gets done.
#[test]
fn a_long_rep_stops_at_a_part_and_goes_on() {
    let count = 3 * 4096 + 5;
    // rep stosb; nop
    let mut bench = bench(&[0xf3, 0xaa, 0x90]);
    bench.cpu.state.gpr[gpr::RCX] = count;
    bench.cpu.state.gpr[gpr::RDI] = 0x50_0000;
    bench.cpu.state.gpr[gpr::RAX] = 0xee;
    let mut left = count;
    while left != 0 {
        assert_eq!(bench.cpu.run(1), VmExit::Budget);
        let now = bench.cpu.state.gpr[gpr::RCX];
        assert!(left - now <= 4096 && now < left, "{left} to {now}");
        assert_eq!(bench.cpu.state.gpr[gpr::RDI], 0x50_0000 + count - now);
        left = now;
        assert_eq!(bench.cpu.state.rip, if left == 0 { CODE + 2 } else { CODE });
        assert_eq!(bench.cpu.state.rflags & rflags::RF != 0, left != 0);
    }
    assert_eq!(bench.peek(0x50_0000 + count - 1), [0xee, 0]);
}

/// SDM Vol. 3B: an interrupt between two iterations pushes RF = 1, one behind the last RF = 0.
#[test]
fn an_interrupt_inside_a_rep_saves_where_it_is_and_rf() {
    let mut bench = bench(&[0xf3, 0xaa, 0x90]);
    bench.cpu.state.gpr[gpr::RCX] = 10_000;
    bench.cpu.state.gpr[gpr::RDI] = 0x50_0000;
    bench.cpu.state.rflags |= rflags::IF;
    bench.cpu.run(1);
    raise(&bench);
    bench.cpu.run(1);
    let (rip, flags) = frame(&bench);
    assert_eq!((rip, vector(&bench)), (CODE, 0x20));
    assert_ne!(flags & rflags::RF, 0);
    assert_eq!(bench.cpu.state.rflags & rflags::RF, 0, "the handler has none");
    let left = bench.cpu.state.gpr[gpr::RCX];
    assert!(left > 0 && left < 10_000);

    // iretq: the rest comes, without RF behind it.
    bench.put_code_at(CODE + 0x100, &[0x48, 0xcf]);
    bench.cpu.state.activity = Activity::Active;
    bench.cpu.run(10);
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 0);
    assert_eq!(bench.cpu.state.gpr[gpr::RDI], 0x50_0000 + 10_000);
    assert_eq!(bench.cpu.state.rflags & rflags::RF, 0);
}
