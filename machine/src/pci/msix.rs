//! MSI-X: a table of messages in a BAR, each maskable, with a pending-bit array.
//!
//! Source: PCI Local Bus Specification 3.0, "MSI-X Capability and Table Structures" and "MSI-X
//! Operation".
//!
//! A vector may have an interrupt event, whose writes signal it without this chip. The bus keeps
//! the event as the table says, and the vector's pending bit is then the event's, too.

use std::sync::{Arc, Mutex, OnceLock};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use super::MessageSink;
use super::config_space::{COMMAND, COMMAND_MASTER, ConfigSpace};
use super::msi::Message;
use crate::guard::lock;
use crate::lapic::InterruptEvent;
use crate::msi::decode_msi;

const CAPABILITY_ID: u8 = 0x11;
const CONTROL: u16 = 2;
const FUNCTION_MASK: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;
const ENTRY_BYTES: u64 = 16;
const VECTOR_MASKED: u32 = 1;
/// The most vectors a table can have.
pub const VECTORS_MAX: u16 = 2048;

/// One table entry: message address, upper address, data, vector control.
type Entry = [u32; 4];

/// What is saved of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTable {
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

struct Table {
    entries: Vec<Entry>,
    pending: Vec<bool>,
    /// Enabled and not masked as a whole, and the function may write to memory.
    is_open: bool,
}

impl Table {
    /// What `vector` sends now; `None` while something holds it back.
    fn message(&self, vector: usize) -> Option<Message> {
        let [low, high, data, control] = *self.entries.get(vector).filter(|_| self.is_open)?;
        let address = u64::from(high) << 32 | u64::from(low);
        (control & VECTOR_MASKED == 0).then_some(Message { address, data })
    }

    /// The pending messages that nothing holds back any more.
    fn take_deliverable(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        for vector in 0..self.pending.len() {
            let Some(message) = self.message(vector) else { continue };
            if self.pending.get_mut(vector).is_some_and(std::mem::take) {
                messages.push(message);
            }
        }
        messages
    }
}

/// The vector table and pending-bit array of one function, as the device behind a BAR of
/// [`MsixTable::bar_bytes`].
pub struct MsixTable {
    table: Mutex<Table>,
    /// The event of each vector that has one.
    events: Vec<OnceLock<InterruptEvent>>,
    /// Held while events are told what the table says: what they are told last is what it said
    /// last. The table's own lock is let go before each is.
    telling: Mutex<()>,
    sink: Arc<dyn MessageSink>,
}

impl MsixTable {
    /// A table of `vectors` (1 to 2048), all masked, as after reset.
    pub fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Arc<Self> {
        let count = usize::from(vectors.clamp(1, VECTORS_MAX));
        let table = Table {
            entries: vec![[0, 0, 0, VECTOR_MASKED]; count],
            pending: vec![false; count],
            is_open: false,
        };
        let events = (0..count).map(|_| OnceLock::new()).collect();
        Arc::new(Self { table: Mutex::new(table), events, telling: Mutex::default(), sink })
    }

    /// From now on whoever writes to `event` signals `vector`. False if there is no such vector, or
    /// it has an event already. Called with no lock held.
    pub fn connect(&self, vector: u16, event: InterruptEvent) -> bool {
        let place = self.events.get(usize::from(vector));
        let is_connected = place.is_some_and(|place| place.set(event).is_ok());
        self.tell_events();
        is_connected
    }

    fn connected(&self) -> impl Iterator<Item = (usize, &InterruptEvent)> {
        self.events.iter().enumerate().filter_map(|(vector, event)| Some((vector, event.get()?)))
    }

    /// Has each event do as the table says.
    fn tell_events(&self) {
        let _order = lock(&self.telling);
        for (vector, event) in self.connected() {
            let message = lock(&self.table).message(vector);
            event.set(message.and_then(|Message { address, data }| decode_msi(address, data)));
        }
    }

    fn vectors(&self) -> u64 {
        lock(&self.table).entries.len() as u64
    }

    /// Offset of the pending-bit array in the BAR.
    fn pending_offset(&self) -> u64 {
        (self.vectors() * ENTRY_BYTES).next_power_of_two().max(2048)
    }

    /// The size of the BAR that holds table and pending bits.
    pub fn bar_bytes(&self) -> u64 {
        2 * self.pending_offset()
    }

    /// Adds the capability to `config`, with the table in BAR `bar`; returns its offset.
    pub fn add_capability(&self, config: &mut ConfigSpace, bar: u8) -> Option<u16> {
        let control = (self.vectors() - 1) as u16;
        let body = [
            &control.to_le_bytes()[..],
            &u32::from(bar).to_le_bytes(),
            &(self.pending_offset() as u32 | u32::from(bar)).to_le_bytes(),
        ]
        .concat();
        config.add_capability(CAPABILITY_ID, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// True if software chose MSI-X in the capability at `at` of `config`.
    pub fn is_enabled(config: &ConfigSpace, at: u16) -> bool {
        config.u16(at + CONTROL) & ENABLE != 0
    }

    /// Takes over what the capability at `at` of `config` says; called under the function's lock.
    pub fn note_control(&self, config: &ConfigSpace, at: u16) {
        let control = config.u16(at + CONTROL) & (ENABLE | FUNCTION_MASK);
        let is_master = config.u16(COMMAND) & COMMAND_MASTER != 0;
        lock(&self.table).is_open = control == ENABLE && is_master;
    }

    /// Makes `vector` pending and sends what may be sent. Called with no lock held.
    pub fn signal(&self, vector: u16) {
        if let Some(pending) = lock(&self.table).pending.get_mut(usize::from(vector)) {
            *pending = true;
        }
        self.send_pending();
    }

    /// Sends what is pending and not held back any more. Called with no lock held, whenever what
    /// holds back may have changed.
    pub fn deliver(&self) {
        self.send_pending();
        self.tell_events();
    }

    fn send_pending(&self) {
        let messages = lock(&self.table).take_deliverable();
        for message in messages {
            self.sink.message(message.address, message.data);
        }
    }

    /// Masks every vector and drops what was pending.
    pub fn reset(&self) {
        {
            let mut table = lock(&self.table);
            table.entries.fill([0, 0, 0, VECTOR_MASKED]);
            table.pending.fill(false);
            table.is_open = false;
        }
        self.tell_events();
        self.connected().for_each(|(_, event)| event.clear());
    }

    /// The table, for saving.
    pub fn save(&self) -> SavedTable {
        let table = lock(&self.table);
        let is_pending = |vector| self.is_pending(&table, vector);
        let pending = (0..table.pending.len()).map(is_pending).collect();
        SavedTable { entries: table.entries.clone(), pending }
    }

    /// Takes a saved table; [`MsixTable::deliver`] is due behind it. False, and nothing changed, if
    /// it is of another size.
    pub fn restore(&self, saved: &SavedTable) -> bool {
        let mut table = lock(&self.table);
        let fits = saved.entries.len() == table.entries.len()
            && saved.pending.len() == table.pending.len();
        if fits {
            table.entries.clone_from(&saved.entries);
            table.pending.clone_from(&saved.pending);
            // What waits is what waited when it was saved.
            self.connected().for_each(|(_, event)| event.clear());
        }
        fits
    }

    fn is_pending(&self, table: &Table, vector: usize) -> bool {
        table.pending.get(vector).is_some_and(|&pending| pending)
            || self
                .events
                .get(vector)
                .and_then(OnceLock::get)
                .is_some_and(InterruptEvent::is_pending)
    }

    /// The pending bits of vectors `32 * index` and up.
    fn pending_word(&self, index: u64) -> u32 {
        let table = lock(&self.table);
        let first = 32 * index as usize;
        let bit = |bit: usize| u32::from(self.is_pending(&table, first + bit)) << bit;
        (0..32).fold(0, |word, number| word | bit(number))
    }
}

impl Device for MsixTable {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Dword || offset & 3 != 0 {
            return match width {
                Width::Qword if offset & 7 == 0 => Err(IoError::Width),
                _ => Err(IoError::NoRegister),
            };
        }
        if offset >= self.pending_offset() {
            return Ok(u64::from(self.pending_word((offset - self.pending_offset()) / 4)));
        }
        let table = lock(&self.table);
        let entry = table.entries.get((offset / ENTRY_BYTES) as usize);
        let word = entry.and_then(|entry| entry.get((offset % ENTRY_BYTES / 4) as usize));
        word.map(|&word| u64::from(word)).ok_or(IoError::NoRegister)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Dword || offset & 3 != 0 {
            return match width {
                Width::Qword if offset & 7 == 0 => Err(IoError::Width),
                _ => Err(IoError::NoRegister),
            };
        }
        let mut table = lock(&self.table);
        let entry = table.entries.get_mut((offset / ENTRY_BYTES) as usize);
        let index = (offset % ENTRY_BYTES / 4) as usize;
        let word = entry.and_then(|entry| entry.get_mut(index)).ok_or(IoError::NoRegister)?;
        let writable = match index {
            0 => 0xffff_fffc,
            3 => VECTOR_MASKED,
            _ => u32::MAX,
        };
        *word = value as u32 & writable;
        drop(table);
        self.deliver();
        Ok(())
    }
}
