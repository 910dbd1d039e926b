//! Hardware task switches (SDM Vol. 3A, "Task Switching").

use cpu::exception::Exception;
use cpu::state::{cr0, gpr, rflags, seg};
use cpu::testing::{Bench, CODE, STACK, selector};

use crate::bench::*;

const NEW_TSS: u64 = 0x5_0000;
const NEW: u16 = FREE + 8;
const NEW_STACK: u64 = 0x2d_0000;
const DR6_BT: u64 = 1 << 15;

/// A bench with a current task at `TSS` and another one at `NEW_TSS`, available.
fn bench() -> Bench {
    let mut bench = Bench::protected32();
    install_tss32(&mut bench, selector::DATA);
    set_gdt(&mut bench, NEW, 0x0000_8905_0000_0067);
    let data = u32::from(selector::DATA);
    let words = [
        (0x20, HANDLER as u32),
        (0x24, rflags::FIXED as u32),
        (0x28, 0xaaaa),
        (0x38, NEW_STACK as u32),
        (0x48, data),
        (0x4c, u32::from(selector::CODE32)),
        (0x50, data),
        (0x54, data),
    ];
    for (at, value) in words {
        bench.poke(NEW_TSS + at, &value.to_le_bytes());
    }
    bench.poke(HANDLER, &[0xf4]);
    bench
}

fn far(opcode: u8, selector: u16) -> Vec<u8> {
    let [low, high] = selector.to_le_bytes();
    vec![opcode, 0xf4, 0xf4, 0xf4, 0xf4, low, high]
}

fn is_busy(bench: &Bench, selector: u16) -> bool {
    gdt(bench, selector) >> 41 & 1 != 0
}

/// Busy bits, NT and the back link, by what starts the switch: SDM Vol. 3A, table "Effect of a Task
/// Switch on Busy Flag, NT Flag, Previous Task Link Field, and TS Flag".
#[test]
fn jumps_replace_and_calls_nest() {
    for (opcode, nests) in [(0xea, false), (0x9a, true)] {
        let mut bench = bench();
        bench.cpu.state.gpr[gpr::RBX] = 0xbbbb;
        bench.execute(&far(opcode, NEW)).unwrap();
        assert_eq!((is_busy(&bench, FREE), is_busy(&bench, NEW)), (nests, true));
        let state = &bench.cpu.state;
        assert_eq!((state.rip, state.gpr[gpr::RAX], state.tr.selector), (HANDLER, 0xaaaa, NEW));
        assert_eq!(state.gpr[gpr::RSP], NEW_STACK);
        assert_eq!(state.rflags & rflags::NT != 0, nests);
        assert_ne!(state.cr0 & cr0::TS, 0);
        let [link] = doublewords::<1>(&bench, NEW_TSS);
        assert_eq!(link, if nests { u32::from(FREE) } else { 0 });
        // The old task goes on behind the instruction.
        let [eip] = doublewords::<1>(&bench, TSS + 0x20);
        let [ebx, esp] = doublewords::<2>(&bench, TSS + 0x34);
        assert_eq!((eip, ebx, esp), (CODE as u32 + 7, 0xbbbb, STACK as u32));
    }
}

#[test]
fn iret_with_nt_goes_back() {
    let mut bench = bench();
    bench.execute(&far(0x9a, NEW)).unwrap();
    bench.put_code_at(HANDLER, &[0xcf]);
    bench.step().unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.tr.selector), (CODE + 7, FREE));
    assert_eq!(state.gpr[gpr::RSP], STACK);
    assert_eq!((is_busy(&bench, FREE), is_busy(&bench, NEW)), (true, false));
    // NT is clear in the task that was left.
    let [flags] = doublewords::<1>(&bench, NEW_TSS + 0x24);
    assert_eq!(u64::from(flags) & rflags::NT, 0);
}

#[test]
fn an_exception_through_a_task_gate_pushes_its_code_on_the_new_stack() {
    let mut bench = bench();
    bench.poke(cpu::testing::IDT + 8 * 13, &gate(TASK_GATE, NEW, 0, 0).to_le_bytes());
    // mov ds, [selector 0x1f8]: #GP(0x1f8)
    bench.cpu.state.gpr[gpr::RAX] = 0x1f8;
    run(&mut bench, &[0x8e, 0xd8]);
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], NEW_STACK - 4);
    assert_eq!(doublewords::<1>(&bench, NEW_STACK - 4), [0x1f8]);
    // The old task is restarted at the fault, with RF.
    let [eip, flags] = doublewords::<2>(&bench, TSS + 0x20);
    assert_eq!(eip, CODE as u32);
    assert_ne!(u64::from(flags) & rflags::RF, 0);
}

/// Faults before the switch belong to the old task, later ones to the new one.
#[test]
fn faults_know_their_task() {
    type Change = fn(&mut Bench);
    // change, outcome, whether the switch had happened
    let rows: [(Change, Exception, bool); 7] = [
        (|b| set_gdt(b, NEW, 0x0000_8b05_0000_0067), Exception::gp(NEW), false),
        (|b| set_gdt(b, NEW, 0x0000_0905_0000_0067), Exception::np(NEW), false),
        (|b| set_gdt(b, NEW, 0x0000_8905_0000_0066), Exception::ts(NEW), false),
        (|b| b.poke(NEW_TSS + 0x4c, &[selector::DATA as u8]), Exception::ts(0x10), true),
        (|b| b.poke(NEW_TSS + 0x50, &[0]), Exception::ts(0), true),
        (|b| b.poke(NEW_TSS + 0x54, &[0xf8]), Exception::ts(0xf8), true),
        (|b| b.poke(NEW_TSS + 0x60, &[0x10]), Exception::ts(0x10), true),
    ];
    for (index, (change, expected, is_switched)) in rows.into_iter().enumerate() {
        let mut bench = bench();
        change(&mut bench);
        assert_eq!(bench.execute(&far(0x9a, NEW)), Err(expected), "row {index}");
        let (tr, rip) = if is_switched { (NEW, HANDLER) } else { (FREE, CODE) };
        assert_eq!((bench.cpu.state.tr.selector, bench.cpu.state.rip), (tr, rip), "row {index}");
        let cs = bench.cpu.state.segments[seg::CS].selector;
        let expected_cs = if index == 3 { selector::DATA } else { selector::CODE32 };
        assert_eq!(cs, expected_cs, "row {index}");
    }
}

#[test]
fn the_t_flag_traps_in_the_new_task() {
    let mut bench = bench();
    bench.poke(NEW_TSS + 0x64, &[1]);
    bench.execute(&far(0xea, NEW)).unwrap();
    assert_eq!(bench.cpu.pending_dr6, DR6_BT);
}

#[test]
fn a_sixteen_bit_task_saves_and_loads_words() {
    let mut bench = bench();
    set_gdt(&mut bench, NEW, 0x0000_8105_0000_002b);
    let words: [(u64, u16); 6] = [
        (0xe, 0x1234),
        (0x10, 2),
        (0x12, 0x5678),
        (0x22, selector::DATA),
        (0x24, selector::CODE32),
        (0x26, selector::DATA),
    ];
    bench.poke(NEW_TSS, &[0; 0x2c]);
    for (at, value) in words {
        bench.poke(NEW_TSS + at, &value.to_le_bytes());
    }
    bench.execute(&far(0x9a, NEW)).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.gpr[gpr::RAX] & 0xffff), (0x1234, 0x5678));
    assert_eq!(state.segments[seg::DS].selector, 0);
    // And back into the 32-bit one.
    bench.put_code_at(0x1234, &[0xcf]);
    bench.step().unwrap();
    assert_eq!(bench.cpu.state.rip, CODE + 7);
}
