//! CPUID: what a guest is told, and so what exists.
//!
//! [`CpuidPolicy`] is made once for a machine, from a model's name and what the host can do, and is
//! the only place that says what is offered: the decoder's gates, the reserved bits of control
//! registers and MSRs, and the CPUID instruction all ask it. [`feature`] lists what gates no
//! decoding, `model` the named models, `spec` reads `--cpu`, `leaf` answers CPUID.
//!
//! Known departures from hardware: the signature names no real product, so that guests work around
//! nobody's errata; there is no thermal sensor and no performance counter.

mod cache;
pub mod feature;
pub(crate) mod host;
mod leaf;
mod model;
mod spec;

use decoder::{Feature as Instruction, FeatureSet, Register, Vendor};

pub use feature::{Feature, SystemFeatures};
pub use leaf::CpuView;
pub use spec::CpuModelError;

use crate::state::efer;
use crate::xstate::xcr0;

/// What CPUID tells of the machine around the processor.
#[derive(Clone, Copy, Debug)]
pub struct CpuidMachine {
    /// How many CPUs: the cores of one package, one thread each.
    pub cpus: u32,
    /// The frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// The frequency of the local APIC's timer before its divider.
    pub apic_hz: u64,
}

/// Who the processor says it is.
#[derive(Clone, Copy, Debug)]
struct Identity {
    vendor: Vendor,
    signature: u32,
    brand: &'static str,
}

impl Identity {
    /// Both signatures are long-lived generic ones that QEMU has used for its own generic models:
    /// family 15 model 107 stepping 1, and family 15 model 6 stepping 1. Guests know them, and know
    /// of no erratum of theirs that needs a work-around.
    fn of(vendor: Vendor) -> Self {
        let signature = match vendor {
            Vendor::Amd => 0x0006_0fb1,
            Vendor::Intel => 0x0000_0f61,
        };
        Self { vendor, signature, brand: "Volvelle Virtual CPU" }
    }
}

/// What CPUID says to the guests of one machine, and what follows from it.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    features: FeatureSet,
    system: SystemFeatures,
    /// Those that were asked for by name.
    asked: (FeatureSet, SystemFeatures),
    identity: Identity,
    physical_bits: u32,
    machine: CpuidMachine,
}

impl CpuidPolicy {
    /// The policy that `spec` (`MODEL[,+feature][,-feature]...`) asks for.
    pub fn new(spec: &str, machine: CpuidMachine) -> Result<Self, CpuModelError> {
        let spec::Selection { features, system, asked, identity, physical_bits } =
            spec::parse(spec)?;
        Ok(Self { features, system, asked, identity, physical_bits, machine })
    }

    /// The policy without the features that an engine cannot give: `gives` says of leaf, subleaf,
    /// register (0 for EAX to 3 for EDX) and bit whether it can. A feature that was asked for by
    /// name is not left out in silence.
    pub fn limited(
        mut self,
        gives: impl Fn(u32, u32, usize, u8) -> bool,
    ) -> Result<Self, CpuModelError> {
        let lacks = |(leaf, subleaf, register, bit): (u32, u32, Register, u8)| {
            !gives(leaf, subleaf, register as usize, bit)
        };
        let lacking = self.features.iter().filter(|feature| lacks(feature.cpuid()));
        self.features = lacking.fold(self.features, FeatureSet::without);
        let lacking = self.system.iter().filter(|feature| lacks(feature.cpuid()));
        self.system = lacking.fold(self.system, SystemFeatures::without);
        (self.features, self.system) = model::consistent(self.features, self.system);
        let (instructions, system) = self.asked;
        let lacking = instructions.iter().find(|&feature| !self.has_instructions(feature));
        let lacking = lacking
            .map(Instruction::name)
            .or_else(|| system.iter().find(|&feature| !self.has(feature)).map(Feature::name));
        lacking.map_or(Ok(self), |name| Err(CpuModelError::NotOnEngine(name)))
    }

    /// The models, each with a line on what it is.
    pub fn models() -> impl Iterator<Item = (&'static str, &'static str)> {
        model::MODELS.iter().map(|model| (model.name, model.summary))
    }

    /// The features that gate instructions.
    #[inline]
    pub fn features(&self) -> FeatureSet {
        self.features
    }

    /// The features that do not.
    #[inline]
    pub fn system(&self) -> SystemFeatures {
        self.system
    }

    /// True if the guest has `feature`.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.system.contains(feature)
    }

    /// True if the guest has the instructions of `feature`.
    #[inline]
    pub fn has_instructions(&self, feature: Instruction) -> bool {
        self.features.contains(feature)
    }

    /// Whose processor it is: decides what the vendors do differently.
    #[inline]
    pub fn vendor(&self) -> Vendor {
        self.identity.vendor
    }

    /// MAXPHYADDR.
    pub fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    /// The width of linear addresses: 57 with LA57, whether or not CR4 has it on.
    pub fn linear_bits(&self) -> u32 {
        if self.has(Feature::La57) { 57 } else { 48 }
    }

    /// The bits of a physical address that must be zero.
    pub fn reserved_physical(&self) -> u64 {
        u64::MAX << self.physical_bits
    }

    /// Family, model and stepping, as CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        self.identity.signature
    }

    /// The frequency of the time-stamp counter.
    pub fn tsc_hz(&self) -> u64 {
        self.machine.tsc_hz
    }

    /// XCR0 bits that XSETBV takes; zero without XSAVE.
    pub fn xcr0_supported(&self) -> u64 {
        if self.has_instructions(Instruction::Xsave) { xcr0::supported(self.features) } else { 0 }
    }

    /// IA32_XSS bits that WRMSR takes.
    pub fn xss_supported(&self) -> u64 {
        0
    }

    /// EFER bits that WRMSR answers with #GP.
    pub fn efer_reserved(&self) -> u64 {
        let mut defined = 0;
        if self.has_instructions(Instruction::Syscall) {
            defined |= efer::SCE;
        }
        if self.has_instructions(Instruction::Lm) {
            defined |= efer::LME | efer::LMA;
        }
        if self.has(Feature::Nx) {
            defined |= efer::NXE;
        }
        if self.has(Feature::FxsrOpt) {
            defined |= efer::FFXSR;
        }
        !defined
    }
}
