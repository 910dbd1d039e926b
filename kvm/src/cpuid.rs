//! What CPUID says on KVM: the policy's answers, without what KVM on this host cannot give.

use cpu::cpuid::{CpuView, CpuidPolicy, Feature};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::{Clocks, KvmError};

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
/// CPUID.1:ECX bits of local APICs: the timer's deadline mode needs KVM's own, and a time-stamp
/// counter that is too; x2APIC mode needs KVM's own or MSR exits.
const TSC_DEADLINE: u32 = bit(Feature::TscDeadline);
const X2APIC: u32 = bit(Feature::X2apic);
/// CPUID.8000_0001:ECX that KVM answers for by its MSRs on every host, and says nothing about where
/// the host's processor has not got it: OSVW, by which guests hear that errata are mended.
const LEAF_8000_0001_ECX_OURS: u32 = bit(Feature::Osvw);
/// KVM's features that work without its local APICs: clocks, no delay for I/O, steal time.
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 24;
/// Those that need them: PV EOI, wake-up from HLT, IPIs by hypercall, control of polling, yield,
/// MSIs to more than 255 CPUs.
const KVM_APIC_FEATURES: u32 = 1 << 6 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 15;
/// Flushes of TLBs by the page of steal time, which has to be KVM's.
const KVM_TLB_FLUSH: u32 = 1 << 9;
/// Leaves whose answers depend on the subleaf, and how many subleaves are asked for.
const INDEXED: [(u32, u32); 5] = [(0x4, 5), (0x7, 2), (0xb, 3), (0xd, 32), (0x1f, 3)];

/// The bit of `feature` in its register.
const fn bit(feature: Feature) -> u32 {
    1 << feature.cpuid().3
}

/// What a virtual machine has that KVM_GET_SUPPORTED_CPUID does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// MSRs that KVM does not know come to us.
    pub(crate) has_msr_exits: bool,
    /// The local APICs are the kernel's.
    pub(crate) has_apics: bool,
    /// Their timers know the deadline mode.
    pub(crate) has_tsc_deadline: bool,
    /// Whose the clocks are.
    pub(crate) clocks: Clocks,
}

impl Offer {
    /// Bits of CPUID.1:ECX that are not for guests. A deadline is a value of the time stamp, which
    /// is the host's where there are several engines, and the machine's timers are on a clock whose
    /// rate is a little off that: its interrupt would come the later the longer the guest runs.
    fn without(&self) -> u32 {
        let has_deadline = self.has_apics && self.has_tsc_deadline && self.clocks == Clocks::Kernel;
        let deadline = if has_deadline { 0 } else { TSC_DEADLINE };
        deadline | if self.has_apics || self.has_msr_exits { 0 } else { X2APIC }
    }

    /// Bits of CPUID.1:ECX that are, whatever KVM says.
    fn ours(&self) -> u32 {
        LEAF_1_ECX_OURS | if self.has_apics { TSC_DEADLINE } else { 0 }
    }

    /// KVM's features that are for guests. To flush other CPUs' TLBs the guest marks their pages of
    /// steal time, which only who writes the pages sees: with several engines that is not KVM.
    fn kvm_features(&self) -> u32 {
        let apics = if self.has_apics { KVM_APIC_FEATURES } else { 0 };
        let has_flush = self.has_apics && self.clocks == Clocks::Kernel;
        KVM_FEATURES | apics | if has_flush { KVM_TLB_FLUSH } else { 0 }
    }
}

/// All entries for CPU `index`.
pub(crate) fn entries(
    policy: &CpuidPolicy,
    index: u32,
    supported: &[kvm_cpuid_entry2],
    offer: &Offer,
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
                let mask = mask(leaf, subleaf, supported, offer);
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
    offer: &Offer,
) -> bool {
    mask(leaf, subleaf, supported, offer)[register & 3] >> (bit & 31) & 1 != 0
}

/// The bits of an answer that may be given.
fn mask(leaf: u32, subleaf: u32, supported: &[kvm_cpuid_entry2], offer: &Offer) -> [u32; 4] {
    let Some((.., is_bits)) = FEATURES.iter().find(|row| (row.0, row.1) == (leaf, subleaf)) else {
        return [u32::MAX; 4];
    };
    let found = supported.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
    let known = found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
    let mut mask: [u32; 4] = std::array::from_fn(|n| if is_bits[n] { known[n] } else { u32::MAX });
    match leaf {
        1 => {
            mask[2] = (mask[2] | offer.ours()) & !offer.without();
            mask[3] |= LEAF_1_EDX_OURS;
        }
        0x4000_0001 => mask[0] &= offer.kvm_features(),
        0x8000_0001 => mask[2] |= LEAF_8000_0001_ECX_OURS,
        _ => {}
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer = Offer {
        has_msr_exits: true,
        has_apics: false,
        has_tsc_deadline: true,
        clocks: Clocks::Kernel,
    };

    #[test]
    fn the_kernels_local_apics_bring_features_and_the_machines_clock_costs_some() {
        let all = [kvm_cpuid_entry2 { function: 0x4000_0001, eax: !0, ..Default::default() }];
        let features = |offer: Offer| mask(0x4000_0001, 0, &all, &offer)[0];
        let kernel = Offer { has_apics: true, ..OFFER };
        let switched = Offer { clocks: Clocks::Machine, ..kernel };
        assert_eq!(features(OFFER), KVM_FEATURES);
        assert_eq!(features(kernel), KVM_FEATURES | KVM_APIC_FEATURES | KVM_TLB_FLUSH);
        assert_eq!(features(switched), KVM_FEATURES | KVM_APIC_FEATURES);
        let deadline = |offer: Offer| mask(1, 0, &[], &offer)[2] & TSC_DEADLINE != 0;
        assert!(deadline(kernel) && !deadline(switched) && !deadline(OFFER));
        assert!(!deadline(Offer { has_tsc_deadline: false, ..kernel }));
    }

    fn supported(ecx: u32, edx: u32) -> [kvm_cpuid_entry2; 1] {
        [kvm_cpuid_entry2 { function: 1, ecx, edx, ..Default::default() }]
    }

    #[test]
    fn features_are_those_of_kvm_and_of_the_machine() {
        let [eax, ebx, ecx, edx] = mask(1, 0, &supported(u32::MAX, 1), &OFFER);
        assert_eq!((eax, ebx), (u32::MAX, u32::MAX));
        assert_eq!(ecx, !TSC_DEADLINE);
        assert_eq!(edx, 1 | LEAF_1_EDX_OURS);
        let without = mask(1, 0, &supported(u32::MAX, 1), &Offer { has_msr_exits: false, ..OFFER });
        assert_eq!(without[2], !TSC_DEADLINE & !X2APIC);
    }

    #[test]
    fn what_kvm_says_nothing_about_is_not_there_and_other_leaves_stay() {
        assert_eq!(mask(7, 0, &supported(0, 0), &OFFER), [u32::MAX, 0, 0, 0]);
        assert_eq!(mask(0x15, 0, &supported(0, 0), &OFFER), [u32::MAX; 4]);
        let errata_are_mended = [u32::MAX, u32::MAX, LEAF_8000_0001_ECX_OURS, 0];
        assert_eq!(mask(0x8000_0001, 0, &supported(0, 0), &OFFER), errata_are_mended);
    }
}
