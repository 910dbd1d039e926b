//! From iced's CPUID features to ours.

use crate::{Feature, FeatureSet};
use iced_x86::CpuidFeature;

/// What the guest's CPUID must say for one of iced's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: every processor that we model has it.
    Base,
    /// This feature.
    Offered(Feature),
    /// We never offer it.
    Refused,
}

/// The need that `feature` stands for.
#[expect(clippy::too_many_lines, reason = "one line a feature")]
#[rustfmt::skip]
pub(crate) fn need(feature: CpuidFeature) -> Need {
    use CpuidFeature as C;
    use Need::{Base, Offered as O, Refused};
    match feature {
        C::INTEL8086 | C::INTEL186 | C::INTEL286 | C::INTEL386 | C::INTEL486 | C::CPUID
        | C::MULTIBYTENOP | C::PAUSE | C::RDPMC => Base,
        // Decoded in 64-bit mode only, which cannot be entered without the feature LM.
        C::X64 => Base,
        C::ADX => O(Feature::Adx),
        C::AES => O(Feature::Aes),
        C::AVX => O(Feature::Avx),
        C::AVX2 => O(Feature::Avx2),
        C::AVX512_BF16 => O(Feature::Avx512Bf16),
        C::AVX512_BITALG => O(Feature::Avx512Bitalg),
        C::AVX512_FP16 => O(Feature::Avx512Fp16),
        C::AVX512_IFMA => O(Feature::Avx512Ifma),
        C::AVX512_VBMI => O(Feature::Avx512Vbmi),
        C::AVX512_VBMI2 => O(Feature::Avx512Vbmi2),
        C::AVX512_VNNI => O(Feature::Avx512Vnni),
        C::AVX512_VP2INTERSECT => O(Feature::Avx512Vp2intersect),
        C::AVX512_VPOPCNTDQ => O(Feature::Avx512Vpopcntdq),
        C::AVX512BW => O(Feature::Avx512Bw),
        C::AVX512CD => O(Feature::Avx512Cd),
        C::AVX512DQ => O(Feature::Avx512Dq),
        C::AVX512F => O(Feature::Avx512F),
        C::AVX512VL => O(Feature::Avx512Vl),
        C::AVX_IFMA => O(Feature::AvxIfma),
        C::AVX_NE_CONVERT => O(Feature::AvxNeConvert),
        C::AVX_VNNI => O(Feature::AvxVnni),
        C::AVX_VNNI_INT8 => O(Feature::AvxVnniInt8),
        C::AVX_VNNI_INT16 => O(Feature::AvxVnniInt16),
        C::BMI1 => O(Feature::Bmi1),
        C::BMI2 => O(Feature::Bmi2),
        C::CLFLUSHOPT => O(Feature::Clflushopt),
        C::CLFSH => O(Feature::Clfsh),
        C::CLWB => O(Feature::Clwb),
        C::CLZERO => O(Feature::Clzero),
        C::CMOV => O(Feature::Cmov),
        C::CMPXCHG16B => O(Feature::Cx16),
        C::CX8 => O(Feature::Cx8),
        C::F16C => O(Feature::F16c),
        C::FMA => O(Feature::Fma),
        C::FPU | C::FPU287 | C::FPU387 => O(Feature::Fpu),
        C::FSGSBASE => O(Feature::Fsgsbase),
        C::FXSR => O(Feature::Fxsr),
        C::GFNI => O(Feature::Gfni),
        C::INVPCID => O(Feature::Invpcid),
        C::LZCNT => O(Feature::Lzcnt),
        C::MMX => O(Feature::Mmx),
        C::MONITOR => O(Feature::Monitor),
        C::MONITORX => O(Feature::Monitorx),
        C::MOVBE => O(Feature::Movbe),
        C::MOVDIR64B => O(Feature::Movdir64b),
        C::MOVDIRI => O(Feature::Movdiri),
        C::MSR => O(Feature::Msr),
        C::PCLMULQDQ => O(Feature::Pclmulqdq),
        C::PKU => O(Feature::Pku),
        C::POPCNT => O(Feature::Popcnt),
        C::RDPID => O(Feature::Rdpid),
        C::RDPRU => O(Feature::Rdpru),
        C::RDRAND => O(Feature::Rdrand),
        C::RDSEED => O(Feature::Rdseed),
        C::RDTSCP => O(Feature::Rdtscp),
        C::SEP => O(Feature::Sep),
        C::SERIALIZE => O(Feature::Serialize),
        C::SHA => O(Feature::Sha),
        C::SHA512 => O(Feature::Sha512),
        C::SM3 => O(Feature::Sm3),
        C::SM4 => O(Feature::Sm4),
        C::SMAP => O(Feature::Smap),
        C::SSE => O(Feature::Sse),
        C::SSE2 => O(Feature::Sse2),
        C::SSE3 => O(Feature::Sse3),
        C::SSE4_1 => O(Feature::Sse4_1),
        C::SSE4_2 => O(Feature::Sse4_2),
        C::SSE4A => O(Feature::Sse4a),
        C::SSSE3 => O(Feature::Ssse3),
        C::SYSCALL => O(Feature::Syscall),
        C::TSC => O(Feature::Tsc),
        C::VAES => O(Feature::Vaes),
        C::VPCLMULQDQ => O(Feature::Vpclmulqdq),
        C::XSAVE => O(Feature::Xsave),
        C::XSAVEC => O(Feature::Xsavec),
        C::XSAVEOPT => O(Feature::Xsaveopt),
        C::XSAVES => O(Feature::Xsaves),
        _ => Refused,
    }
}

/// The features whose instructions work on MMX, vector and mask registers.
#[rustfmt::skip]
pub(crate) const VECTOR: FeatureSet = {
    use Feature as F;
    const LIST: &[F] = &[
        F::Mmx, F::Sse, F::Sse2, F::Sse3, F::Ssse3, F::Sse4_1, F::Sse4_2, F::Sse4a, F::Aes,
        F::Pclmulqdq, F::Sha, F::Sha512, F::Sm3, F::Sm4, F::Gfni, F::F16c, F::Fma, F::Avx, F::Avx2,
        F::Vaes, F::Vpclmulqdq, F::AvxIfma, F::AvxNeConvert, F::AvxVnni, F::AvxVnniInt8,
        F::AvxVnniInt16, F::Avx512F, F::Avx512Dq, F::Avx512Ifma, F::Avx512Cd, F::Avx512Bw,
        F::Avx512Vl, F::Avx512Vbmi, F::Avx512Vbmi2, F::Avx512Vnni, F::Avx512Bitalg,
        F::Avx512Vpopcntdq, F::Avx512Vp2intersect, F::Avx512Fp16, F::Avx512Bf16,
    ];
    let mut set = FeatureSet::EMPTY;
    let mut index = 0;
    while index < LIST.len() {
        set = set.with(LIST[index]);
        index += 1;
    }
    set
};
