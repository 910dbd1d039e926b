//! Base address registers: what a function decodes, and where software put it.
//!
//! Source: PCI Local Bus Specification 3.0, "Base Addresses". Software may program any address, on
//! top of RAM or of other functions too. The maps never let ranges overlap, so such a BAR is simply
//! not decoded; it is tried again at the function's next configuration write.

use std::sync::Arc;

use memory::{Device, GuestPhysical, PhysicalSpace, PortSpace, RegionKind};

use super::config_space::{BAR0, COMMAND, COMMAND_IO, COMMAND_MEMORY, ConfigSpace};

/// Addresses that no processor has bits for are not decoded.
const ADDRESS_LIMIT: u64 = 1 << 52;
const PORT_LIMIT: u64 = 1 << 16;

/// What kind of addresses a BAR holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports; at least 4.
    Io,
    /// Memory below 4 GiB; at least 16 bytes.
    Memory32,
    /// Memory anywhere, prefetchable; takes two registers.
    Memory64,
}

/// One BAR of a function.
#[derive(Clone)]
pub struct BarSpec {
    /// Register number, 0 to 5.
    pub index: u8,
    /// What kind of addresses it holds.
    pub kind: BarKind,
    /// Size in bytes, rounded up to a power of two.
    pub bytes: u64,
    /// What answers there.
    pub device: Arc<dyn Device>,
}

impl BarSpec {
    fn offset(&self) -> u16 {
        BAR0 + 4 * u16::from(self.index.min(5))
    }

    fn size(&self) -> u64 {
        let (least, most) = match self.kind {
            BarKind::Io => (4, 256),
            BarKind::Memory32 => (16, 1 << 30),
            BarKind::Memory64 => (16, 1 << 40),
        };
        self.bytes.clamp(least, most).next_power_of_two()
    }

    /// The register's bits that are not address.
    fn type_bits(&self) -> u32 {
        match self.kind {
            BarKind::Io => 0b01,
            BarKind::Memory32 => 0b0000,
            BarKind::Memory64 => 0b1100,
        }
    }

    /// Where software wants the range, if it is enabled and fits the address space.
    fn wanted(&self, config: &ConfigSpace) -> Option<u64> {
        let command = config.u16(COMMAND);
        let low = u64::from(config.u32(self.offset()));
        let (enable, value, limit) = match self.kind {
            BarKind::Io => (COMMAND_IO, low, PORT_LIMIT),
            BarKind::Memory32 => (COMMAND_MEMORY, low, 1 << 32),
            BarKind::Memory64 => {
                let high = u64::from(config.u32(self.offset() + 4));
                (COMMAND_MEMORY, high << 32 | low, ADDRESS_LIMIT)
            }
        };
        let base = value & !(self.size() - 1);
        let fits = base.checked_add(self.size()).is_some_and(|end| end <= limit);
        (command & enable != 0 && base != 0 && fits).then_some(base)
    }
}

/// A BAR, for who looks at the machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSnapshot {
    /// Register number, 0 to 5.
    pub index: u8,
    /// What kind of addresses it holds.
    pub kind: BarKind,
    /// Its size.
    pub bytes: u64,
    /// Where it is decoded, if it is.
    pub base: Option<u64>,
}

/// The BARs of one function and where they are mapped now.
pub struct Bars {
    space: Arc<PhysicalSpace>,
    ports: Arc<PortSpace>,
    bars: Vec<(BarSpec, Option<u64>)>,
}

impl Bars {
    /// The BARs `specs`, not mapped; makes their registers in `config`.
    pub fn new(
        specs: Vec<BarSpec>,
        config: &mut ConfigSpace,
        space: Arc<PhysicalSpace>,
        ports: Arc<PortSpace>,
    ) -> Self {
        for spec in &specs {
            let mask = !(spec.size() - 1);
            config.preset(spec.offset(), &spec.type_bits().to_le_bytes());
            config.allow(spec.offset(), &(mask as u32).to_le_bytes());
            if spec.kind == BarKind::Memory64 {
                config.allow(spec.offset() + 4, &((mask >> 32) as u32).to_le_bytes());
            }
        }
        Self { space, ports, bars: specs.into_iter().map(|spec| (spec, None)).collect() }
    }

    /// Moves the ranges to where `config` has them now.
    pub fn update(&mut self, config: &ConfigSpace) {
        // All that leave first, so that two BARs can change places.
        for (spec, mapped) in &mut self.bars {
            if let Some(base) = *mapped
                && spec.wanted(config) != Some(base)
            {
                unmap(&self.space, &self.ports, spec, base);
                *mapped = None;
            }
        }
        for (spec, mapped) in &mut self.bars {
            if mapped.is_none()
                && let Some(base) = spec.wanted(config)
            {
                *mapped = map(&self.space, &self.ports, spec, base).then_some(base);
            }
        }
    }

    /// Each BAR: its register, what it holds, its size, and where it is mapped now.
    pub fn snapshot(&self) -> Vec<BarSnapshot> {
        let row = |(spec, mapped): &(BarSpec, Option<u64>)| BarSnapshot {
            index: spec.index,
            kind: spec.kind,
            bytes: spec.size(),
            base: *mapped,
        };
        self.bars.iter().map(row).collect()
    }

    /// Where BAR `index` is mapped now.
    pub fn mapped(&self, index: u8) -> Option<u64> {
        self.bars.iter().find(|(spec, _)| spec.index == index).and_then(|&(_, mapped)| mapped)
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for (spec, mapped) in &self.bars {
            if let Some(base) = *mapped {
                unmap(&self.space, &self.ports, spec, base);
            }
        }
    }
}

fn map(space: &PhysicalSpace, ports: &PortSpace, spec: &BarSpec, base: u64) -> bool {
    let device = Arc::clone(&spec.device);
    let result = match spec.kind {
        BarKind::Io => ports.map(base as u16, spec.size() as u32, device),
        BarKind::Memory32 | BarKind::Memory64 => {
            space.map(GuestPhysical(base), spec.size(), RegionKind::Device(device))
        }
    };
    if let Err(error) = &result {
        log::debug!(target: "guest_error", "BAR {} is not decoded: {error}", spec.index);
    }
    result.is_ok()
}

fn unmap(space: &PhysicalSpace, ports: &PortSpace, spec: &BarSpec, base: u64) {
    match spec.kind {
        BarKind::Io => ports.unmap(base as u16),
        BarKind::Memory32 | BarKind::Memory64 => {
            space.unmap(GuestPhysical(base));
        }
    }
}
