//! State images (FXSAVE, XSAVE, the x87 environment), XCR0, and the gates in front of the units.

use std::sync::atomic::Ordering;

use crate::random::Random;
use crate::{run, run_in};
use cpu::exception::{Exception, Exec};
use cpu::fpu::FpuState;
use cpu::state::{Activity, State, cr0, cr4};
use cpu::testing::{Bench, CODE, DATA, noted_operand};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// A bench with random registers, RBX at [`DATA`], and EDX:EAX all ones.
fn filled(seed: u64) -> Bench {
    let mut bench = Bench::long64();
    let mut random = Random::new(seed);
    bench.cpu.state.fpu = random.fpu(true);
    bench.cpu.state.fpu.fcw |= 0x3f;
    bench.cpu.state.fpu.fsw &= 0x7f00;
    (bench.cpu.state.fpu.fip, bench.cpu.state.fpu.fdp) = (0x1234_5678_9abc, 0xfedc_ba98);
    for register in &mut bench.cpu.state.fpu.x87 {
        register[10..].fill(0);
    }
    bench.cpu.state.gpr[0] = u64::MAX;
    bench.cpu.state.gpr[2] = u64::MAX;
    bench.cpu.state.gpr[3] = DATA;
    bench
}

#[test]
fn units_are_gated_by_control_registers() {
    if !crate::host_has_avx512() {
        return;
    }
    type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    type Change = fn(&mut State);
    let x87: Build = |a| a.fld1();
    let mmx: Build = |a| a.paddb(mm0, mm1);
    let sse: Build = |a| a.addps(xmm0, xmm1);
    let avx: Build = |a| a.vaddps(xmm0, xmm1, xmm2);
    let evex: Build = |a| a.vaddps(zmm0, zmm1, zmm2);
    let opmask: Build = |a| a.kandw(k1, k2, k3);
    let image: Build = |a| a.fxsave(ptr(rbx));
    let xsave: Build = |a| a.xsave(ptr(rbx));
    let wait: Build = |a| a.wait();
    let ts: Change = |s| s.cr0 |= cr0::TS;
    let em: Change = |s| s.cr0 |= cr0::EM;
    let ts_without_mp: Change = |s| s.cr0 = s.cr0 & !cr0::MP | cr0::TS;
    let no_osfxsr: Change = |s| s.cr4 &= !cr4::OSFXSR;
    let no_osxsave: Change = |s| s.cr4 &= !cr4::OSXSAVE;
    let xcr0_sse: Change = |s| s.xcr0 = 3;
    let xcr0_avx: Change = |s| s.xcr0 = 7;
    let (ud, nm) = (Err(Exception::UD), Err(Exception::NM));
    #[rustfmt::skip]
    let rows: &[(&str, Build, Change, Exec)] = &[
        ("x87 TS",          x87,    ts,            nm),
        ("x87 EM",          x87,    em,            nm),
        ("x87 no OSFXSR",   x87,    no_osfxsr,     Ok(())),
        ("MMX TS",          mmx,    ts,            nm),
        ("MMX EM",          mmx,    em,            ud),
        ("SSE TS",          sse,    ts,            nm),
        ("SSE EM",          sse,    em,            ud),
        ("SSE no OSFXSR",   sse,    no_osfxsr,     ud),
        ("AVX TS",          avx,    ts,            nm),
        ("AVX EM",          avx,    em,            Ok(())),
        ("AVX no OSFXSR",   avx,    no_osfxsr,     Ok(())),
        ("AVX no OSXSAVE",  avx,    no_osxsave,    ud),
        ("AVX XCR0 = 3",    avx,    xcr0_sse,      ud),
        ("AVX XCR0 = 7",    avx,    xcr0_avx,      Ok(())),
        ("EVEX XCR0 = 7",   evex,   xcr0_avx,      ud),
        ("k XCR0 = 7",      opmask, xcr0_avx,      ud),
        ("FXSAVE TS",       image,  ts,            nm),
        ("FXSAVE EM",       image,  em,            nm),
        ("XSAVE TS",        xsave,  ts,            nm),
        ("XSAVE EM",        xsave,  em,            Ok(())),
        ("XSAVE no OSXSAVE", xsave, no_osxsave,    ud),
        ("WAIT TS, no MP",  wait,   ts_without_mp, Ok(())),
        ("WAIT TS, MP",     wait,   ts,            nm),
    ];
    for (name, build, change, expected) in rows {
        let mut bench = Bench::long64();
        bench.cpu.state.gpr[3] = DATA;
        change(&mut bench.cpu.state);
        bench.cpu.mode_changed();
        assert_eq!(run(&mut bench, build), *expected, "{name}");
    }
}

#[test]
fn fxsave_lays_registers_out_and_fxrstor_takes_them_back() {
    let mut bench = filled(7);
    let fpu = bench.cpu.state.fpu.clone();
    bench.poke(DATA, &[0xee; 512]);
    run(&mut bench, |a| a.fxsave64(ptr(rbx))).unwrap();
    let image = bench.peek::<512>(DATA);
    assert_eq!(image[..2], fpu.fcw.to_le_bytes());
    assert_eq!(image[2..4], fpu.fsw.to_le_bytes());
    assert_eq!(image[4..6], [fpu.ftw, 0]);
    assert_eq!(image[24..28], fpu.mxcsr.to_le_bytes());
    assert_ne!(image[28..32], [0; 4], "MXCSR_MASK");
    assert_eq!(image[32..42], fpu.x87[fpu.top()][..10]);
    assert_eq!(image[160..176], fpu.zmm[0][..16]);
    assert_eq!(image[400..416], fpu.zmm[15][..16]);
    assert_eq!(image[416..], [0xee; 96], "reserved bytes are left alone");
    bench.cpu.state.fpu = FpuState { zmm: fpu.zmm, opmask: fpu.opmask, ..FpuState::default() };
    bench.cpu.state.fpu.zmm[3][..16].fill(0);
    run(&mut bench, |a| a.fxrstor64(ptr(rbx))).unwrap();
    let mut expected = fpu;
    // The pointers come back where the host's kind of processor keeps them always.
    let found = &bench.cpu.state.fpu;
    (expected.fip, expected.fdp, expected.fop) = (found.fip, found.fdp, found.fop);
    (expected.fcs, expected.fds) = (found.fcs, found.fds);
    assert_eq!(*found, expected);
}

#[test]
fn fxrstor_leaves_out_reserved_bits_of_the_control_word() {
    let mut bench = filled(9);
    for (loaded, kept) in [(0xffffu16, 0x1f7fu16), (0, 0x40)] {
        run(&mut bench, |a| a.fxsave64(ptr(rbx))).unwrap();
        bench.poke(DATA, &loaded.to_le_bytes());
        run(&mut bench, |a| a.fxrstor64(ptr(rbx))).unwrap();
        assert_eq!(bench.cpu.state.fpu.fcw, kept);
    }
}

#[test]
fn fxrstor_refuses_misaligned_images_and_reserved_mxcsr_bits() {
    let mut bench = filled(8);
    bench.poke(DATA + 24, &0xffff_ffffu32.to_le_bytes());
    let before = bench.cpu.state.fpu.clone();
    assert_eq!(run(&mut bench, |a| a.fxrstor(ptr(rbx))), Err(Exception::GP0));
    assert_eq!(run(&mut bench, |a| a.ldmxcsr(ptr(rbx + 24))), Err(Exception::GP0));
    bench.poke(DATA + 24, &0x1f80u32.to_le_bytes());
    assert_eq!(run(&mut bench, |a| a.fxrstor(ptr(rbx + 8))), Err(Exception::GP0));
    assert_eq!(bench.cpu.state.fpu, before);
}

#[test]
fn xsave_and_xsavec_come_back_by_xrstor() {
    if !crate::host_has_avx512() {
        return;
    }
    type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let forms: [Build; 3] =
        [|a| a.xsave64(ptr(rbx)), |a| a.xsaveopt64(ptr(rbx)), |a| a.xsavec64(ptr(rbx))];
    for (seed, build) in (20..).zip(forms) {
        let mut bench = filled(seed);
        bench.cpu.state.fpu.fcs = 0;
        bench.cpu.state.fpu.fds = 0;
        let fpu = bench.cpu.state.fpu.clone();
        run(&mut bench, build).unwrap();
        assert_eq!(u64::from_le_bytes(bench.peek(DATA + 512)), 0xe7, "XSTATE_BV");
        bench.cpu.state.fpu = FpuState::default();
        run(&mut bench, |a| a.xrstor64(ptr(rbx))).unwrap();
        assert_eq!(bench.cpu.state.fpu, fpu);
    }
}

#[test]
fn xsavec_packs_the_requested_components() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = filled(9);
    // Opmask and ZMM_Hi256: without AVX before them they start right behind the header.
    bench.cpu.state.gpr[0] = 0x60;
    run(&mut bench, |a| a.xsavec(ptr(rbx))).unwrap();
    assert_eq!(u64::from_le_bytes(bench.peek(DATA + 520)), 1 << 63 | 0x60, "XCOMP_BV");
    let fpu = &bench.cpu.state.fpu;
    assert_eq!(bench.peek::<8>(DATA + 576), fpu.opmask[0].to_le_bytes());
    assert_eq!(bench.peek::<32>(DATA + 640), fpu.zmm[0][32..]);
}

#[test]
fn what_is_initial_is_not_saved_and_comes_back_initial() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = filled(10);
    for register in &mut bench.cpu.state.fpu.zmm[..16] {
        register[16..32].fill(0);
    }
    bench.poke(DATA + 576, &[0xee; 256]);
    run(&mut bench, |a| a.xsaveopt(ptr(rbx))).unwrap();
    assert_eq!(u64::from_le_bytes(bench.peek(DATA + 512)), 0xe3);
    assert_eq!(bench.peek::<256>(DATA + 576), [0xee; 256]);
    bench.cpu.state.fpu.zmm[4] = [1; 64];
    run(&mut bench, |a| a.xrstor(ptr(rbx))).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[4][16..32], [0; 16]);
    bench.cpu.state.gpr[1] = 1;
    run(&mut bench, |a| a.xgetbv()).unwrap();
    assert_eq!(bench.cpu.state.gpr[0], 0xe3, "XINUSE");
}

#[test]
fn xrstor_checks_the_header() {
    let rows: &[(&str, usize, u64)] = &[
        ("XSTATE_BV beyond XCR0", 512, 1 << 9),
        ("XCOMP_BV not compacted", 520, 1),
        ("bytes 23 to 16", 528, 1),
        ("compacted, XSTATE_BV beyond XCOMP_BV", 520, 1 << 63),
        ("compacted beyond XCR0", 520, 1 << 63 | 1 << 11 | 0xe7),
    ];
    for &(name, at, value) in rows {
        let mut bench = filled(11);
        run(&mut bench, |a| a.xsave(ptr(rbx))).unwrap();
        bench.poke(DATA + at as u64, &value.to_le_bytes());
        let before = bench.cpu.state.fpu.clone();
        assert_eq!(run(&mut bench, |a| a.xrstor(ptr(rbx))), Err(Exception::GP0), "{name}");
        assert_eq!(bench.cpu.state.fpu, before, "{name}");
    }
    let mut bench = filled(11);
    assert_eq!(run(&mut bench, |a| a.xsave(ptr(rbx + 32))), Err(Exception::GP0));
    assert_eq!(run(&mut bench, |a| a.xrstors(ptr(rbx))), Err(Exception::GP0), "not compacted");
}

#[test]
fn xsetbv_keeps_the_rules_between_bits() {
    if !crate::host_has_avx512() {
        return;
    }
    #[rustfmt::skip]
    let rows = [
        (0x1, Ok(())), (0x3, Ok(())), (0x7, Ok(())), (0xe7, Ok(())),
        (0x0, Err(Exception::GP0)), (0x2, Err(Exception::GP0)), (0x5, Err(Exception::GP0)),
        (0x27, Err(Exception::GP0)), (0xe3, Err(Exception::GP0)), (0x407, Err(Exception::GP0)),
    ];
    for (value, expected) in rows {
        let mut bench = Bench::long64();
        bench.cpu.state.gpr[..3].copy_from_slice(&[value, 0, 0]);
        assert_eq!(run(&mut bench, |a| a.xsetbv()), expected, "{value:#x}");
    }
    let mut bench = Bench::long64();
    bench.set_cpl(3);
    bench.cpu.state.gpr[..3].copy_from_slice(&[7, 0, 0]);
    assert_eq!(run(&mut bench, |a| a.xsetbv()), Err(Exception::GP0));
}

/// Divides 1 by 0 with the exception unmasked: it waits.
fn with_pending_exception() -> Bench {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[3] = DATA;
    bench.cpu.state.fpu.fcw = 0x37b;
    run(&mut bench, |a| a.fld1()).unwrap();
    run(&mut bench, |a| a.fldz()).unwrap();
    run(&mut bench, |a| a.fdivp(st1, st0)).unwrap();
    assert_eq!(bench.cpu.state.fpu.fsw & 0x8084, 0x8084, "ES, B and ZE");
    bench
}

#[test]
fn a_pending_exception_meets_the_next_waiting_instruction() {
    let mut bench = with_pending_exception();
    run(&mut bench, |a| a.fnstsw(ax)).unwrap();
    assert_eq!(bench.cpu.state.gpr[0] & 0x84, 0x84);
    let before = bench.cpu.state.fpu.clone();
    assert_eq!(run(&mut bench, |a| a.fld1()), Err(Exception::MF));
    assert_eq!(run(&mut bench, |a| a.wait()), Err(Exception::MF));
    assert_eq!(run(&mut bench, |a| a.paddb(mm0, mm1)), Err(Exception::MF));
    assert_eq!(run(&mut bench, |a| a.fldenv(ptr(rbx))), Err(Exception::MF));
    assert_eq!(run(&mut bench, |a| a.cvtpi2ps(xmm0, mm0)), Err(Exception::MF));
    assert_eq!(bench.cpu.state.fpu, before);
    run(&mut bench, |a| a.cvtpi2ps(xmm0, qword_ptr(rbx))).unwrap();
    run(&mut bench, |a| a.cvtpi2pd(xmm0, qword_ptr(rbx))).unwrap();
    run(&mut bench, |a| a.fnclex()).unwrap();
    run(&mut bench, |a| a.fld1()).unwrap();
}

#[test]
fn without_ne_a_pending_exception_raises_ferr_and_stops() {
    let mut bench = with_pending_exception();
    bench.cpu.state.cr0 &= !cr0::NE;
    bench.cpu.mode_changed();
    run(&mut bench, |a| a.fld1()).unwrap();
    assert!(bench.platform.ferr.load(Ordering::SeqCst));
    assert_eq!(bench.cpu.state.activity, Activity::Halted);
    assert_eq!(bench.cpu.state.rip, CODE, "the instruction comes again");
    bench.cpu.state.activity = Activity::Active;
    run(&mut bench, |a| a.fnclex()).unwrap();
    assert!(!bench.platform.ferr.load(Ordering::SeqCst));
}

#[test]
fn with_ignne_a_pending_exception_is_passed_over_and_kept() {
    let mut bench = with_pending_exception();
    bench.cpu.state.cr0 &= !cr0::NE;
    bench.cpu.mode_changed();
    bench.platform.ignne.store(true, Ordering::SeqCst);
    let top = bench.cpu.state.fpu.top();
    run(&mut bench, |a| a.fld1()).unwrap();
    assert_eq!(bench.cpu.state.activity, Activity::Active);
    assert_eq!(bench.cpu.state.fpu.top(), (top + 7) & 7);
    assert_eq!(bench.cpu.state.fpu.fsw & 0x8084, 0x8084, "still pending");
}

#[test]
fn xsaves_comes_back_by_xrstors_at_cpl_0_only() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = filled(30);
    (bench.cpu.state.fpu.fcs, bench.cpu.state.fpu.fds) = (0, 0);
    let fpu = bench.cpu.state.fpu.clone();
    run(&mut bench, |a| a.xsaves64(ptr(rbx))).unwrap();
    assert_eq!(u64::from_le_bytes(bench.peek(DATA + 520)), 1 << 63 | 0xe7, "XCOMP_BV");
    bench.cpu.state.fpu = FpuState::default();
    run(&mut bench, |a| a.xrstors64(ptr(rbx))).unwrap();
    assert_eq!(bench.cpu.state.fpu, fpu);
    bench.set_cpl(3);
    assert_eq!(run(&mut bench, |a| a.xsaves64(ptr(rbx))), Err(Exception::GP0));
    assert_eq!(run(&mut bench, |a| a.xrstors64(ptr(rbx))), Err(Exception::GP0));
}

#[test]
fn unmasked_stores_leave_memory_alone() {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[3] = DATA;
    bench.poke(DATA, &[0xee; 8]);
    run(&mut bench, |a| a.fldpi()).unwrap();
    // Empty the register: storing it is an invalid operation, unmasked.
    run(&mut bench, |a| a.ffree(st0)).unwrap();
    bench.cpu.state.fpu.fcw = 0x37e;
    run(&mut bench, |a| a.fstp(qword_ptr(rbx))).unwrap();
    assert_eq!(bench.peek::<8>(DATA), [0xee; 8]);
    assert_eq!(bench.cpu.state.fpu.top(), 7, "not popped");
    bench.cpu.state.fpu.fcw = 0x37f;
    run(&mut bench, |a| a.fnclex()).unwrap();
    // A value that looks like the thunk's own filling is stored all the same.
    bench.poke(DATA, &[0xa5; 8]);
    run(&mut bench, |a| a.fld(qword_ptr(rbx))).unwrap();
    bench.poke(DATA, &[0; 8]);
    run(&mut bench, |a| a.fstp(qword_ptr(rbx))).unwrap();
    assert_eq!(bench.peek::<8>(DATA), [0xa5; 8]);
}

#[test]
fn the_environment_has_its_28_byte_protected_format() {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[3] = DATA;
    bench.cpu.state.gpr[1] = DATA + 0x100;
    run(&mut bench, |a| a.fld(dword_ptr(rcx))).unwrap();
    bench.cpu.state.fpu.fcw = 0x372;
    run(&mut bench, |a| a.fnstenv(ptr(rbx))).unwrap();
    let field = |n: u64| u32::from_le_bytes(bench.peek(DATA + 4 * n));
    assert_eq!(field(0), 0xffff_0372);
    assert_eq!(field(1), 0xffff_3800);
    assert_eq!(field(2), 0xffff_7fff, "R7 holds zero");
    assert_eq!(u64::from(field(3)), CODE);
    assert_eq!(field(4) >> 16, 0x101, "FLD m32 at [rcx]");
    assert_eq!(u64::from(field(5)), noted_operand(DATA + 0x100));
    assert_eq!(bench.cpu.state.fpu.fcw, 0x37f, "FNSTENV masks all");
    bench.cpu.state.fpu.initialize_x87();
    run(&mut bench, |a| a.fldenv(ptr(rbx))).unwrap();
    let fpu = &bench.cpu.state.fpu;
    assert_eq!((fpu.fcw, fpu.fsw, fpu.ftw, fpu.fop), (0x372, 0x3800, 0x80, 0x101));
}

#[test]
fn fnsave_initialises_and_frstor_brings_the_stack_back() {
    for bits in [32, 64] {
        let mut bench = if bits == 64 { Bench::long64() } else { Bench::protected32() };
        bench.cpu.state.gpr[3] = DATA;
        run_in(&mut bench, bits, |a| a.fldpi()).unwrap();
        run_in(&mut bench, bits, |a| a.fld1()).unwrap();
        let registers = bench.cpu.state.fpu.x87;
        let base = |bits| if bits == 64 { ptr(rbx) } else { ptr(ebx) };
        run_in(&mut bench, bits, |a| a.fnsave(base(bits))).unwrap();
        assert_eq!((bench.cpu.state.fpu.ftw, bench.cpu.state.fpu.top()), (0, 0));
        bench.cpu.state.fpu.x87 = [[0; 16]; 8];
        run_in(&mut bench, bits, |a| a.frstor(base(bits))).unwrap();
        assert_eq!((bench.cpu.state.fpu.ftw, bench.cpu.state.fpu.top()), (0xc0, 6));
        assert_eq!(bench.cpu.state.fpu.x87, registers);
    }
}

#[test]
fn legacy_modes_run_vector_code_too() {
    for mut bench in [Bench::protected32(), Bench::compatibility32()] {
        bench.cpu.state.gpr[6] = DATA;
        bench.cpu.state.gpr[1] = 0x10;
        bench.poke(DATA + 0x50, &[3; 16]);
        run_in(&mut bench, 32, |a| a.paddb(xmm7, xmmword_ptr(esi + ecx * 4 + 0x10))).unwrap();
        assert_eq!(bench.cpu.state.fpu.zmm[7][..16], [3; 16]);
        run_in(&mut bench, 32, |a| a.vzeroall()).unwrap();
        assert_eq!(bench.cpu.state.fpu.zmm[7], [0; 64]);
    }
    let mut bench = Bench::real16();
    bench.cpu.state.gpr[3] = 0x2000;
    bench.poke(0x2010, &[4; 16]);
    // movups xmm1, [bx+10h]; vzeroupper, which real mode has not.
    bench.put_code_at(0x7c00, &[0x0f, 0x10, 0x4f, 0x10, 0xc5, 0xf8, 0x77]);
    bench.step().unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[1][..16], [4; 16]);
    assert_eq!(bench.step(), Err(Exception::UD));
}

#[test]
fn vzeroupper_keeps_the_low_halves_and_the_upper_sixteen() {
    let mut bench = filled(12);
    let before = bench.cpu.state.fpu.zmm;
    run(&mut bench, |a| a.vzeroupper()).unwrap();
    let after = bench.cpu.state.fpu.zmm;
    assert_eq!(after[15][..16], before[15][..16]);
    assert_eq!(after[15][16..], [0; 48]);
    assert_eq!(after[16], before[16]);
}
