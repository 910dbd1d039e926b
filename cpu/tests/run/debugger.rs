//! A debugger's stops: before breakpoints, behind watchpoints, after steps, and never in between.

use cpu::Cpu;
use cpu::debugger::{DebugStop, Resume, WatchKind, Watchpoint};
use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::state::{cr0, gpr, rflags, seg};
use cpu::testing::{Bench, CODE, DATA};

/// `mov rbx, DATA; l: inc eax; mov [rbx], eax; mov ecx, [rbx + 8]; jmp l`.
const LOOP: &[u8] =
    &[0x48, 0xc7, 0xc3, 0, 0, 0, 0, 0xff, 0xc0, 0x89, 0x03, 0x8b, 0x4b, 0x08, 0xeb, 0xf7];
const TOP: u64 = CODE + 7;
const STORE: u64 = CODE + 9;
const LOAD: u64 = CODE + 11;
const JUMP: u64 = CODE + 14;

fn looping() -> Bench {
    let mut code = LOOP.to_vec();
    code[3..7].copy_from_slice(&(DATA as u32).to_le_bytes());
    let mut bench = Bench::long64();
    bench.put_code_at(CODE, &code);
    bench.cpu.state.gpr[gpr::RAX] = 0;
    bench
}

#[expect(clippy::expect_used, reason = "a test fails by panicking")]
fn stop(cpu: &mut Cpu) -> DebugStop {
    assert_eq!(cpu.run(100_000), VmExit::Debug);
    // It stays where it is until it is told otherwise.
    assert_eq!(cpu.run(100_000), VmExit::Debug);
    cpu.take_debug_stop().expect("why it stopped")
}

#[test]
fn a_breakpoint_stops_before_its_instruction_each_time() {
    let mut bench = looping();
    let cpu = &mut bench.cpu;
    assert!(cpu.add_breakpoint(LOAD));
    for round in 1..=3 {
        assert_eq!(stop(cpu), DebugStop::Breakpoint(LOAD));
        assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RAX]), (LOAD, round));
        cpu.resume_debugged(Resume::Continue, true);
    }
    // Who was not told is told.
    assert_eq!(stop(cpu), DebugStop::Breakpoint(LOAD));
    cpu.resume_debugged(Resume::Continue, false);
    assert_eq!(stop(cpu), DebugStop::Breakpoint(LOAD));
    assert_eq!(cpu.state.gpr[gpr::RAX], 4);
    assert!(cpu.remove_breakpoint(LOAD) && !cpu.remove_breakpoint(LOAD));
    cpu.resume_debugged(Resume::Continue, true);
    assert_eq!(cpu.run(1000), VmExit::Budget);
}

#[test]
fn a_breakpoint_inside_of_an_instruction_is_never_met() {
    let mut bench = looping();
    assert!(bench.cpu.add_breakpoint(LOAD + 1));
    assert_eq!(bench.cpu.run(1000), VmExit::Budget);
}

#[test]
fn in_a_segment_a_breakpoint_is_at_the_linear_address() {
    let mut bench = Bench::real16();
    bench.cpu.state.segments[seg::CS].base = 0x1_0000;
    bench.put_code_at(0x1_0200, &[0x90, 0x90, 0xeb, 0xfc]);
    let linear = 0x1_0201;
    assert!(bench.cpu.add_breakpoint(linear));
    assert_eq!(stop(&mut bench.cpu), DebugStop::Breakpoint(linear));
    assert_eq!(bench.cpu.state.rip, 0x201);
}

#[test]
fn watchpoints_stop_behind_what_touches_their_bytes() {
    let rows = [
        (DATA + 3, 1, WatchKind::Write, Some(LOAD)),
        (DATA, 4, WatchKind::Access, Some(LOAD)),
        (DATA + 4, 4, WatchKind::Access, None),
        (DATA, 8, WatchKind::Read, None),
        (DATA + 11, 100_000, WatchKind::Read, Some(JUMP)),
        (DATA + 8, 4, WatchKind::Write, None),
        (DATA - 1, 1, WatchKind::Access, None),
        (0, 1 << 40, WatchKind::Read, Some(JUMP)),
    ];
    for (start, length, kind, expected) in rows {
        let mut bench = looping();
        let watchpoint = Watchpoint { start, length, kind };
        assert!(bench.cpu.add_watchpoint(watchpoint));
        let Some(rip) = expected else {
            assert_eq!(bench.cpu.run(1000), VmExit::Budget, "{watchpoint:x?}");
            continue;
        };
        let DebugStop::Watchpoint(hit) = stop(&mut bench.cpu) else { panic!("{watchpoint:x?}") };
        assert_eq!((bench.cpu.state.rip, hit.watchpoint), (rip, watchpoint));
        assert!(bench.cpu.remove_watchpoint(watchpoint));
        bench.cpu.resume_debugged(Resume::Continue, true);
        assert_eq!(bench.cpu.run(1000), VmExit::Budget);
    }
}

#[test]
fn a_watchpoint_tells_what_was_there_before() {
    let mut bench = looping();
    bench.poke(DATA, &0x1122_3344u32.to_le_bytes());
    let watchpoint = Watchpoint { start: DATA, length: 4, kind: WatchKind::Write };
    assert!(bench.cpu.add_watchpoint(watchpoint));
    for old in [0x1122_3344, 1, 2] {
        let DebugStop::Watchpoint(hit) = stop(&mut bench.cpu) else { panic!("a watchpoint") };
        assert_eq!((hit.old, hit.address), (Some(old), DATA));
        bench.cpu.resume_debugged(Resume::Continue, true);
    }
}

#[test]
fn strings_locked_and_wide_accesses_meet_watchpoints() {
    #[rustfmt::skip]
    let rows: [(&[u8], WatchKind); 6] = [
        (&[0xf3, 0xaa],                         WatchKind::Write),  // rep stosb
        (&[0xf3, 0xa4],                         WatchKind::Write),  // rep movsb
        (&[0xf0, 0x48, 0x0f, 0xc1, 0x07],       WatchKind::Read),   // lock xadd [rdi], rax
        (&[0x0f, 0x11, 0x07],                   WatchKind::Write),  // movups [rdi], xmm0
        (&[0xf3, 0x0f, 0x6f, 0x07],             WatchKind::Read),   // movdqu xmm0, [rdi]
        (&[0xff, 0x37],                         WatchKind::Read),   // push [rdi]
    ];
    for (code, kind) in rows {
        let mut bench = Bench::long64();
        bench.put_code_at(CODE, &[code, &[0x90, 0xeb, 0xfd]].concat());
        bench.cpu.state.gpr[gpr::RDI] = DATA;
        bench.cpu.state.gpr[gpr::RSI] = DATA + 0x1000;
        bench.cpu.state.gpr[gpr::RCX] = 64;
        // What has been translated already is looked at again.
        bench.cpu.run(1);
        bench.cpu.state.rip = CODE;
        bench.cpu.state.gpr[gpr::RDI] = DATA;
        bench.cpu.state.gpr[gpr::RCX] = 64;
        assert!(bench.cpu.add_watchpoint(Watchpoint { start: DATA + 5, length: 1, kind }));
        let stopped = stop(&mut bench.cpu);
        assert!(matches!(stopped, DebugStop::Watchpoint(_)), "{code:02x?}: {stopped:?}");
    }
}

#[test]
fn steps_and_ranges_end_where_they_should() {
    let mut bench = looping();
    let cpu = &mut bench.cpu;
    for rip in [TOP, STORE, LOAD, JUMP, TOP] {
        cpu.resume_debugged(Resume::Step, true);
        assert_eq!((stop(cpu), cpu.state.rip), (DebugStop::Step, rip));
    }
    cpu.resume_debugged(Resume::StepInside { start: TOP, end: JUMP }, true);
    assert_eq!((stop(cpu), cpu.state.rip), (DebugStop::Step, JUMP));
    // A breakpoint in the range ends it, an empty range is one step.
    assert!(cpu.add_breakpoint(STORE));
    cpu.resume_debugged(Resume::StepInside { start: TOP, end: JUMP + 2 }, true);
    assert_eq!((stop(cpu), cpu.state.rip), (DebugStop::Breakpoint(STORE), STORE));
    cpu.resume_debugged(Resume::StepInside { start: 0, end: 0 }, true);
    assert_eq!((stop(cpu), cpu.state.rip), (DebugStop::Step, LOAD));
}

#[test]
fn a_held_cpu_waits_and_hears_that_its_owner_wants_it() {
    let mut bench = looping();
    bench.cpu.resume_debugged(Resume::Hold, false);
    assert_eq!(bench.cpu.run(1000), VmExit::Held);
    bench.cpu.env.events.request_exit();
    assert_eq!(bench.cpu.run(1000), VmExit::Requested);
    assert_eq!(bench.cpu.state.rip, CODE);
    bench.cpu.resume_debugged(Resume::Continue, false);
    assert_eq!(bench.cpu.run(1000), VmExit::Budget);
}

#[test]
fn interrupts_wait_for_the_end_of_a_step() {
    let mut bench = looping();
    bench.cpu.state.rflags |= rflags::IF;
    bench.cpu.env.events.post(Events::INTERRUPT);
    bench.cpu.resume_debugged(Resume::Step, true);
    assert_eq!((stop(&mut bench.cpu), bench.cpu.state.rip), (DebugStop::Step, TOP));
    assert_ne!(bench.cpu.env.events.peek() & Events::INTERRUPT, 0);
}

#[test]
fn a_debugger_that_goes_leaves_nothing() {
    let mut bench = looping();
    let watchpoint = Watchpoint { start: DATA, length: 4, kind: WatchKind::Write };
    assert!(bench.cpu.add_breakpoint(LOAD) && bench.cpu.add_watchpoint(watchpoint));
    assert!(matches!(stop(&mut bench.cpu), DebugStop::Watchpoint(_)));
    bench.cpu.resume_debugged(Resume::Step, false);
    bench.cpu.detach_debugger();
    assert_eq!(bench.cpu.run(1000), VmExit::Budget);
}

#[test]
fn points_have_bounds() {
    let mut bench = looping();
    for (start, length) in [(0, 0), (u64::MAX, 2)] {
        let watchpoint = Watchpoint { start, length, kind: WatchKind::Read };
        assert!(!bench.cpu.add_watchpoint(watchpoint), "{watchpoint:x?}");
    }
    let added = (0..1 << 20).take_while(|&linear| bench.cpu.add_breakpoint(linear)).count();
    assert_eq!(added, cpu::debugger::BREAKPOINTS_MAX);
}

#[test]
fn inspection_reads_what_is_mapped_and_leaves_no_trace() {
    let mut bench = Bench::long64();
    bench.poke(DATA + 0xffc, b"abcdefgh");
    bench.cpu.state.cr2 = 7;
    let mut bytes = [0; 8];
    assert_eq!(bench.cpu.inspect_bytes(DATA + 0xffc, &mut bytes), 8);
    assert_eq!(&bytes, b"abcdefgh");
    assert!(bench.cpu.patch_bytes(DATA + 0xffe, b"XY"));
    assert_eq!(bench.peek::<8>(DATA + 0xffc), *b"abXYefgh");
    bench.protect(DATA + 0x1000, 0);
    assert_eq!(bench.cpu.inspect_bytes(DATA + 0xffc, &mut bytes), 4);
    assert!(!bench.cpu.patch_bytes(DATA + 0xffc, b"12345678"));
    assert_eq!(bench.peek::<8>(DATA + 0xffc), *b"abXYefgh");
    assert_eq!(bench.cpu.inspect_bytes(1 << 50, &mut bytes), 0);
    let walk = bench.cpu.inspect(DATA);
    assert_eq!((walk.levels.len(), walk.found.map(|found| found.0.0)), (4, Some(DATA)));
    let leaf = walk.levels[3];
    assert_eq!(leaf.entry & 0x20, 0, "an accessed bit: {:#x}", leaf.entry);
    assert_eq!(bench.cpu.state.cr2, 7);
    // The page that was taken away splits what is mapped.
    let (ranges, rest) = bench.cpu.mapped_ranges(0, 100);
    assert_eq!(rest, None);
    assert!(ranges.iter().any(|range| range.last == DATA + 0xfff && range.is_writable));
    assert!(ranges.iter().any(|range| range.start == DATA + 0x2000));
    let (first, rest) = bench.cpu.mapped_ranges(0, 1);
    assert_eq!((first.as_slice(), rest), (&ranges[..1], Some(ranges[1].start)));
    bench.cpu.state.cr0 &= !cr0::PG;
    assert_eq!(bench.cpu.inspect(0x1_2345_6789).found.map(|found| found.0.0), Some(0x2345_6789));
}
