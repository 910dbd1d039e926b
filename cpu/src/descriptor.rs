//! Selectors, segment descriptors and gates, as they lie in the descriptor tables.
//!
//! Source: SDM Vol. 3A, "Segment Descriptors", "System Descriptor Types", "Call Gates", "IDT
//! Descriptors".

use crate::state::{Segment, attr};

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// True for the four selectors of GDT entry 0.
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// The requested privilege level.
    pub const fn rpl(self) -> u8 {
        self.0 as u8 & 3
    }
    /// TI: the descriptor is in the LDT.
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// The offset of the descriptor in its table.
    pub const fn offset(self) -> u64 {
        (self.0 & !7) as u64
    }
    /// What an error code holds: the selector without its RPL.
    pub const fn code(self) -> u16 {
        self.0 & !3
    }
    /// The same descriptor with another RPL.
    #[must_use]
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | rpl as u16)
    }
}

/// The types of system descriptors; in long mode the 32-bit ones mean 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum SystemType {
    Tss16Available = 1,
    Ldt = 2,
    Tss16Busy = 3,
    CallGate16 = 4,
    TaskGate = 5,
    InterruptGate16 = 6,
    TrapGate16 = 7,
    Tss32Available = 9,
    Tss32Busy = 0xb,
    CallGate32 = 0xc,
    InterruptGate32 = 0xe,
    TrapGate32 = 0xf,
}

impl SystemType {
    const fn of(kind: u16) -> Option<Self> {
        Some(match kind {
            1 => Self::Tss16Available,
            2 => Self::Ldt,
            3 => Self::Tss16Busy,
            4 => Self::CallGate16,
            5 => Self::TaskGate,
            6 => Self::InterruptGate16,
            7 => Self::TrapGate16,
            9 => Self::Tss32Available,
            0xb => Self::Tss32Busy,
            0xc => Self::CallGate32,
            0xe => Self::InterruptGate32,
            0xf => Self::TrapGate32,
            _ => return None,
        })
    }
}

/// An eight-byte descriptor: a code or data segment, a system segment, or a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Bits 31 to 0 of the base.
    pub base: u64,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// See [`attr`].
    pub attributes: u16,
    raw: u64,
}

/// The fields of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The code segment, or the TSS of a task gate.
    pub selector: Selector,
    /// Bits 31 to 0 of the entry point, or 15 to 0 in a 16-bit gate.
    pub offset: u64,
    /// Parameters to copy (call gates).
    pub parameters: u8,
    /// The interrupt stack table entry (interrupt and trap gates of long mode).
    pub ist: u8,
}

impl Descriptor {
    /// Takes a descriptor apart.
    pub const fn parse(raw: u64) -> Self {
        let raw_limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attributes = (raw >> 40) as u16 & 0xf0ff;
        let is_in_pages = attributes & attr::G != 0;
        let limit = if is_in_pages { raw_limit << 12 | 0xfff } else { raw_limit };
        let base = raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000;
        Self { base, limit, attributes, raw }
    }

    /// The descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.attributes & attr::DPL) >> attr::DPL_SHIFT) as u8
    }
    /// The present bit.
    pub const fn is_present(&self) -> bool {
        self.attributes & attr::P != 0
    }
    /// A code segment.
    pub const fn is_code(&self) -> bool {
        self.attributes & (attr::S | attr::CODE) == attr::S | attr::CODE
    }
    /// A code segment that runs at the CPL of its caller.
    pub const fn is_conforming(&self) -> bool {
        self.is_code() && self.attributes & attr::DC != 0
    }
    /// A code segment of 64-bit mode.
    pub const fn is_long_code(&self) -> bool {
        self.is_code() && self.attributes & (attr::L | attr::DB) == attr::L
    }
    /// A data segment that may be written.
    pub const fn is_writable_data(&self) -> bool {
        self.attributes & (attr::S | attr::CODE | attr::RW) == attr::S | attr::RW
    }
    /// A data segment or a code segment that may be read.
    pub const fn is_readable(&self) -> bool {
        let is_execute_only = self.attributes & (attr::CODE | attr::RW) == attr::CODE;
        self.attributes & attr::S != 0 && !is_execute_only
    }
    /// The type of a system descriptor; `None` for code, data and reserved types.
    pub const fn system_type(&self) -> Option<SystemType> {
        if self.attributes & attr::S != 0 {
            return None;
        }
        SystemType::of(self.attributes & attr::TYPE)
    }
    /// Bits 23 to 8 of the high doubleword without the limit's nibble, where LAR puts them.
    pub const fn access_rights(&self) -> u32 {
        (self.raw >> 32) as u32 & 0x00f0_ff00
    }
    /// The fields of a gate; the 16-bit types have no high offset.
    pub const fn gate(&self) -> Gate {
        let is_wide = self.attributes & 8 != 0;
        let high = if is_wide { self.raw >> 32 & 0xffff_0000 } else { 0 };
        Gate {
            selector: Selector((self.raw >> 16) as u16),
            offset: self.raw & 0xffff | high,
            parameters: (self.raw >> 32) as u8 & 0x1f,
            ist: (self.raw >> 32) as u8 & 7,
        }
    }
    /// The segment register that a load of this descriptor gives.
    pub const fn segment(&self, selector: Selector) -> Segment {
        Segment {
            selector: selector.0,
            attributes: self.attributes,
            limit: self.limit,
            base: self.base,
        }
    }
}

impl Segment {
    /// True if `bytes` bytes at `offset` are inside the limit (SDM Vol. 3A, "Limit Checking").
    pub const fn contains(&self, offset: u64, bytes: u64) -> bool {
        let last = offset.wrapping_add(bytes.wrapping_sub(1));
        if self.attributes & (attr::CODE | attr::DC) == attr::DC {
            let top = if self.attributes & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > self.limit as u64 && last <= top && last >= offset
        } else {
            last <= self.limit as u64 && last >= offset
        }
    }

    /// What a load of null selector `selector` leaves over a segment that had `base`.
    pub const fn null(selector: Selector, base: u64) -> Self {
        // DPL mirrors the RPL so that a null SS tells its CPL as a loaded one would.
        let dpl = (selector.rpl() as u16) << attr::DPL_SHIFT;
        Self { selector: selector.0, attributes: attr::UNUSABLE | dpl, limit: 0, base }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_descriptors_come_apart() {
        // raw, base, limit, long code
        let rows = [
            (0x00cf_9b00_0000_ffff_u64, 0, 0xffff_ffff_u32, false),
            (0x00af_9b00_0000_ffff, 0, 0xffff_ffff, true),
            (0x1240_9256_3412_ffff, 0x1256_3412, 0xffff, false),
            (0x0001_8b00_1000_0067, 0x1000, 0x1_0067, false),
        ];
        for (raw, base, limit, is_long) in rows {
            let descriptor = Descriptor::parse(raw);
            assert_eq!((descriptor.base, descriptor.limit), (base, limit), "{raw:#x}");
            assert_eq!(descriptor.is_long_code(), is_long, "{raw:#x}");
        }
    }

    #[test]
    fn gates_come_apart() {
        let gate = Descriptor::parse(0x1234_ec05_0010_5678);
        assert_eq!(gate.system_type(), Some(SystemType::CallGate32));
        let expected =
            Gate { selector: Selector(0x10), offset: 0x1234_5678, parameters: 5, ist: 5 };
        assert_eq!(gate.gate(), expected);
        let narrow = Descriptor::parse(0x1234_8600_0008_5678);
        assert_eq!(narrow.gate().offset, 0x5678);
    }

    #[test]
    fn limits_hold_upwards_and_downwards() {
        let up = Descriptor::parse(0x0000_9200_0000_0fff).segment(Selector(8));
        assert!(up.contains(0xffc, 4) && !up.contains(0xffd, 4) && !up.contains(u64::MAX, 2));
        let down = Descriptor::parse(0x0000_9600_0000_0fff).segment(Selector(8));
        assert!(down.contains(0x1000, 4) && !down.contains(0xfff, 1));
        assert!(down.contains(0xfffc, 4) && !down.contains(0xfffd, 4));
    }
}
