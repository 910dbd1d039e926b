//! Which MSRs a guest reaches in the kernel: those that the CPU's own table has too.
//!
//! What a guest finds must not depend on the engine, and the table ([`cpu::msr::table`]) says what
//! there is. KVM knows more (performance counters, speculation controls, Hyper-V's), whatever
//! CPUID says. Where exits for MSRs are to be had, those come to us like the ones that KVM does not
//! know, and the table answers; a host without them shows its guests what it likes.

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::KvmError;

/// Where MSRs are, by first number and count: Intel's and the common ones, Hyper-V's, KVM's, those
/// of long mode, AMD's. The count is a multiple of eight.
const RANGES: [(u32, u32); 5] = [
    (0, 0x2000),
    (0x4000_0000, 0x200),
    (0x4b56_4d00, 0x20),
    (0xc000_0000, 0x2000),
    (0xc001_0000, 0x2000),
];

/// One bit for each MSR of a range: whether the kernel has it.
fn bitmap((first, count): (u32, u32), ours: &[u32]) -> Vec<u8> {
    let mut bitmap = vec![u8::MAX; count as usize / 8];
    let places = ours.iter().filter_map(|number| number.checked_sub(first));
    for place in places.filter(|&place| place < count) {
        bitmap[place as usize / 8] &= !(1 << (place % 8));
    }
    bitmap
}

/// Has guests of `fd` leave for the MSRs that are `ours`.
pub(crate) fn set(fd: &VmFd, ours: &[u32]) -> Result<(), KvmError> {
    let bitmaps = RANGES.map(|range| bitmap(range, ours));
    let ranges: [_; RANGES.len()] = std::array::from_fn(|index| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: RANGES[index].0,
        msr_count: RANGES[index].1,
        bitmap: &bitmaps[index],
    });
    fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(KvmError::of("KVM_X86_SET_MSR_FILTER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_what_is_not_ours() {
        let bitmap = bitmap((0x10, 16), &[0x1b, 0xf, 0x10, 0x20]);
        assert_eq!(bitmap, [0b1111_1110, 0b1111_0111]);
    }
}
