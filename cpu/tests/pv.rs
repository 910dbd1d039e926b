//! KVM's paravirtual interface.

use std::sync::atomic::Ordering;

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::exception::Exception;
use cpu::pv::clock::Scale;
use cpu::state::rflags;
use cpu::testing::{Bench, CODE, DATA, IDT, selector};
use cpu::timing::ns_to_ticks;
use proptest::prelude::*;

const SYSTEM_TIME: u32 = 0x4b56_4d01;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI: u32 = 0x4b56_4d04;
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

fn dword(bench: &Bench, at: u64) -> u32 {
    u32::from_le_bytes(bench.peek(at))
}

fn qword(bench: &Bench, at: u64) -> u64 {
    u64::from_le_bytes(bench.peek(at))
}

/// What a guest reads from its clock page now.
fn clock(bench: &Bench) -> u64 {
    let scale =
        Scale { multiplier: dword(bench, DATA + 24), shift: bench.peek::<1>(DATA + 28)[0] as i8 };
    let ticks = bench.cpu.tsc().wrapping_sub(qword(bench, DATA + 8));
    qword(bench, DATA + 16) + scale.nanoseconds(ticks)
}

proptest! {
    #[test]
    fn the_clock_is_guest_time_to_a_part_in_two_to_the_31(
        hz in 1_000_000u64..10_000_000_000,
        ns in 0u64..1 << 53,
    ) {
        let scale = Scale::of(hz);
        let shown = scale.nanoseconds(ns_to_ticks(ns, hz));
        // One tick is lost by rounding the TSC, and another one by a shift to the right.
        let slack = (ns >> 31) + 4 * (1_000_000_000 / hz + 1);
        prop_assert!(shown <= ns && ns - shown <= slack, "{shown} for {ns}");
    }

    #[test]
    fn the_clock_never_goes_back(
        hz in 1_000_000u64..10_000_000_000,
        ns in 0u64..1 << 53,
        step in 0u64..9999,
    ) {
        let scale = Scale::of(hz);
        let at = |ns| scale.nanoseconds(ns_to_ticks(ns, hz));
        prop_assert!(at(ns) <= at(ns + step));
    }
}

#[test]
fn the_clock_is_exact_at_one_gigahertz_and_survives_a_moved_tsc() {
    let mut bench = Bench::long64();
    bench.platform.now_ns.store(123_456_789_012, Ordering::SeqCst);
    bench.cpu.write_msr(SYSTEM_TIME, DATA | 1).unwrap();
    assert_eq!(clock(&bench), 123_456_789_012);
    let version = dword(&bench, DATA);
    assert!(version != 0 && version.is_multiple_of(2));
    assert_eq!(bench.peek::<1>(DATA + 29)[0], 1, "TSC_STABLE");
    bench.cpu.write_msr(0x10, 77).unwrap();
    assert_eq!(clock(&bench), 123_456_789_012);
    assert_eq!(dword(&bench, DATA), version + 2);
    bench.cpu.write_msr(SYSTEM_TIME, 0).unwrap();
    bench.cpu.write_msr(0x10, 0).unwrap();
    assert_eq!(dword(&bench, DATA), version + 2, "off means off");
}

#[test]
fn the_wall_clock_is_written_under_an_even_version() {
    let mut bench = Bench::long64();
    bench.poke(DATA, &[0xff; 12]);
    bench.cpu.write_msr(WALL_CLOCK, DATA).unwrap();
    assert_eq!([0, 4, 8].map(|at| dword(&bench, DATA + at)), [0, 0, 0]);
}

#[test]
fn a_structure_outside_ram_is_never_written() {
    let mut bench = Bench::long64();
    for msr in [SYSTEM_TIME, STEAL_TIME, PV_EOI] {
        bench.cpu.write_msr(msr, 0xfee0_0001).unwrap();
        bench.cpu.write_msr(msr, 0xffff_ffff_ffff_ff01).unwrap();
    }
}

#[test]
fn hypercalls_answer_in_rax_and_refuse_user_code() {
    let mut bench = Bench::long64();
    let mut call = |code: &[u8], registers: [u64; 5], cpl| {
        bench.set_cpl(cpl);
        let [rax, rbx, rcx, rdx, rsi] = registers;
        bench.cpu.state.gpr[..4].copy_from_slice(&[rax, rcx, rdx, rbx]);
        bench.cpu.state.gpr[6] = rsi;
        bench.execute(code).unwrap();
        bench.cpu.state.gpr[0] as i64
    };
    assert_eq!(call(&VMCALL, [0x999, 0, 0, 0, 0], 0), -1000);
    assert_eq!(call(&VMMCALL, [0x999, 0, 0, 0, 0], 0), -1000);
    assert_eq!(call(&VMCALL, [1, 0, 0, 0, 0], 3), -1, "EPERM");
    assert_eq!(call(&VMCALL, [1, 0, 0, 0, 0], 0), 0);
    assert_eq!(call(&VMCALL, [5, 0, 0, 0, 0], 0), 0);
    // CPU 0 is the only one there is: the second bit reaches nobody.
    assert_eq!(call(&VMCALL, [10, 3, 0, 0, 0x40f1], 0), 1);
    assert_eq!(call(&VMCALL, [10, 1, 0, 0, 0x8_00f1], 0), -22, "EINVAL");
    assert_eq!(*bench.platform.kicked.lock().unwrap(), [0]);
    assert_eq!(*bench.lapic.icrs.lock().unwrap(), [0x40f1]);
}

#[test]
fn hypercalls_outside_64_bit_mode_have_32_bits() {
    let mut bench = Bench::protected32();
    bench.cpu.state.gpr[0] = 0x999;
    bench.execute(&VMCALL).unwrap();
    assert_eq!(bench.cpu.state.gpr[0], 0xffff_fc18);
    let mut bench = Bench::with_cpu("max,-kvm").unwrap().in_long64();
    bench.cpu.state.gpr[0] = 5;
    bench.execute(&VMCALL).unwrap();
    assert_eq!(bench.cpu.state.gpr[0] as i64, -1000, "not offered, not there");
}

#[test]
fn pv_msrs_refuse_reserved_bits() {
    let mut bench = Bench::long64();
    for (msr, value) in [(STEAL_TIME, DATA | 3), (PV_EOI, DATA | 3), (0x4b56_4d05, 2)] {
        assert_eq!(bench.cpu.write_msr(msr, value), Err(Exception::GP0), "{msr:#x}");
    }
}

/// A CPU in a handler of vector 40H at its next instruction, which is `handler`'s first.
fn interrupted(silent: u8, handler: &[u8]) -> Bench {
    const HANDLER: u64 = CODE + 0x800;
    let mut bench = Bench::long64();
    let offset = HANDLER & 0xffff | (HANDLER >> 16) << 48;
    let gate = offset | u64::from(selector::CODE64) << 16 | 0x8e00 << 32;
    bench.poke(IDT + 16 * 0x40, &gate.to_le_bytes());
    bench.poke(HANDLER, handler);
    bench.put_code_at(CODE, &[0x90; 16]);
    assert_eq!(bench.cpu.write_msr(PV_EOI, DATA | 1), Ok(()));
    bench.cpu.state.rflags |= rflags::IF;
    bench.lapic.silent.store(silent, Ordering::SeqCst);
    bench.lapic.vector.store(0x40, Ordering::SeqCst);
    bench.cpu.env.events.post(Events::INTERRUPT);
    bench
}

/// MOV AL, [DATA].
const LOAD_BIT: [u8; 7] = [0x8a, 0x04, 0x25, 0, 0, 0x20, 0];
/// MOV BYTE [DATA], 0.
const CLEAR_BIT: [u8; 8] = [0xc6, 0x04, 0x25, 0, 0, 0x20, 0, 0];

#[test]
fn a_cleared_bit_ends_the_interrupt_and_a_set_one_is_taken_back() {
    for (clears, eois) in [(true, 1), (false, 0)] {
        let mut code = LOAD_BIT.to_vec();
        code.extend(if clears { &CLEAR_BIT[..] } else { &[0x90] });
        let mut bench = interrupted(0x40, &code);
        assert_eq!(bench.cpu.run(2), VmExit::Budget);
        assert_eq!(bench.cpu.state.gpr[0] & 0xff, 1, "the handler finds its bit");
        assert_eq!(bench.lapic.eois.load(Ordering::SeqCst), eois);
        assert_eq!(bench.peek::<1>(DATA), [0]);
        assert!(!bench.lapic.is_pv_eoi_armed.load(Ordering::SeqCst));
    }
}

#[test]
fn an_interrupt_with_others_behind_it_is_ended_by_the_register() {
    let mut bench = interrupted(0, &LOAD_BIT);
    assert_eq!(bench.cpu.run(1), VmExit::Budget);
    assert_eq!(bench.cpu.state.gpr[0] & 0xff, 0);
    assert_eq!(bench.lapic.eois.load(Ordering::SeqCst), 0);
    assert!(!bench.lapic.is_pv_eoi_armed.load(Ordering::SeqCst));
}

#[test]
fn a_new_request_looks_whether_the_last_interrupt_was_ended() {
    let mut code = CLEAR_BIT.to_vec();
    code.extend([0xfb, 0x90, 0x90]);
    let mut bench = interrupted(0x40, &code);
    let lapic = std::sync::Arc::clone(&bench.lapic);
    // The handler clears its bit and opens IF; a request waits by then.
    assert_eq!(bench.cpu.run(1), VmExit::Budget);
    assert_eq!(lapic.eois.load(Ordering::SeqCst), 1);
    lapic.vector.store(0x40, Ordering::SeqCst);
    bench.cpu.env.events.post(Events::INTERRUPT);
    assert_eq!(bench.cpu.run(4), VmExit::Budget);
    assert_eq!(lapic.eois.load(Ordering::SeqCst), 2);
}

#[test]
fn a_cpu_that_does_not_run_says_so_and_flushes_when_asked_to() {
    const PAGE: u64 = DATA + 0x1000;
    const PAGE_TABLE_ENTRY: u64 = 0x4000 + 8 * (PAGE >> 12);
    const PREEMPTED: u64 = DATA + 16;
    for (flags, exit) in [(1u8, VmExit::Budget), (3, VmExit::Shutdown)] {
        let mut bench = Bench::long64();
        bench.cpu.write_msr(STEAL_TIME, DATA | 1).unwrap();
        // MOV AL, [PAGE], twice.
        let load = [0x8a, 0x04, 0x25, 0, 0x10, 0x20, 0];
        bench.put_code_at(CODE, &[load, load].concat());
        assert_eq!(bench.cpu.run(1), VmExit::Budget);
        assert_eq!(bench.peek::<1>(PREEMPTED), [1]);
        // The page goes; only the flush makes this CPU notice.
        bench.poke(PAGE_TABLE_ENTRY, &[0; 8]);
        bench.poke(PREEMPTED, &[flags]);
        assert_eq!(bench.cpu.run(1), exit, "{flags}");
    }
}

#[test]
fn a_kick_that_comes_before_hlt_is_not_lost() {
    for (kick, exit) in [(true, true), (false, false)] {
        let mut bench = Bench::long64();
        bench.put_code_at(CODE, &[0x90, 0xf4, 0x90, 0x90]);
        if kick {
            bench.cpu.env.events.post(Events::KICK);
        }
        assert_eq!(bench.cpu.run(1), VmExit::Budget);
        assert_eq!(bench.cpu.run(2) == VmExit::Budget, exit);
    }
}
