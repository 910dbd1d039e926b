//! The I/O APIC: 24 inputs that become messages to local APICs.
//!
//! Sources: Intel 82093AA data sheet, sections 3.1 and 3.2 ("Memory Mapped Registers", "IOAPIC
//! Registers"); Intel ICH9 data sheet, "APIC Memory-Mapped Configuration Registers" for version 20H
//! and its EOI register; Linux's "KVM-specific MSRs and features" for the extended destination ID in
//! REDTBL bits 55:49.
//!
//! Known departures from hardware:
//! - Input levels are logical (true is asserted), so INTPOL is kept and changes nothing.
//! - Arbitration ID and delivery status always read as zero: delivery takes no time.
//!
//! Lock order: the lock is a leaf. Messages are decided under it and delivered without it, so
//! remote IRR is set before the message goes and taken back if no local APIC took it: an EOI
//! that comes while the message is on its way is not lost.

use std::sync::{Arc, Mutex, MutexGuard};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::lapic::{DeliveryMode, Destination, EoiSink, Message, MessageSink, TriggerMode};
use crate::layout::IOAPIC_PINS;
use crate::line::LineSink;

const PINS: usize = IOAPIC_PINS as usize;
const STATE_VERSION: u16 = 1;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOIR: u64 = 0x40;

const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;

/// Version 20H, entry 17H is the last.
const VERSION: u32 = 0x0017_0020;
/// IOAPICID bits 27:24.
const ID_BITS: u32 = 0x0F00_0000;

const RTE_LOGICAL: u64 = 1 << 11;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
/// Bits that software can set: destination, extended destination, mask, trigger, polarity,
/// destination mode, delivery mode, vector.
const RTE_WRITABLE: u64 = 0xFFFE_0000_0001_AFFF;
const RTE_LOW: u64 = 0xFFFF_FFFF;

/// The registers; no lock, no bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    id: u32,
    select: u8,
    redirection: [u64; PINS],
    /// Levels of the inputs, a bit each.
    levels: u32,
}

/// A message on its way for an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivery {
    pin: usize,
    message: Message,
}

impl Registers {
    fn power_up() -> Self {
        Self { id: 0, select: 0, redirection: [RTE_MASKED; PINS], levels: 0 }
    }

    fn is_high(&self, pin: usize) -> bool {
        self.levels >> pin & 1 != 0
    }

    /// The message of input `pin`, if its entry is unmasked and means anything.
    fn message(&self, pin: usize) -> Option<Delivery> {
        let entry = *self.redirection.get(pin)?;
        if entry & RTE_MASKED != 0 {
            return None;
        }
        let delivery = DeliveryMode::from_bits(entry as u32)?;
        // Start-up is an IPI's alone; the data sheet reserves its encoding here.
        if delivery == DeliveryMode::StartUp {
            return None;
        }
        let id = (entry >> 56) as u32 | (((entry >> 49 & 0x7F) as u32) << 8);
        let is_level = entry & RTE_LEVEL != 0 && delivery.has_vector();
        let message = Message {
            destination: Destination::from_bus(id, entry & RTE_LOGICAL != 0),
            delivery,
            vector: entry as u8,
            trigger: if is_level { TriggerMode::Level } else { TriggerMode::Edge },
        };
        Some(Delivery { pin, message })
    }

    /// The message of a level-triggered input that is asserted and has none under way.
    fn sample_level(&mut self, pin: usize) -> Option<Delivery> {
        let entry = *self.redirection.get(pin)?;
        if !self.is_high(pin) || entry & RTE_LEVEL == 0 || entry & RTE_REMOTE_IRR != 0 {
            return None;
        }
        let delivery = self.message(pin)?;
        if delivery.message.trigger == TriggerMode::Level
            && let Some(entry) = self.redirection.get_mut(pin)
        {
            *entry |= RTE_REMOTE_IRR;
        }
        Some(delivery)
    }

    /// Input `pin` is now at `level`. An edge into a masked entry is lost.
    fn set_level(&mut self, pin: usize, level: bool) -> Option<Delivery> {
        let was_high = self.is_high(pin);
        self.levels = self.levels & !(1 << pin) | u32::from(level) << pin;
        if !level || was_high {
            return None;
        }
        match self.redirection.get(pin)? & RTE_LEVEL {
            0 => self.message(pin),
            _ => self.sample_level(pin),
        }
    }

    fn take_back_remote_irr(&mut self, pin: usize) {
        if let Some(entry) = self.redirection.get_mut(pin) {
            *entry &= !RTE_REMOTE_IRR;
        }
    }

    /// Ends the level-triggered interrupts with `vector`; inputs still asserted interrupt again.
    fn end_of_interrupt(&mut self, vector: u8) -> Vec<Delivery> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let Some(entry) = self.redirection.get_mut(pin) else { continue };
            if *entry as u8 == vector && *entry & RTE_REMOTE_IRR != 0 {
                *entry &= !RTE_REMOTE_IRR;
                again.extend(self.sample_level(pin));
            }
        }
        again
    }

    fn read_window(&self) -> u32 {
        match self.select {
            IOAPICID => self.id,
            IOAPICVER => VERSION,
            IOAPICARB => 0,
            select => self.entry_of(select).map_or(0, |(pin, is_high)| {
                let entry = self.redirection.get(pin).copied().unwrap_or(0);
                (if is_high { entry >> 32 } else { entry }) as u32
            }),
        }
    }

    /// The entry, and whether its high half, that register `select` is.
    fn entry_of(&self, select: u8) -> Option<(usize, bool)> {
        let index = usize::from(select.checked_sub(IOREDTBL)?);
        (index < 2 * PINS).then_some((index / 2, index % 2 != 0))
    }

    fn write_window(&mut self, value: u32) -> Option<Delivery> {
        if self.select == IOAPICID {
            self.id = value & ID_BITS;
            return None;
        }
        let (pin, is_high) = self.entry_of(self.select)?;
        let entry = self.redirection.get_mut(pin)?;
        let value = u64::from(value);
        let new = if is_high { *entry & RTE_LOW | value << 32 } else { *entry & !RTE_LOW | value };
        let mut new = new & RTE_WRITABLE | *entry & RTE_REMOTE_IRR;
        // Software without an EOI register ends an interrupt by a detour over edge mode.
        if new & RTE_LEVEL == 0 {
            new &= !RTE_REMOTE_IRR;
        }
        *entry = new;
        self.sample_level(pin)
    }

    fn impossible_field(&self) -> Option<&'static str> {
        let is_possible = |entry: &u64| {
            entry & !(RTE_WRITABLE | RTE_REMOTE_IRR) == 0
                && (entry & RTE_REMOTE_IRR == 0 || entry & RTE_LEVEL != 0)
        };
        [
            (self.id & !ID_BITS == 0, "id"),
            (self.levels >> PINS == 0, "levels"),
            (self.redirection.iter().all(is_possible), "redirection"),
        ]
        .into_iter()
        .find_map(|(is_possible, field)| (!is_possible).then_some(field))
    }
}

/// The I/O APIC with its lock and its way to the local APICs.
///
/// As a [`LineSink`] its pins are the inputs 0 to 23.
pub struct IoApic {
    registers: Mutex<Registers>,
    sink: Arc<dyn MessageSink>,
}

impl IoApic {
    /// An I/O APIC after reset that delivers to `sink`. Connect its EOI with
    /// [`crate::lapic::ApicBus::connect_eoi`].
    pub fn new(sink: Arc<dyn MessageSink>) -> Arc<Self> {
        Arc::new(Self { registers: Mutex::new(Registers::power_up()), sink })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    fn deliver(&self, delivery: Delivery) {
        let was_taken = self.sink.deliver(delivery.message);
        if !was_taken && delivery.message.trigger == TriggerMode::Level {
            self.lock().take_back_remote_irr(delivery.pin);
        }
    }

    fn write_register(&self, offset: u64, value: u32) -> Result<(), IoError> {
        let delivery = match offset {
            IOREGSEL => {
                self.lock().select = value as u8;
                None
            }
            IOWIN => self.lock().write_window(value),
            EOIR => {
                self.end_of_interrupt(value as u8);
                None
            }
            _ => return Err(IoError::NoRegister),
        };
        if let Some(delivery) = delivery {
            self.deliver(delivery);
        }
        Ok(())
    }
}

impl EoiSink for IoApic {
    fn end_of_interrupt(&self, vector: u8) {
        let again = self.lock().end_of_interrupt(vector);
        for delivery in again {
            self.deliver(delivery);
        }
    }
}

impl LineSink for IoApic {
    fn set_line(&self, pin: u32, level: bool) {
        if pin >= IOAPIC_PINS {
            return;
        }
        let delivery = self.lock().set_level(pin as usize, level);
        if let Some(delivery) = delivery {
            self.deliver(delivery);
        }
    }
}

impl Device for IoApic {
    /// Registers are dwords; narrower accesses see their low bytes.
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width == Width::Qword {
            return Err(IoError::Width);
        }
        let registers = self.lock();
        match offset {
            IOREGSEL => Ok(registers.select.into()),
            IOWIN => Ok(registers.read_window().into()),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        match width {
            Width::Qword => Err(IoError::Width),
            _ => self.write_register(offset, value as u32),
        }
    }
}

impl Chip for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    /// The inputs stay as their drivers hold them.
    fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers { levels: registers.levels, ..Registers::power_up() };
    }

    fn save(&self) -> Vec<u8> {
        encode(STATE_VERSION, &*self.lock())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let chip = "ioapic";
        let restored: Registers = decode(chip, STATE_VERSION, saved)?;
        if let Some(field) = restored.impossible_field() {
            return Err(RestoreError::Value { chip, field });
        }
        *self.lock() = restored;
        Ok(())
    }
}
