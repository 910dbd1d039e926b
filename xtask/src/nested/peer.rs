//! The QEMU that nested KVM runs on and is compared with, installed where it is missing or too old.
//! That takes root and a network.
//!
//! Problem: on the SVM of QEMU 7.2, which Debian 12 has, QEMU's own guests hang in their firmware.
//! Strategy: Debian's backports have a newer one. Their lists are kept below `target/`, so that apt
//! is to the system what it was.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench::emulator;
use crate::child::{self, Output};
use crate::workspace;

const PACKAGE: &str = "qemu-system-x86";
/// The oldest major version that the suite was seen to pass on.
const OLDEST: u32 = 10;
/// Fetching lists, or the packages.
const LIMIT: Duration = Duration::from_secs(600);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Has a QEMU that is new enough installed, if there is none yet.
pub fn ensure_installed() -> Result<()> {
    if is_good().is_ok() {
        return Ok(());
    }
    match backports() {
        Some(suite) => install_from(&suite)?,
        None => {
            apt(&[], &["update", "--quiet"])?;
            install(&[], &[])?;
        }
    }
    is_good()
}

fn is_good() -> Result<()> {
    let version = emulator::qemu_version()?;
    let major = major(&version).with_context(|| format!("{version:?} names no version"))?;
    ensure!(major >= OLDEST, "{version} is older than QEMU {OLDEST}");
    Ok(())
}

/// The major version in `QEMU emulator version 10.0.2 (Debian ...)`.
fn major(version: &str) -> Option<u32> {
    let mut words = version.split(' ').filter_map(|word| word.split('.').next());
    words.find_map(|word| word.parse().ok())
}

/// The suite with newer packages, on the release whose own QEMU is too old.
fn backports() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let is = |line| release.lines().any(|found| found == line);
    (is("ID=debian") && is("VERSION_CODENAME=bookworm")).then(|| "bookworm-backports".to_owned())
}

/// Installs it from `suite`, which the system's own sources need not name.
fn install_from(suite: &str) -> Result<()> {
    let folder = workspace::target().join("backports");
    fs::create_dir_all(folder.join("lists/partial"))?;
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let sources = folder.join("sources.list");
    let line = format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main");
    fs::write(&sources, format!("{own}\n{line}\n"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        format!("Dir::State::lists={}", folder.join("lists").display()),
    ];
    apt(&options, &["update", "--quiet"])?;
    install(&options, &["--target-release", suite])
}

fn install(options: &[String], words: &[&str]) -> Result<()> {
    let common = ["install", "--quiet", "--yes", "--no-install-recommends", PACKAGE];
    apt(options, &[&common, words].concat())
}

fn apt(options: &[String], words: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(options.iter().flat_map(|option| ["-o", option])).args(words);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let finished = child::capture(&mut command, Output::Kept, LIMIT)?;
    ensure!(finished.status.success(), "apt-get {words:?}: {}", finished.text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_a_major_number() {
        assert_eq!(major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Some(7));
        assert_eq!(major("QEMU"), None);
    }
}
