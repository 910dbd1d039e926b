//! What clients did, for the machine's owner, who looks only when the machine is stopped.
//!
//! The threads that read from clients put things in; unless the owner is at the inbox already,
//! they ask for the machine to be stopped. Both is decided under one lock, so nothing lies there
//! that nobody comes for. What a client sends faster than it is answered waits at the client.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::commands::Context;
use crate::sockets::Client;

/// Bytes that may lie in the inbox.
const BYTES_MAX: usize = 64 << 10;

/// A command of a monitor, whose session waits for the answer.
pub(crate) struct Question {
    /// The command line.
    pub(crate) line: String,
    /// What the session keeps from one command to the next.
    pub(crate) context: Context,
    /// Where the answer goes; it is dropped where there will be none.
    pub(crate) reply: Sender<Answered>,
}

/// The answer to a [`Question`].
pub(crate) struct Answered {
    /// What to show.
    pub(crate) text: String,
    /// The question's, as the command left it.
    pub(crate) context: Context,
}

/// Something that happened.
pub(crate) enum Event {
    /// A client of gdb's protocol is there.
    Connected(Client),
    /// It sent this.
    Bytes(Vec<u8>),
    /// It went.
    Closed,
    /// A monitor asks something. Each session has one question at a time.
    Asked(Box<Question>),
    /// A monitor's user wants the machine to stand, and waits for nothing.
    Interrupted,
    /// The machine ends.
    Quit,
}

#[derive(Default)]
struct Shared {
    events: VecDeque<Event>,
    bytes: usize,
    /// The owner is here.
    is_attended: bool,
    is_over: bool,
}

/// See the head of this file.
pub(crate) struct Inbox {
    shared: Mutex<Shared>,
    changed: Condvar,
    /// Asks the owner to come.
    call: Box<dyn Fn() + Send + Sync>,
}

impl Inbox {
    pub(crate) fn new(call: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { shared: Mutex::default(), changed: Condvar::new(), call }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `event` in, when there is room for it.
    pub(crate) fn put(&self, event: Event) {
        let mut shared = self.lock();
        let bytes = if let Event::Bytes(bytes) = &event { bytes.len() } else { 0 };
        while bytes != 0 && shared.bytes + bytes > BYTES_MAX && !shared.is_over {
            shared = self.wait(shared);
        }
        shared.bytes += bytes;
        shared.is_over |= matches!(event, Event::Quit);
        shared.events.push_back(event);
        let is_attended = shared.is_attended;
        drop(shared);
        self.changed.notify_all();
        if !is_attended {
            (self.call)();
        }
    }

    /// The owner is here until [`Inbox::leave`].
    pub(crate) fn attend(&self) {
        self.lock().is_attended = true;
    }

    /// The owner goes, unless something lies there. True if it may.
    pub(crate) fn leave(&self) -> bool {
        let mut shared = self.lock();
        let is_empty = shared.events.is_empty();
        shared.is_attended = !is_empty;
        is_empty
    }

    /// The next event, which is waited for.
    pub(crate) fn next(&self) -> Event {
        let mut shared = self.lock();
        loop {
            if let Some(event) = self.take(&mut shared) {
                return event;
            }
            shared = self.wait(shared);
        }
    }

    /// The next event, if it comes in time.
    pub(crate) fn next_within(&self, pause: Duration) -> Option<Event> {
        let is_empty = |shared: &mut Shared| shared.events.is_empty();
        let waited = self.changed.wait_timeout_while(self.lock(), pause, is_empty);
        let (mut shared, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.take(&mut shared)
    }

    fn take(&self, shared: &mut Shared) -> Option<Event> {
        let event = shared.events.pop_front()?;
        if let Event::Bytes(bytes) = &event {
            shared.bytes -= bytes.len();
        }
        self.changed.notify_all();
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_owner_is_called_once_it_is_away() {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let inbox = Inbox::new(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        inbox.put(Event::Bytes(vec![1]));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        inbox.attend();
        inbox.put(Event::Closed);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert!(!inbox.leave());
        assert!(matches!(inbox.next(), Event::Bytes(_)));
        assert!(matches!(inbox.next(), Event::Closed));
        assert!(inbox.leave());
        inbox.put(Event::Quit);
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_client_that_sends_too_much_waits() {
        let inbox = Arc::new(Inbox::new(Box::new(|| {})));
        let sender = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || {
            (0..64).for_each(|_| sender.put(Event::Bytes(vec![0; BYTES_MAX / 4])));
        });
        for _ in 0..64 {
            assert!(matches!(inbox.next(), Event::Bytes(_)));
            assert!(inbox.lock().bytes <= BYTES_MAX);
        }
        thread.join().expect("the sender ends");
    }
}
