//! Volvelle and QEMU on the same nested KVM: what their guests complain of, how long they take.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::monitors::{Linux, Monitor};
use super::{at_prompt, power_off};
use crate::boot::console::Console;
use crate::boot::kernel_log;

/// Ends by itself when its first program has run.
const LEAVING: Linux = Linux { kernel: "/kvm/vmlinuz", cpus: 1, words: "volvelle.leave" };

/// The kernel on Volvelle complains of nothing that it does not complain of on QEMU.
pub fn complaints(console: &mut Console, cpus: u32) -> Result<()> {
    let ours = complaints_on(console, Monitor::Volvelle, cpus)?;
    let peers = complaints_on(console, Monitor::Qemu, cpus)?;
    println!("  complaints on Volvelle: {}, on QEMU: {}", ours.len(), peers.len());
    let only_ours: Vec<&str> =
        ours.iter().filter(|line| !peers.contains(line)).map(String::as_str).collect();
    ensure!(only_ours.is_empty(), "not on QEMU:\n  {}", only_ours.join("\n  "));
    Ok(())
}

fn complaints_on(console: &mut Console, monitor: Monitor, cpus: u32) -> Result<Vec<String>> {
    let guest = Linux { kernel: "/kvm/vmlinuz", cpus, words: "" };
    at_prompt(console, &monitor.linux(guest))?;
    console.shell("dmesg | grep -q 'kvm-clock: Using msrs'").context(monitor.name())?;
    let log = console.shell(&kernel_log::suspects())?;
    power_off(console, "poweroff", 0)?;
    Ok(kernel_log::complaints(&log).into_iter().map(gist).collect())
}

/// A line of `dmesg -r` without level, time, and whatever numbers differ from run to run.
fn gist(line: &str) -> String {
    let text = line.split_once("] ").map_or(line, |(_, text)| text);
    let mut gist = String::new();
    for letter in text.chars() {
        match letter.is_ascii_digit() {
            true if gist.ends_with('#') => {}
            true => gist.push('#'),
            false => gist.push(letter),
        }
    }
    gist
}

/// What one run took, by the first guest's clock.
#[derive(Clone, Copy)]
struct Times {
    wall: Duration,
    /// Of the process, its guest's included.
    processor: Duration,
}

/// Boots a guest to its end on both in turn, and prints what it took.
pub fn times(console: &mut Console, rounds: u32) -> Result<()> {
    let monitors = [Monitor::Volvelle, Monitor::Qemu];
    let mut taken = monitors.map(|_| Vec::new());
    println!("{:<8}{:>7}{:>12}{:>12}", "", "round", "wall, s", "CPU, s");
    for round in 1..=rounds {
        for (monitor, taken) in monitors.iter().zip(&mut taken) {
            let times = time(console, *monitor)?;
            let [wall, processor] = [times.wall, times.processor].map(|time| time.as_secs_f64());
            println!("{:<8}{round:>7}{wall:>12.2}{processor:>12.2}", monitor.name());
            taken.push(times);
        }
    }
    // What disturbs a run makes it longer.
    let [ours, peers] = taken.map(|runs| {
        let least = |of: fn(&Times) -> Duration| runs.iter().map(of).min().unwrap_or_default();
        [least(|run| run.wall), least(|run| run.processor)]
    });
    for (what, (ours, peers)) in ["wall", "CPU"].into_iter().zip(ours.into_iter().zip(peers)) {
        let ratio = ours.as_secs_f64() / peers.as_secs_f64().max(f64::MIN_POSITIVE);
        println!(
            "shortest, {what}: Volvelle {:.2} s, QEMU {:.2} s, ratio {ratio:.2}",
            ours.as_secs_f64(),
            peers.as_secs_f64()
        );
    }
    Ok(())
}

fn time(console: &mut Console, monitor: Monitor) -> Result<Times> {
    let line = monitor.linux(LEAVING);
    let text = console.shell(&format!("time -p {line} </dev/null 2>&1"))?;
    // The kernel is told to say little, but that it is about to power off it says to all.
    ensure!(text.contains("reboot: Power down"), "{text}");
    let seconds = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse().ok()).map(Duration::from_secs_f64)
    };
    let times = (|| {
        let processor = seconds("user")? + seconds("sys")?;
        Some(Times { wall: seconds("real")?, processor })
    })();
    times.with_context(|| format!("no times in {text}"))
}

#[cfg(test)]
mod tests {
    use super::gist;

    #[test]
    fn numbers_and_times_are_no_part_of_a_gist() {
        let [one, other] =
            ["<4>[    0.12] clock: 14 of 3", "<4>[   10.7] clock: 5 of 12"].map(gist);
        assert_eq!((one.as_str(), &one), ("clock: # of #", &other));
    }
}
