//! A file of `--symbols`: an ELF file, or a text as `System.map` is.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use anyhow::{Context, Result};
use symbols::{Module, elf, system_map};

/// A file of symbols, and where the guest has what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SymbolFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Where its first byte is, if not where the file says.
    pub(crate) base: Option<u64>,
}

impl SymbolFile {
    /// Reads the symbols.
    pub(crate) fn open(&self) -> Result<Module> {
        let mut module =
            self.read().with_context(|| format!("--symbols: '{}'", self.path.display()))?;
        if let Some(base) = self.base {
            module.set_base(base);
        }
        Ok(module)
    }

    /// True if it is an ELF file, and no text.
    pub(super) fn is_elf(&self) -> bool {
        let head = || {
            let mut head = [0; 4];
            File::open(&self.path)?.read_exact(&mut head).map(|()| head)
        };
        head().is_ok_and(|head: [u8; 4]| elf::is_elf(&head))
    }

    fn read(&self) -> Result<Module> {
        let file_name = self.path.file_name().unwrap_or_default();
        let name = file_name.to_string_lossy();
        let file = File::open(&self.path).context("cannot open it")?;
        let mut input = BufReader::new(file);
        let mut head = Vec::new();
        input.by_ref().take(4).read_to_end(&mut head).context("cannot read it")?;
        if elf::is_elf(&head) {
            return elf::open(&name, &self.path).context("it is of no use");
        }
        let mut text = head.chain(input);
        system_map::read(&name, &mut text).context("it is of no use")
    }
}
