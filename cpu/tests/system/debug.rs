//! Debug registers, breakpoints, single step and their shadows (SDM Vol. 3B, "Debug Exceptions").

use cpu::engine::Vcpu;
use cpu::exception::Exception;
use cpu::state::{Activity, cr4, gpr, rflags};
use cpu::testing::{Bench, CODE, DATA, selector};

use crate::bench::*;

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const DR6_ONES: u64 = 0xffff_0ff0;
const MOV_RAX_DR7: [u8; 3] = [0x0f, 0x21, 0xf8];
const MOV_DR6_RAX: [u8; 3] = [0x0f, 0x23, 0xf0];
const MOV_DR7_RAX: [u8; 3] = [0x0f, 0x23, 0xf8];
const MOV_RAX_DR4: [u8; 3] = [0x0f, 0x21, 0xe0];

/// A bench with a #DB handler, and `code` at RIP under `flags`.
fn bench(code: &[u8], flags: u64) -> Bench {
    let mut bench = Bench::long64();
    set_idt64(&bench, 1, INTERRUPT_GATE, selector::CODE64, 0);
    bench.put_code_at(CODE, code);
    bench.cpu.state.rflags |= flags;
    bench.cpu.mode_changed();
    bench
}

/// Runs to the #DB handler; the pushed RIP and flags, and DR6's conditions.
fn trap(bench: &mut Bench, instructions: u64) -> (u64, u64, u64) {
    bench.cpu.run(instructions + 1);
    assert_eq!(bench.cpu.state.rip, HANDLER + 1, "the handler ran");
    let [rip, _, flags] = quadwords(bench, bench.cpu.state.gpr[gpr::RSP]);
    (rip, flags, bench.cpu.state.dr[6] & !DR6_ONES)
}

#[test]
fn fixed_bits_stay_and_upper_halves_fault() {
    // code, RAX, register, what it holds then; None is #GP(0)
    let rows = [
        (MOV_DR6_RAX, 0, 6, Some(0xffff_0ff0)),
        (MOV_DR6_RAX, 0xffff_ffff, 6, Some(0xffff_efff)),
        (MOV_DR7_RAX, 0, 7, Some(0x400)),
        (MOV_DR7_RAX, 0xffff_dfff, 7, Some(0xffff_07ff)),
        (MOV_DR6_RAX, 1 << 32, 6, None),
        (MOV_DR7_RAX, 1 << 32, 7, None),
    ];
    for (code, value, register, expected) in rows {
        let mut bench = Bench::long64();
        bench.cpu.state.gpr[gpr::RAX] = value;
        let before = bench.cpu.state.dr[register];
        let outcome = bench.execute(&code);
        assert_eq!(outcome.is_ok(), expected.is_some(), "DR{register} = {value:#x}");
        assert_eq!(bench.cpu.state.dr[register], expected.unwrap_or(before));
    }
}

#[test]
fn dr4_is_dr6_without_debugging_extensions() {
    let mut bench = Bench::long64();
    bench.execute(&MOV_RAX_DR4).unwrap();
    assert_eq!(bench.cpu.state.gpr[gpr::RAX], 0xffff_0ff0);
    bench.cpu.state.cr4 |= cr4::DE;
    assert_eq!(bench.execute(&MOV_RAX_DR4), Err(Exception::UD));
}

#[test]
fn general_detect_is_a_fault_and_opens_the_registers() {
    let mut bench = bench(&MOV_RAX_DR7, 0);
    bench.cpu.state.dr[7] |= 1 << 13;
    let (rip, flags, conditions) = trap(&mut bench, 0);
    assert_eq!((rip, conditions), (CODE, BD));
    assert_ne!(flags & rflags::RF, 0);
    assert_eq!(bench.cpu.state.dr[7] & 1 << 13, 0);
}

#[test]
fn single_step_traps_behind_the_instruction() {
    let mut bench = bench(&[0x90, 0x90], rflags::TF);
    let (rip, flags, conditions) = trap(&mut bench, 1);
    assert_eq!((rip, conditions), (CODE + 1, BS));
    assert_eq!(flags & (rflags::TF | rflags::RF), rflags::TF);
    assert_eq!(bench.cpu.state.rflags & rflags::TF, 0);
}

#[test]
fn mov_ss_moves_the_step_behind_the_next_instruction() {
    // mov ss, ax; nop; nop
    let mut bench = bench(&[0x8e, 0xd0, 0x90, 0x90], rflags::TF);
    bench.cpu.state.gpr[gpr::RAX] = u64::from(selector::DATA);
    let (rip, _, conditions) = trap(&mut bench, 2);
    assert_eq!((rip, conditions), (CODE + 3, BS));
}

#[test]
fn int_n_and_syscall_are_not_stepped_into() {
    let mut bench = bench(&[0xcd, 0x20], rflags::TF);
    set_idt64(&bench, 0x20, INTERRUPT_GATE, selector::CODE64, 0);
    bench.cpu.run(2);
    assert_eq!(bench.cpu.state.dr[6], DR6_ONES);
    assert_eq!(bench.cpu.state.rip, HANDLER + 1);
}

#[test]
fn a_suppressed_step_does_not_suppress_a_later_one() {
    // syscall to a nop, then the step is switched on: it must come at once.
    let mut bench = bench(&[0x0f, 0x05], 0);
    bench.cpu.state.msrs.lstar = CODE + 0x100;
    bench.cpu.state.msrs.star = u64::from(selector::CODE64) << 32;
    bench.poke(CODE + 0x100, &[0x90, 0x90]);
    bench.cpu.run(1);
    bench.cpu.state.rflags |= rflags::TF;
    bench.cpu.mode_changed();
    let (rip, _, conditions) = trap(&mut bench, 1);
    assert_eq!((rip, conditions), (CODE + 0x101, BS));
}

#[test]
fn an_instruction_breakpoint_is_a_fault_that_rf_passes() {
    let mut bench = bench(&[0x90, 0x90], 0);
    bench.cpu.state.dr[0] = CODE;
    bench.cpu.state.dr[7] |= 0b10;
    bench.cpu.mode_changed();
    let (rip, flags, conditions) = trap(&mut bench, 0);
    assert_eq!((rip, conditions), (CODE, 1));
    assert_eq!(flags & rflags::RF, 0);

    bench.cpu.state.activity = Activity::Active;
    bench.cpu.state.rip = CODE;
    bench.cpu.state.rflags |= rflags::RF;
    bench.cpu.run(1);
    assert_eq!(bench.cpu.state.rip, CODE + 1);
    assert_eq!(bench.cpu.state.rflags & rflags::RF, 0);
}

/// DR7's R/W and LEN fields, an access, and whether it is met.
#[test]
fn data_breakpoints_watch_their_bytes() {
    let (mov_al_rbx, mov_rbx_al): (&[u8], &[u8]) = (&[0x8a, 0x03], &[0x88, 0x03]);
    let rows: [(u64, u64, &[u8], u64, bool); 7] = [
        (1, 0, mov_rbx_al, DATA, true),
        (1, 0, mov_al_rbx, DATA, false),
        (3, 0, mov_al_rbx, DATA, true),
        (1, 0, mov_rbx_al, DATA + 1, false),
        (1, 3, mov_rbx_al, DATA + 3, true),
        (1, 3, mov_rbx_al, DATA + 4, false),
        (3, 2, mov_al_rbx, DATA + 7, true),
    ];
    for (kind, length, code, address, is_met) in rows {
        let mut bench = bench(code, 0);
        bench.poke(CODE + 2, &[0xf4]);
        bench.cpu.state.gpr[gpr::RBX] = address;
        bench.cpu.state.dr[2] = DATA;
        bench.cpu.state.dr[7] |= 0b10_0000 | kind << 24 | length << 26;
        bench.cpu.mode_changed();
        bench.cpu.run(1);
        let expected = if is_met { DR6_ONES | 4 } else { DR6_ONES };
        assert_eq!(bench.cpu.state.dr[6], expected, "kind {kind}, LEN {length}, {address:#x}");
        let rip = if is_met { HANDLER } else { CODE + 2 };
        assert_eq!(bench.cpu.state.rip, rip);
    }
}

#[test]
fn old_conditions_but_b0_to_b3_stay_in_dr6() {
    let mut bench = bench(&[0x90], rflags::TF);
    bench.cpu.state.dr[6] |= BD | 0b1010;
    let (_, _, conditions) = trap(&mut bench, 1);
    assert_eq!(conditions, BD | BS);
}

#[test]
fn int1_behind_mov_ss_takes_the_waiting_breakpoint_along() {
    // mov ss, [rbx]; int1
    let mut bench = bench(&[0x8e, 0x13, 0xf1], 0);
    bench.poke(DATA, &selector::DATA.to_le_bytes());
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    bench.cpu.state.dr[0] = DATA;
    bench.cpu.state.dr[7] |= 0b10 | 3 << 16;
    bench.cpu.mode_changed();
    let stack = bench.cpu.state.gpr[gpr::RSP];
    let (rip, _, conditions) = trap(&mut bench, 2);
    assert_eq!((rip, conditions), (CODE + 3, 1));
    assert!(stack - bench.cpu.state.gpr[gpr::RSP] < 80, "one frame");
}

#[test]
fn a_rep_behind_mov_ss_does_an_element_before_the_waiting_breakpoint() {
    // mov ss, [rbx]; rep stosb
    let mut bench = bench(&[0x8e, 0x13, 0xf3, 0xaa], 0);
    bench.poke(DATA, &selector::DATA.to_le_bytes());
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    bench.cpu.state.gpr[gpr::RDI] = DATA + 0x100;
    bench.cpu.state.gpr[gpr::RCX] = 3;
    bench.cpu.state.dr[0] = DATA;
    bench.cpu.state.dr[7] |= 0b10 | 3 << 16;
    bench.cpu.mode_changed();
    let (rip, _, conditions) = trap(&mut bench, 2);
    assert_eq!((rip, conditions), (CODE + 2, 1), "between two elements");
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 2);
}
