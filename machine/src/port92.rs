//! System control port A (92h): fast A20 gate and fast CPU reset.
//!
//! Source: Intel ICH9 datasheet, "PORT92 - Fast A20 and Init Register". Bit 0, on going from 0 to
//! 1, resets; bit 1 is the A20 gate.
//! Known departures: bit 0 resets the whole machine where the chipset pulses INIT#; bit 1 is the
//! shared latch of [`crate::a20`]; the other bits of the PS/2's port A read as 0.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};

use crate::a20::A20Gate;
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::signals::{PowerEvent, PowerSink};

const INIT_NOW: u8 = 1 << 0;
const ALT_A20_GATE: u8 = 1 << 1;
const VERSION: u16 = 1;

/// Port 92h.
pub struct Port92 {
    /// INIT_NOW as written last; it stays set over a soft reset so that firmware can tell.
    init_now: Mutex<bool>,
    a20: Arc<A20Gate>,
    power: Arc<dyn PowerSink>,
}

impl Port92 {
    /// The port, driving `a20` and `power`.
    pub fn new(a20: Arc<A20Gate>, power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { init_now: Mutex::new(false), a20, power })
    }
}

impl Device for Port92 {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let init = if *lock(&self.init_now) { INIT_NOW } else { 0 };
        let gate = if self.a20.is_open() { ALT_A20_GATE } else { 0 };
        Ok(u64::from(init | gate))
    }

    fn write(&self, _offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = value as u8;
        let now = value & INIT_NOW != 0;
        let before = std::mem::replace(&mut *lock(&self.init_now), now);
        self.a20.set(value & ALT_A20_GATE != 0);
        if now && !before {
            self.power.power(PowerEvent::Reset);
        }
        Ok(())
    }
}

impl Chip for Port92 {
    fn name(&self) -> &str {
        "port92"
    }

    fn reset(&self) {
        *lock(&self.init_now) = false;
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.init_now))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        *lock(&self.init_now) = decode("port92", VERSION, saved)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::PowerLog;

    fn port() -> (Arc<Port92>, Arc<A20Gate>, Arc<PowerLog>) {
        let (gate, power) = (crate::a20::tests::gate(), Arc::new(PowerLog::default()));
        (Port92::new(Arc::clone(&gate), power.clone()), gate, power)
    }

    #[test]
    fn bit_1_is_the_a20_gate_whoever_moved_it() {
        let (port, gate, _) = port();
        assert_eq!(port.write(0, Width::Byte, 0), Ok(()));
        assert!(!gate.is_open());
        assert_eq!(port.read(0, Width::Byte), Ok(0));
        gate.set(true);
        assert_eq!(port.read(0, Width::Byte), Ok(2));
    }

    #[test]
    fn only_a_rising_bit_0_resets() {
        let (port, _, power) = port();
        for value in [2, 3, 3, 2, 3] {
            assert_eq!(port.write(0, Width::Byte, value), Ok(()));
        }
        assert_eq!(power.events(), [PowerEvent::Reset; 2]);
    }

    #[test]
    fn takes_any_access() {
        crate::device_fuzz::check_chip(|_| {
            let (port, ..) = port();
            (Arc::clone(&port), vec![(port as Arc<dyn Device>, 1)])
        });
    }
}
