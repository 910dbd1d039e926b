//! Host time: by system calls first, and by the processor's time-stamp counter as soon as its rate
//! is known.
//!
//! Problem: translated code wants to compute guest time from the counter without a call, and agree
//! to the nanosecond with all other readers, on all threads.
//! Strategy: once the machine is old enough for the counter's rate to be measured well, whoever
//! reads the time next publishes the function of the counter that everybody uses from then on.
//!
//! Invariant: time never goes back, not when the function takes over either: the function starts
//! at a time that was read behind the counter, and a time that was read while it took over counts
//! only if the function was not there yet.

use std::sync::OnceLock;
use std::time::Instant;

/// For how long the counter is compared with the system's time: its rate is known to about a
/// millionth then.
const MEASURED_NS: u64 = 100_000_000;
/// Readings of which the one with the least uncertainty is taken.
const READINGS: usize = 5;
/// How much earlier than measured a [`Scale`] starts: no processor's counter lags by that.
const MARGIN_TICKS: u64 = 1 << 33;

/// Time as a function of the counter: `start_ns` and, for each tick since `start_ticks`,
/// `multiplier` times 2^-32 nanoseconds. All of it wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// A count that comes before any that will be read.
    pub start_ticks: u64,
    /// Nanoseconds of a tick, in units of 2^-32.
    pub multiplier: u64,
    /// The time at `start_ticks`.
    pub start_ns: u64,
}

impl Scale {
    /// The function by two readings; `None` if no rate follows from them.
    fn between(first: Reading, last: Reading) -> Option<Self> {
        let ns = last.ns.checked_sub(first.ns)?;
        let ticks = last.ticks.checked_sub(first.ticks)?;
        let multiplier = u64::try_from((u128::from(ns) << 32).checked_div(ticks.into())?).ok()?;
        let margin_ns = multiplier * (MARGIN_TICKS >> 32);
        (multiplier != 0).then_some(Self {
            start_ticks: last.ticks.wrapping_sub(MARGIN_TICKS),
            multiplier,
            start_ns: last.ns.wrapping_sub(margin_ns),
        })
    }

    /// The time when the counter has reached `ticks`.
    pub fn ns_at(&self, ticks: u64) -> u64 {
        let passed = u128::from(ticks.wrapping_sub(self.start_ticks));
        let passed_ns = ((passed * u128::from(self.multiplier)) >> 32) as u64;
        self.start_ns.wrapping_add(passed_ns)
    }
}

/// The counter and the system's time read together; the time is read later.
#[derive(Clone, Copy)]
struct Reading {
    ticks: u64,
    ns: u64,
}

struct Counter {
    read: fn() -> u64,
    first: Reading,
    scale: OnceLock<Scale>,
}

/// Nanoseconds since it was made. Never goes back.
pub(crate) struct HostTime {
    start: Instant,
    counter: Option<Counter>,
}

impl HostTime {
    /// `ticks` reads the counter, if there is one to be trusted.
    pub(crate) fn new(ticks: Option<fn() -> u64>) -> Self {
        let start = Instant::now();
        let counter = |read| Counter { read, first: reading(start, read), scale: OnceLock::new() };
        Self { start, counter: ticks.map(counter) }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        let Some(counter) = &self.counter else { return elapsed_ns(self.start) };
        if let Some(scale) = counter.scale.get() {
            return scale.ns_at((counter.read)());
        }
        let ns = elapsed_ns(self.start);
        if ns.saturating_sub(counter.first.ns) >= MEASURED_NS {
            self.measure(counter);
        }
        counter.scale.get().map_or(ns, |scale| scale.ns_at((counter.read)()))
    }

    /// The function that [`HostTime::now_ns`] uses, as soon as there is one.
    pub(crate) fn scale(&self) -> Option<Scale> {
        self.counter.as_ref()?.scale.get().copied()
    }

    fn measure(&self, counter: &Counter) {
        if let Some(scale) = Scale::between(counter.first, reading(self.start, counter.read)) {
            // Another thread's is as good.
            let _ = counter.scale.set(scale);
        }
    }
}

fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The reading, of several, between whose parts the least time passed.
fn reading(start: Instant, read: fn() -> u64) -> Reading {
    let once = |_| {
        let ticks = read();
        let ns = elapsed_ns(start);
        (read().wrapping_sub(ticks), Reading { ticks, ns })
    };
    let readings = (0..READINGS).map(once);
    readings.min_by_key(|(width, _)| *width).map_or(Reading { ticks: 0, ns: 0 }, |(_, best)| best)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;

    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// A counter of 3 ticks a nanosecond, from near where it wraps.
    fn fast_ticks() -> u64 {
        (u64::MAX - 1_000_000).wrapping_add(elapsed_ns(*ORIGIN) * 3)
    }

    #[test]
    fn time_by_ticks_follows_the_system_and_never_goes_back() {
        LazyLock::force(&ORIGIN);
        std::thread::sleep(Duration::from_millis(1));
        let time = HostTime::new(Some(fast_ticks));
        assert!(time.scale().is_none());
        let (mut last, mut after) = (0, 0);
        while after < 1000 {
            let now = time.now_ns();
            assert!(now >= last, "{now} behind {last}");
            last = now;
            after += u32::from(time.scale().is_some());
        }
        // A reading may have been interrupted for as long as the host likes; the rate shows.
        let scale = time.scale().expect("a function");
        let nanosecond = (1u64 << 32) / 3;
        assert!(scale.multiplier.abs_diff(nanosecond) < nanosecond / 100, "{scale:?}");
        assert!(time.now_ns() <= elapsed_ns(time.start) + 10_000_000);
    }

    #[test]
    fn without_a_counter_there_is_no_function() {
        let time = HostTime::new(None);
        assert!(time.now_ns() <= time.now_ns());
        assert_eq!(time.scale(), None);
    }

    #[test]
    fn a_scale_is_exact_where_it_was_measured() {
        let (first, last) = (Reading { ticks: 10, ns: 5 }, Reading { ticks: 3010, ns: 1005 });
        let scale = Scale::between(first, last).expect("a rate");
        assert_eq!(scale.ns_at(3010), 1005);
        assert!(scale.ns_at(6010).abs_diff(2005) <= 1);
        assert_eq!(Scale::between(last, first), None);
        assert_eq!(Scale::between(first, first), None);
    }
}
