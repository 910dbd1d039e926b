//! Named CPU models: what each offers before `+feature` and `-feature`.
//!
//! `x86-64-v2` to `-v4` are the levels of the x86-64 psABI, "Micro-Architecture Levels", over the
//! system features that every machine of ours has. `max` is all that works here.

use decoder::{Feature as I, FeatureSet, Vendor};

use super::feature::{Feature as S, SystemFeatures};

/// A model: features that gate instructions, and those that do not.
#[derive(Clone, Copy)]
pub(super) struct Model {
    pub(super) name: &'static str,
    /// What `--cpu help` says.
    pub(super) summary: &'static str,
    features: Features,
}

#[derive(Clone, Copy)]
enum Features {
    /// What this host and this program can do, but for [`ON_REQUEST`].
    Everything,
    /// Levels of instructions, one on top of the other.
    Levels(&'static [&'static [I]], SystemFeatures),
}

const BASE: &[I] = &[
    I::Fpu,
    I::Tsc,
    I::Msr,
    I::Cx8,
    I::Sep,
    I::Cmov,
    I::Clfsh,
    I::Mmx,
    I::Fxsr,
    I::Sse,
    I::Sse2,
    I::Syscall,
    I::Lm,
];
const QEMU64: &[I] = &[I::Sse3, I::Cx16, I::LahfLm];
const V2: &[I] = &[I::Sse3, I::Cx16, I::LahfLm, I::Popcnt, I::Ssse3, I::Sse4_1, I::Sse4_2];
const IVY_BRIDGE: &[I] = &[
    I::Aes,
    I::Pclmulqdq,
    I::Xsave,
    I::Xsaveopt,
    I::Avx,
    I::F16c,
    I::Rdrand,
    I::Fsgsbase,
    I::Rdtscp,
];
const V3: &[I] =
    &[I::Xsave, I::Avx, I::Avx2, I::Bmi1, I::Bmi2, I::F16c, I::Fma, I::Lzcnt, I::Movbe];
const V4: &[I] = &[I::Avx512F, I::Avx512Bw, I::Avx512Cd, I::Avx512Dq, I::Avx512Vl];

/// What KVM's guests are offered.
const KVM: SystemFeatures = SystemFeatures::of(&[
    S::KvmClock,
    S::KvmNopIoDelay,
    S::KvmClock2,
    S::KvmStealTime,
    S::KvmPvEoi,
    S::KvmPvUnhalt,
    S::KvmPvTlbFlush,
    S::KvmPvIpi,
    S::KvmPollControl,
    S::KvmPvSchedYield,
    S::KvmClockStable,
]);
/// A PC of the time of the first x86-64 processors.
const PC: SystemFeatures = SystemFeatures::of(&[
    S::Vme,
    S::De,
    S::Pse,
    S::Pae,
    S::Mce,
    S::Apic,
    S::Mtrr,
    S::Pge,
    S::Mca,
    S::Pat,
    S::Pse36,
    S::Nx,
    S::Hypervisor,
    S::Arat,
    S::Osvw,
])
.union(KVM);
/// A PC of today.
const MODERN: SystemFeatures = PC.union(SystemFeatures::of(&[
    S::X2apic,
    S::TscDeadline,
    S::TscAdjust,
    S::InvariantTsc,
    S::Pdpe1gb,
]));
const IVY_BRIDGE_SYSTEM: SystemFeatures =
    MODERN.union(SystemFeatures::of(&[S::Pcid, S::Smep, S::Erms]));

pub(super) const MODELS: &[Model] = &[
    model("max", "all that works on this host (default)", Features::Everything),
    model(
        "qemu64",
        "the baseline of x86-64, with CX16 and SSE3",
        Features::Levels(&[BASE, QEMU64], PC),
    ),
    model("x86-64-v1", "the psABI's baseline", Features::Levels(&[BASE], MODERN)),
    model("x86-64-v2", "up to SSE4.2", Features::Levels(&[BASE, V2], MODERN)),
    model("x86-64-v3", "up to AVX2, BMI2 and FMA", Features::Levels(&[BASE, V2, V3], MODERN)),
    model(
        "x86-64-v4",
        "up to AVX-512 F, BW, CD, DQ, VL",
        Features::Levels(&[BASE, V2, V3, V4], MODERN),
    ),
    model("Opteron_G1", "the first Opteron", Features::Levels(&[BASE], PC)),
    model(
        "IvyBridge",
        "a 2012 Xeon's features",
        Features::Levels(&[BASE, V2, IVY_BRIDGE], IVY_BRIDGE_SYSTEM),
    ),
];

const fn model(name: &'static str, summary: &'static str, features: Features) -> Model {
    Model { name, summary, features }
}

/// Features that no model has but that may be asked for by name.
///
/// LA57 makes every walk longer; without MPERF and APERF counters of its own, RDPRU has only the
/// time stamp to read; MONITOR and MONITORX wait for every store of another CPU to be watched.
const ON_REQUEST: FeatureSet = of(&[I::Rdpru, I::Monitor, I::Monitorx]);
const ON_REQUEST_SYSTEM: SystemFeatures = SystemFeatures::of(&[S::La57]);

/// Features that only AMD's processors have.
const AMD_ONLY: FeatureSet = of(&[I::Sse4a, I::Clzero, I::Rdpru, I::Monitorx]);
const AMD_ONLY_SYSTEM: SystemFeatures =
    SystemFeatures::of(&[S::Cr8Legacy, S::Osvw, S::MmxExt, S::FxsrOpt]);

const fn of(list: &[I]) -> FeatureSet {
    let mut set = FeatureSet::EMPTY;
    let mut index = 0;
    while index < list.len() {
        set = set.with(list[index]);
        index += 1;
    }
    set
}

/// What a processor of `vendor` can have of these features.
pub(super) fn of_vendor(
    vendor: Vendor,
    (features, system): (FeatureSet, SystemFeatures),
) -> (FeatureSet, SystemFeatures) {
    if vendor == Vendor::Amd {
        return (features, system);
    }
    let features = AMD_ONLY.iter().fold(features, FeatureSet::without);
    (features, AMD_ONLY_SYSTEM.iter().fold(system, SystemFeatures::without))
}

impl Model {
    /// The features of the model, of those that are `possible` on this host.
    pub(super) fn features(&self, possible: FeatureSet) -> (FeatureSet, SystemFeatures) {
        match self.features {
            Features::Everything => {
                let all: SystemFeatures = SystemFeatures::of(S::ALL);
                (
                    ON_REQUEST.iter().fold(possible, FeatureSet::without),
                    ON_REQUEST_SYSTEM.iter().fold(all, SystemFeatures::without),
                )
            }
            Features::Levels(levels, system) => {
                let wanted = levels.iter().copied().flatten().copied().collect::<FeatureSet>();
                (wanted, system)
            }
        }
    }
}

/// What makes no sense without something else; taking that away takes these away.
#[rustfmt::skip]
const NEEDS: &[(I, I)] = &[
    (I::Sse, I::Fxsr), (I::Sse2, I::Sse), (I::Sse3, I::Sse2), (I::Ssse3, I::Sse3),
    (I::Sse4_1, I::Ssse3), (I::Sse4_2, I::Sse4_1), (I::Sse4a, I::Sse3), (I::Aes, I::Sse2),
    (I::Pclmulqdq, I::Sse2), (I::Sha, I::Sse2), (I::Gfni, I::Sse2),
    (I::Xsaveopt, I::Xsave), (I::Xsavec, I::Xsave), (I::Xsaves, I::Xsavec), (I::Avx, I::Xsave),
    (I::Avx2, I::Avx), (I::Fma, I::Avx), (I::F16c, I::Avx), (I::Vaes, I::Avx),
    (I::Vpclmulqdq, I::Avx), (I::AvxVnni, I::Avx2), (I::AvxIfma, I::Avx2),
    (I::AvxVnniInt8, I::Avx2), (I::AvxVnniInt16, I::Avx2), (I::AvxNeConvert, I::Avx2),
    (I::Sha512, I::Avx2), (I::Sm3, I::Avx), (I::Sm4, I::Avx), (I::Avx512F, I::Avx2),
    (I::Avx512Dq, I::Avx512F), (I::Avx512Ifma, I::Avx512F), (I::Avx512Cd, I::Avx512F),
    (I::Avx512Bw, I::Avx512F), (I::Avx512Vl, I::Avx512F), (I::Avx512Vbmi, I::Avx512Bw),
    (I::Avx512Vbmi2, I::Avx512Bw), (I::Avx512Vnni, I::Avx512F), (I::Avx512Bitalg, I::Avx512Bw),
    (I::Avx512Vpopcntdq, I::Avx512F), (I::Avx512Vp2intersect, I::Avx512F),
    (I::Avx512Fp16, I::Avx512Bw), (I::Avx512Bf16, I::Avx512Bw), (I::Syscall, I::Lm),
    (I::LahfLm, I::Lm), (I::Fsgsbase, I::Lm), (I::Cx16, I::Lm),
];

/// `features` and `system` without what lacks something that it needs.
pub(super) fn consistent(
    mut features: FeatureSet,
    mut system: SystemFeatures,
) -> (FeatureSet, SystemFeatures) {
    // The list is in order of dependence but for a few: as many rounds as it is deep.
    for _ in 0..NEEDS.len() {
        let before = features;
        for &(feature, need) in NEEDS {
            if !features.contains(need) {
                features = features.without(feature);
            }
        }
        if before == features {
            break;
        }
    }
    let needs = [
        (S::Xgetbv1, features.contains(I::Xsave)),
        (S::X2apic, system.contains(S::Apic)),
        (S::TscDeadline, system.contains(S::Apic)),
        (S::Pcid, features.contains(I::Lm)),
        (S::La57, features.contains(I::Lm)),
        (S::Pks, features.contains(I::Lm)),
        (S::KvmPvEoi, system.contains(S::Apic)),
        (S::KvmPvIpi, system.contains(S::Apic)),
        (S::KvmPvTlbFlush, system.contains(S::KvmStealTime)),
        (S::KvmClockStable, system.contains(S::KvmClock2)),
    ];
    for (feature, has) in needs {
        if !has {
            system = system.without(feature);
        }
    }
    if !system.contains(S::Hypervisor) {
        system = KVM.iter().fold(system, SystemFeatures::without);
    }
    (features, system)
}

/// The paravirtual features, which `kvm` switches together.
pub(super) const PARAVIRTUAL: SystemFeatures = KVM;
