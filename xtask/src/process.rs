//! What the kernel says of a running process: its processor time and its memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// `/proc/PID/stat` counts in this unit on every Linux for x86, `getconf CLK_TCK`.
const TICKS_PER_SECOND: u32 = 100;
/// What of a process's mappings only guest RAM has: it asks for huge pages.
const GUEST_RAM: &str = "hg";

/// Processor time of all threads, user and system, and of the children that were waited for.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // proc_pid_stat(5): the name in parentheses may hold anything; utime, stime, cutime and cstime
    // are the 12th to 15th fields after.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let times = fields.split_whitespace().skip(11).take(4).map(str::parse::<u32>);
    let ticks = times.sum::<Result<u32, _>>()?;
    Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
}

/// Resident memory that is not the guest's RAM, in KiB.
pub fn host_memory_kib(process: u32) -> Result<u64> {
    Ok(beyond_guest_ram(&fs::read_to_string(format!("/proc/{process}/smaps"))?))
}

/// Sums up the mappings of `smaps`. Pages of a memfd count once, however often they are mapped;
/// what comes from a file counts whole, whoever else has it too.
fn beyond_guest_ram(smaps: &str) -> u64 {
    let (mut sum, mut mapping, mut is_memfd) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next().unwrap_or_default() {
            "VmFlags:" if words.any(|flag| flag == GUEST_RAM) => mapping = 0,
            first if !first.ends_with(':') => {
                // The head of a mapping: addresses, rights, and at the end its name.
                is_memfd = line.contains("/memfd:");
                sum += std::mem::take(&mut mapping);
            }
            first if first == (if is_memfd { "Pss:" } else { "Rss:" }) => {
                mapping = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            }
            _ => {}
        }
    }
    sum + mapping
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn our_own_time_and_memory_can_be_read() {
        let process = std::process::id();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(100) {}
        assert!(processor_time(process).unwrap() > Duration::ZERO);
        assert!(host_memory_kib(process).unwrap() > 100);
    }

    #[test]
    fn guest_ram_is_left_out_and_a_memfd_counts_once() {
        let smaps = "\
            55d0-55d1 r-xp 00000000 08:01 1 /usr/bin/volvelle\nRss:   4 kB\nPss:   2 kB\n\
            7f00-7f01 rw-p 00000000 00:00 0\nRss: 99 kB\nPss: 99 kB\nVmFlags: rd wr hg\n\
            7f10-7f11 rw-s 00000000 00:01 3 /memfd:volvelle-code (deleted)\nRss: 8 kB\nPss: 4 kB\n\
            7f20-7f21 r-xs 00000000 00:01 3 /memfd:volvelle-code (deleted)\nRss: 8 kB\nPss: 4 kB\n\
            7f30-7f31 rw-p 00000000 00:00 0\nRss:  16 kB\nPss: 16 kB\nVmFlags: rd wr mr\n";
        assert_eq!(beyond_guest_ram(smaps), 4 + 4 + 4 + 16);
    }
}
