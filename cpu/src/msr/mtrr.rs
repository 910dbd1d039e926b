//! Memory type range registers (SDM Vol. 3A, "Memory Type Range Registers (MTRRs)").
//!
//! Memory types change nothing in an emulator without caches; the registers are kept, and checked,
//! because systems read them back and plan by them.

/// Variable ranges.
pub const VARIABLE_RANGES: usize = 8;
/// Fixed-range registers.
pub const FIXED_RANGES: usize = 11;

/// IA32_MTRRCAP: [`VARIABLE_RANGES`], fixed ranges (bit 8), write-combining (bit 10).
pub(crate) const MTRRCAP: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;

/// The MTRRs' values.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE.
    pub def_type: u64,
    /// IA32_MTRR_FIX64K_00000, FIX16K_80000, FIX16K_A0000, FIX4K_C0000 to F8000.
    pub fixed: [u64; FIXED_RANGES],
    /// IA32_MTRR_PHYSBASE0, PHYSMASK0, PHYSBASE1, ...
    pub variable: [u64; 2 * VARIABLE_RANGES],
}

const UNCACHEABLE: u64 = 0;
const WRITE_PROTECTED: u64 = 5;
const WRITE_BACK: u64 = 6;
const DEF_TYPE_ENABLE: u64 = 1 << 11;
const DEF_TYPE_FIXED_ENABLE: u64 = 1 << 10;
const MASK_VALID: u64 = 1 << 11;

impl Mtrrs {
    /// What a PC's firmware leaves: memory write-back, video memory and everything from
    /// `hole_base` to 4 GiB uncacheable, expansion ROMs write-protected. For guests that are
    /// started without firmware; Linux has no PAT without it.
    pub fn as_firmware_leaves(hole_base: u32, physical_bits: u32) -> Self {
        let each_byte = |kind: u64| kind * 0x0101_0101_0101_0101;
        let mut mtrrs = Self {
            def_type: DEF_TYPE_ENABLE | DEF_TYPE_FIXED_ENABLE | WRITE_BACK,
            fixed: [each_byte(WRITE_PROTECTED); FIXED_RANGES],
            ..Self::default()
        };
        // 0 to 512 KiB, 512 to 640 KiB; then the video memory.
        mtrrs.fixed[0] = each_byte(WRITE_BACK);
        mtrrs.fixed[1] = each_byte(WRITE_BACK);
        mtrrs.fixed[2] = each_byte(UNCACHEABLE);
        let physical = (1u64 << physical_bits.min(52)) - 1;
        let mut base = u64::from(hole_base) & !0xfff;
        // The hole as naturally aligned powers of two, as many as there are registers.
        for range in mtrrs.variable.chunks_exact_mut(2) {
            if base == 0 || base >= 1 << 32 {
                break;
            }
            let size = 1 << base.trailing_zeros();
            range.copy_from_slice(&[base | UNCACHEABLE, physical & !(size - 1) | MASK_VALID]);
            base += size;
        }
        mtrrs
    }
}

/// The index of MSR `number` (IA32_MTRR_FIX...) in [`Mtrrs::fixed`].
pub(super) fn fixed_index(number: u32) -> Option<usize> {
    match number {
        0x250 => Some(0),
        0x258..=0x259 => Some((number - 0x258) as usize + 1),
        0x268..=0x26f => Some((number - 0x268) as usize + 3),
        _ => None,
    }
}

/// True if `kind` is a memory type that an MTRR may hold.
pub(super) fn is_memory_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// True if every byte of `value` is a memory type.
pub(super) fn are_memory_types(value: u64) -> bool {
    value.to_le_bytes().iter().all(|&kind| is_memory_type(kind.into()))
}

/// True if every byte of `value` is a memory type that IA32_PAT may hold: UC- too.
pub(super) fn are_pat_types(value: u64) -> bool {
    value.to_le_bytes().iter().all(|&kind| kind == 7 || is_memory_type(kind.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The type of the physical address `at`, as the SDM's "MTRR Precedences" has it.
    fn type_of(mtrrs: &Mtrrs, at: u64) -> u64 {
        let hit = mtrrs
            .variable
            .chunks_exact(2)
            .find(|range| range[1] & MASK_VALID != 0 && (at ^ range[0]) & range[1] & !0xfff == 0);
        hit.map_or(mtrrs.def_type & 0xff, |range| range[0] & 0xff)
    }

    #[test]
    fn firmware_leaves_the_hole_uncacheable_and_nothing_else() {
        for hole in [0x8000_0000u32, 0xb000_0000, 0xc000_0000, 0xe000_0000, 0xfec0_0000] {
            let mtrrs = Mtrrs::as_firmware_leaves(hole, 40);
            let start = u64::from(hole);
            for (at, kind) in [
                (0x10_0000, WRITE_BACK),
                (start - 1, WRITE_BACK),
                (start, UNCACHEABLE),
                (0xffff_ffff, UNCACHEABLE),
                (1 << 32, WRITE_BACK),
            ] {
                assert_eq!(type_of(&mtrrs, at), kind, "{at:#x}, hole at {hole:#x}");
            }
            assert!(mtrrs.fixed.iter().all(|&value| are_memory_types(value)));
        }
    }
}
