//! The bus between local APICs, I/O APICs and MSIs.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use super::local::LocalApic;
use super::lvt::LvtEntry;
use super::message::{DeliveryMode, EoiSink, ExtIntSource, Message, MessageSink};
use super::{ApicConfig, LocalApicKind, Rates};
use crate::chip::Chip;
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
