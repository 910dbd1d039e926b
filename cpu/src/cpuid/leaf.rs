//! The answers of the CPUID instruction.
//!
//! Sources: SDM Vol. 2A, "CPUID-CPU Identification"; APM Vol. 3, Appendix E; Linux,
//! Documentation/virt/kvm/x86/cpuid.rst.

use decoder::{Feature as Instruction, Register, Vendor};

use super::{CpuidPolicy, Feature, cache, host};
use crate::state::cr4;
use crate::xstate::XsaveComponent;

const EXTENDED: u32 = 0x8000_0000;
const HYPERVISOR: u32 = 0x4000_0000;
const HYPERVISOR_LAST: u32 = 0x4000_0010;
/// "KVMKVMKVM": whoever looks for KVM's interface finds it under this name.
const KVM_SIGNATURE: [u32; 3] =
    [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];

/// What of one CPU's state shows in CPUID.
#[derive(Clone, Copy, Debug)]
pub struct CpuView {
    /// The CPU's number, and its initial APIC ID.
    pub apic_id: u32,
    /// CR4: OSXSAVE and PKE are mirrored.
    pub cr4: u64,
    /// XCR0, for the size of an XSAVE area.
    pub xcr0: u64,
    /// IA32_XSS, for the size of a compacted one.
    pub xss: u64,
    /// IA32_APIC_BASE.EN.
    pub is_apic_enabled: bool,
    /// In 64-bit mode, where Intel's processors have SYSCALL.
    pub is_64: bool,
}

impl CpuidPolicy {
    /// EAX, EBX, ECX and EDX for `leaf` and `subleaf`.
    pub fn query(&self, leaf: u32, subleaf: u32, view: &CpuView) -> [u32; 4] {
        let leaf = self.in_range(leaf);
        match leaf {
            EXTENDED.. => self.extended(leaf, view),
            HYPERVISOR.. => self.hypervisor(leaf),
            _ => self.basic(leaf, subleaf, view),
        }
    }

    /// The last basic leaf.
    fn last_basic(&self) -> u32 {
        match self.vendor() {
            Vendor::Intel => 0x1f,
            Vendor::Amd => 0x16,
        }
    }

    fn last_extended(&self) -> u32 {
        EXTENDED + 8
    }

    /// What a leaf that is none is answered as: on Intel the last basic one, on AMD none.
    fn in_range(&self, leaf: u32) -> u32 {
        let is_hypervisor =
            self.has(Feature::Hypervisor) && (HYPERVISOR..=HYPERVISOR_LAST).contains(&leaf);
        let is_valid = leaf <= self.last_basic()
            || is_hypervisor
            || (EXTENDED..=self.last_extended()).contains(&leaf);
        if is_valid || self.vendor() == Vendor::Amd { leaf } else { self.last_basic() }
    }

    /// The feature bits of one register.
    fn bits(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        let is_here = |position: (u32, u32, Register, u8)| {
            position.0 == leaf && position.1 == subleaf && position.2 == register
        };
        let instructions = self.features().iter().map(Instruction::cpuid);
        let system = self.system().iter().map(Feature::cpuid);
        instructions.chain(system).filter(|&p| is_here(p)).fold(0, |bits, p| bits | 1 << p.3)
    }

    fn all_bits(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx]
            .map(|register| self.bits(leaf, subleaf, register))
    }

    fn basic(&self, leaf: u32, subleaf: u32, view: &CpuView) -> [u32; 4] {
        let is_intel = self.vendor() == Vendor::Intel;
        match leaf {
            0 => {
                let [b, d, c] = self.vendor_words();
                [self.last_basic(), b, c, d]
            }
            1 => self.version(view),
            // One byte that says "see leaf 4".
            2 if is_intel => [0x0000_ff01, 0, 0, 0],
            4 if is_intel => cache::deterministic(subleaf, self.machine.cpus),
            6 => self.all_bits(6, 0),
            7 => self.structured(subleaf, view),
            0xb | 0x1f => self.topology(leaf, subleaf, view),
            0xd => self.state_components(subleaf, view),
            0x15 => self.crystal(),
            0x16 => self.megahertz(),
            _ => [0; 4],
        }
    }

    /// EBX, EDX, ECX of leaf 0.
    fn vendor_words(&self) -> [u32; 3] {
        let text: &[u8; 12] = match self.vendor() {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        };
        let word = |at: usize| {
            text.iter().skip(at).take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
        };
        [word(0), word(4), word(8)]
    }

    fn version(&self, view: &CpuView) -> [u32; 4] {
        const HTT: u32 = 1 << 28;
        const OSXSAVE: u32 = 1 << 27;
        let [_, _, mut ecx, mut edx] = self.all_bits(1, 0);
        let cpus = self.machine.cpus;
        let cache_line_quadwords = 8;
        let mut ebx = (view.apic_id & 0xff) << 24 | cache_line_quadwords << 8;
        if cpus > 1 {
            edx |= HTT;
            ebx |= cache::id_span(cpus).min(255) << 16;
        }
        if view.cr4 & cr4::OSXSAVE != 0 {
            ecx |= OSXSAVE;
        }
        if !view.is_apic_enabled {
            edx &= !(1 << Feature::Apic.cpuid().3);
        }
        [self.signature(), ebx, ecx, edx]
    }

    fn structured(&self, subleaf: u32, view: &CpuView) -> [u32; 4] {
        const OSPKE: u32 = 1 << 4;
        let mut answer = self.all_bits(7, subleaf);
        if subleaf == 0 {
            let [eax, ebx, ecx, _] = &mut answer;
            *eax = 1;
            *ebx |= host::x87_omissions();
            if view.cr4 & cr4::PKE != 0 {
                *ecx |= OSPKE;
            }
        }
        answer
    }

    /// CPUID.0BH and 1FH: threads of a core, then cores of the package.
    fn topology(&self, leaf: u32, subleaf: u32, view: &CpuView) -> [u32; 4] {
        if leaf > self.last_basic() {
            return [0; 4];
        }
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let cpus = self.machine.cpus.max(1);
        let package_shift = cache::id_span(cpus).trailing_zeros();
        let (shift, count, level) = match subleaf {
            0 => (0, 1, THREAD),
            1 => (package_shift, cpus, CORE),
            _ => (0, 0, 0),
        };
        [shift, count & 0xffff, subleaf & 0xff | level << 8, view.apic_id]
    }

    fn state_components(&self, subleaf: u32, view: &CpuView) -> [u32; 4] {
        let supported = self.xcr0_supported();
        if supported == 0 {
            return [0; 4];
        }
        match subleaf {
            0 => {
                let size = |xcr0| XsaveComponent::standard_area_bytes(xcr0) as u32;
                [supported as u32, size(view.xcr0), size(supported), (supported >> 32) as u32]
            }
            1 => {
                let [eax, ..] = self.all_bits(0xd, 1);
                let size = XsaveComponent::compacted_area_bytes(view.xcr0 | view.xss) as u32;
                let has_compacted = self.has_instructions(Instruction::Xsavec);
                [eax, if has_compacted { size } else { 0 }, self.xss_supported() as u32, 0]
            }
            _ => {
                let offered = |c: &&XsaveComponent| c.number == subleaf && supported & c.bit() != 0;
                XsaveComponent::EXTENDED
                    .iter()
                    .find(offered)
                    .map_or([0; 4], |c| [c.size as u32, c.offset as u32, 0, 0])
            }
        }
    }

    /// CPUID.15H: TSC frequency = ECX * EBX / EAX. The crystal is the local APIC timer's too
    /// (SDM Vol. 3A, "APIC Timer").
    fn crystal(&self) -> [u32; 4] {
        let (tsc, crystal) = (self.machine.tsc_hz, self.machine.apic_hz);
        let divisor = gcd(tsc, crystal).max(1);
        let parts = [crystal / divisor, tsc / divisor, crystal].map(u32::try_from);
        match parts {
            [Ok(denominator), Ok(numerator), Ok(crystal)] => [denominator, numerator, crystal, 0],
            _ => [0; 4],
        }
    }

    /// CPUID.16H: base, maximum and bus frequency in MHz.
    fn megahertz(&self) -> [u32; 4] {
        let megahertz = |hz: u64| u32::try_from(hz / 1_000_000).unwrap_or(0xffff) & 0xffff;
        let tsc = megahertz(self.machine.tsc_hz);
        [tsc, tsc, megahertz(self.machine.apic_hz), 0]
    }

    fn hypervisor(&self, leaf: u32) -> [u32; 4] {
        if !self.has(Feature::Hypervisor) {
            return [0; 4];
        }
        let kilohertz = |hz: u64| u32::try_from(hz / 1000).unwrap_or(u32::MAX);
        match leaf {
            HYPERVISOR => {
                let [b, c, d] = KVM_SIGNATURE;
                [HYPERVISOR_LAST, b, c, d]
            }
            0x4000_0001 => self.all_bits(leaf, 0),
            HYPERVISOR_LAST => {
                [kilohertz(self.machine.tsc_hz), kilohertz(self.machine.apic_hz), 0, 0]
            }
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, view: &CpuView) -> [u32; 4] {
        let is_amd = self.vendor() == Vendor::Amd;
        match leaf - EXTENDED {
            0 => {
                let [b, d, c] = if is_amd { self.vendor_words() } else { [0; 3] };
                [self.last_extended(), b, c, d]
            }
            1 => self.extended_version(view),
            2..=4 => self.brand(leaf - EXTENDED - 2),
            5 if is_amd => cache::amd_level1(),
            6 => {
                let answer = cache::amd_level2();
                let [_, _, ecx, _] = answer;
                if is_amd { answer } else { [0, 0, ecx, 0] }
            }
            7 => self.all_bits(leaf, 0),
            8 => self.address_sizes(),
            _ => [0; 4],
        }
    }

    fn extended_version(&self, view: &CpuView) -> [u32; 4] {
        /// The bits of CPUID.1:EDX that AMD repeats.
        const REPEATED: u32 = 0x0183_f3ff;
        const CMP_LEGACY: u32 = 1 << 1;
        let [_, _, mut ecx, mut edx] = self.all_bits(EXTENDED + 1, 0);
        match self.vendor() {
            Vendor::Amd => {
                let [_, _, _, basic] = self.version(view);
                edx |= basic & REPEATED;
                if self.machine.cpus > 1 {
                    ecx |= CMP_LEGACY;
                }
                [self.signature(), 0, ecx, edx]
            }
            Vendor::Intel => {
                if !view.is_64 {
                    edx &= !(1 << Instruction::Syscall.cpuid().3);
                }
                [0, 0, ecx, edx]
            }
        }
    }

    /// A third of the brand string.
    fn brand(&self, part: u32) -> [u32; 4] {
        let text = self.identity.brand.as_bytes();
        let word = |index: usize| {
            let at = 16 * part as usize + 4 * index;
            let byte = |n: usize| u32::from(text.get(at + n).copied().unwrap_or(0));
            byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
        };
        [word(0), word(1), word(2), word(3)]
    }

    /// CPUID.8000_0008H.
    fn address_sizes(&self) -> [u32; 4] {
        let [_, ebx, ..] = self.all_bits(EXTENDED + 8, 0);
        let eax = self.physical_bits | self.linear_bits() << 8;
        let ecx = match self.vendor() {
            Vendor::Amd => {
                let cpus = self.machine.cpus.max(1);
                cache::id_span(cpus).trailing_zeros() << 12 | (cpus - 1).min(0xff)
            }
            Vendor::Intel => 0,
        };
        [eax, ebx, ecx, 0]
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
