//! Wake-ups for chips: a queue of deadlines in guest time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::clock::Clock;

/// A chip that set a timer.
pub trait TimerTarget: Send + Sync {
    /// A deadline has passed; `now_ns` is guest time. Called with no lock held, at least once for
    /// every armed deadline that was not disarmed first, possibly late.
    fn expire(&self, now_ns: u64);
}

#[derive(Default)]
struct Queue {
    /// (deadline, timer), earliest first; a timer appears at most once.
    armed: BTreeSet<(u64, usize)>,
    /// By timer: its deadline while armed, and whom to call.
    timers: Vec<(Option<u64>, Weak<dyn TimerTarget>)>,
    waker: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// The queue of deadlines. Whoever runs the machine calls [`Timers::run_expired`] when the earliest
/// deadline comes: a thread of its own, or the scheduler between slices when time is counted.
pub struct Timers {
    clock: Arc<Clock>,
    queue: Mutex<Queue>,
}

/// A chip's handle to one deadline.
#[derive(Clone)]
pub struct Timer {
    timers: Arc<Timers>,
    index: usize,
}

impl Timers {
    /// An empty queue on `clock`.
    pub fn new(clock: Arc<Clock>) -> Arc<Self> {
        Arc::new(Self { clock, queue: Mutex::default() })
    }

    /// The clock the deadlines are on.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Makes a timer that calls `target`.
    pub fn register(self: &Arc<Self>, target: Weak<dyn TimerTarget>) -> Timer {
        let mut queue = self.lock();
        queue.timers.push((None, target));
        Timer { timers: Arc::clone(self), index: queue.timers.len() - 1 }
    }

    /// Sets what is called, from any thread and with no lock held, when the earliest deadline moved
    /// forward, so that a sleeper can sleep less.
    pub fn set_waker(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        self.lock().waker = Some(waker);
    }

    /// The earliest deadline in guest nanoseconds, if any timer is armed.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.lock().armed.first().map(|&(deadline, _)| deadline)
    }

    /// Calls every timer that is due now. A timer that re-arms itself in the past is called again
    /// in the next round, not in this one, so the call always ends.
    pub fn run_expired(&self) {
        let now_ns = self.clock.now_ns();
        let mut due = Vec::new();
        let mut queue = self.lock();
        while let Some(&(deadline, index)) = queue.armed.first()
            && deadline <= now_ns
        {
            queue.armed.pop_first();
            if let Some((armed, target)) = queue.timers.get_mut(index) {
                *armed = None;
                due.push(target.clone());
            }
        }
        drop(queue);
        for target in due {
            if let Some(target) = target.upgrade() {
                target.expire(now_ns);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, index: usize, deadline_ns: Option<u64>) {
        let mut queue = self.lock();
        let first = queue.armed.first().map(|&(deadline, _)| deadline);
        let Some((armed, _)) = queue.timers.get_mut(index) else { return };
        if let Some(old) = std::mem::replace(armed, deadline_ns) {
            queue.armed.remove(&(old, index));
        }
        if let Some(deadline) = deadline_ns {
            queue.armed.insert((deadline, index));
            if first.is_none_or(|first| deadline < first) {
                let waker = queue.waker.clone();
                drop(queue);
                if let Some(waker) = waker {
                    waker();
                }
            }
        }
    }
}

impl Timer {
    /// Arms the timer for guest time `deadline_ns`, replacing an earlier deadline.
    pub fn arm(&self, deadline_ns: u64) {
        self.timers.set(self.index, Some(deadline_ns));
    }

    /// Disarms the timer.
    pub fn disarm(&self) {
        self.timers.set(self.index, None);
    }

    /// The clock the deadline is on.
    pub fn clock(&self) -> &Arc<Clock> {
        self.timers.clock()
    }
}
