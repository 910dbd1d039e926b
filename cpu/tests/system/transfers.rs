//! Far jumps, calls and returns, and IRET.

use cpu::exception::{Exception, Exec};
use cpu::mode::OperatingMode;
use cpu::state::{attr, gpr, rflags, seg};
use cpu::testing::{Bench, CODE, DATA, STACK, selector};

use crate::bench::*;

/// JMP or CALL ptr16:32 to `selector`:[`HANDLER`].
fn far(opcode: u8, selector: u16) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend((HANDLER as u32).to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;

#[test]
fn far_jumps_check_type_privilege_and_presence() {
    // access byte, CPL, RPL, outcome
    let rows: [(u64, u8, u16, Outcome); 10] = [
        (0x9a, 0, 0, |_| Ok(())),
        (0x9a, 0, 3, |s| Err(Exception::gp(s))),
        (0xfa, 0, 0, |s| Err(Exception::gp(s))),
        (0xfa, 3, 3, |_| Ok(())),
        (0xfa, 3, 0, |_| Ok(())),
        (0x9e, 3, 3, |_| Ok(())),
        (0xfe, 0, 0, |s| Err(Exception::gp(s))),
        (0x92, 0, 0, |s| Err(Exception::gp(s))),
        (0x8e, 0, 0, |s| Err(Exception::gp(s))),
        (0x1a, 0, 0, |s| Err(Exception::np(s))),
    ];
    for (access, cpl, rpl, outcome) in rows {
        let mut bench = Bench::protected32();
        set_gdt(&mut bench, FREE, flat(access, 0xc));
        bench.set_cpl(cpl);
        let result = bench.execute(&far(JMP, FREE | rpl));
        assert_eq!(result, outcome(FREE), "access {access:#x}, CPL {cpl}, RPL {rpl}");
        if result.is_ok() {
            let state = &bench.cpu.state;
            let cs = state.segments[seg::CS].selector;
            assert_eq!((state.rip, cs, state.cpl), (HANDLER, FREE | u16::from(cpl), cpl));
        }
    }
}

#[test]
fn a_target_beyond_the_limit_faults_before_anything_is_pushed() {
    let mut bench = Bench::protected32();
    set_gdt(&mut bench, FREE, 0x0040_9a00_0000_0fff);
    assert_eq!(bench.execute(&far(CALL, FREE)), Err(Exception::GP0));
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK);
}

#[test]
fn a_far_call_and_return_cross_into_16_bit_code() {
    let mut bench = Bench::protected32();
    bench.execute(&far(CALL, selector::CODE32)).unwrap();
    let expected = [CODE as u32 + 7, u32::from(selector::CODE32)];
    assert_eq!(doublewords::<2>(&bench, STACK - 8), expected);
    // retf 4
    bench.put_code_at(HANDLER, &[0xca, 4, 0]);
    bench.step().unwrap();
    assert_eq!(bench.cpu.state.rip, CODE + 7);
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK + 4);
}

#[test]
fn real_mode_far_calls_push_words() {
    let mut bench = Bench::real16();
    bench.put_code_at(0x1000, &[0x9a, 0x34, 0x12, 0x00, 0x20]);
    bench.step().unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.segments[seg::CS].base), (0x1234, 0x2_0000));
    assert_eq!(bench.peek(0xf000 - 4), [0x05, 0x10, 0, 0]);
}

#[test]
fn a_call_gate_inward_switches_stacks_and_copies_parameters() {
    let mut bench = Bench::protected32();
    install_tss32(&mut bench, selector::DATA);
    set_gdt(&mut bench, FREE + 8, gate(0xec, selector::CODE32, HANDLER, 2));
    bench.set_cpl(3);
    bench.poke(STACK, &[0x11, 0, 0, 0, 0x22, 0, 0, 0]);
    bench.execute(&far(CALL, FREE + 8 + 3)).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.cpl, state.gpr[gpr::RSP]), (HANDLER, 0, INNER_STACK - 24));
    let (cs, ss) = (u32::from(selector::CODE32 | 3), u32::from(selector::DATA | 3));
    let expected = [CODE as u32 + 7, cs, 0x11, 0x22, STACK as u32, ss];
    assert_eq!(doublewords::<6>(&bench, INNER_STACK - 24), expected);
}

#[test]
fn call_gates_check_themselves_before_their_target() {
    // gate access, target, CPL, outcome
    let gate_selector = FREE + 8;
    let rows = [
        (0x8c, selector::CODE32, 3, Exception::gp(gate_selector)),
        (0x6c, selector::CODE32, 3, Exception::np(gate_selector)),
        (0xec, 0, 3, Exception::GP0),
        (0xec, selector::DATA, 3, Exception::gp(selector::DATA)),
        (0xec, selector::USER_CODE32, 0, Exception::gp(selector::USER_CODE32 & !3)),
    ];
    for (access, target, cpl, expected) in rows {
        let mut bench = Bench::protected32();
        install_tss32(&mut bench, selector::DATA);
        set_gdt(&mut bench, gate_selector, gate(access, target, HANDLER, 0));
        bench.set_cpl(cpl);
        let outcome = bench.execute(&far(CALL, gate_selector | u16::from(cpl)));
        assert_eq!(outcome, Err(expected), "access {access:#x}, target {target:#x}");
    }
}

#[test]
fn a_long_call_gate_pushes_quadwords_and_a_null_ss() {
    let mut bench = Bench::long64();
    install_tss(&mut bench);
    set_gdt(&mut bench, FREE + 16, 0);
    set_gdt(&mut bench, FREE + 8, gate(0xec, selector::CODE64, HANDLER, 0));
    bench.set_cpl(3);
    // call far [rbx], m16:32
    bench.poke(DATA, &[0, 0, 0, 0]);
    bench.poke(DATA + 4, &(FREE + 8 + 3).to_le_bytes());
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    bench.execute(&[0xff, 0x1b]).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.cpl, state.segments[seg::SS].selector), (0, 0));
    assert_eq!(state.gpr[gpr::RSP], INNER_STACK - 32);
    let (cs, ss) = (u64::from(selector::CODE64 | 3), u64::from(selector::DATA | 3));
    assert_eq!(quadwords::<4>(&bench, INNER_STACK - 32), [CODE + 2, cs, STACK, ss]);
}

#[test]
fn a_return_outward_takes_the_outer_stack_and_drops_privileged_segments() {
    let mut bench = Bench::protected32();
    let frame = [HANDLER as u32, u32::from(selector::USER_CODE32), 0x25_0000, 0x23];
    for (index, value) in (0..).zip(frame) {
        bench.poke(STACK + 4 * index, &value.to_le_bytes());
    }
    bench.execute(&[0xcb]).unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.cpl, state.gpr[gpr::RSP]), (HANDLER, 3, 0x25_0000));
    assert_eq!(state.segments[seg::SS].selector, 0x23);
    assert!(state.segments[seg::DS].has(attr::UNUSABLE));
}

/// Frames that IRETQ refuses, with what it raises; RSP stays.
#[test]
fn iret_checks_cs_then_ss() {
    let user_ss = u64::from(selector::USER_DATA);
    // CS, SS, outcome
    let rows: [(u16, u64, Exec); 9] = [
        (selector::USER_CODE64, user_ss, Ok(())),
        (selector::CODE64, 0, Ok(())),
        (selector::CODE64, 3, Err(Exception::GP0)),
        (selector::USER_CODE64, 3, Err(Exception::GP0)),
        (selector::USER_CODE64, u64::from(selector::DATA), Err(Exception::gp(selector::DATA))),
        (selector::CODE64 | 3, user_ss, Err(Exception::gp(selector::CODE64))),
        (0, user_ss, Err(Exception::GP0)),
        (selector::DATA, user_ss, Err(Exception::gp(selector::DATA))),
        (FREE, user_ss, Err(Exception::gp(FREE))),
    ];
    for (cs, ss, outcome) in rows {
        let mut bench = Bench::long64();
        let frame = [HANDLER, u64::from(cs), rflags::IF | rflags::RF, 0x25_0000, ss];
        for (index, value) in (0..).zip(frame) {
            bench.poke(STACK + 8 * index, &value.to_le_bytes());
        }
        assert_eq!(bench.execute(&[0x48, 0xcf]), outcome, "CS {cs:#x}, SS {ss:#x}");
        let state = &bench.cpu.state;
        let expected = if outcome.is_ok() { (HANDLER, 0x25_0000) } else { (CODE, STACK) };
        assert_eq!((state.rip, state.gpr[gpr::RSP]), expected);
        let flags = if outcome.is_ok() { rflags::IF | rflags::RF } else { 0 };
        assert_eq!(state.rflags & (rflags::IF | rflags::RF), flags);
    }
}

#[test]
fn iret_with_nt_in_long_mode_is_gp() {
    let mut bench = Bench::long64();
    bench.cpu.state.rflags |= rflags::NT;
    assert_eq!(bench.execute(&[0x48, 0xcf]), Err(Exception::GP0));
}

/// IRETD loads IF by IOPL and IOPL by CPL 0.
#[test]
fn iret_masks_flags_by_privilege() {
    let image = (rflags::IF | rflags::IOPL | rflags::CF) as u32;
    // CPL, IOPL before, flags after
    let rows = [
        (0, 0, rflags::IF | rflags::IOPL | rflags::CF),
        (3, 0, rflags::CF),
        (3, 3, rflags::IF | rflags::IOPL | rflags::CF),
    ];
    for (cpl, iopl, expected) in rows {
        let mut bench = Bench::protected32();
        bench.cpu.state.rflags |= iopl << 12;
        bench.set_cpl(cpl);
        let cs = if cpl == 0 { selector::CODE32 } else { selector::USER_CODE32 };
        for (index, value) in (0..).zip([HANDLER as u32, u32::from(cs), image]) {
            bench.poke(STACK + 4 * index, &value.to_le_bytes());
        }
        bench.execute(&[0xcf]).unwrap();
        assert_eq!(bench.cpu.state.rflags, rflags::FIXED | expected, "CPL {cpl}, IOPL {iopl}");
    }
}

#[test]
fn iret_enters_virtual_8086_mode_from_level_0() {
    let mut bench = Bench::protected32();
    let flags = (rflags::VM | rflags::IF) as u32;
    let frame = [0x200, 0x1000, flags, 0x8000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000];
    for (index, value) in (0..).zip(frame) {
        bench.poke(STACK + 4 * index, &u32::to_le_bytes(value));
    }
    bench.execute(&[0xcf]).unwrap();
    let state = &bench.cpu.state;
    assert_eq!(bench.cpu.mode.operating, OperatingMode::Virtual8086);
    assert_eq!((state.cpl, state.rip, state.gpr[gpr::RSP]), (3, 0x200, 0x8000));
    let selectors = state.segments.map(|segment| segment.selector);
    assert_eq!(selectors, [0x3000, 0x1000, 0x2000, 0x4000, 0x5000, 0x6000]);
    assert_eq!(state.segments[seg::CS].base, 0x1_0000);
    assert_eq!(state.segments[seg::CS].limit, 0xffff);
}
