//! The CPUID features without which an instruction is an invalid opcode.

/// The register of a CPUID leaf that holds a feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Makes an enum of CPUID features, their names and positions, and a set of them, from one list, so
/// that none of it can miss an entry.
///
/// The set is a bit mask of the type in parentheses. A row is the variant, its name on command
/// lines, and where CPUID reports it: leaf, subleaf, register, bit.
#[macro_export]
macro_rules! cpuid_features {
    (
        $(#[$set_doc:meta])* pub struct $Set:ident($Bits:ty);
        $(#[$doc:meta])* pub enum $Feature:ident;
        $($name:ident $text:literal $leaf:literal $subleaf:literal $register:ident $bit:literal)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $Feature { $(#[doc = $text] $name),* }

        impl $Feature {
            /// Every feature, in the order of CPUID's leaves.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name that command lines use: that of the kernel's `/proc/cpuinfo` if it has one.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Where CPUID reports the feature: leaf, subleaf, register, bit.
            pub const fn cpuid(self) -> (u32, u32, $crate::Register, u8) {
                use $crate::Register;
                match self { $(Self::$name => ($leaf, $subleaf, Register::$register, $bit)),* }
            }
        }

        $(#[$set_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $Set($Bits);

        const _: () = assert!($Feature::ALL.len() <= <$Bits>::BITS as usize);

        impl $Set {
            /// No feature.
            pub const EMPTY: Self = Self(0);

            /// Every feature there is.
            pub const fn all() -> Self {
                Self::of($Feature::ALL)
            }

            /// The set of the features in `list`.
            pub const fn of(list: &[$Feature]) -> Self {
                let mut set = Self::EMPTY;
                let mut index = 0;
                while index < list.len() {
                    set = set.with(list[index]);
                    index += 1;
                }
                set
            }

            /// This set with `feature` added.
            #[must_use]
            pub const fn with(self, feature: $Feature) -> Self {
                Self(self.0 | 1 << feature as u32)
            }

            /// This set with `feature` taken away.
            #[must_use]
            pub const fn without(self, feature: $Feature) -> Self {
                Self(self.0 & !(1 << feature as u32))
            }

            /// The features of both sets together.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The features that are in both sets.
            #[must_use]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// True if `feature` is in the set.
            #[inline]
            pub const fn contains(self, feature: $Feature) -> bool {
                self.0 & 1 << feature as u32 != 0
            }

            /// True if every feature of `needed` is in the set.
            #[inline]
            pub const fn contains_all(self, needed: Self) -> bool {
                needed.0 & !self.0 == 0
            }

            /// True if the set holds nothing.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// The features of the set, in the order of CPUID's leaves.
            pub fn iter(self) -> impl Iterator<Item = $Feature> {
                $Feature::ALL.iter().copied().filter(move |&feature| self.contains(feature))
            }
        }

        impl FromIterator<$Feature> for $Set {
            fn from_iter<I: IntoIterator<Item = $Feature>>(features: I) -> Self {
                features.into_iter().fold(Self::EMPTY, Self::with)
            }
        }
    };
}

// SDM Vol. 2A, "CPUID-CPU Identification"; APM Vol. 3, "Obtaining Processor Information Via the
// CPUID Instruction". Leaf 0x8000_0001 and 0x8000_0008 are AMD's but for what both vendors have.
#[rustfmt::skip]
cpuid_features! {
    /// A set of [`Feature`]s.
    pub struct FeatureSet(u128);
    /// A CPUID feature that gates instructions. The documentation of a variant is its name.
    pub enum Feature;

    Sse3               "sse3"               0x0000_0001 0 Ecx 0
    Pclmulqdq          "pclmulqdq"          0x0000_0001 0 Ecx 1
    Monitor            "monitor"            0x0000_0001 0 Ecx 3
    Ssse3              "ssse3"              0x0000_0001 0 Ecx 9
    Fma                "fma"                0x0000_0001 0 Ecx 12
    Cx16               "cx16"               0x0000_0001 0 Ecx 13
    Sse4_1             "sse4_1"             0x0000_0001 0 Ecx 19
    Sse4_2             "sse4_2"             0x0000_0001 0 Ecx 20
    Movbe              "movbe"              0x0000_0001 0 Ecx 22
    Popcnt             "popcnt"             0x0000_0001 0 Ecx 23
    Aes                "aes"                0x0000_0001 0 Ecx 25
    Xsave              "xsave"              0x0000_0001 0 Ecx 26
    Avx                "avx"                0x0000_0001 0 Ecx 28
    F16c               "f16c"               0x0000_0001 0 Ecx 29
    Rdrand             "rdrand"             0x0000_0001 0 Ecx 30
    Fpu                "fpu"                0x0000_0001 0 Edx 0
    Tsc                "tsc"                0x0000_0001 0 Edx 4
    Msr                "msr"                0x0000_0001 0 Edx 5
    Cx8                "cx8"                0x0000_0001 0 Edx 8
    Sep                "sep"                0x0000_0001 0 Edx 11
    Cmov               "cmov"               0x0000_0001 0 Edx 15
    Clfsh              "clflush"            0x0000_0001 0 Edx 19
    Mmx                "mmx"                0x0000_0001 0 Edx 23
    Fxsr               "fxsr"               0x0000_0001 0 Edx 24
    Sse                "sse"                0x0000_0001 0 Edx 25
    Sse2               "sse2"               0x0000_0001 0 Edx 26
    Fsgsbase           "fsgsbase"           0x0000_0007 0 Ebx 0
    Bmi1               "bmi1"               0x0000_0007 0 Ebx 3
    Avx2               "avx2"               0x0000_0007 0 Ebx 5
    Bmi2               "bmi2"               0x0000_0007 0 Ebx 8
    Invpcid            "invpcid"            0x0000_0007 0 Ebx 10
    Avx512F            "avx512f"            0x0000_0007 0 Ebx 16
    Avx512Dq           "avx512dq"           0x0000_0007 0 Ebx 17
    Rdseed             "rdseed"             0x0000_0007 0 Ebx 18
    Adx                "adx"                0x0000_0007 0 Ebx 19
    Smap               "smap"               0x0000_0007 0 Ebx 20
    Avx512Ifma         "avx512ifma"         0x0000_0007 0 Ebx 21
    Clflushopt         "clflushopt"         0x0000_0007 0 Ebx 23
    Clwb               "clwb"               0x0000_0007 0 Ebx 24
    Avx512Cd           "avx512cd"           0x0000_0007 0 Ebx 28
    Sha                "sha_ni"             0x0000_0007 0 Ebx 29
    Avx512Bw           "avx512bw"           0x0000_0007 0 Ebx 30
    Avx512Vl           "avx512vl"           0x0000_0007 0 Ebx 31
    Avx512Vbmi         "avx512vbmi"         0x0000_0007 0 Ecx 1
    Pku                "pku"                0x0000_0007 0 Ecx 3
    Avx512Vbmi2        "avx512_vbmi2"       0x0000_0007 0 Ecx 6
    Gfni               "gfni"               0x0000_0007 0 Ecx 8
    Vaes               "vaes"               0x0000_0007 0 Ecx 9
    Vpclmulqdq         "vpclmulqdq"         0x0000_0007 0 Ecx 10
    Avx512Vnni         "avx512_vnni"        0x0000_0007 0 Ecx 11
    Avx512Bitalg       "avx512_bitalg"      0x0000_0007 0 Ecx 12
    Avx512Vpopcntdq    "avx512_vpopcntdq"   0x0000_0007 0 Ecx 14
    Rdpid              "rdpid"              0x0000_0007 0 Ecx 22
    Movdiri            "movdiri"            0x0000_0007 0 Ecx 27
    Movdir64b          "movdir64b"          0x0000_0007 0 Ecx 28
    Avx512Vp2intersect "avx512_vp2intersect" 0x0000_0007 0 Edx 8
    Serialize          "serialize"          0x0000_0007 0 Edx 14
    Avx512Fp16         "avx512_fp16"        0x0000_0007 0 Edx 23
    Sha512             "sha512"             0x0000_0007 1 Eax 0
    Sm3                "sm3"                0x0000_0007 1 Eax 1
    Sm4                "sm4"                0x0000_0007 1 Eax 2
    AvxVnni            "avx_vnni"           0x0000_0007 1 Eax 4
    Avx512Bf16         "avx512_bf16"        0x0000_0007 1 Eax 5
    AvxIfma            "avx_ifma"           0x0000_0007 1 Eax 23
    AvxVnniInt8        "avx_vnni_int8"      0x0000_0007 1 Edx 4
    AvxNeConvert       "avx_ne_convert"     0x0000_0007 1 Edx 5
    AvxVnniInt16       "avx_vnni_int16"     0x0000_0007 1 Edx 10
    Xsaveopt           "xsaveopt"           0x0000_000d 1 Eax 0
    Xsavec             "xsavec"             0x0000_000d 1 Eax 1
    Xsaves             "xsaves"             0x0000_000d 1 Eax 3
    LahfLm             "lahf_lm"            0x8000_0001 0 Ecx 0
    Lzcnt              "abm"                0x8000_0001 0 Ecx 5
    Sse4a              "sse4a"              0x8000_0001 0 Ecx 6
    Monitorx           "mwaitx"             0x8000_0001 0 Ecx 29
    Syscall            "syscall"            0x8000_0001 0 Edx 11
    Rdtscp             "rdtscp"             0x8000_0001 0 Edx 27
    Lm                 "lm"                 0x8000_0001 0 Edx 29
    Clzero             "clzero"             0x8000_0008 0 Ebx 0
    Rdpru              "rdpru"              0x8000_0008 0 Ebx 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_feature_has_a_position_and_a_name_of_its_own() {
        let positions: HashSet<_> = Feature::ALL
            .iter()
            .map(|f| f.cpuid())
            .map(|(leaf, sub, reg, bit)| (leaf, sub, reg as u8, bit))
            .collect();
        let names: HashSet<_> = Feature::ALL.iter().map(|f| f.name()).collect();
        assert_eq!(positions.len(), Feature::ALL.len());
        assert_eq!(names.len(), Feature::ALL.len());
        assert!(Feature::ALL.iter().all(|f| f.cpuid().3 < 32));
    }

    #[test]
    fn a_set_contains_what_was_put_in_and_nothing_else() {
        let set = FeatureSet::EMPTY.with(Feature::Avx).with(Feature::Rdpru);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Feature::Avx, Feature::Rdpru]);
        assert!(FeatureSet::all().contains_all(set));
        assert!(!set.contains_all(FeatureSet::all()));
        assert!(set.without(Feature::Avx).without(Feature::Rdpru).is_empty());
    }
}
