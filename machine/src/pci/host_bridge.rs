//! The host bridge, function 00.0: Q35's memory controller hub, or the i440FX.
//!
//! Sources: Intel 3 Series Express Chipset Family datasheet, "DRAM Controller Registers (D0:F0)";
//! Intel 440FX (82441FX) datasheet, "PCI Configuration Space". Both have PAM registers, at
//! different offsets; the Q35 also has PCIEXBAR, which says where ECAM is.
//!
//! Known departures: SMRAM is kept, without effect (there is no SMM); the DRAM population registers
//! are not there, as memory size comes to firmware by CMOS and fw_cfg; graphics and DMI are absent.

use std::sync::{Arc, Mutex};

use memory::{Device, GuestPhysical, PhysicalSpace, RegionKind, Width};

use super::PciFunction;
use super::config_space::{ConfigSpace, Identity};
use super::pam::{self, ShadowArea};
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::layout::{self, Form, RamPlan};

const NAME: &str = "host-bridge";
const VERSION: u16 = 1;

const PCIEXBAR: u16 = 0x60;
const PCIEXBAREN: u64 = 1;
/// Length of the window: 256, 128 or 64 MiB.
const PCIEXBAR_LENGTH: u64 = 0b110;
const PCIEXBAR_WRITABLE: u64 = 0x0000_000f_fc00_0007;

/// Offsets that differ between the two.
struct Registers {
    identity: Identity,
    pam: u16,
    smram: u16,
    has_pciexbar: bool,
}

const fn registers(form: Form) -> Registers {
    let (device, revision, pam, smram) = match form {
        Form::Q35 => (0x29c0, 0x02, 0x90, 0x9d),
        Form::Pc => (0x1237, 0x02, 0x59, 0x72),
    };
    let identity = Identity {
        vendor: 0x8086,
        device,
        revision,
        class: [0x06, 0x00, 0x00],
        subsystem: [0, 0],
        interrupt_pin: 0,
        is_multifunction: false,
    };
    Registers { identity, pam, smram, has_pciexbar: matches!(form, Form::Q35) }
}

struct State {
    config: ConfigSpace,
    shadow: ShadowArea,
    /// Where ECAM is mapped now, and how much of it.
    ecam: Option<(u64, u64)>,
}

/// Function 00.0.
pub struct HostBridge {
    registers: Registers,
    state: Mutex<State>,
    space: Arc<PhysicalSpace>,
    ecam: Arc<dyn Device>,
}

impl HostBridge {
    /// The bridge of a machine laid out by `plan`, which maps `ecam` where PCIEXBAR says.
    pub fn new(
        form: Form,
        plan: RamPlan,
        space: Arc<PhysicalSpace>,
        ecam: Arc<dyn Device>,
    ) -> Arc<Self> {
        let registers = registers(form);
        let mut config = ConfigSpace::new(&registers.identity);
        config.allow(registers.pam, &pam::WRITABLE);
        config.allow(registers.smram, &[0x78]);
        config.preset(registers.smram, &[0x02]);
        if registers.has_pciexbar {
            config.allow(PCIEXBAR, &PCIEXBAR_WRITABLE.to_le_bytes());
        }
        let shadow = ShadowArea::new(Arc::clone(&space), plan);
        let state = Mutex::new(State { config, shadow, ecam: None });
        let this = Self { registers, state, space, ecam };
        this.apply(&mut lock(&this.state));
        Arc::new(this)
    }

    /// Programs the bridge as firmware leaves it: RAM behind the ROM, ECAM at its usual place.
    pub fn set_up_as_firmware(&self) {
        let mut state = lock(&self.state);
        state.config.set(self.registers.pam, &pam::WRITABLE);
        if self.registers.has_pciexbar {
            state.config.set(PCIEXBAR, &(layout::ECAM_BASE | PCIEXBAREN).to_le_bytes());
        }
        self.apply(&mut state);
    }

    /// Brings the memory map in line with the registers.
    fn apply(&self, state: &mut State) {
        let pam = (0..pam::REGISTER_COUNT as u16).map(|i| state.config.u8(self.registers.pam + i));
        let mut attributes = [0; pam::REGISTER_COUNT];
        attributes.iter_mut().zip(pam).for_each(|(to, from)| *to = from);
        state.shadow.apply(attributes);
        let wanted = self.wanted_ecam(&state.config);
        if wanted == state.ecam {
            return;
        }
        if let Some((base, _)) = state.ecam.take() {
            self.space.unmap(GuestPhysical(base));
        }
        if let Some((base, bytes)) = wanted {
            let kind = RegionKind::Device(Arc::clone(&self.ecam));
            match self.space.map(GuestPhysical(base), bytes, kind) {
                Ok(()) => state.ecam = wanted,
                Err(error) => log::debug!(target: "guest_error", "PCIEXBAR: {error}"),
            }
        }
    }

    /// Base and size of ECAM as PCIEXBAR has it; length 3 is reserved and disables it.
    fn wanted_ecam(&self, config: &ConfigSpace) -> Option<(u64, u64)> {
        let value = u64::from(config.u32(PCIEXBAR + 4)) << 32 | u64::from(config.u32(PCIEXBAR));
        let length = value & PCIEXBAR_LENGTH;
        let bytes = layout::ECAM_BYTES >> (length / 2);
        let is_enabled =
            self.registers.has_pciexbar && value & PCIEXBAREN != 0 && length != PCIEXBAR_LENGTH;
        let base = value & PCIEXBAR_WRITABLE & !(bytes - 1);
        (is_enabled && base != 0).then_some((base, bytes))
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        lock(&self.state).config.read(offset, width)
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        let mut state = lock(&self.state);
        state.config.write(offset, width, value);
        self.apply(&mut state);
    }
}

impl Chip for HostBridge {
    fn name(&self) -> &str {
        NAME
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        state.config.reset();
        self.apply(&mut state);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &lock(&self.state).config.bytes())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let bytes: Vec<u8> = decode(NAME, VERSION, saved)?;
        let mut state = lock(&self.state);
        if !state.config.accepts(&bytes) {
            return Err(RestoreError::Value { chip: NAME, field: "config" });
        }
        state.config.restore(&bytes);
        self.apply(&mut state);
        Ok(())
    }
}
