//! What the host's processor is asked once.
// UNSAFETY: runs shifts in inline assembly to see what they do to undefined flags.
#![expect(unsafe_code, reason = "a host's behaviour is found by running its instructions")]

use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use decoder::{Feature, FeatureSet, Register};

/// True if no flag behind a shift by a constant depends on the flags before it. The manuals leave
/// AF undefined, and OF for counts above one; a processor that kept either would need the old
/// flags.
pub(crate) static SHIFTS_REPLACE_FLAGS: LazyLock<bool> = LazyLock::new(|| {
    const VALUES: [u64; 6] = [0, 1, 0x8000_0000_0000_0000, 0x0123_4567_89ab_cdef, u64::MAX, 0x4010];
    VALUES.iter().all(|&value| flags_after(value, 0x2) == flags_after(value, 0x8d7))
});

/// The status flags after several shifts of `value`, each begun with `before`.
fn flags_after(value: u64, before: u64) -> [u64; 12] {
    let mut results = [0; 12];
    macro_rules! shift {
        ($slot:literal, $text:literal) => {
            // SAFETY: 1. the instructions change the named register and flags only; 2. the stack
            // is used as PUSH and POP do, which the options do not forbid.
            unsafe {
                std::arch::asm!("push {f}", "popfq", $text, "pushfq", "pop {f}",
                    f = inout(reg) before => results[$slot], v = inout(reg) value => _);
            }
            results[$slot] &= 0x8d5;
        };
    }
    shift!(0, "shl {v}, 1");
    shift!(1, "shl {v}, 7");
    shift!(2, "shl {v:e}, 4");
    shift!(3, "shr {v}, 1");
    shift!(4, "shr {v}, 9");
    shift!(5, "shr {v:e}, 31");
    shift!(6, "sar {v}, 1");
    shift!(7, "sar {v}, 63");
    shift!(8, "sar {v:e}, 5");
    shift!(9, "shl {v:x}, 20");
    shift!(10, "shr {v:x}, 15");
    shift!(11, "sar {v:l}, 3");
    results
}

/// The instruction-set features of the host. A guest may have more: what the interpreter executes
/// by itself needs nothing of the host.
pub(crate) static FEATURES: LazyLock<FeatureSet> = LazyLock::new(|| {
    Feature::ALL.iter().copied().filter(|&feature| has_feature(feature)).collect()
});

fn has_feature(feature: Feature) -> bool {
    let (leaf, subleaf, register, bit) = feature.cpuid();
    let highest = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > highest {
        return false;
    }
    let answer = __cpuid_count(leaf, subleaf);
    let word = match register {
        Register::Eax => answer.eax,
        Register::Ebx => answer.ebx,
        Register::Ecx => answer.ecx,
        Register::Edx => answer.edx,
    };
    word >> bit & 1 != 0
}

/// True if user code may write the GS base by itself.
pub(crate) fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: getauxval(3) takes an integer and reads what the kernel gave the process.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}
