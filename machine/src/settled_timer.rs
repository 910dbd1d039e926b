//! A chip's deadline: decided under the chip's lock and armed after it.
//!
//! The same problem and strategy as [`crate::output_pin`]: two threads that decide in one order may
//! arm in the other, and a deadline would be lost. Whoever arms looks again afterwards, so the
//! timer ends armed for the deadline that was published last.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::timers::Timer;

/// A timer whose deadline is decided under a lock and armed without it.
pub(crate) struct SettledTimer {
    timer: Timer,
    deadline_ns: AtomicU64,
}

/// Stands for "no deadline": guest time never gets there.
const NEVER_NS: u64 = u64::MAX;

impl SettledTimer {
    /// A disarmed timer.
    pub(crate) fn new(timer: Timer) -> Self {
        Self { timer, deadline_ns: AtomicU64::new(NEVER_NS) }
    }

    /// Decides the deadline; called under the chip's lock. True if it changed, after which the
    /// caller unlocks and calls [`Self::settle`].
    pub(crate) fn publish(&self, deadline_ns: Option<u64>) -> bool {
        let deadline_ns = deadline_ns.unwrap_or(NEVER_NS);
        self.deadline_ns.swap(deadline_ns, Ordering::SeqCst) != deadline_ns
    }

    /// Notes that the queue called the deadline and forgot it, so that the same one is armed again
    /// if it still stands.
    pub(crate) fn expired(&self) {
        self.deadline_ns.store(NEVER_NS, Ordering::SeqCst);
    }

    /// Arms or disarms the timer as decided; called without the chip's lock.
    pub(crate) fn settle(&self) {
        loop {
            let deadline_ns = self.deadline_ns.load(Ordering::SeqCst);
            match deadline_ns {
                NEVER_NS => self.timer.disarm(),
                _ => self.timer.arm(deadline_ns),
            }
            // Bounded: it goes round only when another thread published in the meantime.
            if self.deadline_ns.load(Ordering::SeqCst) == deadline_ns {
                return;
            }
        }
    }

    /// Guest time in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        self.timer.clock().now_ns()
    }
}
