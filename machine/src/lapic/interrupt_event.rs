//! Interrupt events: eventfds whose writes interrupt the guest, for whoever is no thread of the
//! machine. They are the way back of [`memory::Doorbell`].
//!
//! Problem: who waits at such an eventfd depends on where local APICs are (an engine's kernel, or a
//! thread of ours), and that changes while others write. An interrupt must be neither lost nor
//! doubled.
//! Strategy: the count of the eventfd is all that there is of an interrupt that was not sent yet.
//! Whoever takes the count sends the message before anybody else may take the next one, and
//! whoever stops leaves what he has not taken to the next. So a masked event is one that nobody
//! looks at, and its pending bit is its count.
//! Invariant: under the lock of [`Wiring`] each event has one who looks at it, or none, and no
//! count was taken whose message was not sent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::bus::ApicBus;
use super::event_reader::EventReader;
use super::message::{ApicBorrower, DeliveryMode, Message, MessageSink, WatchedEvent};
use crate::guard::lock;

/// An eventfd whose writes send a message. Made by [`ApicBus::interrupt_event`]; masked until
/// [`InterruptEvent::set`], and gone from the bus when it is dropped.
pub struct InterruptEvent {
    id: u64,
    event: Arc<OwnedFd>,
    all: Arc<InterruptEvents>,
}

impl InterruptEvent {
    /// The eventfd, which never blocks: who adds to it interrupts. Writes that nobody has come to
    /// yet are one interrupt, as edges are.
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.event
    }

    /// From now on a write sends `message`. With `None` it is masked: writes wait until there is a
    /// message again. Called with no chip lock held.
    pub fn set(&self, message: Option<Message>) {
        self.all.set(self.id, message);
    }

    /// True if a write waits.
    pub fn is_pending(&self) -> bool {
        let mut polled = [PollFd::new(&*self.event, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Forgets the writes that wait.
    pub fn clear(&self) {
        take(&self.event);
    }
}

impl Drop for InterruptEvent {
    fn drop(&mut self) {
        self.all.remove(self.id);
    }
}

/// True if there was a write since the last call.
fn take(event: &OwnedFd) -> bool {
    // An eventfd at which nothing has happened is an error.
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

/// All interrupt events of a bus.
pub(super) struct InterruptEvents {
    bus: Weak<ApicBus>,
    wiring: Mutex<Wiring>,
}

/// Who looks at which event.
#[derive(Default)]
struct Wiring {
    entries: BTreeMap<u64, Entry>,
    next_id: u64,
    /// Who may look at events instead of the reader.
    engine: Option<Arc<dyn ApicBorrower>>,
    /// Local APICs are on their way: nobody looks.
    is_held: bool,
    /// There since the first event.
    reader: Option<EventReader>,
}

struct Entry {
    event: Arc<OwnedFd>,
    message: Option<Message>,
    /// The reader looks at it.
    is_read: bool,
}

impl Entry {
    /// What an engine may do of it: an ExtINT is the chips'.
    fn for_engine(&self) -> Option<WatchedEvent> {
        let message = self.message.filter(|message| message.delivery != DeliveryMode::ExtInt)?;
        Some(WatchedEvent { event: Arc::clone(&self.event), message })
    }

    fn set_read(&mut self, id: u64, reader: &EventReader, is_read: bool) {
        if self.is_read != is_read {
            reader.look(&self.event, id, is_read);
            self.is_read = is_read;
        }
    }
}

impl Wiring {
    /// Has whoever can look at each event that is not masked.
    fn settle(&mut self) {
        let Some(reader) = &self.reader else { return };
        let engines = match &self.engine {
            Some(engine) => Self::offer(&mut self.entries, reader, self.is_held, &**engine),
            None => BTreeSet::new(),
        };
        for (&id, entry) in &mut self.entries {
            let is_readers = entry.message.is_some() && !engines.contains(&id);
            // The reader leaves by itself what it meets while nobody shall look.
            if !is_readers || !self.is_held {
                entry.set_read(id, reader, is_readers);
            }
        }
    }

    /// Has `engine` look at what it can; returns what that is.
    fn offer(
        entries: &mut BTreeMap<u64, Entry>,
        reader: &EventReader,
        is_held: bool,
        engine: &dyn ApicBorrower,
    ) -> BTreeSet<u64> {
        let (mut ids, mut events) = (Vec::new(), Vec::new());
        for (&id, entry) in entries.iter_mut().filter(|_| !is_held) {
            if let Some(event) = entry.for_engine() {
                entry.set_read(id, reader, false);
                ids.push(id);
                events.push(event);
            }
        }
        let are_taken = engine.watch(&events);
        ids.into_iter().zip(are_taken).filter_map(|(id, is_taken)| is_taken.then_some(id)).collect()
    }
}

impl InterruptEvents {
    /// None, for `bus`.
    pub(super) fn new(bus: Weak<ApicBus>) -> Arc<Self> {
        Arc::new(Self { bus, wiring: Mutex::default() })
    }

    /// A new one, which is masked.
    pub(super) fn add(self: &Arc<Self>) -> io::Result<InterruptEvent> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut wiring = lock(&self.wiring);
        let wiring = &mut *wiring;
        let reader = match &mut wiring.reader {
            Some(reader) => reader,
            none => none.insert(EventReader::start(Arc::downgrade(self))?),
        };
        let id = wiring.next_id;
        reader.add(&event, id)?;
        wiring.next_id += 1;
        let entry = Entry { event: Arc::clone(&event), message: None, is_read: false };
        wiring.entries.insert(id, entry);
        Ok(InterruptEvent { id, event, all: Arc::clone(self) })
    }

    fn set(&self, id: u64, message: Option<Message>) {
        let mut wiring = lock(&self.wiring);
        let Some(entry) = wiring.entries.get_mut(&id) else { return };
        if entry.message != message {
            entry.message = message;
            wiring.settle();
        }
    }

    fn remove(&self, id: u64) {
        let mut wiring = lock(&self.wiring);
        let Some(gone) = wiring.entries.remove(&id) else { return };
        if let Some(reader) = &wiring.reader {
            reader.remove(&gone.event);
        }
        wiring.settle();
    }

    /// Has writes wait. No message of theirs is on its way when this returns.
    pub(super) fn hold(&self) {
        let mut wiring = lock(&self.wiring);
        wiring.is_held = true;
        wiring.settle();
    }

    /// Sends for what was written and for what comes, by `engine` where it can.
    pub(super) fn release(&self, engine: Option<Arc<dyn ApicBorrower>>) {
        let mut wiring = lock(&self.wiring);
        wiring.is_held = false;
        wiring.engine = engine;
        wiring.settle();
    }

    /// The reader has found writes at the events `ids`.
    pub(super) fn serve(&self, ids: impl Iterator<Item = u64>) {
        let mut wiring = lock(&self.wiring);
        let Wiring { entries, is_held, reader: Some(reader), .. } = &mut *wiring else { return };
        for id in ids {
            let Some(entry) = entries.get_mut(&id) else { continue };
            if *is_held {
                entry.set_read(id, reader, false);
            }
            // It may have been taken off the reader since.
            let Some(message) = entry.message.filter(|_| entry.is_read) else { continue };
            if take(&entry.event)
                && let Some(bus) = self.bus.upgrade()
            {
                bus.deliver(message);
            }
        }
    }
}
