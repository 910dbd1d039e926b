//! The first root file system: busybox, its applets, an init that gives a shell on the console.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::child::{self, Output};

const DIRECTORIES: &[&str] =
    &["bench", "bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"];

/// The nodes that must be there before devtmpfs is.
const DEVICES: &[(&str, u32, u32)] =
    &[("dev/console", 5, 1), ("dev/null", 1, 3), ("dev/ttyS0", 4, 64)];

/// busybox is its own init, so that plain `poweroff` and `reboot` (signals to process 1) work.
const INITTAB: &str = "\
::sysinit:/etc/start
::respawn:-/bin/cttyhack /bin/sh -l
::ctrlaltdel:/sbin/reboot
";

const START: &str = include_str!("start.sh");
const PROFILE: &str = include_str!("profile.sh");

/// A further file of the archive.
pub struct File {
    path: String,
    permissions: u32,
    contents: Vec<u8>,
}

impl File {
    /// A file to be read, at `path` from the root.
    pub fn data(path: &str, contents: &[u8]) -> Self {
        Self { path: path.to_owned(), permissions: 0o644, contents: contents.to_vec() }
    }

    /// A file to be executed.
    pub fn program(path: &str, contents: Vec<u8>) -> Self {
        Self { path: path.to_owned(), permissions: 0o755, contents }
    }
}

/// The folders of `files` that are not there already, outer ones first.
fn folders(files: &[File]) -> BTreeSet<&str> {
    let ancestors = files.iter().flat_map(|file| Path::new(&file.path).ancestors().skip(1));
    let names = ancestors.filter_map(Path::to_str);
    names.filter(|name| !name.is_empty() && !DIRECTORIES.contains(name)).collect()
}

/// Builds the archive around a static busybox, with further files.
pub fn build(busybox: &Path, files: &[File]) -> Result<Vec<u8>> {
    let program = fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.directory(directory);
    }
    for &(path, major, minor) in DEVICES {
        archive.character_device(path, major, minor);
    }
    archive.file("bin/busybox", 0o755, &program);
    for applet in applets(busybox)? {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.symlink("init", "bin/busybox");
    archive.symlink("sbin/reboot", "../bin/busybox");
    archive.symlink("sbin/poweroff", "../bin/busybox");
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes());
    archive.file("etc/start", 0o755, START.as_bytes());
    archive.file("etc/profile", 0o644, PROFILE.as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    folders(files).iter().for_each(|folder| archive.directory(folder));
    for File { path, permissions, contents } in files {
        archive.file(path, *permissions, contents);
    }
    Ok(archive.finish())
}

/// Asks busybox, which runs on the host as it does in the guest, for what it can do.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(busybox, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(busybox);
    command.arg("--list");
    let finished = child::capture(&mut command, Output::Kept, Duration::from_secs(20))?;
    if !finished.status.success() {
        bail!("`{} --list` ended with {}", busybox.display(), finished.status);
    }
    let names = finished.text.lines().filter(|name| *name != "busybox");
    Ok(names.map(str::to_owned).collect())
}
