//! A chip's one deadline: decided under the chip's lock, armed after it.
//!
//! The same argument as for [`crate::output_pin`]: arming a timer may wake another thread, so it is
//! done with the chip unlocked, and whoever arms last looks again at what was staged last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;
use crate::timers::Timer;

/// No deadline.
const NONE: u64 = u64::MAX;

/// A timer with the deadline it is to have.
pub struct Deadline {
    timer: Timer,
    staged: AtomicU64,
}

impl Deadline {
    /// A deadline on `timer`, none at first.
    pub fn new(timer: Timer) -> Self {
        Self { timer, staged: AtomicU64::new(NONE) }
    }

    /// Notes the guest time in nanoseconds at which the chip wants to be called. Called under the
    /// chip's lock; true if it is a change, after which the caller unlocks and calls
    /// [`Deadline::flush`].
    pub fn stage(&self, deadline_ns: Option<u64>) -> bool {
        let deadline_ns = deadline_ns.unwrap_or(NONE);
        self.staged.swap(deadline_ns, Ordering::SeqCst) != deadline_ns
    }

    /// Arms or disarms the timer as staged last. Called with no chip lock held.
    pub fn flush(&self) {
        loop {
            let deadline_ns = self.staged.load(Ordering::SeqCst);
            match deadline_ns {
                NONE => self.timer.disarm(),
                at_ns => self.timer.arm(at_ns),
            }
            // Bounded: it goes round only when another thread staged in the meantime.
            if self.staged.load(Ordering::SeqCst) == deadline_ns {
                return;
            }
        }
    }

    /// Notes that the timer went off and is not armed any more. Called first in `expire`.
    pub fn fired(&self) {
        self.staged.store(NONE, Ordering::SeqCst);
    }

    /// The clock the deadline is on.
    pub fn clock(&self) -> &Arc<Clock> {
        self.timer.clock()
    }
}
