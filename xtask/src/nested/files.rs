//! What the first guest gets: Volvelle, QEMU and gdb with their libraries, test binaries, KVM's
//! modules, the guests' own files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use firmware::guests::{clocks, relay};

use super::{InThere, QEMU_IN_THERE, switching};
use crate::bench::emulator::QEMU;
use crate::child::{self, Output};
use crate::guests::{File, Guests, Kernel};
use crate::workspace;

/// ROMs of QEMU's that a guest without a display needs; those that a version has not are left out.
const QEMU_ROMS: [&str; 5] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/multiboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];
const LDD_LIMIT: Duration = Duration::from_secs(60);
const COMPILATION_LIMIT: Duration = Duration::from_secs(3600);

/// Tests that are to run in the first guest, as cargo makes them; none by default.
#[derive(Default)]
pub struct Tests {
    /// By the names of their targets.
    binaries: Vec<(String, PathBuf)>,
    /// Where they look for the command.
    command: PathBuf,
    /// The folder of files that they make.
    pub folder: PathBuf,
}

impl Tests {
    /// Compiles them.
    pub fn build() -> Result<Self> {
        let mut made = artifacts(&["--package", "kvm", "--lib"], "")?;
        let of_command = ["--package", "volvelle", "--test", "kvm", "--test", "gdb"];
        made.extend(artifacts(&of_command, "command-")?);
        let mut binaries = Vec::new();
        let mut command = None;
        for Artifact { name, is_test, path } in made {
            if is_test {
                binaries.push((name, path));
            } else {
                command = Some(path);
            }
        }
        let command = command.context("cargo made no command for its tests")?;
        Ok(Self { binaries, command, folder: workspace::target().join("tmp") })
    }

    /// Where the binary of target `name` is in the first guest.
    pub fn path(name: &str) -> String {
        format!("/kvm/tests/{name}")
    }

    fn files(&self, volvelle: &Path) -> Result<Vec<File>> {
        let mut files = Vec::new();
        if !self.binaries.is_empty() {
            // They know the command by the path where cargo puts it.
            files.push(File::program(&inside(&self.command), read(volvelle)?));
        }
        for (name, path) in &self.binaries {
            files.push(File::program(&inside(Path::new(&Self::path(name))), read(path)?));
        }
        Ok(files)
    }
}

/// A program that cargo has made.
struct Artifact {
    name: String,
    is_test: bool,
    path: PathBuf,
}

/// Has cargo compile tests, and returns the programs that came of it. `prefix` goes before their
/// names.
fn artifacts(words: &[&str], prefix: &str) -> Result<Vec<Artifact>> {
    let mut command = workspace::cargo();
    command.args(["test", "--no-run", "--message-format=json"]).args(words);
    let finished = child::capture(&mut command, Output::Kept, COMPILATION_LIMIT)?;
    ensure!(finished.status.success(), "compiling tests: {}", finished.text);
    let messages = finished.text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let artifact = |message: serde_json::Value| {
        Some(Artifact {
            path: message["executable"].as_str()?.into(),
            name: format!("{prefix}{}", message["target"]["name"].as_str()?),
            is_test: message["profile"]["test"].as_bool()?,
        })
    };
    Ok(messages.filter_map(artifact).collect())
}

/// Everything that is packed. Programs bring the libraries that they are loaded with.
pub fn all(in_there: &InThere, gdb: Option<&Path>) -> Result<Vec<File>> {
    let InThere { guests, volvelle, tests, .. } = in_there;
    let mut files = guests_files(guests)?;
    files.push(File::program("kvm/volvelle", read(volvelle)?));
    files.extend(tests.files(volvelle)?);
    let qemu = installed(QEMU)?;
    files.push(File::program(&inside(Path::new(QEMU_IN_THERE)), read(&qemu)?));
    for rom in QEMU_ROMS.iter().filter_map(|rom| fs::read(rom).ok().map(|bytes| (rom, bytes))) {
        files.push(File::data(&inside(Path::new(rom.0)), &rom.1));
    }
    let mut programs = vec![volvelle.clone(), qemu];
    programs.extend(tests.binaries.iter().map(|(_, path)| path.clone()));
    if let Some(gdb) = gdb {
        files.push(File::program("bin/gdb", read(gdb)?));
        programs.push(gdb.to_owned());
    }
    let mut paths = Vec::new();
    for program in &programs {
        paths.extend(libraries(program)?);
    }
    paths.sort_unstable();
    paths.dedup();
    for library in paths {
        files.push(File::program(&inside(&library), read(&library)?));
    }
    Ok(files)
}

fn guests_files(guests: &Guests) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for (name, path) in guests.kvm_modules()? {
        files.push(File::program(&format!("kvm/{name}.ko"), read(&path)?));
    }
    files.push(File::program("kvm/vmlinuz", read(&guests.bzimage(Kernel::Cloud)?)?));
    files.push(File::program("kvm/vmlinux", read(&guests.vmlinux(Kernel::Cloud)?)?));
    files.push(File::program("kvm/initrd", read(&guests.initramfs()?)?));
    files.push(File::program("kvm/clocks.rom", clocks(switching::MILLISECONDS)));
    files.push(File::program("kvm/relay.rom", relay(switching::MILLISECONDS)));
    files.push(File::data("kvm/guest.rom", firmware::IMAGE));
    Ok(files)
}

/// A path from the root, as archives have them.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Where `program` is on this host.
fn installed(program: &str) -> Result<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&folders).map(|folder| folder.join(program));
    paths.find(|path| path.is_file()).with_context(|| format!("{program} is not installed"))
}

/// The libraries that `binary` is loaded with, by their paths.
pub fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let finished = child::capture(command.arg(binary), Output::Kept, LDD_LIMIT)?;
    let is_complete = finished.status.success() && !finished.text.contains("not found");
    ensure!(is_complete, "`ldd {}`: {}", binary.display(), finished.text);
    let paths = finished.text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}
