//! Guests that are moved between KVM and the translator while they run, and must not notice.

use anyhow::{Context, Error, Result, ensure};
use firmware::guests::{ClocksReport, RelayReport};

use super::{at_prompt, power_off};
use crate::boot::console::Console;

/// Guest time of the small guests, and how often the engine is changed: on TCG a change takes its
/// time.
pub const MILLISECONDS: u32 = 25_000;
const EVERY: &str = "100ms";
/// Changes that there must have been.
const CHANGES_MIN: u64 = 100;
/// What clocks may be apart behind them.
const TOLERANCE_NS: u64 = 2_000_000;

/// What Linux is started with, and how long its CPUs compute, in seconds of its own.
const LINUX: &str =
    "--memory 256M --kernel /kvm/vmlinuz --initrd /kvm/initrd --append 'console=ttyS0 quiet'";
const LINUX_SECONDS: u32 = 18;
/// A checksum of text, integers and floating point, as a function of the shell's.
const SUM: &str = "sum() { (seq 300; seq 300 | gzip | zcat | sort -r; awk \
    'BEGIN { for (i = 1; i < 300; i++) s += 1 / i / i; printf \"%.15f\\n\", s }') | md5sum; }";
/// Sums for some seconds; says so if a clock goes back meanwhile.
const WORK: &str = "work() { last=0 day=0 end=$(($(cut -d. -f1 /proc/uptime) + $1)); \
    while read up idle </proc/uptime; [ ${up%.*} -lt $end ]; do \
    now=${up%.*}${up#*.}; [ $now -ge $last ] || echo uptime from $last to $now; last=$now; \
    now=$(date +%s); [ $now -ge $day ] || echo date from $day to $now; day=$now; sum; done; }";
/// What a kernel says that finds its clocks or CPUs wrong.
const ALARMS: &str = "BUG|WARNING|lockup|unstable|stall|Oops|hung task|segfault";

/// The line that moves a guest between the engines.
fn line(cpus: usize, words: &str) -> String {
    format!(
        "/kvm/volvelle run --accel kvm --switch-engines jit --switch-every {EVERY} --stats \
         --no-reboot --cpus {cpus} {words}"
    )
}

/// The number of changes in what the command has said; fails if they were too few.
fn check_changes(text: &str) -> Result<()> {
    let told = text.lines().find(|line| line.contains(" changes of engine")).unwrap_or_default();
    let count = told.trim_start().split(' ').next().and_then(|count| count.parse::<u64>().ok());
    ensure!(count >= Some(CHANGES_MIN), "{text}");
    println!("  {told}");
    Ok(())
}

/// Runs the small guest `name` and returns what it and the command have said.
fn small(console: &mut Console, name: &str, cpus: usize) -> Result<String> {
    let words = format!("--debug-exit --bios /kvm/{name}.rom 2>&1; test $? = 1");
    let text = console.shell(&line(cpus, &words))?;
    check_changes(&text)?;
    Ok(text)
}

/// One that computes and looks at its clocks.
pub fn clocks(console: &mut Console, cpus: usize) -> Result<()> {
    let text = small(console, "clocks", cpus)?;
    let reports = ClocksReport::read(&text);
    ensure!(reports.len() == cpus, "{text}");
    for report in reports {
        report.check(TOLERANCE_NS).map_err(Error::msg)?;
    }
    Ok(())
}

/// One that sleeps until interrupts of the other CPU and of its timer.
pub fn relay(console: &mut Console, cpus: usize) -> Result<()> {
    let text = small(console, "relay", cpus)?;
    let report = RelayReport::read(&text).with_context(|| text.clone())?;
    report.check(cpus).map_err(Error::msg)
}

/// Debian's kernel with two CPUs, each with a shell that computes and reads clocks.
pub fn linux(console: &mut Console) -> Result<()> {
    let expected = console.shell(&format!("{SUM}; sum"))?;
    at_prompt(console, &line(2, LINUX))?;
    console.shell(SUM)?;
    console.shell(WORK)?;
    let on = |cpu: u32| {
        let pin =
            format!("read me rest </proc/self/stat; taskset -p {:x} $me >/dev/null", 1 << cpu);
        format!("({pin}; work {LINUX_SECONDS} >/tmp/{cpu})")
    };
    console.shell(&format!("{{ {} & {} & wait; }}", on(0), on(1)))?;
    let found = console.shell("sort -u /tmp/0 /tmp/1")?;
    ensure!(found == expected, "{found} instead of {expected}");
    let counts = console.shell("grep -c . /tmp/0 && grep -c . /tmp/1")?;
    println!(
        "  checksums on each CPU: {}",
        counts.split_whitespace().collect::<Vec<_>>().join(", ")
    );
    let alarms = console.shell(&format!("dmesg | grep -E '{ALARMS}' || true"))?;
    ensure!(alarms.trim().is_empty(), "{alarms}");
    check_changes(&power_off(console, "poweroff", 0)?)
}
