//! The Linux guests that chores boot: Debian's kernels and busybox, by package name.
//!
//! Everything is kept under `target/guests`, so only the first run needs the network.

mod apt;
mod bzimage;
mod cpio;
mod initramfs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;
use apt::Apt;
pub use initramfs::File;

/// A kernel of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The small one for virtual machines.
    Cloud,
    /// The one for every machine.
    General,
}

impl Kernel {
    /// The folder below `target/guests`.
    fn folder(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::General => "general",
        }
    }

    /// The packages that pull in the kernel: Debian's name first, then Ubuntu's.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Cloud => &["linux-image-cloud-amd64", "linux-image-virtual"],
            Self::General => &["linux-image-amd64", "linux-image-generic"],
        }
    }
}

/// What KVM on AMD's processors is made of, in the order in which it is loaded.
const KVM_MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];

/// The guests as far as they have been fetched.
pub struct Guests {
    folder: PathBuf,
    apt: Apt,
}

impl Guests {
    /// The collection under `target/guests`.
    pub fn new() -> Self {
        let folder = workspace::target().join("guests");
        Self { apt: Apt::new(folder.join("apt")), folder }
    }

    /// Fetches everything that needs the network and is not there yet.
    pub fn download(&self) -> Result<()> {
        self.busybox()?;
        for kernel in [Kernel::Cloud, Kernel::General] {
            self.bzimage(kernel)?;
        }
        Ok(())
    }

    /// Returns the kernel as the distribution ships it, a bzImage, fetching it if need be.
    pub fn bzimage(&self, kernel: Kernel) -> Result<PathBuf> {
        let path = self.folder.join(kernel.folder()).join("vmlinuz");
        self.kept(&path, || {
            let package = self.apt.first_dependency(kernel.packages(), "linux-image-")?;
            self.apt.extract(&package, "*/boot/vmlinuz-*")
        })
    }

    /// Returns the ELF kernel out of the bzImage, for the PVH entry.
    pub fn vmlinux(&self, kernel: Kernel) -> Result<PathBuf> {
        let path = self.folder.join(kernel.folder()).join("vmlinux");
        self.kept(&path, || {
            let image = self.bzimage(kernel)?;
            let bytes = fs::read(&image).with_context(|| format!("reading {}", image.display()))?;
            bzimage::kernel(&bytes).with_context(|| format!("unpacking {}", image.display()))
        })
    }

    /// Returns the initial file system with busybox and an interactive shell.
    pub fn initramfs(&self) -> Result<PathBuf> {
        self.put_initramfs("initramfs.cpio", &[])
    }

    /// The same with scripts in its folder `bench`: paths from the root, and contents.
    pub fn initramfs_with(&self, scripts: &[(String, &str)]) -> Result<PathBuf> {
        let files: Vec<File> =
            scripts.iter().map(|(path, text)| File::data(path, text.as_bytes())).collect();
        self.put_initramfs("initramfs-bench.cpio", &files)
    }

    /// The same with what runs on KVM in it.
    pub fn initramfs_for_kvm(&self, files: &[File]) -> Result<PathBuf> {
        self.put_initramfs("initramfs-kvm.cpio", files)
    }

    /// Returns [`KVM_MODULES`] of the cloud kernel: names and files.
    pub fn kvm_modules(&self) -> Result<Vec<(&'static str, PathBuf)>> {
        let folder = self.folder.join(Kernel::Cloud.folder());
        let modules = KVM_MODULES.map(|name| (name, folder.join(format!("{name}.ko"))));
        if !modules.iter().all(|(_, path)| path.exists()) {
            let package = self.apt.first_dependency(Kernel::Cloud.packages(), "linux-image-")?;
            let patterns = KVM_MODULES.map(|name| format!("*/{name}.ko"));
            let files = self.apt.extract_all(&package, &patterns)?;
            for ((_, path), bytes) in modules.iter().zip(files) {
                put(path, &bytes)?;
            }
        }
        Ok(modules.into())
    }

    fn put_initramfs(&self, name: &str, files: &[File]) -> Result<PathBuf> {
        let busybox = self.busybox()?;
        // Built anew each time: it takes milliseconds and follows the sources.
        let path = self.folder.join(name);
        put(&path, &initramfs::build(&busybox, files)?)?;
        Ok(path)
    }

    /// Returns busybox, which runs on the host too.
    pub fn busybox(&self) -> Result<PathBuf> {
        let path = self.folder.join("busybox");
        self.kept(&path, || self.apt.extract("busybox-static", "*/bin/busybox"))
    }

    /// Returns a gdb without Python, which needs few libraries.
    pub fn gdb(&self) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.join("gdb");
        let path = self.kept(&path, || self.apt.extract("gdb-minimal", "*/usr/bin/gdb"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    fn kept(&self, path: &Path, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<PathBuf> {
        if !path.exists() {
            put(path, &make()?)?;
        }
        Ok(path.to_path_buf())
    }
}

/// Fetches every guest and prints the paths, one a line.
pub fn fetch_all() -> Result<()> {
    let guests = Guests::new();
    println!("{}", guests.initramfs()?.display());
    for kernel in [Kernel::Cloud, Kernel::General] {
        println!("{}", guests.bzimage(kernel)?.display());
        println!("{}", guests.vmlinux(kernel)?.display());
    }
    Ok(())
}

/// Puts a small guest of the `firmware` crate where `--bios` can read it.
pub fn rom(name: &str, image: &[u8]) -> Result<PathBuf> {
    let path = workspace::target().join("guests").join(format!("{name}.rom"));
    put(&path, image)?;
    Ok(path)
}

/// Writes a file whole or not at all: an interrupted run must not leave half a kernel behind.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, bytes)?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}
