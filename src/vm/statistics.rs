//! Figures about a run, printed at its end.

use std::time::Duration;

use cpu::engine::Vcpu;

use super::threads::{SharedCpu, lock};

/// Prints what each CPU did, to standard error.
pub(super) fn print(cpus: &[SharedCpu], elapsed: Duration) {
    let mut total = 0;
    for (index, cpu) in cpus.iter().enumerate() {
        let cpu = lock(cpu);
        total += cpu.retired();
        eprintln!("cpu{index}: {} instructions, trace {:#018x}", cpu.retired(), cpu.trace_digest());
    }
    let seconds = elapsed.as_secs_f64();
    eprintln!("{total} instructions in {seconds:.3} s, {:.1} MIPS", total as f64 / seconds / 1e6);
}
