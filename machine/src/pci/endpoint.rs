//! A function with BARs and interrupts, put together from a description.

use std::sync::{Arc, Mutex};

use memory::{PhysicalSpace, PortSpace, Width};
use serde::{Deserialize, Serialize};

use super::bar::{BarKind, BarSnapshot, BarSpec, Bars};
use super::config_space::{COMMAND, COMMAND_INTX_DISABLE, ConfigSpace, Identity, STATUS_INTERRUPT};
use super::msi::{Message, Msi};
use super::msix::{MsixTable, SavedTable};
use super::{MessageSink, PciFunction};
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::lapic::InterruptEvent;
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;

const VERSION: u16 = 1;
const CHIP: &str = "pci-endpoint";

/// MSI-X of an endpoint: how many vectors, and which BAR holds them.
#[derive(Clone, Copy, Debug)]
pub struct MsixSpec {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// A BAR that no other range has.
    pub bar: u8,
}

/// A capability of the endpoint's own.
#[derive(Clone, Debug)]
pub struct CapabilitySpec {
    /// Capability ID.
    pub id: u8,
    /// What follows the next-pointer.
    pub body: Vec<u8>,
    /// Which bits of the body software may write.
    pub writable: Vec<u8>,
}

/// What an endpoint has.
#[derive(Clone, Default)]
pub struct EndpointSpec {
    /// The name in logs and saved states.
    pub name: String,
    /// What it is.
    pub identity: Identity,
    /// What it decodes.
    pub bars: Vec<BarSpec>,
    /// Capabilities of its own, in order.
    pub capabilities: Vec<CapabilitySpec>,
    /// MSI with so many vectors, as a power of two.
    pub msi_vectors_log2: Option<u8>,
    /// MSI-X.
    pub msix: Option<MsixSpec>,
}

/// What an endpoint is connected to.
#[derive(Clone)]
pub struct Wiring {
    /// Memory BARs go here.
    pub space: Arc<PhysicalSpace>,
    /// I/O BARs go here.
    pub ports: Arc<PortSpace>,
    /// Its INTx# pin; high is asserted.
    pub intx: InterruptLine,
    /// Its messages.
    pub messages: Arc<dyn MessageSink>,
}

struct State {
    config: ConfigSpace,
    bars: Bars,
    /// The function wants its INTx# asserted.
    is_asserted: bool,
}

/// An endpoint: configuration space, BARs, INTx#, MSI and MSI-X.
pub struct Endpoint {
    name: String,
    state: Mutex<State>,
    intx: OutputPin,
    msi: Option<Msi>,
    msix: Option<(u16, Arc<MsixTable>)>,
    messages: Arc<dyn MessageSink>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    config: Vec<u8>,
    is_asserted: bool,
    msix: Option<SavedTable>,
}

impl Endpoint {
    /// An endpoint after reset. Capabilities that do not fit into 192 bytes are left out.
    pub fn new(spec: EndpointSpec, wiring: Wiring) -> Arc<Self> {
        let mut config = ConfigSpace::new(&spec.identity);
        let mut bars = spec.bars;
        for capability in &spec.capabilities {
            config.add_capability(capability.id, &capability.body, &capability.writable);
        }
        let msi = spec.msi_vectors_log2.and_then(|log2| Msi::add(&mut config, log2));
        let msix = spec.msix.and_then(|MsixSpec { vectors, bar }| {
            let table = MsixTable::new(vectors, Arc::clone(&wiring.messages));
            let device = Arc::clone(&table);
            let bytes = table.bar_bytes();
            bars.push(BarSpec { index: bar, kind: BarKind::Memory32, bytes, device });
            table.add_capability(&mut config, bar).map(|at| (at, table))
        });
        let bars = Bars::new(bars, &mut config, wiring.space, wiring.ports);
        Arc::new(Self {
            name: spec.name,
            state: Mutex::new(State { config, bars, is_asserted: false }),
            intx: OutputPin::new(wiring.intx),
            msi,
            msix,
            messages: wiring.messages,
        })
    }

    /// Asserts or deasserts INTx#. Without effect on the pin while MSI or MSI-X is chosen.
    pub fn set_intx(&self, level: bool) {
        let mut state = lock(&self.state);
        state.is_asserted = level;
        self.settle(state);
    }

    /// Signals `vector` by MSI-X or MSI, whichever software chose. False if neither: then
    /// [`Endpoint::set_intx`] is the way.
    pub fn signal(&self, vector: u16) -> bool {
        let mut state = lock(&self.state);
        if let Some((at, table)) = &self.msix
            && MsixTable::is_enabled(&state.config, *at)
        {
            drop(state);
            table.signal(vector);
            return true;
        }
        let Some(msi) = self.msi.filter(|msi| msi.is_enabled(&state.config)) else { return false };
        let message = msi.signal(&mut state.config, vector as u8);
        drop(state);
        self.send(message);
        true
    }

    /// From now on whoever writes to `event` signals `vector` of MSI-X. False if there is no such
    /// vector, or it has an event already. While software has not chosen MSI-X, writes wait.
    pub fn connect(&self, vector: u16, event: InterruptEvent) -> bool {
        self.msix.as_ref().is_some_and(|(_, table)| table.connect(vector, event))
    }

    /// Where BAR `index` is decoded now.
    pub fn bar(&self, index: u8) -> Option<u64> {
        lock(&self.state).bars.mapped(index)
    }

    fn send(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.messages.message(message.address, message.data);
        }
    }

    /// Brings everything outside in line with the registers, and gives the lock back first.
    fn settle(&self, mut state: std::sync::MutexGuard<'_, State>) {
        let State { config, bars, is_asserted } = &mut *state;
        bars.update(config);
        config.set_status(STATUS_INTERRUPT, *is_asserted);
        let mut is_message_mode = self.msi.is_some_and(|msi| msi.is_enabled(config));
        if let Some((at, table)) = &self.msix {
            table.note_control(config, *at);
            is_message_mode |= MsixTable::is_enabled(config, *at);
        }
        let is_disabled = config.u16(COMMAND) & COMMAND_INTX_DISABLE != 0;
        let is_changed = self.intx.stage(*is_asserted && !is_disabled && !is_message_mode);
        let messages = self.msi.map_or_else(Vec::new, |msi| msi.take_deliverable(config));
        drop(state);
        if is_changed {
            self.intx.flush();
        }
        self.send(messages);
        if let Some((_, table)) = &self.msix {
            table.deliver();
        }
    }
}

impl PciFunction for Endpoint {
    fn bars(&self) -> Vec<BarSnapshot> {
        lock(&self.state).bars.snapshot()
    }

    fn config_read(&self, offset: u16, width: Width) -> u32 {
        lock(&self.state).config.read(offset, width)
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        let mut state = lock(&self.state);
        state.config.write(offset, width, value);
        self.settle(state);
    }
}

impl Chip for Endpoint {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&self) {
        if let Some((_, table)) = &self.msix {
            table.reset();
        }
        let mut state = lock(&self.state);
        state.config.reset();
        state.is_asserted = false;
        self.settle(state);
    }

    fn save(&self) -> Vec<u8> {
        let state = lock(&self.state);
        let msix = self.msix.as_ref().map(|(_, table)| table.save());
        let config = state.config.bytes().to_vec();
        encode(VERSION, &Saved { config, is_asserted: state.is_asserted, msix })
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let saved: Saved = decode(CHIP, VERSION, saved)?;
        let mut state = lock(&self.state);
        if !state.config.accepts(&saved.config) {
            return Err(RestoreError::Value { chip: CHIP, field: "config" });
        }
        let is_table_taken = match (&self.msix, &saved.msix) {
            (None, None) => true,
            (Some((_, table)), Some(saved)) => table.restore(saved),
            _ => false,
        };
        if !is_table_taken {
            return Err(RestoreError::Value { chip: CHIP, field: "msix" });
        }
        state.config.restore(&saved.config);
        state.is_asserted = saved.is_asserted;
        self.settle(state);
        Ok(())
    }
}
