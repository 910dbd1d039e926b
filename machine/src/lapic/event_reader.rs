//! The thread that looks at interrupt events where no engine does: one for all of a bus.
//!
//! It ends when the last [`InterruptEvents`] does. It is there from the first event on, also while
//! an engine looks at all of them, so that a change of engine needs nothing that can fail.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::interrupt_event::InterruptEvents;

/// Of the eventfd that ends the thread.
const END: u64 = u64::MAX;
/// Events looked at under one lock.
const BATCH: usize = 64;

/// What the thread waits at.
struct Waits {
    epoll: OwnedFd,
    end: OwnedFd,
}

/// The thread, from outside.
pub(super) struct EventReader(Arc<Waits>);

impl EventReader {
    /// Starts it, for `events`.
    pub(super) fn start(events: Weak<InterruptEvents>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &end, EventData::new_u64(END), EventFlags::IN)?;
        let waits = Arc::new(Waits { epoll, end });
        let inside = Arc::clone(&waits);
        let thread = std::thread::Builder::new().name("interrupt-events".into());
        thread.spawn(move || run(&inside, &events))?;
        Ok(Self(waits))
    }

    /// Knows `event` as `id`, without looking at it.
    pub(super) fn add(&self, event: impl AsFd, id: u64) -> io::Result<()> {
        Ok(epoll::add(&self.0.epoll, event, EventData::new_u64(id), EventFlags::empty())?)
    }

    /// Looks at `event`, or does not any more.
    pub(super) fn look(&self, event: impl AsFd, id: u64, shall_look: bool) {
        let flags = if shall_look { EventFlags::IN } else { EventFlags::empty() };
        // It fails for what was not added alone.
        if let Err(error) = epoll::modify(&self.0.epoll, event, EventData::new_u64(id), flags) {
            log::error!(target: "dev::lapic", "interrupt event {id}: {error}");
        }
    }

    /// Does not know `event` any more.
    pub(super) fn remove(&self, event: impl AsFd) {
        // As for `look`; and who else has the eventfd may go on having it.
        let _ = epoll::delete(&self.0.epoll, event);
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        // There is room for one.
        let _ = rustix::io::write(&self.0.end, &1u64.to_ne_bytes());
    }
}

fn run(waits: &Waits, events: &Weak<InterruptEvents>) {
    let mut found = Vec::with_capacity(BATCH);
    loop {
        found.clear();
        match epoll::wait(&waits.epoll, spare_capacity(&mut found), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!(target: "dev::lapic", "interrupt events are not read: {error}");
                return;
            }
        }
        let Some(events) = events.upgrade() else { return };
        events.serve(found.iter().map(|event: &epoll::Event| event.data.u64()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_thread_ends_with_its_events() {
        let reader = EventReader::start(Weak::new()).unwrap();
        let waits = Arc::downgrade(&reader.0);
        assert!(waits.upgrade().is_some());
        drop(reader);
        let is_gone = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            waits.strong_count() == 0
        });
        assert!(is_gone);
    }
}
