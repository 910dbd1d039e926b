//! Breakpoints on conditions and at physical addresses, and what is caught.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cpu::Cpu;
use cpu::debugger::{Breakpoint, Catchpoint, Caught, CodeAddress, Condition, DebugStop, Resume};
use cpu::engine::{Vcpu, VmExit};
use cpu::mode::OperatingMode;
use cpu::state::gpr;
use cpu::testing::{Bench, CODE};

/// RAX is this; and how often that was asked.
#[derive(Debug)]
struct RaxIs(u64, AtomicU64);

impl fmt::Display for RaxIs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, " if $rax == {}", self.0)
    }
}

impl Condition for RaxIs {
    fn holds(&self, cpu: &mut Cpu) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed);
        cpu.state.gpr[gpr::RAX] == self.0
    }
}

/// `inc eax; nop; jmp`.
fn looping() -> Bench {
    let mut bench = Bench::long64();
    bench.put_code_at(CODE, &[0xff, 0xc0, 0x90, 0xeb, 0xfb]);
    bench.cpu.state.gpr[gpr::RAX] = 0;
    bench
}

fn stop(cpu: &mut Cpu) -> Option<DebugStop> {
    assert_eq!(cpu.run(1_000_000), VmExit::Debug);
    cpu.take_debug_stop()
}

#[test]
fn a_breakpoint_counts_when_its_condition_holds_and_is_asked_once_a_hit() {
    let mut bench = looping();
    let condition = Arc::new(RaxIs(1000, AtomicU64::new(0)));
    let at = CodeAddress::Linear(CODE + 2);
    let breakpoint = |number| Breakpoint { at, number, condition: Some(condition.clone()) };
    assert!(bench.cpu.set_breakpoint(breakpoint(7)));
    assert_eq!(stop(&mut bench.cpu), Some(DebugStop::Breakpoint(CODE + 2)));
    assert_eq!((bench.cpu.state.gpr[gpr::RAX], bench.cpu.debugger().met()), (1000, Some((at, 7))));
    assert_eq!(condition.1.load(Ordering::Relaxed), 1000);
    // One without a condition at the same place stops each time, and goes alone.
    assert!(bench.cpu.set_breakpoint(Breakpoint { condition: None, ..breakpoint(3) }));
    bench.cpu.resume_debugged(Resume::Continue, true);
    assert_eq!(stop(&mut bench.cpu), Some(DebugStop::Breakpoint(CODE + 2)));
    assert_eq!((bench.cpu.state.gpr[gpr::RAX], bench.cpu.debugger().met()), (1001, Some((at, 3))));
    assert!(bench.cpu.clear_breakpoint(at, 3) && !bench.cpu.clear_breakpoint(at, 3));
    bench.cpu.resume_debugged(Resume::Continue, true);
    assert_eq!(bench.cpu.run(10_000), VmExit::Budget);
    // Another condition replaces it.
    let other = Some(Arc::new(RaxIs(9000, AtomicU64::new(0))) as Arc<dyn Condition>);
    assert!(bench.cpu.set_breakpoint(Breakpoint { condition: other, ..breakpoint(7) }));
    assert_eq!(stop(&mut bench.cpu), Some(DebugStop::Breakpoint(CODE + 2)));
    assert_eq!(bench.cpu.state.gpr[gpr::RAX], 9000);
}

#[test]
fn a_physical_breakpoint_is_met_wherever_it_is_mapped() {
    let mut bench = looping();
    let physical = bench.cpu.probe(CODE + 2).map(|at| at.0).unwrap_or_default();
    let at = CodeAddress::Physical(physical);
    assert!(bench.cpu.set_breakpoint(Breakpoint { at, number: 20, condition: None }));
    for round in 1..4 {
        assert_eq!(stop(&mut bench.cpu), Some(DebugStop::Breakpoint(CODE + 2)));
        assert_eq!(bench.cpu.state.gpr[gpr::RAX], round);
        bench.cpu.resume_debugged(Resume::Continue, true);
    }
    bench.cpu.detach_debugger();
    assert_eq!(bench.cpu.run(1000), VmExit::Budget);
}

/// What is caught first when `code` runs on `bench`.
#[expect(clippy::panic, reason = "a test fails by panicking")]
fn caught(mut bench: Bench, code: &[u8], catchpoint: Catchpoint) -> Option<Caught> {
    bench.put_code_at(CODE, code);
    assert!(bench.cpu.add_catchpoint(catchpoint));
    match bench.cpu.run(1000) {
        VmExit::Debug => match bench.cpu.take_debug_stop() {
            Some(DebugStop::Caught(caught)) => Some(caught),
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

#[test]
fn each_event_is_caught_by_its_own_catchpoint_only() {
    let long = Bench::long64;
    let rip = CODE;
    let ud2: &[u8] = &[0x0f, 0x0b];
    let ud = Caught::Exception { vector: 6, error_code: None, rip };
    // No handler: every exception becomes a triple fault.
    for (catchpoint, expected) in [
        (Catchpoint::Exception(None), Some(ud)),
        (Catchpoint::Exception(Some(6)), Some(ud)),
        (Catchpoint::TripleFault, Some(Caught::TripleFault { rip })),
        (Catchpoint::Exception(Some(99)), None),
        (Catchpoint::Interrupt(None), None),
    ] {
        assert_eq!(caught(long(), ud2, catchpoint), expected, "{catchpoint}");
    }
    let double = caught(long(), ud2, Catchpoint::Exception(Some(8)));
    assert!(matches!(double, Some(Caught::Exception { vector: 8, .. })), "{double:?}");

    // mov cr3, rax with what is there: mov rax, cr3; mov cr3, rax.
    let cr3 = long().cpu.state.cr3;
    let load: &[u8] = &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x90];
    let expected = Some(Caught::Cr3 { old: cr3, new: cr3 });
    assert_eq!(caught(long(), load, Catchpoint::Cr3), expected);

    // mov ecx, 0x10; rdmsr; wrmsr.
    let msr: &[u8] = &[0xb9, 0x10, 0, 0, 0, 0x0f, 0x32, 0x0f, 0x30, 0x90];
    for (catchpoint, is_there, writes) in [
        (Catchpoint::MsrWrite(None), true, true),
        (Catchpoint::MsrWrite(Some(0x10)), true, true),
        (Catchpoint::MsrWrite(Some(0x11)), false, true),
        (Catchpoint::MsrRead(Some(0x10)), true, false),
    ] {
        match caught(long(), msr, catchpoint) {
            Some(Caught::Msr { number: 0x10, is_write, .. }) => {
                assert!(is_there && is_write == writes, "{catchpoint}");
            }
            other => assert!(other.is_none() && !is_there, "{catchpoint}: {other:?}"),
        }
    }

    // mov eax, 0x1234; out 0x80, ax; in al, 0x81.
    let port: &[u8] = &[0xb8, 0x34, 0x12, 0, 0, 0x66, 0xe7, 0x80, 0xe4, 0x81, 0x90];
    let out = Caught::Port { port: 0x80, bytes: 2, value: 0x1234, is_write: true };
    assert_eq!(caught(long(), port, Catchpoint::Port(0x80, 0x80)), Some(out));
    assert_eq!(caught(long(), port, Catchpoint::Port(0x81, 0x90)), Some(out));
    assert_eq!(caught(long(), port, Catchpoint::Port(0x82, 0x90)), None);

    // A far jump from real to protected mode is not made here; MOV CR0 is.
    let mut real = Bench::real16();
    real.cpu.state.rip = 0x200;
    let base = real.cpu.state.segments[cpu::state::seg::CS].base;
    real.put_code_at(base + 0x200, &[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x90]);
    assert!(real.cpu.add_catchpoint(Catchpoint::Mode));
    let stopped = stop(&mut real.cpu);
    let (old, new) = (OperatingMode::Real, OperatingMode::Protected);
    assert_eq!(stopped, Some(DebugStop::Caught(Caught::Mode { old, new })));
}

#[test]
fn what_is_changed_from_outside_is_not_caught() {
    let mut bench = looping();
    assert!(bench.cpu.add_catchpoint(Catchpoint::Mode));
    assert!(bench.cpu.add_catchpoint(Catchpoint::Cr3));
    assert!(bench.cpu.add_catchpoint(Catchpoint::MsrWrite(None)));
    let cr3 = bench.cpu.state.cr3;
    assert!(bench.cpu.set_control_register(3, cr3).is_ok());
    assert!(bench.cpu.write_msr(0x10, 5).is_ok());
    bench.cpu.resume_debugged(Resume::Continue, true);
    assert_eq!(bench.cpu.run(1000), VmExit::Budget);
}
