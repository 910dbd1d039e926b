//! The local vector table (SDM Vol. 3A, "Local Vector Table").

use super::message::DeliveryMode;

/// Entries of the local vector table, in the order of their MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvtEntry {
    /// The APIC timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// Performance-monitoring counters.
    PerformanceMonitoring,
    /// Pin LINT0.
    Lint0,
    /// Pin LINT1.
    Lint1,
    /// Errors the APIC itself found.
    Error,
}

/// The number of entries.
pub(super) const LVT_COUNT: usize = 6;

/// Bit 16: the entry raises nothing.
pub(super) const LVT_MASKED: u32 = 1 << 16;
/// Bit 15 of LINT0: level-triggered.
pub(super) const LVT_LEVEL: u32 = 1 << 15;
/// Bit 14 of LINT0: a level-triggered interrupt was accepted and not ended yet.
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
/// Bit 12, delivery status: read-only, and always idle here.
const LVT_DELIVERY_STATUS: u32 = 1 << 12;

impl LvtEntry {
    pub(super) const ALL: [Self; LVT_COUNT] = [
        Self::Timer,
        Self::Thermal,
        Self::PerformanceMonitoring,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];

    /// Bits that software can set.
    pub(super) fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00FF,
            Self::Error => 0x0001_00FF,
            Self::Thermal | Self::PerformanceMonitoring => 0x0001_07FF,
            Self::Lint0 | Self::Lint1 => 0x0001_A7FF,
        }
    }

    /// Bits that are not reserved: writable ones and read-only status.
    pub(super) fn defined(self) -> u32 {
        let remote_irr = match self {
            Self::Lint0 | Self::Lint1 => LVT_REMOTE_IRR,
            _ => 0,
        };
        self.writable() | LVT_DELIVERY_STATUS | remote_irr
    }

    /// Bits that a value has of its own: writable ones and remote IRR.
    pub(super) fn kept(self) -> u32 {
        self.defined() & !LVT_DELIVERY_STATUS
    }

    /// What the entry with value `lvt` raises; `None` for a reserved mode.
    pub(super) fn delivery(self, lvt: u32) -> Option<DeliveryMode> {
        match self {
            Self::Timer | Self::Error => Some(DeliveryMode::Fixed),
            _ => DeliveryMode::from_bits(lvt),
        }
    }
}
