//! Bus 0: which function has which number.

use std::sync::{Arc, OnceLock};

use memory::Width;

use super::{DevFn, PciFunction};

/// Bus 0 of the machine. Functions are put in while the board is built.
pub struct PciBus {
    functions: Vec<OnceLock<Arc<dyn PciFunction>>>,
}

impl Default for PciBus {
    fn default() -> Self {
        Self { functions: (0..256).map(|_| OnceLock::new()).collect() }
    }
}

impl PciBus {
    /// An empty bus.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts `function` in at `at`. False if there is one already.
    pub fn insert(&self, at: DevFn, function: Arc<dyn PciFunction>) -> bool {
        self.functions.get(usize::from(at.0)).is_some_and(|slot| slot.set(function).is_ok())
    }

    /// The function at `at` of bus `bus`.
    pub fn function(&self, bus: u8, at: DevFn) -> Option<&Arc<dyn PciFunction>> {
        if bus != 0 {
            return None;
        }
        self.functions.get(usize::from(at.0)).and_then(OnceLock::get)
    }

    /// All functions, lowest number first.
    pub fn functions(&self) -> impl Iterator<Item = (DevFn, &Arc<dyn PciFunction>)> {
        let slots = (0..=u8::MAX).zip(&self.functions);
        slots.filter_map(|(number, slot)| slot.get().map(|function| (DevFn(number), function)))
    }

    /// Reads configuration registers; all ones where no function answers.
    pub fn read(&self, bus: u8, at: DevFn, offset: u16, width: Width) -> u32 {
        let value = self.function(bus, at).map(|f| f.config_read(offset, width));
        value.unwrap_or(u32::MAX) & width.mask() as u32
    }

    /// Writes configuration registers, where a function answers.
    pub fn write(&self, bus: u8, at: DevFn, offset: u16, width: Width, value: u32) {
        if let Some(function) = self.function(bus, at) {
            function.config_write(offset, width, value & width.mask() as u32);
        }
    }
}
