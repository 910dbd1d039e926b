//! The I/O APIC: 24 inputs that become messages to local APICs.
//!
//! Sources: Intel 82093AA data sheet, sections 3.1 and 3.2 ("Memory Mapped Registers", "IOAPIC
//! Registers"); Intel ICH9 data sheet, "APIC Memory-Mapped Configuration Registers" for version 20H
//! and its EOI register; Linux's "KVM-specific MSRs and features" for the extended destination ID
//! in REDTBL bits 55:49.
//!
//! Known departures from hardware:
//! - Input levels are logical (true is asserted), so INTPOL is kept and changes nothing.
//! - The delivery status always reads as zero: delivery takes no time.
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
    /// The level-triggered messages that were sent last. Where remote IRR is set its end is still
    /// to come, from where it went to, whatever the entry says by now.
    #[serde(skip)]
    sent: [Option<Message>; PINS],
}

/// A message on its way for an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Delivery {
    pin: usize,
    message: Message,
}

impl Registers {
    fn power_up() -> Self {
        let redirection = [RTE_MASKED; PINS];
        Self { id: 0, select: 0, redirection, levels: 0, sent: [None; PINS] }
    }

    fn is_high(&self, pin: usize) -> bool {
        self.levels >> pin & 1 != 0
    }

    /// The message of input `pin`, if its entry is unmasked and means anything.
    fn message(&self, pin: usize) -> Option<Delivery> {
        let is_masked = self.redirection.get(pin)? & RTE_MASKED != 0;
        let message = self.entry_message(pin).filter(|_| !is_masked)?;
        Some(Delivery { pin, message })
    }

    /// The message that the entry of input `pin` describes, masked or not.
    fn entry_message(&self, pin: usize) -> Option<Message> {
        let entry = *self.redirection.get(pin)?;
        let delivery = DeliveryMode::from_bits(entry as u32)?;
        // Start-up is an IPI's alone; the data sheet reserves its encoding here.
        if delivery == DeliveryMode::StartUp {
            return None;
        }
        let id = destination_of(entry);
        let is_level = entry & RTE_LEVEL != 0 && delivery.has_vector();
        Some(Message {
            destination: Destination::from_bus(id, entry & RTE_LOGICAL != 0),
            delivery,
            vector: entry as u8,
            trigger: if is_level { TriggerMode::Level } else { TriggerMode::Edge },
        })
    }

    /// The message of a level-triggered input that is asserted and has none under way.
    fn sample_level(&mut self, pin: usize) -> Option<Delivery> {
        let entry = *self.redirection.get(pin)?;
        if !self.is_high(pin) || entry & RTE_LEVEL == 0 || entry & RTE_REMOTE_IRR != 0 {
            return None;
        }
        let delivery = self.message(pin)?;
        if delivery.message.trigger == TriggerMode::Level
            && let (Some(entry), Some(sent)) =
                (self.redirection.get_mut(pin), self.sent.get_mut(pin))
        {
            *entry |= RTE_REMOTE_IRR;
            *sent = Some(delivery.message);
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

    /// The level-triggered messages that may be sent, and those that were and have not ended.
    fn awaited(&self) -> Vec<Message> {
        let next = (0..PINS).filter_map(|pin| self.entry_message(pin));
        let under_way = self
            .redirection
            .iter()
            .zip(&self.sent)
            .filter_map(|(entry, sent)| sent.filter(|_| entry & RTE_REMOTE_IRR != 0));
        let mut messages = Vec::new();
        for message in next.chain(under_way) {
            if message.trigger == TriggerMode::Level && !messages.contains(&message) {
                messages.push(message);
            }
        }
        messages
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
            // Loaded with the ID; without a bus to arbitrate for, nothing else changes it.
            IOAPICARB => self.id,
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

/// An input with its entry, for who looks at the machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputSnapshot {
    /// The input.
    pub pin: u32,
    /// The entry as it is.
    pub entry: u64,
    /// The entry's vector.
    pub vector: u8,
    /// How the destination takes it; none if the encoding is reserved.
    pub delivery: Option<DeliveryMode>,
    /// The APIC ID, or the logical ones.
    pub destination: u32,
    /// The destination is logical.
    pub is_logical: bool,
    /// Level-triggered.
    pub is_level: bool,
    /// Nothing is delivered.
    pub is_masked: bool,
    /// A level-triggered interrupt was delivered and not ended.
    pub has_remote_irr: bool,
    /// The input is asserted.
    pub is_asserted: bool,
}

impl Registers {
    fn snapshot(&self, pin: usize, entry: u64) -> InputSnapshot {
        InputSnapshot {
            pin: pin as u32,
            entry,
            vector: entry as u8,
            delivery: DeliveryMode::from_bits(entry as u32),
            destination: destination_of(entry),
            is_logical: entry & RTE_LOGICAL != 0,
            is_level: entry & RTE_LEVEL != 0,
            is_masked: entry & RTE_MASKED != 0,
            has_remote_irr: entry & RTE_REMOTE_IRR != 0,
            is_asserted: self.is_high(pin),
        }
    }
}

/// Bits 63:56, and above them the extended ones of bits 55:49.
fn destination_of(entry: u64) -> u32 {
    (entry >> 56) as u32 | (((entry >> 49 & 0x7F) as u32) << 8)
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

    /// Its ID, and its inputs in their order.
    pub fn snapshot(&self) -> (u32, Vec<InputSnapshot>) {
        let registers = self.lock();
        let entries = registers.redirection.iter().enumerate();
        let inputs = entries.map(|(pin, &entry)| registers.snapshot(pin, entry)).collect();
        (registers.id >> 24, inputs)
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
        // An end that came before it is awaited would be lost, and the input with it.
        if offset == IOWIN {
            self.sink.awaited_changed();
        }
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

    fn awaited(&self) -> Vec<Message> {
        self.lock().awaited()
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
        let value = match offset {
            IOREGSEL => registers.select.into(),
            IOWIN => registers.read_window(),
            _ => return Err(IoError::NoRegister),
        };
        Ok(u64::from(value) & width.mask())
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::device_fuzz::check_chip;

    /// Remembers messages, and how many there were at each word of awaited ones; takes them or not.
    struct Bus {
        messages: Mutex<Vec<Message>>,
        words: Mutex<Vec<usize>>,
        is_taking: AtomicBool,
    }

    impl Bus {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                messages: Mutex::default(),
                words: Mutex::default(),
                is_taking: AtomicBool::new(true),
            })
        }
        fn vectors(&self) -> Vec<u8> {
            std::mem::take(&mut *lock(&self.messages)).iter().map(|m| m.vector).collect()
        }
    }

    impl MessageSink for Bus {
        fn deliver(&self, message: Message) -> bool {
            let is_taking = self.is_taking.load(Ordering::SeqCst);
            if is_taking {
                lock(&self.messages).push(message);
            }
            is_taking
        }
        fn awaited_changed(&self) {
            lock(&self.words).push(lock(&self.messages).len());
        }
    }

    const LEVEL: u64 = RTE_LEVEL;
    const MASKED: u64 = RTE_MASKED;

    struct Rig {
        bus: Arc<Bus>,
        ioapic: Arc<IoApic>,
    }

    impl Rig {
        fn new() -> Self {
            let bus = Bus::new();
            Self { ioapic: IoApic::new(bus.clone()), bus }
        }
        fn read(&self, register: u8) -> u32 {
            self.ioapic.write(IOREGSEL, Width::Dword, register.into()).unwrap();
            self.ioapic.read(IOWIN, Width::Dword).unwrap() as u32
        }
        fn write(&self, register: u8, value: u32) {
            self.ioapic.write(IOREGSEL, Width::Dword, register.into()).unwrap();
            self.ioapic.write(IOWIN, Width::Dword, value.into()).unwrap();
        }
        fn entry(&self, pin: u8) -> u64 {
            u64::from(self.read(IOREDTBL + 2 * pin + 1)) << 32
                | u64::from(self.read(IOREDTBL + 2 * pin))
        }
        fn set_entry(&self, pin: u8, entry: u64) {
            self.write(IOREDTBL + 2 * pin, MASKED as u32);
            self.write(IOREDTBL + 2 * pin + 1, (entry >> 32) as u32);
            self.write(IOREDTBL + 2 * pin, entry as u32);
        }
        fn set(&self, pin: u32, level: bool) {
            self.ioapic.set_line(pin, level);
        }
    }

    #[test]
    fn registers_after_reset_are_the_data_sheets() {
        let rig = Rig::new();
        assert_eq!((rig.read(IOAPICID), rig.read(IOAPICVER)), (0, 0x0017_0020));
        assert!((0..24).all(|pin| rig.entry(pin) == MASKED));
        rig.write(IOAPICID, u32::MAX);
        assert_eq!((rig.read(IOAPICID), rig.read(0x40)), (0x0F00_0000, 0));
        rig.write(IOAPICARB, 0);
        assert_eq!(rig.read(IOAPICARB), 0x0F00_0000);
        rig.write(IOREDTBL, u32::MAX);
        rig.write(IOREDTBL + 1, u32::MAX);
        assert_eq!(rig.entry(0), RTE_WRITABLE);
        assert_eq!(rig.ioapic.read(IOWIN, Width::Byte), Ok(0xFF));
        assert_eq!(rig.ioapic.read(0x20, Width::Dword), Err(IoError::NoRegister));
        assert_eq!(rig.ioapic.read(IOWIN, Width::Qword), Err(IoError::Width));
    }

    #[test]
    fn an_edge_is_one_message_and_lost_when_masked() {
        let rig = Rig::new();
        rig.set_entry(4, 0x34);
        rig.set(4, true);
        rig.set(4, true);
        assert_eq!(rig.bus.vectors(), [0x34]);
        rig.set(4, false);
        rig.set_entry(4, 0x34 | MASKED);
        rig.set(4, true);
        rig.set_entry(4, 0x34);
        assert_eq!(rig.bus.vectors(), []);
        rig.set(99, true);
        assert_eq!(rig.bus.vectors(), []);
    }

    #[test]
    fn a_level_waits_for_its_eoi_and_comes_again_while_it_is_held() {
        let rig = Rig::new();
        rig.set_entry(17, 0x51 | LEVEL);
        rig.set(17, true);
        assert_eq!(rig.entry(17), 0x51 | LEVEL | RTE_REMOTE_IRR);
        rig.set(17, false);
        rig.set(17, true);
        assert_eq!(rig.bus.vectors(), [0x51]);
        rig.ioapic.end_of_interrupt(0x52);
        assert_eq!(rig.bus.vectors(), []);
        rig.ioapic.end_of_interrupt(0x51);
        assert_eq!(rig.bus.vectors(), [0x51]);
        rig.set(17, false);
        rig.ioapic.write(EOIR, Width::Dword, 0x51).unwrap();
        assert_eq!((rig.bus.vectors(), rig.entry(17)), (vec![], 0x51 | LEVEL));
    }

    #[test]
    fn the_ends_of_level_triggered_entries_are_awaited_masked_or_not() {
        let rig = Rig::new();
        for (pin, entry) in [(3, 0x43), (4, 0x44 | LEVEL), (5, 0x45 | LEVEL | MASKED)] {
            rig.set_entry(pin, entry);
        }
        // An NMI has no end, level-triggered or not.
        rig.set_entry(6, 0x400 | LEVEL);
        let vectors: Vec<_> = rig.ioapic.awaited().iter().map(|message| message.vector).collect();
        assert_eq!(vectors, [0x44, 0x45]);
    }

    /// As a kernel does that moves an interrupt to another CPU while it is handled.
    #[test]
    fn the_end_of_what_was_sent_is_awaited_from_where_it_went() {
        let rig = Rig::new();
        let destinations = || {
            let awaited = rig.ioapic.awaited();
            awaited.iter().map(|message| message.destination).collect::<Vec<_>>()
        };
        let [old, new] = [0, 1].map(Destination::Physical);
        rig.set_entry(4, 0x44 | LEVEL);
        rig.set(4, true);
        assert_eq!(destinations(), [old]);
        rig.write(IOREDTBL + 9, 1 << 24);
        assert_eq!(destinations(), [new, old]);
        rig.set(4, false);
        rig.ioapic.end_of_interrupt(0x44);
        assert_eq!(destinations(), [new]);
    }

    #[test]
    fn ends_are_awaited_before_there_can_be_one() {
        let rig = Rig::new();
        rig.set(5, true);
        rig.write(IOREDTBL + 2 * 5, (0x45 | LEVEL) as u32);
        assert_eq!((lock(&rig.bus.words).clone(), rig.bus.vectors()), (vec![0], vec![0x45]));
    }

    #[test]
    fn a_held_level_is_sent_when_it_is_unmasked() {
        let rig = Rig::new();
        rig.set(17, true);
        rig.set_entry(17, 0x51 | LEVEL);
        assert_eq!(rig.bus.vectors(), [0x51]);
    }

    #[test]
    fn inputs_with_one_vector_end_together() {
        let rig = Rig::new();
        for pin in [18, 19] {
            rig.set_entry(pin, 0x60 | LEVEL);
            rig.set(pin.into(), true);
        }
        assert_eq!(rig.bus.vectors(), [0x60, 0x60]);
        rig.ioapic.end_of_interrupt(0x60);
        assert_eq!(rig.bus.vectors(), [0x60, 0x60]);
    }

    #[test]
    fn edge_mode_clears_remote_irr() {
        let rig = Rig::new();
        rig.set_entry(17, 0x51 | LEVEL);
        rig.set(17, true);
        rig.write(IOREDTBL + 34, 0x51 | MASKED as u32);
        assert_eq!(rig.entry(17), 0x51 | MASKED);
        rig.write(IOREDTBL + 34, 0x51 | LEVEL as u32);
        assert_eq!(rig.bus.vectors(), [0x51, 0x51]);
    }

    #[test]
    fn what_nobody_takes_leaves_no_remote_irr() {
        let rig = Rig::new();
        rig.bus.is_taking.store(false, Ordering::SeqCst);
        rig.set_entry(17, 0x51 | LEVEL);
        rig.set(17, true);
        assert_eq!(rig.entry(17), 0x51 | LEVEL);
    }

    #[test]
    fn entries_name_destination_and_mode() {
        let rig = Rig::new();
        for (entry, destination, delivery) in [
            (0x0300_0000_0000_0051, Destination::Physical(3), DeliveryMode::Fixed),
            (0xFF00_0000_0000_0051, Destination::All, DeliveryMode::Fixed),
            (0x0302_0000_0000_0051, Destination::Physical(0x103), DeliveryMode::Fixed),
            (0x0300_0000_0000_0951, Destination::Logical8(3), DeliveryMode::LowestPriority),
            (0x0000_0000_0000_0400, Destination::Physical(0), DeliveryMode::Nmi),
            (0x0000_0000_0000_0700, Destination::Physical(0), DeliveryMode::ExtInt),
        ] {
            rig.set_entry(1, entry);
            rig.set(1, true);
            rig.set(1, false);
            let message = lock(&rig.bus.messages).pop().expect("a message");
            assert_eq!((message.destination, message.delivery), (destination, delivery));
        }
        for reserved in [0x351, 0x651] {
            rig.set_entry(1, reserved);
            rig.set(1, true);
            rig.set(1, false);
            assert_eq!(rig.bus.vectors(), []);
        }
    }

    #[test]
    fn a_restored_state_keeps_levels_and_an_impossible_one_is_refused() {
        let rig = Rig::new();
        rig.set_entry(17, 0x51 | LEVEL);
        rig.set(17, true);
        let saved = rig.ioapic.save();
        rig.set(17, false);
        Chip::reset(&*rig.ioapic);
        assert_eq!(rig.entry(17), MASKED);
        rig.ioapic.restore(&saved).unwrap();
        rig.bus.vectors();
        rig.ioapic.end_of_interrupt(0x51);
        assert_eq!(rig.bus.vectors(), [0x51]);
        let mut wrong = lock(&rig.ioapic.registers).clone();
        wrong.redirection[0] = RTE_REMOTE_IRR;
        let refused = rig.ioapic.restore(&encode(STATE_VERSION, &wrong));
        assert_eq!(refused, Err(RestoreError::Value { chip: "ioapic", field: "redirection" }));
    }

    #[test]
    fn takes_any_access() {
        check_chip(|_| {
            let ioapic = IoApic::new(Bus::new());
            (Arc::clone(&ioapic), vec![(ioapic as Arc<dyn Device>, 0x44)])
        });
    }
}
