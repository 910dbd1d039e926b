//! Gives every BAR an address, as firmware does before it starts an operating system.
//!
//! Source: PCI Local Bus Specification 3.0, "Address Maps": the size of a BAR is found by writing
//! ones to it. Ranges are put behind each other at multiples of their sizes; what does not fit any
//! more stays at 0, for the operating system to deal with.

use memory::Width;

use super::config_space::{BAR0, COMMAND, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, HEADER_TYPE};
use super::{PciFunction, bus::PciBus};
use crate::layout;

/// First port for functions, behind everything with a fixed place.
const FIRST_PORT: u64 = 0xc000;
const PORT_LIMIT: u64 = 0x1_0000;
const BAR_COUNT: u16 = 6;

/// What is left of a window.
struct Window {
    next: u64,
    end: u64,
}

impl Window {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(bytes)?;
        let end = base.checked_add(bytes).filter(|&end| end <= self.end)?;
        self.next = end;
        Some(base)
    }
}

/// Assigns the BARs of every function of `bus` and lets it decode them.
pub fn assign_bars(bus: &PciBus) {
    let mut ports = Window { next: FIRST_PORT, end: PORT_LIMIT };
    let mut memory = Window { next: layout::PCI_WINDOW_BASE, end: layout::ECAM_BASE };
    for (_, function) in bus.functions() {
        if function.config_read(HEADER_TYPE, Width::Byte) & 0x7f != 0 {
            continue;
        }
        let mut has_bars = false;
        let mut index = 0;
        while index < BAR_COUNT {
            let at = BAR0 + 4 * index;
            index += if is_64bit(&**function, at) { 2 } else { 1 };
            has_bars |= assign(&**function, at, &mut ports, &mut memory);
        }
        if has_bars {
            let command = u32::from(COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER);
            function.config_write(COMMAND, Width::Word, command);
        }
    }
}

fn is_64bit(function: &dyn PciFunction, at: u16) -> bool {
    function.config_read(at, Width::Dword) & 0b111 == 0b100
}

/// Assigns the BAR at `at`; false if there is none. 64-bit BARs go below 4 GiB too.
fn assign(function: &dyn PciFunction, at: u16, ports: &mut Window, memory: &mut Window) -> bool {
    function.config_write(at, Width::Dword, u32::MAX);
    let sized = function.config_read(at, Width::Dword);
    let (window, type_bits) = if sized & 1 != 0 { (ports, 0b11) } else { (memory, 0b1111) };
    let mask = sized & !type_bits;
    if mask == 0 {
        function.config_write(at, Width::Dword, 0);
        return false;
    }
    let bytes = u64::from((!mask).wrapping_add(1));
    let base = window.take(bytes).unwrap_or(0);
    function.config_write(at, Width::Dword, base as u32);
    true
}
