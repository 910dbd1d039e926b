//! The files a guest is loaded from. They are read anew at every reset, so that they need no memory
//! while the guest runs.

use std::path::Path;

use anyhow::{Context, Error, Result};
use machine::loader::{BootSource, Kernel, Module, rom};

use crate::config::Boot;

/// What the machine boots, as files.
pub(super) struct GuestFiles {
    boot: Boot,
    rom_bytes: u64,
}

impl GuestFiles {
    /// Looks at the files that decide how the machine is made.
    pub(super) fn open(boot: &Boot) -> Result<Self> {
        let rom_bytes = match boot {
            Boot::Kernel { .. } => 0,
            Boot::BuiltIn => rom::needed_bytes(firmware::IMAGE.len() as u64)?,
            Boot::Rom(path) => rom::needed_bytes(read("--bios", path)?.len() as u64)
                .with_context(|| format!("--bios {}", path.display()))?,
        };
        Ok(Self { boot: boot.clone(), rom_bytes })
    }

    /// Space for the boot ROM in bytes.
    pub(super) fn rom_bytes(&self) -> u64 {
        self.rom_bytes
    }

    /// Reads the files.
    pub(super) fn read(&self) -> Result<BootSource> {
        Ok(match &self.boot {
            Boot::BuiltIn => BootSource::Rom(firmware::IMAGE.to_vec()),
            Boot::Rom(path) => BootSource::Rom(read("--bios", path)?),
            Boot::Kernel { kernel, modules, append } => BootSource::Kernel(Kernel {
                image: read("--kernel", kernel)?,
                name: kernel.display().to_string(),
                command_line: append.clone(),
                modules: modules
                    .iter()
                    .map(|module| {
                        let data = read("--initrd", &module.path)?;
                        let name = module.path.display().to_string();
                        let command_line = if module.arguments.is_empty() {
                            name
                        } else {
                            format!("{name} {}", module.arguments)
                        };
                        Ok(Module { data, command_line })
                    })
                    .collect::<Result<_>>()?,
            }),
        })
    }

    /// Names the file that an error of the loader is about.
    pub(super) fn explain(&self, error: Error) -> Error {
        let file = match &self.boot {
            Boot::BuiltIn => return error,
            Boot::Rom(path) => format!("--bios {}", path.display()),
            Boot::Kernel { kernel, .. } => format!("--kernel {}", kernel.display()),
        };
        error.context(format!("{file} cannot be booted"))
    }
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{option} {}: cannot read it", path.display()))
}
