//! Figures about a run, printed at its end.

use std::time::Duration;

use cpu::engine::Vcpu;
use rustix::time::{ClockId, clock_gettime};

use super::threads::{SharedCpu, lock};

/// Prints what each CPU did, to standard error. The rate is by processor time of the whole
/// process, so that a busy host and a sleeping guest do not count.
pub(super) fn print(cpus: &[SharedCpu], elapsed: Duration) {
    let mut total = 0;
    for (index, cpu) in cpus.iter().enumerate() {
        let cpu = lock(cpu);
        total += cpu.retired();
        eprintln!("cpu{index}: {} instructions, trace {:#018x}", cpu.retired(), cpu.trace_digest());
    }
    let wall = elapsed.as_secs_f64();
    let used = processor_seconds();
    let rate = total as f64 / used / 1e6;
    eprintln!(
        "{total} instructions in {used:.3} s of processor time ({wall:.3} s): {rate:.1} MIPS"
    );
}

/// Processor time of this process so far, in seconds.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
