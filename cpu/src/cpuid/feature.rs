//! The features that CPUID reports and that gate no instruction's decoding.
//!
//! Sources: SDM Vol. 2A, "CPUID-CPU Identification"; APM Vol. 3, "Obtaining Processor Information
//! Via the CPUID Instruction"; Linux, Documentation/virt/kvm/x86/cpuid.rst.

#[rustfmt::skip]
decoder::cpuid_features! {
    /// A set of [`Feature`]s.
    pub struct SystemFeatures(u64);
    /// A CPUID feature that gates control-register bits, MSRs or paging, or that only informs. The
    /// documentation of a variant is its name.
    pub enum Feature;

    Pcid             "pcid"               0x0000_0001 0 Ecx 17
    X2apic           "x2apic"             0x0000_0001 0 Ecx 21
    TscDeadline      "tsc-deadline"       0x0000_0001 0 Ecx 24
    Hypervisor       "hypervisor"         0x0000_0001 0 Ecx 31
    Vme              "vme"                0x0000_0001 0 Edx 1
    De               "de"                 0x0000_0001 0 Edx 2
    Pse              "pse"                0x0000_0001 0 Edx 3
    Pae              "pae"                0x0000_0001 0 Edx 6
    Mce              "mce"                0x0000_0001 0 Edx 7
    Apic             "apic"               0x0000_0001 0 Edx 9
    Mtrr             "mtrr"               0x0000_0001 0 Edx 12
    Pge              "pge"                0x0000_0001 0 Edx 13
    Mca              "mca"                0x0000_0001 0 Edx 14
    Pat              "pat"                0x0000_0001 0 Edx 16
    Pse36            "pse36"              0x0000_0001 0 Edx 17
    Arat             "arat"               0x0000_0006 0 Eax 2
    TscAdjust        "tsc_adjust"         0x0000_0007 0 Ebx 1
    Smep             "smep"               0x0000_0007 0 Ebx 7
    Erms             "erms"               0x0000_0007 0 Ebx 9
    Umip             "umip"               0x0000_0007 0 Ecx 2
    La57             "la57"               0x0000_0007 0 Ecx 16
    Pks              "pks"                0x0000_0007 0 Ecx 31
    Fsrm             "fsrm"               0x0000_0007 0 Edx 4
    Xgetbv1          "xgetbv1"            0x0000_000d 1 Eax 2
    KvmClock         "kvmclock-old"       0x4000_0001 0 Eax 0
    KvmNopIoDelay    "kvm-nopiodelay"     0x4000_0001 0 Eax 1
    KvmClock2        "kvmclock"           0x4000_0001 0 Eax 3
    KvmStealTime     "kvm-steal-time"     0x4000_0001 0 Eax 5
    KvmPvEoi         "kvm-pv-eoi"         0x4000_0001 0 Eax 6
    KvmPvUnhalt      "kvm-pv-unhalt"      0x4000_0001 0 Eax 7
    KvmPvTlbFlush    "kvm-pv-tlb-flush"   0x4000_0001 0 Eax 9
    KvmPvIpi         "kvm-pv-ipi"         0x4000_0001 0 Eax 11
    KvmPollControl   "kvm-poll-control"   0x4000_0001 0 Eax 12
    KvmPvSchedYield  "kvm-pv-sched-yield" 0x4000_0001 0 Eax 13
    KvmClockStable   "kvmclock-stable-bit" 0x4000_0001 0 Eax 24
    Cr8Legacy        "cr8legacy"          0x8000_0001 0 Ecx 4
    Prefetchw        "3dnowprefetch"      0x8000_0001 0 Ecx 8
    Osvw             "osvw"               0x8000_0001 0 Ecx 9
    Nx               "nx"                 0x8000_0001 0 Edx 20
    MmxExt           "mmxext"             0x8000_0001 0 Edx 22
    FxsrOpt          "fxsr_opt"           0x8000_0001 0 Edx 25
    Pdpe1gb          "pdpe1gb"            0x8000_0001 0 Edx 26
    InvariantTsc     "invtsc"             0x8000_0007 0 Edx 8
}
