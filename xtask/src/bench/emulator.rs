//! A guest on an emulator, at whose console workloads are started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::workloads::{Measured, Workload};
use crate::boot::console::{Console, PROMPT};
use crate::child::{self, Output};
use crate::process::processor_time;

/// Whatever runs in the guest, on a slow host.
const LIMIT: Duration = Duration::from_secs(4 * 3600);
/// The program of QEMU.
pub const QEMU: &str = "qemu-system-x86_64";
const MEMORY: &str = "512M";
const WORDS: &str = "console=ttyS0 quiet";

/// What a guest is booted from.
pub struct Files {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// A program that runs guests.
pub struct Emulator {
    pub name: &'static str,
    /// Its version and how it is started, for the chart.
    pub description: String,
    program: PathBuf,
    arguments: &'static [&'static str],
    /// The options for kernel, initial file system and command line.
    boot: [&'static str; 3],
}

impl Emulator {
    /// Volvelle's translator.
    pub fn volvelle(program: &Path) -> Result<Self> {
        let arguments = &["run", "--accel", "jit", "--memory", MEMORY];
        Ok(Self {
            name: "Volvelle",
            description: format!("{} --accel jit", version(program)?),
            program: program.into(),
            arguments,
            boot: ["--kernel", "--initrd", "--append"],
        })
    }

    /// QEMU's translator; an error where there is no QEMU.
    pub fn qemu() -> Result<Self> {
        let version = qemu_version()?;
        // "QEMU emulator version 10.0.2 (Debian ...)"
        let number = version.split(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        #[rustfmt::skip]
        let arguments = &[
            "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", MEMORY,
            "-nodefaults", "-display", "none", "-serial", "stdio",
        ];
        Ok(Self {
            name: "QEMU",
            description: format!("QEMU {} -accel tcg -cpu max -M q35", number.unwrap_or(&version)),
            program: QEMU.into(),
            arguments,
            boot: ["-kernel", "-initrd", "-append"],
        })
    }

    /// Boots a guest to its shell. Returns it with the processor time that took.
    pub fn boot(&self, files: &Files) -> Result<(Guest, Duration)> {
        let mut command = Command::new(&self.program);
        let [kernel, initrd, append] = self.boot;
        command.args(self.arguments).arg(kernel).arg(&files.kernel);
        command.arg(initrd).arg(&files.initramfs).args([append, WORDS]);
        let mut console = Console::start(&mut command, LIMIT)?;
        console.expect(PROMPT).with_context(|| console.remarks())?;
        let time = processor_time(console.id())?;
        Ok((Guest { console }, time))
    }
}

/// The first line that a program says of itself.
/// What QEMU says of itself; an error where there is none.
pub fn qemu_version() -> Result<String> {
    version(Path::new(QEMU))
}

fn version(program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    let finished = child::capture(command.arg("--version"), Output::Kept, Duration::from_secs(60))?;
    let line = finished.text.lines().next();
    Ok(line.with_context(|| format!("{} has no version", program.display()))?.to_owned())
}

/// A guest at its prompt.
pub struct Guest {
    console: Console,
}

impl Guest {
    /// Runs a workload; the time is the emulator's.
    pub fn run(&mut self, workload: &Workload) -> Result<Measured> {
        let before = processor_time(self.console.id())?;
        let output = self.console.shell(&workload.line())?;
        let time = processor_time(self.console.id())?.saturating_sub(before);
        // The terminal's line end after the echo.
        Ok(Measured { output: output.trim_start_matches('\n').to_owned(), time })
    }
}
