//! The CPUID policy: what is offered is what works, and the leaves agree with it.

use cpu::cpuid::{CpuModelError, CpuView, CpuidMachine, CpuidPolicy, Feature};
use cpu::exception::Exception;
use cpu::interp::dispatch;
use cpu::testing::{Bench, policy};
use decoder::{Executor, Feature as I, Vendor, rows};

const VIEW: CpuView =
    CpuView { apic_id: 1, cr4: 0, xcr0: 1, xss: 0, is_apic_enabled: true, is_64: true };

fn machine(cpus: u32) -> CpuidMachine {
    CpuidMachine { cpus, tsc_hz: 2_600_000_000, apic_hz: 1_000_000_000 }
}

/// A level's policy, or nothing where the host cannot have it.
fn level(name: &str) -> Option<CpuidPolicy> {
    let policy = policy(name);
    assert!(matches!(policy, Ok(_) | Err(CpuModelError::NotOnHost(_))), "{name}");
    policy.ok()
}

#[test]
fn every_row_of_every_offered_feature_is_executed_by_somebody() {
    let offered = policy("max,+monitor").unwrap().features();
    let missing: Vec<_> = rows()
        .filter(|row| row.executor == Executor::Interpreter && offered.contains_all(row.features))
        .filter(|row| !dispatch::is_implemented(row.code))
        .map(|row| row.code)
        .filter(|code| !format!("{code:?}").starts_with("Ud"))
        .collect();
    assert!(missing.is_empty(), "offered and missing: {missing:?}");
}

#[test]
fn levels_are_on_top_of_each_other_and_max_on_top_of_all() {
    let names = ["x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", "max"];
    let levels: Vec<_> = names.iter().filter_map(|name| level(name)).collect();
    assert!(levels.len() >= 3);
    for pair in levels.windows(2) {
        assert!(pair[1].features().contains_all(pair[0].features()));
        assert!(pair[0].system().iter().all(|feature| pair[1].has(feature)));
    }
    let v3 = level("x86-64-v3").expect("a host of the last ten years");
    assert!(v3.has_instructions(I::Avx2) && !v3.has_instructions(I::Avx512F));
    let qemu64 = policy("qemu64").unwrap();
    assert!(qemu64.has_instructions(I::Cx16) && !qemu64.has_instructions(I::Ssse3));
    assert!(!qemu64.has(Feature::Pcid) && !qemu64.has(Feature::X2apic));
}

#[test]
fn a_feature_taken_away_takes_its_instructions_and_its_bit() {
    const POPCNT: [u8; 4] = [0xf3, 0x0f, 0xb8, 0xc1];
    const RDTSCP: [u8; 3] = [0x0f, 0x01, 0xf9];
    assert_eq!(Bench::long64().execute(&POPCNT), Ok(()));
    for (spec, code) in [("max,-popcnt", &POPCNT[..]), ("max,rdtscp=off", &RDTSCP)] {
        let mut bench = Bench::with_cpu(spec).unwrap().in_long64();
        assert_eq!(bench.execute(code), Err(Exception::UD), "{spec}");
    }
    let bit = |spec: &str| policy(spec).unwrap().query(1, 0, &VIEW)[2] >> 23 & 1;
    assert_eq!(
        (bit("max"), bit("max,-popcnt"), bit("qemu64"), bit("qemu64,+popcnt")),
        (1, 0, 0, 1)
    );
}

#[test]
fn what_needs_a_feature_goes_with_it() {
    let without_avx = policy("max,-avx").unwrap();
    for feature in [I::Avx, I::Avx2, I::Fma, I::Vaes, I::Avx512F, I::Avx512Vnni] {
        assert!(!without_avx.has_instructions(feature), "{feature:?}");
    }
    assert_eq!(without_avx.xcr0_supported() & 0xe4, 0);
    assert_eq!(policy("max,-xsave").unwrap().xcr0_supported(), 0);
    assert_eq!(policy("max,-xsave").unwrap().query(0xd, 0, &VIEW), [0; 4]);
    let bare = policy("max,-hypervisor").unwrap();
    assert!(!bare.has(Feature::KvmClock2));
    assert_eq!(bare.query(1, 0, &VIEW)[2] >> 31, 0);
}

#[test]
fn specifications_are_read_as_users_of_other_emulators_write_them() {
    for (spec, feature) in [
        ("qemu64,+x2apic,+tsc-deadline", Feature::TscDeadline),
        ("qemu64,+pcid,-invpcid", Feature::Pcid),
        ("qemu64,+umip", Feature::Umip),
        ("max,+la57,svm=off,-npt", Feature::La57),
        ("MAX,vendor=GenuineIntel", Feature::Smep),
        ("max,host-phys-bits,phys-bits=39", Feature::Smep),
        ("max,tsc_adjust=on", Feature::TscAdjust),
    ] {
        assert!(policy(spec).unwrap().has(feature), "{spec}");
    }
    assert_eq!(policy("max,phys-bits=36").unwrap().physical_bits(), 36);
    assert_eq!(policy("max,vendor=AuthenticAMD").unwrap().vendor(), Vendor::Amd);
    for alias in ["lzcnt", "abm", "LZCNT"] {
        assert!(policy(&format!("qemu64,+{alias}")).unwrap().has_instructions(I::Lzcnt));
    }
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    for (spec, named) in [
        ("pentium9", "'pentium9'"),
        ("max,+warp", "'warp'"),
        ("max,-warp", "'warp'"),
        ("max,+svm", "'svm'"),
        ("max,popcnt=maybe", "'maybe'"),
        ("max,phys-bits=99", "'99'"),
        ("max,vendor=Cyrix", "'Cyrix'"),
        ("", "''"),
    ] {
        let error = policy(spec).expect_err(spec).to_string();
        assert!(error.contains(named), "{spec}: {error}");
    }
}

#[test]
fn state_that_shows_in_cpuid_shows() {
    let policy = policy("max").unwrap();
    let osxsave = |cr4| policy.query(1, 0, &CpuView { cr4, ..VIEW })[2] >> 27 & 1;
    assert_eq!((osxsave(0), osxsave(1 << 18)), (0, 1));
    let ospke = |cr4| policy.query(7, 0, &CpuView { cr4, ..VIEW })[2] >> 4 & 1;
    assert_eq!((ospke(0), ospke(1 << 22)), (0, 1));
    let apic =
        |is_apic_enabled| policy.query(1, 0, &CpuView { is_apic_enabled, ..VIEW })[3] >> 9 & 1;
    assert_eq!((apic(false), apic(true)), (0, 1));
    let area = |xcr0| policy.query(0xd, 0, &CpuView { xcr0, ..VIEW })[1];
    assert_eq!((area(3), area(7)), (576, 832));
}

#[test]
fn the_crystal_gives_the_tsc_exactly() {
    for (tsc_hz, apic_hz) in [(2_600_000_000, 1_000_000_000), (1 << 31, 3_000_000), (7, 3)] {
        let machine = CpuidMachine { cpus: 1, tsc_hz, apic_hz };
        let policy = CpuidPolicy::new("max,vendor=GenuineIntel", machine).unwrap();
        let [denominator, numerator, crystal, _] = policy.query(0x15, 0, &VIEW).map(u64::from);
        assert_eq!(crystal, apic_hz);
        assert_eq!(crystal * numerator, tsc_hz * denominator);
        assert_eq!(u64::from(policy.query(0x4000_0010, 0, &VIEW)[0]), tsc_hz / 1000);
    }
}

#[test]
fn topology_leaves_agree_on_the_number_of_cpus() {
    for cpus in [1, 2, 3, 4, 7, 8] {
        for vendor in ["GenuineIntel", "AuthenticAMD"] {
            let policy = CpuidPolicy::new(&format!("max,vendor={vendor}"), machine(cpus)).unwrap();
            let [shift, count, level, id] = policy.query(0xb, 1, &VIEW);
            assert_eq!((count, level >> 8, id), (cpus, 2, 1));
            assert_eq!(1 << shift, cpus.next_power_of_two());
            let [_, ebx, _, edx] = policy.query(1, 0, &VIEW);
            assert_eq!(edx >> 28 & 1 == 1, cpus > 1);
            assert_eq!(ebx >> 24, 1);
            if vendor == "AuthenticAMD" {
                assert_eq!(policy.query(0x8000_0008, 0, &VIEW)[2] & 0xff, cpus - 1);
            } else {
                assert_eq!(policy.query(4, 3, &VIEW)[0] >> 26 & 0x3f, cpus.next_power_of_two() - 1);
            }
        }
    }
}

#[test]
fn leaves_out_of_range_answer_as_each_vendor_does() {
    let amd = policy("max,vendor=AuthenticAMD").unwrap();
    let intel = policy("max,vendor=GenuineIntel").unwrap();
    assert_eq!(amd.query(0x7fff_ffff, 0, &VIEW), [0; 4]);
    let last = intel.query(0, 0, &VIEW)[0];
    assert_eq!(intel.query(0x7fff_ffff, 0, &VIEW), intel.query(last, 0, &VIEW));
    let [_, b, c, d] = amd.query(0, 0, &VIEW);
    let text: Vec<u8> = [b, d, c].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(text, b"AuthenticAMD");
    // SYSCALL is Intel's in 64-bit mode only.
    let syscall = |policy: &CpuidPolicy, is_64| {
        policy.query(0x8000_0001, 0, &CpuView { is_64, ..VIEW })[3] >> 11 & 1
    };
    assert_eq!((syscall(&intel, false), syscall(&intel, true), syscall(&amd, false)), (0, 1, 1));
}

#[test]
fn a_policy_for_several_engines_has_what_all_of_them_give() {
    let has_no_deadline = |leaf, subleaf, _, bit| (leaf, subleaf, bit) != (1, 0, 24);
    let limited = policy("max").unwrap().limited(has_no_deadline).unwrap();
    assert!(!limited.has(Feature::TscDeadline));
    assert!(limited.has(Feature::Apic));
    // What needs something that is gone goes too, and what was asked for is missed by name.
    let has_no_xsave = |leaf, _, register, bit| (leaf, register, bit) != (1, 2, 26);
    let limited = policy("x86-64-v3").unwrap().limited(has_no_xsave).unwrap();
    assert!(!limited.has_instructions(I::Avx));
    let error = policy("x86-64-v3,+avx").unwrap().limited(has_no_xsave).unwrap_err();
    assert_eq!(error, CpuModelError::NotOnEngine("avx"));
}
