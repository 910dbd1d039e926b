//! Figures about a run, printed at its end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::threads::{SharedCpu, lock};

/// Changes of engine.
#[derive(Default)]
pub(super) struct Changes {
    count: AtomicU64,
    longest_ns: AtomicU64,
}

impl Changes {
    /// One was done, and this is how long it took with all CPUs stopped.
    pub(super) fn note(&self, taken: Duration) {
        let taken_ns = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.longest_ns.fetch_max(taken_ns, Ordering::Relaxed);
    }

    /// Says how many there were, if there were any.
    pub(super) fn print(&self) {
        let count = self.count.load(Ordering::Relaxed);
        if count != 0 {
            let longest_us = self.longest_ns.load(Ordering::Relaxed) / 1000;
            eprintln!("{count} changes of engine, {longest_us} us the longest");
        }
    }
}

/// Prints what each CPU did, to standard error. The rate is by processor time of the whole
/// process, so that a busy host and a sleeping guest do not count. Where the engine does not count
/// instructions (`has_counts` is false), there is no rate.
pub(super) fn print(cpus: &[SharedCpu], has_counts: bool, elapsed: Duration) {
    let mut total = 0;
    for (index, engine) in cpus.iter().enumerate() {
        let engine = lock(engine);
        if has_counts {
            let (retired, trace) = (engine.vcpu().retired(), engine.cpu().trace_digest());
            total += retired;
            eprintln!("cpu{index}: {retired} instructions, trace {trace:#018x}");
        }
        for line in engine.figures().lines() {
            eprintln!("cpu{index}: {line}");
        }
    }
    let wall = elapsed.as_secs_f64();
    let used = processor_seconds();
    let time = format!("{used:.3} s of processor time ({wall:.3} s)");
    if has_counts {
        let rate = total as f64 / used / 1e6;
        eprintln!("{total} instructions in {time}: {rate:.1} MIPS");
    } else {
        eprintln!("{time}");
    }
}

/// Processor time of this process so far, in seconds.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
