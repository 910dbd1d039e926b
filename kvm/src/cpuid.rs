//! What CPUID says on KVM: the policy's answers, without what KVM on this host cannot give.

use cpu::cpuid::{CpuView, CpuidPolicy, Feature};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::KvmError;

/// The leaves that say what exists, by subleaf, with the registers that are bits of it.
const FEATURES: [(u32, u32, [bool; 4]); 8] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0008, 0, [false, true, false, false]),
];
/// CPUID.1:ECX that KVM says nothing about, or says later: OSXSAVE, HYPERVISOR.
const LEAF_1_ECX_OURS: u32 = 1 << 27 | bit(Feature::Hypervisor);
/// CPUID.1:EDX that is the machine's: APIC, HTT.
const LEAF_1_EDX_OURS: u32 = bit(Feature::Apic) | 1 << 28;
/// CPUID.1:ECX bits of local APICs: the timer's deadline mode needs KVM's own, x2APIC mode MSR
/// exits.
const TSC_DEADLINE: u32 = bit(Feature::TscDeadline);
const X2APIC: u32 = bit(Feature::X2apic);
/// CPUID.8000_0001:ECX that KVM answers for by its MSRs on every host, and says nothing about where
/// the host's processor has not got it: OSVW, by which guests hear that errata are mended.
const LEAF_8000_0001_ECX_OURS: u32 = bit(Feature::Osvw);
/// KVM's features that work without its local APICs: clocks, no delay for I/O, steal time.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 24;
/// Leaves whose answers depend on the subleaf, and how many subleaves are asked for.
const INDEXED: [(u32, u32); 5] = [(0x4, 5), (0x7, 2), (0xb, 3), (0xd, 32), (0x1f, 3)];

/// The bit of `feature` in its register.
const fn bit(feature: Feature) -> u32 {
    1 << feature.cpuid().3
}

/// All entries for CPU `index`.
pub(crate) fn entries(
    policy: &CpuidPolicy,
    index: u32,
    supported: &[kvm_cpuid_entry2],
    has_msr_exits: bool,
) -> Result<CpuId, KvmError> {
    let view = CpuView {
        apic_id: index,
        cr4: 0,
        xcr0: policy.xcr0_supported().max(1),
        xss: 0,
        is_apic_enabled: true,
        is_64: true,
    };
    let mut entries = Vec::new();
    for first in [0, 0x4000_0000, 0x8000_0000] {
        let last = policy.query(first, 0, &view)[0].min(first + 0x40);
        for leaf in first..=last {
            let subleaves = INDEXED.iter().find(|(indexed, _)| *indexed == leaf);
            for subleaf in 0..subleaves.map_or(1, |(_, count)| *count) {
                let answer = policy.query(leaf, subleaf, &view);
                let mask = mask(leaf, subleaf, supported, has_msr_exits);
                let [eax, ebx, ecx, edx] = std::array::from_fn(|n| answer[n] & mask[n]);
                let flags = if subleaves.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
                entries.push(kvm_cpuid_entry2 {
                    function: leaf,
                    index: subleaf,
                    flags,
                    eax,
                    ebx,
                    ecx,
                    edx,
                    padding: [0; 3],
                });
            }
        }
    }
    CpuId::from_entries(&entries).map_err(|_| KvmError::Lacks("room for the leaves of CPUID"))
}

/// True if bit `bit` of `register` may be given, which is 0 for EAX to 3 for EDX.
pub(crate) fn is_given(
    (leaf, subleaf, register, bit): (u32, u32, usize, u8),
    supported: &[kvm_cpuid_entry2],
    has_msr_exits: bool,
) -> bool {
    mask(leaf, subleaf, supported, has_msr_exits)[register & 3] >> (bit & 31) & 1 != 0
}

/// The bits of an answer that may be given.
fn mask(leaf: u32, subleaf: u32, supported: &[kvm_cpuid_entry2], has_msr_exits: bool) -> [u32; 4] {
    let Some((.., is_bits)) = FEATURES.iter().find(|row| (row.0, row.1) == (leaf, subleaf)) else {
        return [u32::MAX; 4];
    };
    let found = supported.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
    let known = found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
    let mut mask: [u32; 4] = std::array::from_fn(|n| if is_bits[n] { known[n] } else { u32::MAX });
    match leaf {
        1 => {
            mask[2] = (mask[2] | LEAF_1_ECX_OURS) & !TSC_DEADLINE;
            if !has_msr_exits {
                mask[2] &= !X2APIC;
            }
            mask[3] |= LEAF_1_EDX_OURS;
        }
        0x4000_0001 => mask[0] &= KVM_FEATURES,
        0x8000_0001 => mask[2] |= LEAF_8000_0001_ECX_OURS,
        _ => {}
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(ecx: u32, edx: u32) -> [kvm_cpuid_entry2; 1] {
        [kvm_cpuid_entry2 { function: 1, ecx, edx, ..Default::default() }]
    }

    #[test]
    fn features_are_those_of_kvm_and_of_the_machine() {
        let [eax, ebx, ecx, edx] = mask(1, 0, &supported(u32::MAX, 1), true);
        assert_eq!((eax, ebx), (u32::MAX, u32::MAX));
        assert_eq!(ecx, !TSC_DEADLINE);
        assert_eq!(edx, 1 | LEAF_1_EDX_OURS);
        let without = mask(1, 0, &supported(u32::MAX, 1), false);
        assert_eq!(without[2], !TSC_DEADLINE & !X2APIC);
    }

    #[test]
    fn what_kvm_says_nothing_about_is_not_there_and_other_leaves_stay() {
        assert_eq!(mask(7, 0, &supported(0, 0), true), [u32::MAX, 0, 0, 0]);
        assert_eq!(mask(0x15, 0, &supported(0, 0), true), [u32::MAX; 4]);
        let errata_are_mended = [u32::MAX, u32::MAX, LEAF_8000_0001_ECX_OURS, 0];
        assert_eq!(mask(0x8000_0001, 0, &supported(0, 0), true), errata_are_mended);
    }
}
