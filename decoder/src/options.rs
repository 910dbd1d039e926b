//! How iced must decode for a guest of a given vendor.

use crate::{Feature, FeatureSet};
use iced_x86::DecoderOptions;

/// Whose decoding rules the guest's processor follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

/// iced's `DecoderOptions` for a guest processor of `vendor` that offers `features`.
///
/// - AMD: a near branch with an operand-size prefix in 64-bit mode has a 16-bit target (Intel
///   ignores the prefix), far pointers have no 64-bit offset form, UD0 has no ModRM byte, and LOCK
///   MOV CR0 is CR8. APM Vol. 3, "Near Branches in 64-Bit Mode"; SDM Vol. 2, "JMP-Jump".
/// - Without BMI1 or LZCNT the prefix F3 of TZCNT and LZCNT is ignored: they are BSF and BSR, no
///   invalid opcode (SDM Vol. 2, "TZCNT", "LZCNT").
/// - MPX stays off, so that BNDxxx decode as the reserved no-operations that they are on a
///   processor without it (SDM Vol. 1, "Intel MPX"). WBNOINVD stays on: its row needs no feature,
///   because a processor without it runs it as WBINVD.
/// - Never `NO_INVALID_CHECK`: a misplaced LOCK, a register form of a memory-only instruction or
///   a reserved encoding must come out as invalid.
pub fn decoder_options(vendor: Vendor, features: FeatureSet) -> u32 {
    let mut options = match vendor {
        Vendor::Intel => DecoderOptions::NONE,
        Vendor::Amd => DecoderOptions::AMD,
    };
    if !features.contains(Feature::Bmi1) {
        options |= DecoderOptions::NO_MPFX_0FBC;
    }
    if !features.contains(Feature::Lzcnt) {
        options |= DecoderOptions::NO_MPFX_0FBD;
    }
    if !features.contains(Feature::LahfLm) {
        options |= DecoderOptions::NO_LAHF_SAHF_64;
    }
    options
}
