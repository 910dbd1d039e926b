//! The table of MSRs: what exists, what may be written, and what a write does.

use std::sync::atomic::Ordering;

use cpu::exception::Exception;
use cpu::msr::table::{MSRS, row};
use cpu::state::{cr0, efer};
use cpu::testing::Bench;

const GP: Exception = Exception::GP0;

#[expect(clippy::unwrap_used, reason = "the tests' models exist on every host")]
fn with(spec: &str) -> Bench {
    Bench::with_cpu(spec).unwrap()
}

#[test]
fn the_table_is_in_order_and_nothing_overlaps() {
    for pair in MSRS.windows(2) {
        assert!(pair[0].first + pair[0].count <= pair[1].first, "{}", pair[1].name);
    }
    assert!(row(0x23f).is_none());
    assert_eq!(row(0xc000_0080).map(|row| row.name), Some("IA32_EFER"));
}

#[test]
fn each_reserved_bit_of_each_row_faults_and_changes_nothing() {
    for spec in ["max,vendor=GenuineIntel", "max,vendor=AuthenticAMD"] {
        let mut bench = with(spec);
        for row in MSRS {
            let Some(reserved) = row.reserved_bits() else { continue };
            let Ok(before) = bench.cpu.read_msr(row.first) else { continue };
            for bit in (0..64).filter(|bit| reserved >> bit & 1 != 0) {
                let written = bench.cpu.write_msr(row.first, before | 1 << bit);
                assert_eq!(written, Err(GP), "{} bit {bit}", row.name);
            }
            assert_eq!(bench.cpu.read_msr(row.first), Ok(before), "{}", row.name);
        }
    }
}

#[test]
fn ignored_bits_keep_their_value() {
    let mut bench = with("max");
    for row in MSRS {
        let Some(ignored) = row.ignored_bits().filter(|&bits| bits != 0) else { continue };
        let Ok(before) = bench.cpu.read_msr(row.first) else { continue };
        assert_eq!(bench.cpu.write_msr(row.first, before ^ ignored), Ok(()), "{}", row.name);
        assert_eq!(bench.cpu.read_msr(row.first), Ok(before), "{}", row.name);
    }
}

#[test]
fn no_erratum_is_left_to_be_guessed_by_family_and_model() {
    for model in ["max", "qemu64", "x86-64-v2"] {
        let mut bench = with(&format!("{model},vendor=AuthenticAMD"));
        assert_eq!(bench.cpu.read_msr(0xc001_0140), Ok(5), "{model}");
        assert_eq!(bench.cpu.read_msr(0xc001_0141), Ok(0), "{model}");
    }
}

#[test]
fn machine_check_switches_go_together_but_for_those_that_systems_turn_off() {
    const BANK_4_CTL: u32 = 0x410;
    let mut bench = with("max");
    for value in [0, u64::MAX, !(1 << 10), !1] {
        assert_eq!(bench.cpu.write_msr(BANK_4_CTL, value), Ok(()), "{value:#x}");
        assert_eq!(bench.cpu.read_msr(BANK_4_CTL), Ok(value));
    }
    for value in [1, !2, 0x8000_0000_0000_0000] {
        assert_eq!(bench.cpu.write_msr(BANK_4_CTL, value), Err(GP), "{value:#x}");
    }
}

#[test]
fn read_only_registers_fault_when_written() {
    for spec in ["max,vendor=GenuineIntel", "max,vendor=AuthenticAMD"] {
        let mut bench = with(spec);
        for row in MSRS.iter().filter(|row| row.is_read_only()) {
            assert_eq!(bench.cpu.write_msr(row.first, 0), Err(GP), "{}", row.name);
        }
    }
}

#[test]
fn registers_go_with_their_feature() {
    for (spec, msr) in [
        ("max,-tsc_adjust", 0x3b),
        ("max,-mtrr", 0xfe),
        ("max,-pat", 0x277),
        ("max,-kvmclock", 0x4b56_4d01),
        ("max,-kvm", 0x4b56_4d04),
        ("max,-syscall", 0xc000_0081),
        ("max,-tsc-deadline", 0x6e0),
        ("max,-pks", 0x6e1),
        ("max,-osvw,vendor=AuthenticAMD", 0xc001_0140),
        ("max,vendor=GenuineIntel", 0xc001_0141),
        ("max,vendor=GenuineIntel", 0xc001_0000),
        ("max,vendor=GenuineIntel", 0xc001_0015),
        ("max,vendor=AuthenticAMD", 0xce),
    ] {
        let mut bench = with(spec);
        assert_eq!(bench.cpu.read_msr(msr), Err(GP), "{spec}");
        assert_eq!(bench.cpu.write_msr(msr, 0), Err(GP), "{spec}");
    }
    // Nobody has these: SPEC_CTRL, PRED_CMD, a machine-check bank too many, nonsense.
    for msr in [0x48, 0x49, 0x428, 0x1234_5678, u32::MAX] {
        assert_eq!(with("max").cpu.read_msr(msr), Err(GP), "{msr:#x}");
    }
}

#[test]
fn values_are_checked_as_the_manual_says() {
    const OK: Result<(), Exception> = Ok(());
    const HOLE: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    #[rustfmt::skip]
    let rows: [(u32, u64, Result<(), Exception>); 26] = [
        (0x174, 0x1234, OK), (0x175, 0x1234_5678_9abc, OK), (0x176, HOLE, Err(GP)),
        (0xc000_0082, HOLE, Err(GP)), (0xc000_0100, 0x1234_5678_9abc, OK),
        (0xc000_0102, HOLE, Err(GP)),
        (0x277, 0x0707_0707, OK), (0x277, 2, Err(GP)), (0x277, 3 << 56, Err(GP)),
        (0x2ff, 0xc06, OK), (0x2ff, 0xc02, Err(GP)),
        (0x250, 0x0606_0606_0606_0606, OK), (0x26f, 0x0606_0607_0606_0606, Err(GP)),
        (0x200, 0xc000_0000, OK), (0x200, 0xc000_0002, Err(GP)), (0x200, 1 << 40, Err(GP)),
        (0x201, 0xff_c000_0800, OK), (0x201, 1, Err(GP)),
        (0x400, u64::MAX, OK), (0x400, HOLE, Err(GP)), (0x401, 0, OK), (0x401, 1, Err(GP)),
        (0x402, HOLE, OK), (0x403, HOLE, OK), (0x17a, 7, OK), (0x1a0, 0x4_00c5_0809, OK),
    ];
    for (msr, value, outcome) in rows {
        let mut bench = with("max");
        assert_eq!(bench.cpu.write_msr(msr, value), outcome, "{msr:#x} <- {value:#x}");
        let reads = bench.cpu.read_msr(msr).unwrap();
        let is_misc = msr == 0x1a0;
        let kept = if is_misc { reads & !0x1880 == value & !0x1880 } else { reads == value };
        assert_eq!(kept, outcome.is_ok(), "{msr:#x} reads {reads:#x}");
    }
}

#[test]
fn efer_takes_what_cpuid_offers_and_lme_only_without_paging() {
    let mut bench = Bench::long64();
    let on = bench.cpu.state.msrs.efer;
    assert_eq!(bench.cpu.write_msr(0xc000_0080, on & !efer::LME), Err(GP));
    assert_eq!(bench.cpu.write_msr(0xc000_0080, on & !(efer::LMA | efer::SCE)), Ok(()));
    assert_eq!(bench.cpu.state.msrs.efer, on & !efer::SCE, "LMA is not the writer's");
    assert_eq!(bench.cpu.write_msr(0xc000_0080, on | 1 << 12), Err(GP), "SVME");
    bench.cpu.state.cr0 &= !cr0::PG;
    assert_eq!(bench.cpu.write_msr(0xc000_0080, efer::LME), Ok(()));
    assert_eq!(with("max,-nx").cpu.write_msr(0xc000_0080, efer::NXE), Err(GP));
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    let mut bench = with("max");
    let at = |bench: &Bench, ns| bench.platform.now_ns.store(ns, Ordering::SeqCst);
    at(&bench, 1000);
    assert_eq!(bench.cpu.read_msr(0x10), Ok(1000));
    bench.cpu.write_msr(0x3b, 500).unwrap();
    assert_eq!(bench.cpu.read_msr(0x10), Ok(1500));
    bench.cpu.write_msr(0x10, 0).unwrap();
    assert_eq!(bench.cpu.read_msr(0x3b), Ok((500u64).wrapping_sub(1500)));
    at(&bench, 1007);
    assert_eq!(bench.cpu.read_msr(0x10), Ok(7));
    let mut bench = Bench::long64();
    at(&bench, 0x1_0000_0007);
    bench.execute(&[0x0f, 0x31]).unwrap();
    assert_eq!((bench.cpu.state.gpr[0], bench.cpu.state.gpr[2]), (7, 1));
}

#[test]
fn rdmsr_and_wrmsr_use_edx_and_eax_and_are_the_kernels() {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[..3].copy_from_slice(&[0x8765_4321, 0xc000_0102, 0x1234]);
    bench.execute(&[0x0f, 0x30]).unwrap();
    assert_eq!(bench.cpu.state.msrs.kernel_gs_base, 0x1234_8765_4321);
    bench.cpu.state.gpr[0] = u64::MAX;
    bench.execute(&[0x0f, 0x32]).unwrap();
    assert_eq!((bench.cpu.state.gpr[0], bench.cpu.state.gpr[2]), (0x8765_4321, 0x1234));
    bench.set_cpl(3);
    assert_eq!(bench.execute(&[0x0f, 0x32]), Err(GP));
}
