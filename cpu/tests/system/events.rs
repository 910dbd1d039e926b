//! Events through gates: frames, flags, stacks, error codes, double and triple faults.

use cpu::engine::{Vcpu, VmExit};
use cpu::state::{Activity, Segment, attr, gpr, rflags, seg};
use cpu::testing::{Bench, CODE, DATA, STACK, selector};

use crate::bench::*;

const UD2: [u8; 2] = [0x0f, 0x0b];

fn frame64<const N: usize>(bench: &Bench) -> [u64; N] {
    quadwords(bench, bench.cpu.state.gpr[gpr::RSP])
}

#[test]
fn long_mode_pushes_ss_rsp_flags_cs_rip_on_an_aligned_stack() {
    let mut bench = Bench::long64();
    set_idt64(&bench, 6, INTERRUPT_GATE, selector::CODE64, 0);
    bench.cpu.state.gpr[gpr::RSP] = STACK - 5;
    bench.cpu.state.rflags |= rflags::IF | rflags::CF;
    run(&mut bench, &UD2);
    let cpu = &bench.cpu;
    assert_eq!(cpu.state.rip, HANDLER + 1);
    let rsp = ((STACK - 5) & !0xf) - 40;
    assert_eq!(cpu.state.gpr[gpr::RSP], rsp);
    // A fault saves RF.
    let flags = rflags::FIXED | rflags::IF | rflags::CF | rflags::RF;
    let expected = [CODE, u64::from(selector::CODE64), flags, STACK - 5, u64::from(selector::DATA)];
    assert_eq!(frame64::<5>(&bench), expected);
    assert_eq!(cpu.state.rflags, rflags::FIXED | rflags::CF);
}

#[test]
fn a_trap_gate_leaves_interrupts_open() {
    for (access, is_open) in [(INTERRUPT_GATE, false), (TRAP_GATE, true)] {
        let mut bench = Bench::long64();
        set_idt64(&bench, 6, access, selector::CODE64, 0);
        bench.cpu.state.rflags |= rflags::IF | rflags::NT;
        run(&mut bench, &UD2);
        assert_eq!(bench.cpu.state.rflags & rflags::IF != 0, is_open);
        assert_eq!(bench.cpu.state.rflags & rflags::NT, 0);
    }
}

#[test]
fn an_event_at_level_3_takes_rsp0_and_a_null_ss() {
    let mut bench = Bench::long64();
    install_tss(&mut bench);
    set_idt64(&bench, 6, INTERRUPT_GATE, selector::CODE64, 0);
    bench.set_cpl(3);
    run(&mut bench, &UD2);
    let state = &bench.cpu.state;
    assert_eq!((state.cpl, state.segments[seg::SS].selector), (0, 0));
    assert_eq!(state.segments[seg::CS].selector, selector::CODE64);
    assert_eq!(state.gpr[gpr::RSP], INNER_STACK - 40);
}

#[test]
fn an_ist_entry_names_the_stack_at_any_level() {
    let mut bench = Bench::long64();
    install_tss(&mut bench);
    bench.poke(TSS + 0x24 + 8 * 2, &u64::to_le_bytes(0x2c_0000));
    set_idt64(&bench, 6, INTERRUPT_GATE, selector::CODE64, 3);
    run(&mut bench, &UD2);
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], 0x2c_0000 - 40);
    // No change of level: SS stays.
    assert_eq!(bench.cpu.state.segments[seg::SS].selector, selector::DATA);
}

/// What a gate that cannot be used raises, with its error code: INT n, so EXT is clear.
#[test]
fn bad_gates_fault_with_the_right_code() {
    use cpu::exception::Exception as E;
    // access byte, selector, CPL
    let rows = [
        (0x0e, selector::CODE64, 0, E::np(0x82)),
        (0x85, selector::CODE64, 0, E::gp(0x82)),
        (0x86, selector::CODE64, 0, E::gp(0x82)),
        (INTERRUPT_GATE, selector::CODE64, 3, E::gp(0x82)),
        (USER_INTERRUPT_GATE, 0, 3, E::GP0),
        (USER_INTERRUPT_GATE, FREE + 8, 3, E::gp(FREE + 8)),
        (USER_INTERRUPT_GATE, selector::DATA, 3, E::gp(selector::DATA)),
        (USER_INTERRUPT_GATE, selector::CODE32, 3, E::gp(selector::CODE32)),
        (USER_INTERRUPT_GATE, selector::USER_CODE64, 0, E::gp(selector::USER_CODE64 & !3)),
    ];
    for (access, code, cpl, expected) in rows {
        let mut bench = Bench::long64();
        install_tss(&mut bench);
        set_idt64(&bench, 0x10, access, code, 0);
        bench.set_cpl(cpl);
        let before = bench.cpu.state.clone();
        let outcome = bench.execute(&[0xcd, 0x10]);
        assert_eq!(outcome, Err(expected), "access {access:#x}, CS {code:#x}, CPL {cpl}");
        let after = &bench.cpu.state;
        assert_eq!(after.gpr, before.gpr);
        assert_eq!(after.segments, before.segments);
        assert_eq!((after.cpl, after.rflags), (before.cpl, before.rflags));
    }
}

#[test]
fn a_vector_beyond_the_idt_is_gp_of_its_gate() {
    let mut bench = Bench::long64();
    bench.cpu.state.idtr.limit = 0x10f;
    let outcome = bench.execute(&[0xcd, 0x11]);
    assert_eq!(outcome, Err(cpu::exception::Exception::gp(0x8a)));
}

#[test]
fn faults_in_delivering_a_hardware_event_have_ext_set() {
    let mut bench = Bench::long64();
    set_idt64(&bench, 13, INTERRUPT_GATE, selector::CODE64, 0);
    // #UD's gate is not present; #UD is benign, so #NP follows it, whose gate is missing: #GP
    // would make #DF with #NP. Give #NP a handler too.
    set_idt64(&bench, 6, 0x0e, selector::CODE64, 0);
    set_idt64(&bench, 11, INTERRUPT_GATE, selector::CODE64, 0);
    run(&mut bench, &UD2);
    let [code, rip, ..] = frame64::<6>(&bench);
    assert_eq!((code, rip), (6 * 8 + 2 + 1, CODE));
}

#[test]
fn contributory_faults_make_a_double_fault() {
    let mut bench = Bench::long64();
    // #GP(0) by a load of a non-canonical address, no gate for it, but one for #DF.
    set_idt64(&bench, 8, INTERRUPT_GATE, selector::CODE64, 0);
    bench.cpu.state.gpr[gpr::RBX] = 1 << 47;
    run(&mut bench, &[0x8a, 0x13]);
    let [code, rip, ..] = frame64::<6>(&bench);
    assert_eq!((code, rip), (0, CODE));
    assert_eq!(bench.cpu.state.rip, HANDLER + 1);
}

#[test]
fn a_page_fault_while_delivering_a_page_fault_is_a_double_fault() {
    let mut bench = Bench::long64();
    install_tss(&mut bench);
    set_idt64(&bench, 14, INTERRUPT_GATE, selector::CODE64, 0);
    bench.poke(TSS + 0x24, &u64::to_le_bytes(0x2c_0000));
    set_idt64(&bench, 8, INTERRUPT_GATE, selector::CODE64, 1);
    bench.protect(DATA, 0);
    bench.protect(STACK - 0x1000, 0);
    bench.cpu.state.gpr[gpr::RBX] = DATA;
    run(&mut bench, &[0x8a, 0x13]);
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], 0x2c_0000 - 48);
    // CR2 is of the last page fault: the push of SS, the first one.
    assert_eq!(bench.cpu.state.cr2, STACK - 8);
}

#[test]
fn without_a_double_fault_handler_the_cpu_shuts_down() {
    let mut bench = Bench::long64();
    let before = bench.cpu.state.gpr;
    bench.put_code_at(CODE, &UD2);
    assert_eq!(bench.cpu.run(10), VmExit::Shutdown);
    assert_eq!(bench.cpu.state.activity, Activity::Shutdown);
    assert_eq!((bench.cpu.state.gpr, bench.cpu.state.rip), (before, CODE));
}

#[test]
fn protected_mode_switches_stacks_by_the_tss() {
    let mut bench = Bench::protected32();
    install_tss32(&mut bench, selector::DATA);
    set_idt32(&bench, 13, INTERRUPT_GATE, selector::CODE32);
    bench.set_cpl(3);
    bench.cpu.state.rflags |= rflags::IF;
    // HLT at level 3: #GP(0).
    run(&mut bench, &[0xf4]);
    let state = &bench.cpu.state;
    assert_eq!(state.gpr[gpr::RSP], INNER_STACK - 24);
    assert_eq!((state.cpl, state.segments[seg::SS].selector), (0, selector::DATA));
    let flags = (rflags::FIXED | rflags::IF | rflags::RF) as u32;
    let cs = u32::from(selector::CODE32 | 3);
    let ss = u32::from(selector::DATA | 3);
    let expected = [0, CODE as u32, cs, flags, STACK as u32, ss];
    assert_eq!(doublewords::<6>(&bench, INNER_STACK - 24), expected);
}

#[test]
fn a_sixteen_bit_gate_pushes_words() {
    let mut bench = Bench::protected32();
    set_idt32(&bench, 6, 0x86, selector::CODE32);
    // A 16-bit gate reaches 64 KiB: put a HLT there.
    bench.poke(HANDLER & 0xffff, &[0xf4]);
    run(&mut bench, &UD2);
    assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK - 6);
    assert_eq!(bench.cpu.state.rip, (HANDLER & 0xffff) + 1);
}

/// The stack that a TSS names is checked, with the codes of SDM Vol. 2A, "INT n".
#[test]
fn a_bad_inner_stack_is_an_invalid_tss() {
    use cpu::exception::Exception as E;
    // SS0, its access byte, TSS limit
    let rows = [
        (0, 0x93, 0x67, E::ts(0)),
        (FREE + 0x40, 0x93, 0x67, E::ts(FREE + 0x40)),
        (FREE + 8 + 1, 0x93, 0x67, E::ts(FREE + 8)),
        (FREE + 8, 0xf3, 0x67, E::ts(FREE + 8)),
        (FREE + 8, 0x91, 0x67, E::ts(FREE + 8)),
        (FREE + 8, 0x13, 0x67, E::ss(FREE + 8)),
        (FREE + 8, 0x93, 8, E::ts(FREE)),
    ];
    for (ss0, access, limit, expected) in rows {
        let mut bench = Bench::protected32();
        install_tss32(&mut bench, ss0);
        set_gdt(&mut bench, FREE + 8, flat(access, 0xc));
        bench.cpu.state.tr.limit = limit;
        set_idt32(&bench, 0x10, USER_INTERRUPT_GATE, selector::CODE32);
        bench.set_cpl(3);
        let outcome = bench.execute(&[0xcd, 0x10]);
        assert_eq!(outcome, Err(expected), "SS0 {ss0:#x}, access {access:#x}, limit {limit:#x}");
        assert_eq!(bench.cpu.state.gpr[gpr::RSP], STACK);
    }
}

#[test]
fn virtual_8086_mode_is_left_with_its_segments_saved() {
    let mut bench = Bench::protected32();
    install_tss32(&mut bench, selector::DATA);
    set_idt32(&bench, 6, INTERRUPT_GATE, selector::CODE32);
    let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::DPL;
    for (number, segment) in bench.cpu.state.segments.iter_mut().enumerate() {
        let selector = 0x100 * number as u16;
        let base = u64::from(selector) << 4;
        *segment = Segment { selector, attributes, limit: 0xffff, base };
    }
    bench.cpu.state.cpl = 3;
    bench.cpu.state.gpr[gpr::RSP] = 0x8000;
    bench.cpu.state.rflags |= rflags::VM;
    bench.cpu.mode_changed();
    bench.put_code_at(0x1800, &UD2);
    bench.cpu.run(1);
    let rsp = bench.cpu.state.gpr[gpr::RSP];
    assert_eq!(rsp, INNER_STACK - 36);
    let flags = (rflags::FIXED | rflags::VM | rflags::RF) as u32;
    let expected = [0x800, 0x100, flags, 0x8000, 0x200, 0, 0x300, 0x400, 0x500];
    assert_eq!(doublewords::<9>(&bench, rsp), expected);
    assert_eq!(bench.cpu.state.rflags & rflags::VM, 0);
    assert!(bench.cpu.state.segments[seg::DS].has(attr::UNUSABLE));
}

#[test]
fn real_mode_goes_through_the_vector_table() {
    let mut bench = Bench::real16();
    bench.cpu.state.idtr.base = 0;
    bench.cpu.state.idtr.limit = 0x3ff;
    bench.poke(4 * 0x21, &[0x00, 0x05, 0x00, 0x03]);
    bench.cpu.state.rflags |= rflags::IF | rflags::TF;
    bench.put_code_at(0x1000, &[0xcd, 0x21]);
    bench.step().unwrap();
    let state = &bench.cpu.state;
    assert_eq!((state.rip, state.segments[seg::CS].selector), (0x500, 0x300));
    assert_eq!(state.segments[seg::CS].base, 0x3000);
    assert_eq!(state.rflags & (rflags::IF | rflags::TF), 0);
    assert_eq!(state.gpr[gpr::RSP], 0xf000 - 6);
    assert_eq!(bench.peek(0xf000 - 6), [0x02, 0x10, 0, 0, 0x02, 0x03]);
}

#[test]
fn an_nmi_blocks_others_until_iret() {
    let mut bench = Bench::long64();
    set_idt64(&bench, 2, INTERRUPT_GATE, selector::CODE64, 0);
    bench.poke(HANDLER, &[0x48, 0xcf]);
    bench.cpu.env.events.post_nmi();
    bench.put_code_at(CODE, &[0x90, 0x90]);
    bench.cpu.run(0);
    assert!(bench.cpu.state.nmi_blocked);
    assert_eq!(bench.cpu.state.rip, HANDLER);
    bench.cpu.run(1);
    assert!(!bench.cpu.state.nmi_blocked);
    assert_eq!(bench.cpu.state.rip, CODE);
}

#[test]
fn two_nmis_are_remembered_and_behind_a_running_handler_one() {
    let mut bench = Bench::long64();
    set_idt64(&bench, 2, INTERRUPT_GATE, selector::CODE64, 0);
    // inc rcx; iretq
    bench.poke(HANDLER, &[0x48, 0xff, 0xc1, 0x48, 0xcf]);
    bench.put_code_at(CODE, &[0x90; 16]);
    bench.cpu.state.gpr[gpr::RCX] = 0;
    for _ in 0..3 {
        bench.cpu.env.events.post_nmi();
    }
    bench.cpu.run(0);
    assert_eq!((bench.cpu.state.rip, bench.cpu.state.nmis_pending), (HANDLER, 1));
    for _ in 0..3 {
        bench.cpu.env.events.post_nmi();
        bench.cpu.run(0);
    }
    assert_eq!(bench.cpu.state.nmis_pending, 1, "one behind the one that runs");
    bench.cpu.run(8);
    assert_eq!(bench.cpu.state.gpr[gpr::RCX], 2);
}

#[test]
fn sti_holds_an_nmi_back_for_an_instruction() {
    let mut bench = Bench::long64();
    set_idt64(&bench, 2, INTERRUPT_GATE, selector::CODE64, 0);
    bench.poke(HANDLER, &[0x48, 0xcf]);
    bench.put_code_at(CODE, &[0xfb, 0x90, 0x90]);
    bench.cpu.run(1);
    bench.cpu.env.events.post_nmi();
    bench.cpu.run(1);
    assert_eq!(bench.cpu.state.rip, HANDLER);
    let [rip, ..] = quadwords::<3>(&bench, bench.cpu.state.gpr[gpr::RSP]);
    assert_eq!(rip, CODE + 2);
}
