//! The thread that runs timers while guest time follows the host's.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use machine::timers::Timers;

/// How often the thread looks whether guest time, which stands still, goes on: no deadline comes
/// nearer meanwhile.
const STOPPED_POLL: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Shared {
    /// The earliest deadline moved forward since the thread last looked.
    is_dirty: bool,
    is_over: bool,
}

/// Sleeps until the earliest deadline and calls the chip that set it.
pub(crate) struct TimerThread {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl TimerThread {
    /// Starts the thread on `timers`.
    pub(crate) fn start(timers: Arc<Timers>) -> std::io::Result<Self> {
        let shared: Arc<(Mutex<Shared>, Condvar)> = Arc::default();
        let waker = Arc::clone(&shared);
        timers.set_waker(Arc::new(move || {
            waker.0.lock().unwrap_or_else(PoisonError::into_inner).is_dirty = true;
            waker.1.notify_one();
        }));
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("timers".into())
            .spawn(move || run(&timers, &state))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

fn run(timers: &Timers, (mutex, changed): &(Mutex<Shared>, Condvar)) {
    loop {
        timers.run_expired();
        let is_stopped = timers.clock().is_stopped();
        let now_ns = timers.clock().now_ns();
        let deadline_ns = timers.next_deadline_ns();
        let mut shared = mutex.lock().unwrap_or_else(PoisonError::into_inner);
        if !shared.is_dirty && !shared.is_over {
            shared = match deadline_ns {
                None => changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
                Some(deadline_ns) => {
                    let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns));
                    let pause = if is_stopped { left.max(STOPPED_POLL) } else { left };
                    changed
                        .wait_timeout(shared, pause)
                        .map_or_else(|error| error.into_inner().0, |(shared, _)| shared)
                }
            };
        }
        if shared.is_over {
            return;
        }
        shared.is_dirty = false;
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the timer thread died");
        }
    }
}
