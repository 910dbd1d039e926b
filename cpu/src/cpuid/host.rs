//! What the host's CPUID says. Nobody else asks it.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use decoder::{Executor, Feature, FeatureSet, Register, Vendor};

/// The features of the host that guests may find in their own CPUID, with the host system's
/// consent where registers must be saved for it.
static FEATURES: LazyLock<FeatureSet> = LazyLock::new(read_features);

/// The features whose instructions are executed by the host's own: those of thunks, and integer
/// ones that leave flags undefined.
static NEEDED: LazyLock<FeatureSet> = LazyLock::new(|| {
    let integer = [Feature::Lzcnt, Feature::Bmi1, Feature::Bmi2].into_iter().collect();
    let native = decoder::rows().filter(|row| row.executor == Executor::Native);
    native.fold(integer, |set: FeatureSet, row| set.union(row.features))
});

fn bit(leaf: u32, subleaf: u32, register: Register, bit: u8) -> bool {
    let range = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > range {
        return false;
    }
    let answer = __cpuid_count(leaf, subleaf);
    let value = match register {
        Register::Eax => answer.eax,
        Register::Ebx => answer.ebx,
        Register::Ecx => answer.ecx,
        Register::Edx => answer.edx,
    };
    value >> bit & 1 != 0
}

fn read_features() -> FeatureSet {
    // The standard library asks XCR0 too.
    let (has_avx, has_avx512) =
        (is_x86_feature_detected!("avx"), is_x86_feature_detected!("avx512f"));
    let is_usable = |feature: &Feature| {
        let name = feature.name();
        let state = match () {
            () if name.starts_with("avx512") => has_avx512,
            () if is_vex_only(*feature) => has_avx,
            () => true,
        };
        let (leaf, subleaf, register, position) = feature.cpuid();
        state && bit(leaf, subleaf, register, position)
    };
    Feature::ALL.iter().copied().filter(is_usable).collect()
}

/// Features without any legacy-encoded instruction.
fn is_vex_only(feature: Feature) -> bool {
    use Feature as F;
    let name = feature.name();
    name.starts_with("avx")
        || matches!(
            feature,
            F::Fma | F::F16c | F::Vaes | F::Vpclmulqdq | F::Sha512 | F::Sm3 | F::Sm4
        )
}

/// The features that guests can have on this host: those it has itself, and those that need
/// nothing of it.
pub(super) fn possible() -> FeatureSet {
    let borrowed = *NEEDED;
    Feature::ALL
        .iter()
        .copied()
        .filter(|&f| !borrowed.contains(f) || FEATURES.contains(f))
        .collect()
}

/// The host's vendor; one that is neither counts as Intel.
pub(crate) fn vendor() -> Vendor {
    let answer = __cpuid_count(0, 0);
    if answer.ebx == u32::from_le_bytes(*b"Auth") || answer.ebx == u32::from_le_bytes(*b"Hygo") {
        Vendor::Amd
    } else {
        Vendor::Intel
    }
}

/// CPUID.(7,0).EBX: FDP is noted at unmasked exceptions only, and FCS and FDS never (SDM Vol. 1,
/// "x87 FPU Instruction and Data (Operand) Pointers").
pub(crate) const FDP_EXCPTN_ONLY: u32 = 1 << 6;
pub(crate) const ZERO_FCS_FDS: u32 = 1 << 13;

/// Which of the two are so of the host's x87 unit, and so of guests'.
pub(crate) fn x87_omissions() -> u32 {
    if __cpuid_count(0, 0).eax < 7 {
        return 0;
    }
    __cpuid_count(7, 0).ebx & (FDP_EXCPTN_ONLY | ZERO_FCS_FDS)
}

/// The host's MAXPHYADDR.
pub(super) fn physical_bits() -> u32 {
    if __cpuid_count(0x8000_0000, 0).eax < 0x8000_0008 {
        return 36;
    }
    (__cpuid_count(0x8000_0008, 0).eax & 0xff).clamp(32, 52)
}
