//! The same workloads on the host, on Volvelle and on QEMU.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::emulator::{Emulator, Files};
use super::workloads::{Host, Measured, WORKLOADS, Workload, seconds};
use crate::guests::{Guests, Kernel};
use crate::linux;
use crate::workspace;

/// A row: a workload, and what it took.
pub struct Row {
    pub name: &'static str,
    native: Duration,
    /// In the order of [`Comparison::emulators`].
    times: Vec<Duration>,
}

impl Row {
    /// How many times as long as on the host it took on each emulator.
    pub fn ratios(&self) -> impl Iterator<Item = f64> {
        let native = self.native.as_secs_f64().max(1e-3);
        self.times.iter().map(move |time| time.as_secs_f64() / native)
    }
}

/// All that was measured.
pub struct Comparison {
    /// The host's processor.
    pub processor: String,
    /// The emulators: name and description.
    pub emulators: Vec<(&'static str, String)>,
    /// Processor time from an emulator's start to the guest's shell.
    boots: Vec<Duration>,
    pub rows: Vec<Row>,
}

/// Measures the workloads with `filter` in their names, each `runs` times.
pub fn measure(
    filter: Option<&str>,
    runs: u32,
    binary: Option<&Path>,
    tell: &dyn Fn(&str),
) -> Result<Comparison> {
    let is_wanted = |one: &&Workload| filter.is_none_or(|part| one.name.contains(part));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(is_wanted).collect();
    ensure!(!workloads.is_empty(), "no workload has such a name");
    let emulators = emulators(binary, tell)?;
    let guests = Guests::new();
    let scripts: Vec<_> = workloads.iter().map(|workload| workload.file()).collect();
    let files = Files {
        kernel: guests.bzimage(Kernel::Cloud)?,
        initramfs: guests.initramfs_with(&scripts)?,
    };
    let host = Host::new(&guests.busybox()?)?;
    let mut natives = Vec::new();
    for workload in &workloads {
        natives.push(Measured::shortest(runs, || host.run(workload))?);
    }
    let mut rows: Vec<Row> = workloads
        .iter()
        .zip(&natives)
        .map(|(workload, native)| Row { name: workload.name, native: native.time, times: vec![] })
        .collect();
    let mut boots = Vec::new();
    for emulator in &emulators {
        let started = Instant::now();
        let (mut guest, boot) = emulator.boot(&files).context(emulator.name)?;
        boots.push(boot);
        for ((workload, native), row) in workloads.iter().zip(&natives).zip(&mut rows) {
            let measured = Measured::shortest(runs, || guest.run(workload))
                .with_context(|| format!("{} on {}", workload.name, emulator.name))?;
            ensure!(
                measured.output == native.output,
                "{} on {} gave {:?} instead of {:?}",
                workload.name,
                emulator.name,
                measured.output,
                native.output
            );
            row.times.push(measured.time);
        }
        tell(&format!("{}: {}", emulator.name, seconds(started)));
    }
    let emulators = emulators.into_iter().map(|one| (one.name, one.description)).collect();
    Ok(Comparison { processor: processor()?, emulators, boots, rows })
}

/// Volvelle, and QEMU where it is installed.
fn emulators(binary: Option<&Path>, tell: &dyn Fn(&str)) -> Result<Vec<Emulator>> {
    let volvelle = match binary {
        Some(binary) => binary.to_path_buf(),
        None => {
            linux::build()?;
            workspace::release_binary()
        }
    };
    let mut emulators = vec![Emulator::volvelle(&volvelle)?];
    match Emulator::qemu() {
        Ok(qemu) => emulators.push(qemu),
        Err(error) => tell(&format!("skipped: QEMU, which is not installed: {error:#}")),
    }
    Ok(emulators)
}

fn processor() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(name.map_or_else(|| "an unnamed processor".into(), |(_, name)| name.to_owned()))
}

impl Comparison {
    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!("Processor time on {}", self.processor);
        for (_, description) in &self.emulators {
            // Writing into a String cannot fail.
            let _ = write!(text, "; {description}");
        }
        text.push_str("\n\n| workload | native |");
        self.emulators.iter().for_each(|(name, _)| text.push_str(&format!(" {name} |")));
        text.push_str("\n|---|---|");
        self.emulators.iter().for_each(|_| text.push_str("---|"));
        for row in &self.rows {
            let _ = write!(text, "\n| {} | {:.2} s |", row.name, row.native.as_secs_f64());
            for (time, ratio) in row.times.iter().zip(row.ratios()) {
                let _ = write!(text, " {:.2} s, {ratio:.1} × |", time.as_secs_f64());
            }
        }
        text.push_str("\n| boot to a shell | |");
        for boot in &self.boots {
            let _ = write!(text, " {:.2} s |", boot.as_secs_f64());
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn example() -> Comparison {
        let ms = Duration::from_millis;
        Comparison {
            processor: "A <fast> processor".into(),
            emulators: vec![("Volvelle", "volvelle 0.1.0".into()), ("QEMU", "QEMU 10.0.2".into())],
            boots: vec![ms(9000), ms(20_000)],
            rows: vec![
                Row { name: "gzip", native: ms(500), times: vec![ms(1000), ms(6000)] },
                Row { name: "fork", native: ms(400), times: vec![ms(12_000), ms(320)] },
            ],
        }
    }

    #[test]
    fn the_table_has_times_and_ratios() {
        let table = example().table();
        assert!(table.contains("| workload | native | Volvelle | QEMU |\n|---|---|---|---|"));
        assert!(table.contains("| gzip | 0.50 s | 1.00 s, 2.0 × | 6.00 s, 12.0 × |"), "{table}");
        assert!(table.ends_with("| boot to a shell | | 9.00 s | 20.00 s |\n"), "{table}");
    }
}
