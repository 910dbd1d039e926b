//! Single step and breakpoints where blocks, REP and RF meet.
//!
//! Source: SDM Vol. 3B, "Debug Exceptions", "Instruction-Breakpoint Exception Condition",
//! "Single-Step Exception Condition".

use cpu::engine::Vcpu;
use cpu::state::{Activity, gpr, rflags};
use cpu::testing::{Bench, CODE, DATA};

use crate::bench::*;

const BS: u64 = 1 << 14;
const DR6_ONES: u64 = 0xffff_0ff0;

/// Runs to the #DB handler; RIP and flags as pushed, and DR6's conditions, which are then cleared.
fn trap(bench: &mut Bench) -> (u64, u64, u64) {
    bench.cpu.run(50);
    assert_eq!((bench.cpu.state.activity, vector(bench)), (Activity::Halted, 1), "no #DB");
    let (rip, flags) = frame(bench);
    let conditions = std::mem::replace(&mut bench.cpu.state.dr[6], DR6_ONES) & !DR6_ONES;
    (rip, flags, conditions)
}

/// IRETQ out of the handler.
fn resume(bench: &mut Bench) {
    bench.cpu.state.gpr[15] = 0;
    bench.cpu.state.activity = Activity::Active;
    bench.put_code_at(HANDLERS + 0x800, &[0x48, 0xcf]);
}

fn set_breakpoint(bench: &mut Bench, address: u64, kind: u64) {
    bench.cpu.state.dr[0] = address;
    bench.cpu.state.dr[7] |= 0b10 | kind << 16;
    bench.cpu.mode_changed();
}

fn string(code: &[u8], count: u64) -> Bench {
    let mut bench = bench(code);
    let state = &mut bench.cpu.state;
    (state.gpr[gpr::RCX], state.gpr[gpr::RDI]) = (count, DATA);
    bench
}

/// rep stosb; nop: a trap behind each element, with RF but behind the last.
#[test]
fn tf_steps_over_each_element_of_a_rep() {
    let mut bench = string(&[0xf3, 0xaa, 0x90], 3);
    bench.cpu.state.rflags |= rflags::TF;
    for left in [2, 1, 0] {
        let (rip, flags, conditions) = trap(&mut bench);
        assert_eq!(bench.cpu.state.gpr[gpr::RCX], left);
        assert_eq!(bench.cpu.state.gpr[gpr::RDI], DATA + 3 - left);
        let is_last = left == 0;
        assert_eq!((rip, conditions), (if is_last { CODE + 2 } else { CODE }, BS));
        assert_eq!(flags & rflags::RF != 0, !is_last, "{left} left");
        resume(&mut bench);
    }
    assert_eq!(trap(&mut bench).0, CODE + 3, "the NOP is stepped too");
}

#[test]
fn tf_steps_over_a_rep_that_does_nothing() {
    let mut bench = string(&[0xf3, 0xaa, 0x90], 0);
    bench.cpu.state.rflags |= rflags::TF;
    let (rip, flags, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions, flags & rflags::RF), (CODE + 2, BS, 0));
}

/// nop; rep stosb: the breakpoint fires once, before the first element, and not at each part.
#[test]
fn a_breakpoint_on_a_rep_fires_once() {
    let mut bench = string(&[0x90, 0xf3, 0xaa, 0xf4], 3 * 4096);
    set_breakpoint(&mut bench, CODE + 1, 0);
    let (rip, flags, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions, flags & rflags::RF), (CODE + 1, 1, 0));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 3 * 4096);
    // The handler returns with RF set, as debuggers do.
    let flags_at = bench.cpu.state.gpr[gpr::RSP] + 16;
    bench.poke(flags_at, &(flags | rflags::RF).to_le_bytes());
    resume(&mut bench);
    bench.cpu.run(50);
    assert_eq!((bench.cpu.state.rip, vector(&bench)), (CODE + 4, 0));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 0);
}

/// A breakpoint in the middle of what would be one block.
#[test]
fn a_breakpoint_inside_a_block_is_met() {
    let mut bench = bench(&[0x90; 8]);
    // Decoded as one block first.
    bench.cpu.run(8);
    bench.cpu.state.rip = CODE;
    set_breakpoint(&mut bench, CODE + 5, 0);
    let (rip, _, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions), (CODE + 5, 1));
    // Switched off again, nothing stops there.
    bench.cpu.state.dr[7] = 0x400;
    bench.cpu.mode_changed();
    resume(&mut bench);
    bench.cpu.run(2);
    assert_eq!((bench.cpu.state.rip, vector(&bench)), (CODE + 6, 0));
}

/// mov dr7, rax; nop; nop: what DR7 gets counts from the next instruction on.
#[test]
fn a_write_to_dr7_arms_breakpoints_of_the_same_block() {
    let mut bench = bench(&[0x0f, 0x23, 0xf8, 0x90, 0x90]);
    bench.cpu.state.dr[0] = CODE + 4;
    bench.cpu.state.gpr[gpr::RAX] = 0x402;
    assert_eq!(trap(&mut bench).0, CODE + 4);

    // mov dr7, rax; mov [rbx], al; nop
    let mut bench = string(&[0x0f, 0x23, 0xf8, 0x88, 0x03, 0x90], 0);
    bench.cpu.state.dr[0] = DATA;
    bench.cpu.state.gpr[gpr::RAX] = 0x1_0402;
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    let (rip, _, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions), (CODE + 5, 1));
}

/// A data breakpoint in a REP traps behind the element that met it.
#[test]
fn a_data_breakpoint_stops_a_rep_behind_its_element() {
    let mut bench = string(&[0xf3, 0xaa, 0x90], 100);
    set_breakpoint(&mut bench, DATA + 40, 1);
    let (rip, flags, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions), (CODE, 1));
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 59);
    assert_ne!(flags & rflags::RF, 0);
}

#[test]
fn a_data_breakpoint_on_either_page_of_an_access_is_met() {
    for watched in [DATA + 0xffe, DATA + 0xfff, DATA + 0x1000, DATA + 0x1001] {
        // mov [rbx], eax
        let mut bench = bench(&[0x89, 0x03, 0x90]);
        bench.cpu.state.gpr[gpr::RBX] = DATA + 0xffe;
        set_breakpoint(&mut bench, watched, 1);
        let (rip, _, conditions) = trap(&mut bench);
        assert_eq!((rip, conditions), (CODE + 2, 1), "{watched:#x}");
    }
}

/// A fault takes the conditions of its own instruction with it.
#[test]
fn a_data_breakpoint_of_an_access_that_faults_is_lost() {
    let mut bench = bench(&[0x89, 0x03]);
    install_handler(&bench, 14);
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    bench.protect(DATA, 0);
    set_breakpoint(&mut bench, DATA, 1);
    bench.cpu.run(50);
    assert_eq!((vector(&bench), bench.cpu.state.dr[6]), (14, DR6_ONES));
}

/// out 80h, al with an I/O breakpoint, which counts only with CR4.DE.
#[test]
fn io_breakpoints_want_debugging_extensions() {
    for is_on in [true, false] {
        let mut bench = bench(&[0xe6, 0x80, 0xf4]);
        bench.cpu.state.cr4 |= if is_on { cpu::state::cr4::DE } else { 0 };
        set_breakpoint(&mut bench, 0x80, 2);
        if is_on {
            let (rip, _, conditions) = trap(&mut bench);
            assert_eq!((rip, conditions), (CODE + 2, 1));
        } else {
            bench.cpu.run(50);
            assert_eq!((bench.cpu.state.rip, vector(&bench)), (CODE + 3, 0));
        }
    }
}

/// The conditions that MOV SS meets wait for the end of its shadow.
#[test]
fn a_data_breakpoint_of_mov_ss_is_taken_behind_the_next_instruction() {
    // mov ss, [rbx]; nop; nop
    let mut bench = bench(&[0x8e, 0x13, 0x90, 0x90]);
    bench.poke(DATA, &cpu::testing::selector::DATA.to_le_bytes());
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    set_breakpoint(&mut bench, DATA, 3);
    let (rip, _, conditions) = trap(&mut bench);
    assert_eq!((rip, conditions), (CODE + 3, 1));
}
