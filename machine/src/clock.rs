//! Guest time: one clock behind TSC, kvmclock and every timer chip.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::host_time::{HostTime, Scale};

enum Source {
    /// Host time less the time stopped.
    Host(HostTime),
    /// Whatever `counted_ns` says: instruction counting, or a test.
    Counted,
}

/// Guest time in nanoseconds since the machine was made. Never goes back.
///
/// Nobody else asks the host for time. With [`Clock::host`] it is host monotonic time less the time
/// the machine was stopped; with [`Clock::counted`] it moves only when told to, which makes runs
/// repeat exactly.
pub struct Clock {
    source: Source,
    counted_ns: AtomicU64,
    /// Host nanoseconds that do not count, all stops together.
    stopped_ns: AtomicU64,
    stopped: AtomicBool,
    /// Guest time at which the current stop began.
    stopped_at_ns: AtomicU64,
    /// Wall time at guest time 0, nanoseconds since 1970 UTC.
    epoch_unix_ns: AtomicI64,
}

impl Clock {
    /// A clock that follows the host's monotonic and wall time; `ticks` reads the host's time-stamp
    /// counter, if that can be a clock.
    pub fn host(ticks: Option<fn() -> u64>) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        Self::with_source(Source::Host(HostTime::new(ticks)), unix)
    }

    /// A clock that moves only by [`Clock::advance_to`]; guest time 0 is `epoch_unix_ns`.
    pub fn counted(epoch_unix_ns: i64) -> Self {
        Self::with_source(Source::Counted, epoch_unix_ns)
    }

    fn with_source(source: Source, epoch_unix_ns: i64) -> Self {
        Self {
            source,
            counted_ns: AtomicU64::new(0),
            stopped_ns: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            stopped_at_ns: AtomicU64::new(0),
            epoch_unix_ns: AtomicI64::new(epoch_unix_ns),
        }
    }

    /// Guest time in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        match &self.source {
            Source::Counted => self.counted_ns.load(Ordering::Acquire),
            Source::Host(_) if self.stopped.load(Ordering::Acquire) => {
                self.stopped_at_ns.load(Ordering::Acquire)
            }
            Source::Host(host) => {
                host.now_ns().saturating_sub(self.stopped_ns.load(Ordering::Acquire))
            }
        }
    }

    /// Guest time as a function of the host's time-stamp counter, if it is known and time is not
    /// stopped. It is the function that [`Clock::now_ns`] uses.
    pub fn scale(&self) -> Option<Scale> {
        match &self.source {
            Source::Host(host) if !self.stopped.load(Ordering::Acquire) => {
                let scale = host.scale()?;
                let stopped_ns = self.stopped_ns.load(Ordering::Acquire);
                Some(Scale { start_ns: scale.start_ns.wrapping_sub(stopped_ns), ..scale })
            }
            _ => None,
        }
    }

    /// Wall time in nanoseconds since 1970 UTC, as the RTC and kvmclock's wall clock show it.
    pub fn unix_ns(&self) -> i64 {
        self.epoch_unix_ns.load(Ordering::Acquire).saturating_add_unsigned(self.now_ns())
    }

    /// True if time moves only by [`Clock::advance_to`].
    pub fn is_counted(&self) -> bool {
        matches!(self.source, Source::Counted)
    }

    /// Moves a counted clock forward to `now_ns`; earlier times and host clocks are left alone.
    pub fn advance_to(&self, now_ns: u64) {
        self.counted_ns.fetch_max(now_ns, Ordering::AcqRel);
    }

    /// Stops guest time. Called with all vCPUs stopped.
    pub fn stop(&self) {
        self.stopped_at_ns.store(self.now_ns(), Ordering::Release);
        self.stopped.store(true, Ordering::Release);
    }

    /// True while guest time is stopped.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Lets guest time go on from where it stopped.
    pub fn resume(&self) {
        if let Source::Host(host) = &self.source
            && self.stopped.load(Ordering::Acquire)
        {
            let lost = host.now_ns().saturating_sub(self.stopped_at_ns.load(Ordering::Acquire));
            self.stopped_ns.store(lost, Ordering::Release);
        }
        self.stopped.store(false, Ordering::Release);
    }
}

/// Converts nanoseconds to ticks of `hz`, rounding down, without overflow.
pub fn ns_to_ticks(ns: u64, hz: u64) -> u64 {
    (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64
}

/// Converts ticks of `hz` to nanoseconds, rounding up so that a timer never fires early.
pub fn ticks_to_ns(ticks: u64, hz: u64) -> u64 {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(hz.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
