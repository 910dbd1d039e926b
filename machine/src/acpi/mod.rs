//! The ACPI tables of the board, as firmware would leave them in memory.
//!
//! [`build`] makes all of them with their addresses. Operating systems find the RSDP in the BIOS
//! area or by what the loader tells them; it leads to the RSDT and XSDT, those to the rest. The
//! FACS lies in a page of its own, which the operating system writes its waking vector to.

mod aml;
mod dsdt;
mod tables;

use crate::layout::{self, Form, RamPlan};

/// What the tables say of the machine.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig {
    /// Which PC.
    pub form: Form,
    /// Its memory.
    pub plan: RamPlan,
    /// Processors; their local APICs have the identifiers 0, 1, 2, ...
    pub cpu_count: u32,
    /// Serial ports, 0 to 2.
    pub serial_ports: u8,
    /// The firmware configuration device is there.
    pub has_fw_cfg: bool,
}

/// Tables that do not fit into the range that is reserved for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables need {needed:#x} bytes, {room:#x} are reserved")]
pub struct TablesTooLarge {
    /// Bytes needed.
    pub needed: u64,
    /// Bytes there are.
    pub room: u64,
}

/// A table and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTable {
    /// Guest-physical address.
    pub address: u64,
    /// The table.
    pub bytes: Vec<u8>,
}

/// Places tables behind each other.
struct Placer {
    next: u64,
    placed: Vec<PlacedTable>,
}

impl Placer {
    fn put(&mut self, bytes: Vec<u8>) -> u64 {
        let address = self.next;
        self.next = (address + bytes.len() as u64).next_multiple_of(64);
        self.placed.push(PlacedTable { address, bytes });
        address
    }
}

/// Makes all tables for `config`.
pub fn build(config: &AcpiConfig) -> Result<Vec<PlacedTable>, TablesTooLarge> {
    let (base, facs) = (config.plan.acpi_base(), config.plan.facs());
    let mut placer = Placer { next: base, placed: Vec::new() };
    let dsdt = placer.put(tables::table(b"DSDT", 2, &dsdt::dsdt(config)));
    let mut roots = vec![
        placer.put(tables::fadt(dsdt, facs)),
        placer.put(tables::madt(config)),
        placer.put(tables::hpet()),
    ];
    if config.form == Form::Q35 {
        roots.push(placer.put(tables::mcfg()));
    }
    let rsdt = placer.put(tables::rsdt(&roots));
    let xsdt = placer.put(tables::xsdt(&roots));
    if placer.next > facs {
        return Err(TablesTooLarge { needed: placer.next - base, room: facs - base });
    }
    let mut placed = placer.placed;
    placed.push(PlacedTable { address: facs, bytes: tables::facs() });
    let rsdp = tables::rsdp(rsdt, xsdt);
    placed.push(PlacedTable { address: layout::RSDP_BASE, bytes: rsdp });
    Ok(placed)
}

#[cfg(test)]
mod tests;
