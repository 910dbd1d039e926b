//! Random accesses by memory and by MSR.

use memory::{Device, IoError};

use super::*;
use crate::device_fuzz;

/// The MSRs of an APIC as a device: offset 0 is IA32_APIC_BASE, 8 the deadline, 16 the TSC, 24 the
/// CPU taking an interrupt, 0x800 and up x2APIC's, a byte each.
struct Msrs(Arc<LocalApic>);

impl Device for Msrs {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let value = match offset {
            0 => self.0.apic_base(),
            8 => self.0.tsc_deadline(),
            16 => self.0.tsc(),
            24 => self.0.acknowledge().map_or(0, u64::from),
            _ => self.0.msr_read(offset as u32).unwrap_or(0),
        };
        Ok(value & width.mask())
    }
    fn write(&self, offset: u64, _width: Width, value: u64) -> Result<(), IoError> {
        match offset {
            0 => self.0.set_apic_base(0xFEE0_0000 | value & 0xD00).unwrap_or(()),
            8 => self.0.set_tsc_deadline(value),
            16 => self.0.set_tsc_offset(value),
            24 => self.0.eoi(),
            _ => self.0.msr_write(offset as u32, value).unwrap_or(()),
        }
        Ok(())
    }
}

/// The memory-mapped registers of CPU 0; keeps the bus alive.
struct Page(Arc<ApicBus>);

impl Device for Page {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        Ok(self.0.apic(0).ok_or(IoError::NoRegister)?.mmio_read(offset, width))
    }
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        self.0.apic(0).ok_or(IoError::NoRegister)?.mmio_write(offset, width, value);
        Ok(())
    }
}

#[test]
fn takes_any_access() {
    device_fuzz::check_chip(|timers| {
        let signals: Arc<dyn CpuSignals> = Arc::new(Recorder::default());
        let config = ApicConfig {
            ids: vec![0, 1],
            tsc_hz: 2_000_000_000,
            timer_hz: 1_000_000_000,
            physical_address_bits: 40,
            has_x2apic: true,
        };
        let bus = ApicBus::new(&config, timers, &signals);
        let apic = Arc::clone(bus.apic(0).unwrap());
        apic.set_virtual_wire();
        let page: Arc<dyn Device> = Arc::new(Page(bus));
        let msrs: Arc<dyn Device> = Arc::new(Msrs(Arc::clone(&apic)));
        (apic, vec![(page, 0x400), (Arc::clone(&msrs), 0x20), (msrs, 0x840)])
    });
}
