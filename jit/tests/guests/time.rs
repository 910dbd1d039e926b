//! RDTSC and RDTSCP from the host's counter, and by the interpreter's handler.

use cpu::engine::Vcpu;
use cpu::native::ticks::host_ticks;
use cpu::platform::LinearTime;
use iced_x86::code_asm::*;

use super::{bench, run, translator};
use crate::assemble;
use cpu::testing::{Bench, CODE};
use jit::Options;

const OFFSET: u64 = 0x1234_5678_9abc;
const AUX: u64 = 0x1_2345_6789;

/// RDTSC to R8, the flags behind it to R9, RDTSCP to R10 and RCX, RDTSC to R11.
fn guest(linear: Option<LinearTime>) -> Bench {
    let mut bench = bench();
    let code = assemble(CODE, |a| {
        let (read, join) = (
            |a: &mut CodeAssembler| a.rdtsc(),
            |a: &mut CodeAssembler, to| {
                a.shl(rdx, 32)?;
                a.lea(to, qword_ptr(rax + rdx))
            },
        );
        a.cmp(rsp, 0)?;
        read(a)?;
        a.setbe(bl)?;
        a.seta(bh)?;
        a.movzx(r9d, bx)?;
        join(a, r8)?;
        a.rdtscp()?;
        join(a, r10)?;
        read(a)?;
        join(a, r11)?;
        a.hlt()
    });
    bench.poke(CODE, &code);
    bench.cpu.state.msrs.tsc_offset = OFFSET;
    bench.cpu.state.msrs.tsc_aux = AUX;
    *bench.platform.linear_time.lock().expect("no panic") = linear;
    bench
}

#[test]
fn time_is_a_function_of_the_hosts_counter() {
    let Some(ticks) = host_ticks() else {
        eprintln!("SKIPPED: the host's time-stamp counter is no clock");
        return;
    };
    for multiplier in [1 << 32, 1 << 31, 0x5432_1000] {
        let linear = LinearTime { start_ticks: ticks() - 1000, multiplier, start_ns: 77 };
        let ns = |ticks: u64| {
            let passed = (u128::from(ticks - linear.start_ticks) * u128::from(multiplier)) >> 32;
            77 + OFFSET + passed as u64
        };
        let bench = guest(Some(linear));
        let mut jit = translator(&bench, &Options::default());
        let before = ns(ticks());
        run(&mut jit);
        let after = ns(ticks());
        let gpr = &jit.state().gpr;
        let times = [before, gpr[8], gpr[10], gpr[11], after];
        assert!(times.is_sorted(), "{times:#x?}");
        assert_eq!(gpr[1], AUX & 0xffff_ffff);
        assert_eq!(gpr[9], 0x100, "flags");
        assert_eq!((gpr[0] >> 32, gpr[2] as u32), (0, 0), "{gpr:x?}");
    }
}

#[test]
fn time_is_the_machines_where_it_is_no_function() {
    let bench = guest(None);
    let expected = bench.cpu.tsc();
    let mut jit = translator(&bench, &Options::default());
    run(&mut jit);
    let gpr = &jit.state().gpr;
    assert_eq!([gpr[8], gpr[10], gpr[11]], [expected; 3]);
    assert_eq!(gpr[1], AUX & 0xffff_ffff);
}
