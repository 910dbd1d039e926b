//! CPUID: which features a guest sees, and so which instructions exist.

use decoder::{FeatureSet, Vendor};

/// Features that CPUID reports and that gate no instruction's decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// 1 GiB pages.
    Pdpe1gb,
    /// Virtual-8086 mode extensions and protected-mode virtual interrupts.
    Vme,
    /// Debugging extensions: I/O breakpoints.
    De,
    /// 4 MiB pages.
    Pse,
    /// Physical address extension.
    Pae,
    /// Machine-check exception.
    Mce,
    /// Global pages.
    Pge,
    /// Process-context identifiers.
    Pcid,
    /// Supervisor-mode execution prevention.
    Smep,
    /// User-mode instruction prevention.
    Umip,
    /// 57-bit linear addresses.
    La57,
    /// Protection keys for supervisor pages.
    Pks,
}

/// What CPUID says to the guests of one machine.
pub struct CpuidPolicy {}

impl CpuidPolicy {
    /// The features that gate instructions.
    pub fn features(&self) -> FeatureSet {
        FeatureSet::all()
    }
    /// True if the guest has `feature`.
    pub fn has(&self, _feature: Feature) -> bool {
        true
    }
    /// Whose processor the guest sees.
    pub fn vendor(&self) -> Vendor {
        Vendor::Amd
    }
    /// MAXPHYADDR.
    pub fn physical_bits(&self) -> u32 {
        40
    }
    /// Family, model and stepping, as CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        0x00a1_0f11
    }
}
