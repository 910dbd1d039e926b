//! What the control registers add up to: the mode the CPU is in, derived once a change.

use std::fmt;

use crate::state::{State, attr, cr0, cr4, efer, rflags, seg};

/// The operating mode (SDM Vol. 3A, "Modes of Operation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatingMode {
    /// CR0.PE = 0.
    Real,
    /// Protected mode with RFLAGS.VM.
    Virtual8086,
    /// Protected mode, legacy.
    Protected,
    /// Long mode running a 16- or 32-bit code segment.
    Compatibility,
    /// Long mode running a 64-bit code segment.
    Long64,
}

impl fmt::Display for OperatingMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Real => "real mode",
            Self::Virtual8086 => "virtual-8086 mode",
            Self::Protected => "protected mode",
            Self::Compatibility => "compatibility mode",
            Self::Long64 => "64-bit mode",
        })
    }
}

/// Everything decoding, gating and addressing ask of the control registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The operating mode.
    pub operating: OperatingMode,
    /// 16, 32 or 64: the default operand and address size of the code segment.
    pub code_bits: u32,
    /// 16, 32 or 64: the width of the stack pointer.
    pub stack_bits: u32,
    /// The current privilege level.
    pub cpl: u8,
    /// Bits that must all equal the one below them in a canonical address: 47 or 56.
    pub canonical_shift: u32,
    /// All of it in a word, with the state gates that decoded code depends on: CR0.TS/EM/MP/NE,
    /// CR4.OSFXSR/OSXSAVE/OSXMMEXCPT/UMIP/TSD/PCE/FSGSBASE/PKE, IOPL, XCR0. Part of the key of
    /// every decoded block.
    pub key: u64,
}

/// Where the key has the CPL.
const CPL_SHIFT: u32 = 6;
/// The bits of CR4 in the key.
const CR4_GATES: u64 = cr4::OSFXSR
    | cr4::VME
    | cr4::PVI
    | cr4::OSXSAVE
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::TSD
    | cr4::PCE
    | cr4::FSGSBASE
    | cr4::PKE;
/// Where the key has bits of CR4.
const CR4_SHIFT: u32 = 16;

impl Mode {
    /// Derives the mode from the registers.
    pub fn of(state: &State) -> Self {
        let cs = &state.segments[seg::CS];
        let ss = &state.segments[seg::SS];
        let is_long = state.msrs.efer & efer::LMA != 0;
        let operating = if state.cr0 & cr0::PE == 0 {
            OperatingMode::Real
        } else if state.rflags & rflags::VM != 0 {
            OperatingMode::Virtual8086
        } else if is_long && cs.has(attr::L) {
            OperatingMode::Long64
        } else if is_long {
            OperatingMode::Compatibility
        } else {
            OperatingMode::Protected
        };
        let is_64 = operating == OperatingMode::Long64;
        let width = |segment: &crate::state::Segment| if segment.has(attr::DB) { 32 } else { 16 };
        let mode = Self {
            operating,
            code_bits: if is_64 { 64 } else { width(cs) },
            stack_bits: if is_64 { 64 } else { width(ss) },
            cpl: state.cpl,
            canonical_shift: if state.cr4 & cr4::LA57 != 0 { 56 } else { 47 },
            key: 0,
        };
        Self { key: mode.gates(state), ..mode }
    }

    fn gates(&self, state: &State) -> u64 {
        let cr0_gates = state.cr0 & (cr0::MP | cr0::EM | cr0::TS | cr0::NE);
        let iopl = (state.rflags & rflags::IOPL) >> 12;
        let operating = self.operating as u64;
        // CR0's four gates are bits 1 to 5, CR4's lie below bit 23, XCR0's used bits below bit 10.
        cr0_gates
            | u64::from(self.cpl) << CPL_SHIFT
            | operating << 8
            | u64::from(self.code_bits >> 5) << 11
            | iopl << 13
            | (state.cr4 & CR4_GATES) << CR4_SHIFT
            | (state.xcr0 & 0x3ff) << 48
    }

    /// The key of the same mode at another privilege, of a segment like the current one.
    pub fn key_at(&self, cpl: u8) -> u64 {
        self.key & !(3 << CPL_SHIFT) | u64::from(cpl & 3) << CPL_SHIFT
    }

    /// Whether `bit` of CR4 is set, one of those that are part of the key.
    pub fn has_cr4(&self, bit: u64) -> bool {
        self.key >> CR4_SHIFT & bit & CR4_GATES != 0
    }

    /// True in 64-bit mode.
    #[inline]
    pub fn is_64(&self) -> bool {
        self.code_bits == 64
    }

    /// True in real mode and virtual-8086 mode.
    #[inline]
    pub fn is_real_or_v86(&self) -> bool {
        matches!(self.operating, OperatingMode::Real | OperatingMode::Virtual8086)
    }

    /// True while EFER.LMA is set.
    #[inline]
    pub fn is_long(&self) -> bool {
        matches!(self.operating, OperatingMode::Compatibility | OperatingMode::Long64)
    }

    /// True if `address` is canonical.
    #[inline]
    pub fn is_canonical(&self, address: u64) -> bool {
        let high = (address as i64) >> self.canonical_shift;
        high == 0 || high == -1
    }
}
