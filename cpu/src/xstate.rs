//! The components of XSAVE state: where they are, and how they go in and out.
//!
//! One table for the instructions and for CPUID leaf 0xD. The offsets of the standard format are
//! those of Intel's processors; software must take them from CPUID (SDM Vol. 1, "Standard Format of
//! XSAVE Area").

use decoder::Feature;

use crate::fpu::{FpuState, get, put};
use crate::state::State;

/// XCR0 bits.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod xcr0 {
    use decoder::{Feature, FeatureSet};

    pub const X87: u64 = 1;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const OPMASK: u64 = 1 << 5;
    pub const ZMM_HI256: u64 = 1 << 6;
    pub const HI16_ZMM: u64 = 1 << 7;
    pub const PKRU: u64 = 1 << 9;
    /// The three components of AVX-512.
    pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;
    /// In the standard format MXCSR goes with either.
    pub const MXCSR_OWNERS: u64 = SSE | AVX;

    /// The bits that a guest with `features` may set.
    pub fn supported(features: FeatureSet) -> u64 {
        let bits = [(Feature::Avx, AVX), (Feature::Avx512F, AVX512), (Feature::Pku, PKRU)];
        let has = |(feature, _): &(Feature, u64)| features.contains(*feature);
        bits.into_iter().filter(has).fold(X87 | SSE, |all, (_, bits)| all | bits)
    }

    /// The rules between the bits (SDM Vol. 1, "Extended Control Register XCR0").
    pub fn is_valid(value: u64, supported: u64) -> bool {
        let has_avx512 = value & AVX512;
        value & X87 != 0
            && value & !supported == 0
            && (value & AVX == 0 || value & SSE != 0)
            && (has_avx512 == 0 || has_avx512 == AVX512 && value & AVX != 0)
    }
}

/// A component behind the legacy region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveComponent {
    /// Its bit number in XCR0, and its subleaf of CPUID leaf 0xD.
    pub number: u32,
    /// Its offset in the standard format, in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// The feature it comes with.
    pub feature: Feature,
}

const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;
const PKRU: u32 = 9;

/// Bytes of the legacy region and the header.
pub const XSAVE_HEADER_END: usize = 576;

impl XsaveComponent {
    /// The extended components, in order. None wants alignment to 64 bytes in the compacted format.
    #[rustfmt::skip]
    pub const EXTENDED: &[Self] = &[
        Self { number: AVX,       offset: 576,  size: 256,  feature: Feature::Avx },
        Self { number: OPMASK,    offset: 1088, size: 64,   feature: Feature::Avx512F },
        Self { number: ZMM_HI256, offset: 1152, size: 512,  feature: Feature::Avx512F },
        Self { number: HI16_ZMM,  offset: 1664, size: 1024, feature: Feature::Avx512F },
        Self { number: PKRU,      offset: 2688, size: 8,    feature: Feature::Pku },
    ];

    /// The bytes of an area in the standard format that holds the components of `xcr0`.
    pub fn standard_area_bytes(xcr0: u64) -> usize {
        let ends = Self::EXTENDED.iter().filter(|c| xcr0 & c.bit() != 0).map(|c| c.offset + c.size);
        ends.max().unwrap_or(XSAVE_HEADER_END)
    }

    /// The bytes of an area in the compacted format that holds the components of `xcr0`.
    pub fn compacted_area_bytes(xcr0: u64) -> usize {
        let sizes = Self::EXTENDED.iter().filter(|c| xcr0 & c.bit() != 0).map(|c| c.size);
        XSAVE_HEADER_END + sizes.sum::<usize>()
    }

    /// Its bit in XCR0.
    pub const fn bit(&self) -> u64 {
        1 << self.number
    }

    /// True unless it is in its initial configuration, which is all zeroes.
    pub(crate) fn is_in_use(&self, state: &State) -> bool {
        let any = |registers: &[[u8; 64]], from: usize, to: usize| {
            registers.iter().any(|register| register[from..to].iter().any(|&byte| byte != 0))
        };
        let zmm = &state.fpu.zmm;
        match self.number {
            AVX => any(&zmm[..16], 16, 32),
            OPMASK => state.fpu.opmask != [0; 8],
            ZMM_HI256 => any(&zmm[..16], 32, 64),
            HI16_ZMM => any(&zmm[16..], 0, 64),
            _ => state.pkru != 0,
        }
    }

    /// Writes the component to the start of `area`; gives the bytes written. Outside 64-bit mode
    /// the registers that only it has are left out.
    pub fn save(&self, state: &State, is_64: bool, area: &mut [u8]) -> usize {
        let count = if is_64 { 16 } else { 8 };
        let zmm = &state.fpu.zmm;
        match self.number {
            AVX => save_parts::<16>(&zmm[..count], 16, area),
            OPMASK => {
                (0..).zip(state.fpu.opmask).map(|(n, k)| put(area, 8 * n, k.to_le_bytes())).sum()
            }
            ZMM_HI256 => save_parts::<32>(&zmm[..count], 32, area),
            HI16_ZMM if is_64 => save_parts::<64>(&zmm[16..], 0, area),
            HI16_ZMM => 0,
            _ => put(area, 0, u64::from(state.pkru).to_le_bytes()),
        }
    }

    /// Loads the component from the start of `area`; see [`XsaveComponent::save`].
    pub fn restore(&self, state: &mut State, is_64: bool, area: &[u8]) {
        let count = if is_64 { 16 } else { 8 };
        let zmm = &mut state.fpu.zmm;
        match self.number {
            AVX => restore_parts::<16>(&mut zmm[..count], 16, area),
            OPMASK => {
                for (index, opmask) in state.fpu.opmask.iter_mut().enumerate() {
                    *opmask = u64::from_le_bytes(get(area, 8 * index));
                }
            }
            ZMM_HI256 => restore_parts::<32>(&mut zmm[..count], 32, area),
            HI16_ZMM if is_64 => restore_parts::<64>(&mut zmm[16..], 0, area),
            HI16_ZMM => {}
            _ => state.pkru = u32::from_le_bytes(get(area, 0)),
        }
    }
}

/// Writes `N` bytes at `from` of each register, one behind the other.
fn save_parts<const N: usize>(registers: &[[u8; 64]], from: usize, area: &mut [u8]) -> usize {
    let parts = registers.iter().enumerate();
    parts.map(|(index, register)| put::<N>(area, N * index, get(register, from))).sum()
}

fn restore_parts<const N: usize>(registers: &mut [[u8; 64]], from: usize, area: &[u8]) {
    for (index, register) in registers.iter_mut().enumerate() {
        put::<N>(register, from, get(area, N * index));
    }
}

impl FpuState {
    /// The legacy components that differ from their initial configuration. MXCSR is no part of it.
    pub(crate) fn legacy_in_use(&self) -> u64 {
        let is_x87_initial = (self.fcw, self.fsw, self.ftw) == (0x37f, 0, 0)
            && (self.fop, self.fip, self.fdp, self.fcs, self.fds) == (0, 0, 0, 0, 0)
            && self.x87 == [[0; 16]; 8];
        let has_xmm = self.zmm[..16].iter().any(|register| register[..16] != [0; 16]);
        let x87 = if is_x87_initial { 0 } else { xcr0::X87 };
        x87 | if has_xmm { xcr0::SSE } else { 0 }
    }
}
