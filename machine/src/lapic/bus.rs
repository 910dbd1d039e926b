//! The bus between local APICs, I/O APICs and MSIs.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

use super::interrupt_event::{InterruptEvent, InterruptEvents};
use super::local::LocalApic;
use super::lvt::LvtEntry;
use super::message::{
    ApicBorrower, DeliveryMode, Destination, EoiSink, ExtIntSource, Message, MessageSink,
    TriggerMode,
};
use super::{ApicConfig, LocalApicKind, Rates};
use crate::chip::Chip;
use crate::guard::lock;
use crate::line::LineSink;
use crate::signals::CpuSignals;
use crate::timers::Timers;

/// Pin of [`ApicBus`] as a [`LineSink`]: LINT0 of every CPU, the 8259A pair's output.
pub const LINT0_PIN: u32 = 0;
/// Pin of [`ApicBus`] as a [`LineSink`]: LINT1 of every CPU, the board's NMI.
pub const LINT1_PIN: u32 = 1;

/// All local APICs, and what is connected to all of them.
///
/// As a [`LineSink`] it is the wires LINT0 ([`LINT0_PIN`]) and LINT1 ([`LINT1_PIN`]), which a PC
/// takes to every CPU.
pub struct ApicBus {
    apics: Vec<Arc<LocalApic>>,
    eoi_sinks: RwLock<Vec<Weak<dyn EoiSink>>>,
    extint_source: OnceLock<Weak<dyn ExtIntSource>>,
    /// Held for reading while a message is delivered.
    place: RwLock<Place>,
    /// What came while registers were moved.
    waiting: Mutex<Vec<Message>>,
    /// What the borrower was told last to await the ends of.
    awaited: Mutex<Vec<Message>>,
    events: Arc<InterruptEvents>,
}

/// Where the registers of the local APICs are.
#[derive(Default)]
struct Place {
    /// On their way: messages wait.
    is_moving: bool,
    /// With an engine; else with the chips.
    borrower: Option<Arc<dyn ApicBorrower>>,
}

impl ApicBus {
    /// Makes one local APIC for each ID in `config`, CPU 0 being the bootstrap processor.
    pub fn new(
        config: &ApicConfig,
        timers: &Arc<Timers>,
        signals: &Arc<dyn CpuSignals>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|bus: &Weak<Self>| {
            let make = |(cpu, &id): (u32, &u32)| {
                let kind = LocalApicKind {
                    cpu,
                    id,
                    rates: Rates { tsc_hz: config.tsc_hz, timer_hz: config.timer_hz },
                    physical_address_bits: config.physical_address_bits,
                    has_x2apic: config.has_x2apic,
                };
                LocalApic::new(kind, bus.clone(), timers, Arc::clone(signals))
            };
            Self {
                apics: (0..).zip(&config.ids).map(make).collect(),
                eoi_sinks: RwLock::default(),
                extint_source: OnceLock::new(),
                place: RwLock::default(),
                waiting: Mutex::default(),
                awaited: Mutex::default(),
                events: InterruptEvents::new(bus.clone()),
            }
        })
    }

    /// The local APIC of CPU `cpu`.
    pub fn apic(&self, cpu: u32) -> Option<&Arc<LocalApic>> {
        self.apics.get(cpu as usize)
    }

    /// The local APICs in the order of their CPUs.
    pub fn apics(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    /// The local APICs as chips, for reset and save.
    pub fn chips(&self) -> impl Iterator<Item = Arc<dyn Chip>> + '_ {
        self.apics.iter().map(|apic| Arc::clone(apic) as Arc<dyn Chip>)
    }

    /// A new eventfd whose writes send a message, once [`InterruptEvent::set`] says which.
    pub fn interrupt_event(&self) -> io::Result<InterruptEvent> {
        self.events.add()
    }

    /// Connects an I/O APIC, which then learns of the end of level-triggered interrupts.
    pub fn connect_eoi(&self, sink: Weak<dyn EoiSink>) {
        self.eoi_sinks.write().unwrap_or_else(PoisonError::into_inner).push(sink);
    }

    /// Connects the 8259A pair. Only the first call counts.
    pub fn connect_extint(&self, source: Weak<dyn ExtIntSource>) {
        // A board has one pair; a second one has no INTA wire to answer on.
        let _ = self.extint_source.set(source);
    }

    /// The pair's vector; 0 with no pair connected.
    pub(super) fn acknowledge_extint(&self) -> Option<u8> {
        Some(self.extint_source.get()?.upgrade()?.acknowledge())
    }

    pub(super) fn broadcast_eoi(&self, vector: u8) {
        let sinks: Vec<_> = {
            let sinks = self.eoi_sinks.read().unwrap_or_else(PoisonError::into_inner);
            sinks.iter().filter_map(Weak::upgrade).collect()
        };
        for sink in sinks {
            sink.end_of_interrupt(vector);
        }
    }

    /// Sends messages to `borrower`, which takes the registers of all local APICs
    /// ([`LocalApic::lend`]), or to the chips again. Called with all vCPUs stopped, between
    /// [`ApicBus::hold`] and [`ApicBus::release`].
    pub fn lend_to(&self, borrower: Option<Arc<dyn ApicBorrower>>) {
        lock(&self.awaited).clear();
        self.place.write().unwrap_or_else(PoisonError::into_inner).borrower = borrower;
        self.awaited_changed();
    }

    /// Has messages wait while registers are moved. None is on its way when this returns.
    pub fn hold(&self) {
        self.events.hold();
        self.place.write().unwrap_or_else(PoisonError::into_inner).is_moving = true;
    }

    /// Delivers the messages that waited, and lets others through.
    pub fn release(&self) {
        let borrower = {
            let mut place = self.place.write().unwrap_or_else(PoisonError::into_inner);
            place.is_moving = false;
            place.borrower.clone()
        };
        for message in std::mem::take(&mut *lock(&self.waiting)) {
            // The I/O APIC was told that it was taken: it ends, and is tried again if it is still
            // there.
            if !self.deliver(message) && message.trigger == TriggerMode::Level {
                self.broadcast_eoi(message.vector);
            }
        }
        self.events.release(borrower);
    }

    fn place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn awaited(&self) -> Vec<Message> {
        let sinks = self.eoi_sinks.read().unwrap_or_else(PoisonError::into_inner);
        let sinks: Vec<_> = sinks.iter().filter_map(Weak::upgrade).collect();
        sinks.iter().flat_map(|sink| sink.awaited()).collect()
    }

    /// Delivers to an engine's local APICs, which know no senders.
    fn deliver_away(&self, borrower: &dyn ApicBorrower, message: Message) -> bool {
        let is_meant = |cpu: u32| match message.destination {
            Destination::Only { sender } => cpu == sender,
            Destination::AllBut { sender } => cpu != sender,
            _ => false,
        };
        if !matches!(message.destination, Destination::Only { .. } | Destination::AllBut { .. }) {
            return borrower.deliver(message);
        }
        let mut was_taken = false;
        for apic in self.apics.iter().filter(|apic| is_meant(apic.cpu())) {
            let destination = Destination::Physical(apic.id());
            was_taken |= borrower.deliver(Message { destination, ..message });
        }
        was_taken
    }

    fn deliver_here(&self, message: Message) -> bool {
        if message.delivery == DeliveryMode::LowestPriority {
            return self.arbitrate(message).is_some_and(|apic| apic.accept(message));
        }
        let mut was_taken = false;
        for apic in &self.apics {
            if apic.address().is_meant(apic.cpu(), message.destination) {
                was_taken |= apic.accept(message);
            }
        }
        was_taken
    }

    /// The destination with the lowest priority. Among equals the vector decides, which spreads
    /// interrupts over CPUs and is the same in every run.
    fn arbitrate(&self, message: Message) -> Option<&Arc<LocalApic>> {
        let meant = || {
            self.apics.iter().filter_map(|apic| {
                let address = apic.address();
                let is_candidate =
                    address.is_enabled && address.is_meant(apic.cpu(), message.destination);
                is_candidate.then_some((address.priority >> 4, apic))
            })
        };
        let lowest = meant().map(|(priority, _)| priority).min()?;
        let equals = || meant().filter(|&(priority, _)| priority == lowest);
        let count = equals().count().max(1);
        equals().nth(usize::from(message.vector) % count).map(|(_, apic)| apic)
    }
}

impl MessageSink for ApicBus {
    fn deliver(&self, message: Message) -> bool {
        let place = self.place();
        if place.is_moving {
            lock(&self.waiting).push(message);
            return true;
        }
        match &place.borrower {
            Some(borrower) if message.delivery != DeliveryMode::ExtInt => {
                self.deliver_away(&**borrower, message)
            }
            _ => self.deliver_here(message),
        }
    }

    fn awaited_changed(&self) {
        let place = self.place();
        let Some(borrower) = &place.borrower else { return };
        // Under the lock: what is told last is what was found last.
        let mut told = lock(&self.awaited);
        let awaited = self.awaited();
        if *told != awaited {
            borrower.await_ends(&awaited);
            *told = awaited;
        }
    }
}

impl LineSink for ApicBus {
    fn set_line(&self, pin: u32, level: bool) {
        let entry = match pin {
            LINT0_PIN => LvtEntry::Lint0,
            LINT1_PIN => LvtEntry::Lint1,
            _ => return,
        };
        for apic in &self.apics {
            apic.set_lint(entry, level);
        }
    }
}
