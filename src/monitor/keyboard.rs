//! Keys on their way from who reads them to a session.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Keys that may wait.
const KEYS_MAX: usize = 4096;
/// Ends what is under way.
pub(super) const CTRL_C: u8 = 3;

/// Called when Ctrl-C comes while a command is under way.
type OnInterrupt = Box<dyn Fn() + Send + Sync>;

/// Something for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A byte.
    Byte(u8),
    /// The terminal is the monitor's from here on.
    Entered,
    /// It is the guest's.
    Left,
}

#[derive(Default)]
struct Shared {
    keys: VecDeque<Key>,
    /// A command is under way.
    is_busy: bool,
    /// Ctrl-C came for it: once is enough.
    is_interrupted: bool,
    is_closed: bool,
    on_interrupt: Option<OnInterrupt>,
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Keyboard {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Keyboard {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a key in. Ctrl-C takes what was typed before it away, and ends a command that is under
    /// way. False if there is no room.
    pub(crate) fn put(&self, key: Key) -> bool {
        let mut shared = self.lock();
        if key == Key::Byte(CTRL_C) {
            shared.keys.clear();
            if shared.is_busy {
                if !std::mem::replace(&mut shared.is_interrupted, true)
                    && let Some(on_interrupt) = &shared.on_interrupt
                {
                    on_interrupt();
                }
                return true;
            }
        }
        if shared.keys.len() >= KEYS_MAX {
            return false;
        }
        shared.keys.push_back(key);
        drop(shared);
        self.changed.notify_all();
        true
    }

    /// Puts a key in, when there is room for it; never, if the keyboard is closed meanwhile.
    pub(crate) fn put_in_time(&self, key: Key) {
        while !self.put(key) && self.wait_for_room() {}
    }

    /// Waits until there may be room. False if the keyboard is closed.
    fn wait_for_room(&self) -> bool {
        let mut shared = self.lock();
        while shared.keys.len() >= KEYS_MAX && !shared.is_closed {
            shared = self.wait(shared);
        }
        !shared.is_closed
    }

    /// The next key; none when there will be no more.
    pub(super) fn next(&self) -> Option<Key> {
        let mut shared = self.lock();
        loop {
            if let Some(key) = shared.keys.pop_front() {
                drop(shared);
                self.changed.notify_all();
                return Some(key);
            }
            if shared.is_closed {
                return None;
            }
            shared = self.wait(shared);
        }
    }

    /// There are no more keys behind those that wait.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// What Ctrl-C does while a command is under way. It must not come back here.
    pub(super) fn on_interrupt(&self, act: OnInterrupt) {
        self.lock().on_interrupt = Some(act);
    }

    /// Does what takes a while.
    pub(super) fn while_busy<T>(&self, act: impl FnOnce() -> T) -> T {
        let mut shared = self.lock();
        (shared.is_busy, shared.is_interrupted) = (true, false);
        drop(shared);
        let result = act();
        self.lock().is_busy = false;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn keys_come_in_order_and_no_more_than_have_room() {
        let keyboard = Keyboard::default();
        let sent = (0..=255u8).filter(|&byte| byte != CTRL_C).cycle().take(KEYS_MAX);
        assert!(sent.clone().all(|byte| keyboard.put(Key::Byte(byte))));
        assert!(!keyboard.put(Key::Byte(0)));
        keyboard.close();
        let taken: Vec<_> = std::iter::from_fn(|| keyboard.next()).collect();
        assert_eq!(taken, sent.map(Key::Byte).collect::<Vec<_>>());
    }

    #[test]
    fn who_waits_for_room_is_let_go_when_nobody_takes_keys_any_more() {
        let keyboard = Arc::<Keyboard>::default();
        (0..KEYS_MAX).for_each(|_| assert!(keyboard.put(Key::Byte(b'x'))));
        let other = Arc::clone(&keyboard);
        let sender = std::thread::spawn(move || other.put_in_time(Key::Byte(b'y')));
        keyboard.close();
        sender.join().expect("the sender ends");
        // And neither does who comes later wait.
        keyboard.put_in_time(Key::Byte(b'z'));
        assert_eq!(keyboard.lock().keys.len(), KEYS_MAX);
    }

    #[test]
    fn ctrl_c_interrupts_what_is_under_way_and_is_a_key_else() {
        let (keyboard, count) = (Keyboard::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&count);
        keyboard.on_interrupt(Box::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        keyboard.put(Key::Byte(b'x'));
        keyboard.put(Key::Byte(CTRL_C));
        assert_eq!(keyboard.next(), Some(Key::Byte(CTRL_C)));
        keyboard.while_busy(|| {
            for key in [b'y', CTRL_C, CTRL_C] {
                assert!(keyboard.put(Key::Byte(key)));
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 1);
        keyboard.close();
        assert_eq!(keyboard.next(), None);
    }
}
