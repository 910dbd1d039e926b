//! The two ends of the guest: all passed, or given up.
//!
//! Power-off is ACPI's (ACPI 6.5, "Power Management 1 Control Registers"): SLP_EN with the
//! SLP_TYP that our DSDT gives \_S5. Where PM1a_CNT is decides the chipset's firmware, and here
//! that is this ROM: it programs the power-management base of an ICH9 or PIIX4, if it finds one.
//! A machine without either is left by isa-debug-exit, and else by halting.

use iced_x86::code_asm::*;

use crate::rom::layout::port::{DEBUG_EXIT, PCI_ADDRESS, PCI_DATA, PM_BASE, PM1A_CONTROL};
use crate::rom::stage::{Emit, Stage};

/// PM1_CNT: SLP_TYP (bits 10 to 12) of \_S5, which is 0 on this chipset.
const SLP_TYP_S5: u32 = 0;
/// PM1_CNT: SLP_EN.
const SLP_EN: u32 = 1 << 13;

/// How often PM1a_CNT is read before power-off counts as absent.
const POWER_OFF_READS: u32 = 1_000_000;

/// A south bridge whose power-management block firmware has to place.
struct SouthBridge {
    /// CONFIG_ADDRESS of the function's register 0.
    address: u32,
    /// Device and vendor ID.
    id: u32,
    /// Registers to write, in order.
    registers: [(u32, u32); 2],
}

/// ICH9: PMBASE and ACPI_CNTL.ACPI_EN. PIIX4: PMBA and PMREGMISC.PMIOSE.
const SOUTH_BRIDGES: [SouthBridge; 2] = [
    SouthBridge {
        address: 0x8000_F800,
        id: 0x2918_8086,
        registers: [(0x40, PM_BASE as u32 | 1), (0x44, 0x80)],
    },
    SouthBridge {
        address: 0x8000_0B00,
        id: 0x7113_8086,
        registers: [(0x40, PM_BASE as u32 | 1), (0x80, 0x01)],
    },
];

/// Emits the routines `succeed` and `give_up`, which do not return.
pub fn routines(s: &mut Stage) -> Emit {
    let (mut give_up, mut succeed) = (s.give_up, s.succeed);
    s.set_label(&mut give_up)?;
    debug_exit(s, 1)?;
    s.set_label(&mut succeed)?;
    for bridge in &SOUTH_BRIDGES {
        place_pm_block(s, bridge)?;
    }
    s.mov(dx, u32::from(PM1A_CONTROL))?;
    s.mov(ax, SLP_TYP_S5 << 10 | SLP_EN)?;
    s.out(dx, ax)?;
    wait_for_power_off(s)?;
    debug_exit(s, 0)?;
    halt_forever(s)
}

/// Machines may take a moment to stop a processor after SLP_EN; reading the register passes it.
fn wait_for_power_off(s: &mut Stage) -> Emit {
    let mut again = s.create_label();
    s.mov(ecx, POWER_OFF_READS)?;
    s.set_label(&mut again)?;
    s.in_(ax, dx)?;
    s.dec(ecx)?;
    s.jne(again)
}

/// Emits what stops a processor for good.
pub fn halt_forever(s: &mut Stage) -> Emit {
    s.cli()?;
    s.anonymous_label()?;
    let again = s.bwd()?;
    s.hlt()?;
    s.jmp(again)
}

/// Emits a write of `value` to isa-debug-exit.
pub fn debug_exit(s: &mut Stage, value: u32) -> Emit {
    s.mov(dx, u32::from(DEBUG_EXIT))?;
    s.mov(al, value)?;
    s.out(dx, al)
}

fn place_pm_block(s: &mut Stage, bridge: &SouthBridge) -> Emit {
    let mut other = s.create_label();
    select_register(s, bridge.address)?;
    s.in_(eax, dx)?;
    s.cmp(eax, bridge.id)?;
    s.jne(other)?;
    for (register, value) in bridge.registers {
        select_register(s, bridge.address + register)?;
        s.mov(eax, value)?;
        s.out(dx, eax)?;
    }
    s.set_label(&mut other)
}

/// Selects a configuration register and leaves the data port in DX.
fn select_register(s: &mut Stage, address: u32) -> Emit {
    s.mov(dx, u32::from(PCI_ADDRESS))?;
    s.mov(eax, address)?;
    s.out(dx, eax)?;
    s.mov(dx, u32::from(PCI_DATA))
}
