//! `cargo xtask linux`: from a checkout to a shell in the guest.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::child;
use crate::guests::{Guests, Kernel};
use crate::workspace;

/// A first build compiles every dependency, on however slow a machine.
const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// What to boot and on what machine.
#[derive(clap::Args)]
pub struct Options {
    /// Kernel to boot instead of Debian's cloud kernel (bzImage or ELF).
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial file system to use instead of the busybox one.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Words to add to the kernel command line after `console=ttyS0`.
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
    /// Number of CPUs.
    #[arg(long, value_name = "N", default_value = "1")]
    cpus: String,
    /// Size of memory.
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: String,
    /// Further arguments for `volvelle run`.
    #[arg(last = true, value_name = "ARGS")]
    extra: Vec<String>,
}

/// Builds the release binary.
pub fn build() -> Result<()> {
    let mut command = workspace::cargo();
    child::check(command.args(["build", "--release", "--package", "volvelle"]), BUILD_LIMIT)
}

/// Builds, fetches what is missing, and becomes the machine. Returns only on an error.
pub fn run(options: &Options) -> Result<()> {
    build()?;
    let binary = workspace::release_binary();
    let mut command = Command::new(&binary);
    command.arg("run").args(["--cpus", &options.cpus, "--memory", &options.memory]);
    match files(options) {
        Ok((kernel, initrd)) => linux(&mut command, options, &kernel, &initrd),
        Err(error) if options.kernel.is_none() => {
            eprintln!("xtask: no Linux kernel to be had: {error:#}");
            eprintln!("xtask: booting the built-in guest; `--kernel FILE` takes a kernel of yours");
        }
        Err(error) => return Err(error),
    }
    command.args(&options.extra);
    Err(command.exec()).with_context(|| format!("cannot start {}", binary.display()))
}

fn files(options: &Options) -> Result<(PathBuf, PathBuf)> {
    let guests = Guests::new();
    let kernel = match &options.kernel {
        Some(path) => path.clone(),
        None => guests.bzimage(Kernel::Cloud)?,
    };
    let initrd = match &options.initrd {
        Some(path) => path.clone(),
        None => guests.initramfs()?,
    };
    Ok((kernel, initrd))
}

fn linux(command: &mut Command, options: &Options, kernel: &Path, initrd: &Path) {
    let mut words = "console=ttyS0".to_owned();
    if let Some(append) = &options.append {
        words.push(' ');
        words.push_str(append);
    }
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).arg("--append").arg(words);
}
