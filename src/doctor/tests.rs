//! What captured hosts are told.

use rustix::io::Errno;

use super::examine::{cgroup_limit, cgroup_limit_files, field, kibibytes, virtualization};
use super::*;

/// /proc/cpuinfo of a cloud VM without nested virtualization, shortened.
const CLOUD: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n\
     flags\t\t: fpu vme svm_lock hypervisor avx2\n\nprocessor\t: 1\nmodel name\t: other\n";

fn cloud() -> Host {
    Host {
        model: "AMD EPYC".into(),
        virtualization: None,
        is_guest: true,
        isa_level: 4,
        cpus: 2,
        kvm: Kvm::Closed(Errno::NOENT),
        debug_registers: DebugRegisters::default(),
        translator: Ok(()),
        limits: Limits {
            total_bytes: Some(24 << 30),
            available_bytes: Some(20 << 30),
            cgroup_bytes: None,
            address_space_bytes: None,
            mappings: Some(65_530),
            has_memfd: true,
        },
    }
}

#[test]
fn a_cloud_host_gets_the_translator_and_is_told_why() {
    assert_eq!(
        report(&cloud()),
        "Processor       AMD EPYC\n\
         Virtualization  none: neither vmx nor svm (this host is a guest itself)\n\
         /dev/kvm        cannot be opened: No such file or directory (os error 2)\n\
         ISA level       x86-64-v4\n\
         CPUs            2\n\
         Memory          24576 MiB, 20480 MiB available\n\
         Address space   unlimited\n\
         Mappings        65530\n\
         memfd           works\n\
         Translator      works\n\
         Engine          jit, which --accel auto takes: the translator works\n\
         Breakpoints     at code and data\n\
         \n\
         - This host has no virtualization to give; Volvelle runs without it. Where it is a guest, \
         its own host could: enable nested virtualization there.\n"
    );
}

#[test]
fn a_host_whose_kvm_runs_past_breakpoints_is_told() {
    let found = |stop_at_code, stop_at_data| {
        let debug_registers = DebugRegisters { stop_at_code, stop_at_data };
        breakpoints(&Host { kvm: Kvm::Works, debug_registers, ..cloud() })
    };
    assert_eq!(found(true, true), "at code and data, on KVM four");
    assert_eq!(found(true, false), "at code and data, on KVM four and at code alone");
    assert_eq!(found(false, false), "at code and data, on KVM none");
}

#[test]
fn a_host_where_the_translator_cannot_run_is_told_what_it_lacks() {
    let report = report(&Host { translator: Err("no executable memory".into()), ..cloud() });
    assert!(report.contains("\nTranslator      no executable memory\n"), "{report}");
    assert!(report.contains("\nEngine          interp, which --accel auto takes"), "{report}");
}

#[test]
fn a_host_with_kvm_is_told_whether_guests_run_on_it() {
    let strong = report(&Host { kvm: Kvm::Works, ..cloud() });
    assert!(strong.contains("\n/dev/kvm        works: the probe guest passed\n"), "{strong}");
    assert!(strong.contains("\nEngine          kvm, which --accel auto takes"), "{strong}");
    let weak = report(&Host { kvm: Kvm::Weak("it fails at SYSCALL".into()), ..cloud() });
    assert!(weak.contains("makes a VM and a vCPU, but it fails at SYSCALL\n"), "{weak}");
    assert!(weak.contains("\nEngine          jit, which --accel auto takes"), "{weak}");
}

#[test]
fn what_is_missing_has_its_remedy() {
    #[rustfmt::skip]
    let rows: &[(Host, Option<&str>)] = &[
        (Host { kvm: Kvm::Works, ..cloud() },                       None),
        (Host { kvm: Kvm::Closed(Errno::ACCESS), ..cloud() },       Some("usermod")),
        (Host { kvm: Kvm::NoVm(Errno::OPNOTSUPP), ..cloud() },      Some("does not work")),
        (Host { kvm: Kvm::NoVcpu(Errno::INVAL), ..cloud() },        Some("does not work")),
        (Host { kvm: Kvm::NoVm(Errno::BUSY), ..cloud() },           Some("another hypervisor")),
        (Host { kvm: Kvm::Weak("it fails".into()), ..cloud() },     Some("without vmx or svm")),
        (Host { virtualization: Some("vmx"), ..cloud() },           Some("kvm_intel")),
    ];
    for (host, remedy) in rows {
        let found = remedies(host);
        assert_eq!(found.len(), usize::from(remedy.is_some()), "{found:?}");
        assert!(remedy.is_none_or(|remedy| found[0].contains(remedy)), "{found:?}");
    }
    let tight = Limits {
        cgroup_bytes: Some(256 << 20),
        address_space_bytes: Some(4 << 30),
        mappings: Some(1000),
        has_memfd: false,
        ..cloud().limits
    };
    let found = remedies(&Host { kvm: Kvm::Works, limits: tight, ..cloud() });
    for word in ["memfd_create", "--memory", "ulimit -v", "max_map_count"] {
        assert!(found.iter().any(|remedy| remedy.contains(word)), "{word}: {found:?}");
    }
}

#[test]
fn virtualization_is_a_word_of_the_flags() {
    assert_eq!(virtualization(CLOUD), None);
    assert_eq!(virtualization("flags\t: fpu vmx\n"), Some("vmx"));
    assert_eq!(virtualization("flags\t: svm fpu\n"), Some("svm"));
    assert_eq!(virtualization("vmx flags\t: vnmi\n"), None);
    assert_eq!(field(CLOUD, "model name"), Some("AMD EPYC"));
}

#[test]
fn amounts_of_memory_are_read_from_the_kernels_files() {
    let meminfo = "MemTotal:       24684084 kB\nHugePages_Total:       3\n";
    assert_eq!(kibibytes(meminfo, "MemTotal"), Some(24_684_084 << 10));
    assert_eq!(kibibytes(meminfo, "HugePages_Total"), None);
    assert_eq!(kibibytes(meminfo, "MemAvailable"), None);
    assert_eq!(cgroup_limit("max\n"), None);
    assert_eq!(cgroup_limit("9223372036854771712\n"), None);
    assert_eq!(cgroup_limit("1073741824\n"), Some(1 << 30));
}

#[test]
fn limits_of_control_groups_are_inherited() {
    assert_eq!(
        cgroup_limit_files("0::/user.slice/a.scope\n"),
        [
            "/sys/fs/cgroup/user.slice/a.scope/memory.max",
            "/sys/fs/cgroup/user.slice/memory.max",
            "/sys/fs/cgroup/memory.max",
        ]
    );
    assert_eq!(
        cgroup_limit_files("9:name=systemd:/\n4:cpu,memory:/job\nnonsense\n"),
        [
            "/sys/fs/cgroup/memory/job/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ]
    );
    assert_eq!(cgroup_limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
}
