//! The ISA bridge: the ICH9's LPC interface (1F.0), or the PIIX3 (01.0), with the PIIX4's power
//! management function (01.3) beside it.
//!
//! Sources: Intel ICH9 datasheet, "LPC Interface Bridge Registers (D31:F0)"; 82371SB (PIIX3)
//! datasheet, "Function 0"; 82371AB (PIIX4) datasheet, "Function 3". Only the PIRQ route registers
//! act; PMBASE and its enable read as where the power-management block is.
//!
//! Known departures: the power-management block stays at its place, and is decoded, whatever
//! PMBASE says: firmware that moves it finds it by the address that it read first. RCBA is kept,
//! with nothing behind it.

use std::sync::{Arc, Mutex};

use memory::Width;

use super::config_space::{ConfigSpace, Identity};
use super::pirq::{PIRQ_COUNT, PirqRouter, ROUTE_DISABLED};
use super::{DevFn, PciFunction};
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::layout::{self, Form};

const NAME: &str = "isa-bridge";
const VERSION: u16 = 1;

const PIRQA_ROUT: u16 = 0x60;
const PIRQE_ROUT: u16 = 0x68;
const ICH9_PMBASE: u16 = 0x40;
const ICH9_ACPI_CNTL: u16 = 0x44;
const ICH9_ACPI_EN: u8 = 1 << 7;
const ICH9_RCBA: u16 = 0xf0;
const PIIX4_PMBASE: u16 = 0x40;
const PIIX4_PMREGMISC: u16 = 0x80;
/// Bit 0 of an I/O base register is fixed.
const IO_SPACE: u32 = 1;

/// The routes that firmware programs for PIRQA to PIRQH.
const FIRMWARE_ROUTES: [u8; PIRQ_COUNT] = [10, 10, 11, 11, 10, 10, 11, 11];

/// Where the bridge of `form` is on bus 0.
pub const fn place(form: Form) -> DevFn {
    match form {
        Form::Q35 => DevFn::new(0x1f, 0),
        Form::Pc => DevFn::new(1, 0),
    }
}

/// Where the PIIX4's power management function is on bus 0.
pub const PIIX4_PM_PLACE: DevFn = DevFn::new(1, 3);

fn intel(device: u16, revision: u8, class: [u8; 3], is_multifunction: bool) -> Identity {
    let (subsystem, interrupt_pin) = ([0, 0], 0);
    Identity { vendor: 0x8086, device, revision, class, subsystem, interrupt_pin, is_multifunction }
}

/// The registers of the bridge of `form` after reset.
fn bridge_config(form: Form) -> ConfigSpace {
    let (device, revision) = match form {
        Form::Q35 => (0x2918, 0x02),
        Form::Pc => (0x7000, 0x00),
    };
    let mut config = ConfigSpace::new(&intel(device, revision, [6, 1, 0], true));
    let route = [ROUTE_DISABLED; 4];
    config.preset(PIRQA_ROUT, &route);
    config.allow(PIRQA_ROUT, &[0x8f; 4]);
    if form == Form::Q35 {
        config.preset(PIRQE_ROUT, &route);
        config.allow(PIRQE_ROUT, &[0x8f; 4]);
        config.preset(ICH9_PMBASE, &(u32::from(layout::PM_BASE) | IO_SPACE).to_le_bytes());
        config.preset(ICH9_ACPI_CNTL, &[ICH9_ACPI_EN]);
        config.allow(ICH9_RCBA, &0xffff_c001_u32.to_le_bytes());
    }
    config
}

/// A function of which only the configuration registers act on anything.
pub struct IsaBridge {
    form: Form,
    config: Mutex<ConfigSpace>,
    router: Arc<PirqRouter>,
}

impl IsaBridge {
    /// The bridge that programs `router`.
    pub fn new(form: Form, router: Arc<PirqRouter>) -> Arc<Self> {
        let config = bridge_config(form);
        router.set_routes(routes(form, &config));
        Arc::new(Self { form, config: Mutex::new(config), router })
    }

    /// Routes the PIRQs as firmware does, to interrupts 10 and 11.
    pub fn set_up_as_firmware(&self) {
        let mut config = lock(&self.config);
        let (low, high) = FIRMWARE_ROUTES.split_at(4);
        config.set(PIRQA_ROUT, low);
        if self.form == Form::Q35 {
            config.set(PIRQE_ROUT, high);
        }
        self.settle(config);
    }

    fn settle(&self, config: std::sync::MutexGuard<'_, ConfigSpace>) {
        let routes = routes(self.form, &config);
        drop(config);
        self.router.set_routes(routes);
    }
}

fn routes(form: Form, config: &ConfigSpace) -> [u8; PIRQ_COUNT] {
    std::array::from_fn(|pirq| match (form, pirq) {
        (_, 0..=3) => config.u8(PIRQA_ROUT + pirq as u16),
        (Form::Q35, _) => config.u8(PIRQE_ROUT + pirq as u16 - 4),
        (Form::Pc, _) => ROUTE_DISABLED,
    })
}

impl PciFunction for IsaBridge {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        lock(&self.config).read(offset, width)
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        let mut config = lock(&self.config);
        config.write(offset, width, value);
        self.settle(config);
    }
}

impl Chip for IsaBridge {
    fn name(&self) -> &str {
        NAME
    }

    fn reset(&self) {
        let mut config = lock(&self.config);
        config.reset();
        self.settle(config);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &lock(&self.config).bytes())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let mut config = lock(&self.config);
        restore_config(&mut config, saved, NAME)?;
        self.settle(config);
        Ok(())
    }
}

fn restore_config(
    config: &mut ConfigSpace,
    saved: &[u8],
    chip: &'static str,
) -> Result<(), RestoreError> {
    let bytes: Vec<u8> = decode(chip, VERSION, saved)?;
    if !config.accepts(&bytes) {
        return Err(RestoreError::Value { chip, field: "config" });
    }
    config.restore(&bytes);
    Ok(())
}

/// The PIIX4's power management function: says where the block is, and nothing else.
pub struct Piix4Pm(Mutex<ConfigSpace>);

impl Piix4Pm {
    const NAME: &str = "piix4-pm";

    /// The function after reset.
    pub fn new() -> Arc<Self> {
        let mut config = ConfigSpace::new(&intel(0x7113, 0x03, [6, 0x80, 0], false));
        config.preset(PIIX4_PMBASE, &(u32::from(layout::PM_BASE) | IO_SPACE).to_le_bytes());
        config.preset(PIIX4_PMREGMISC, &[1]);
        // The system control interrupt, for whoever has no ACPI tables.
        config.preset(super::config_space::INTERRUPT_LINE, &[layout::IRQ_SCI as u8, 1]);
        Arc::new(Self(Mutex::new(config)))
    }
}

impl PciFunction for Piix4Pm {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        lock(&self.0).read(offset, width)
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        lock(&self.0).write(offset, width, value);
    }
}

impl Chip for Piix4Pm {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn reset(&self) {
        lock(&self.0).reset();
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &lock(&self.0).bytes())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        restore_config(&mut lock(&self.0), saved, Self::NAME)
    }
}
