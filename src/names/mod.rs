//! Names for a guest's addresses: those of `--symbols`, and those of the Linux that runs.
//!
//! [`Names`] is what all output asks. Files are read when the machine is made; the kernel's own
//! table is looked for when a name is first wanted ([`Names::settle`]), for it takes some tens of
//! milliseconds and is there only once the kernel runs. Where Linux has moved itself is known by
//! where SYSCALL goes: a file of the kernel is moved along, and without one the table in the
//! guest's memory is read.

mod file;
mod kernel;
mod stack;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use cpu::Cpu;
use symbols::lines::{Lines, SourceFrame, SourceLine};
use symbols::orc::{Frame, Orc};
use symbols::{Place, Symbol, SymbolError, Symbols};

pub(crate) use file::SymbolFile;
pub(crate) use stack::{Walk, Way};

/// The symbol at which SYSCALL enters Linux.
const SYSCALL_ENTRY: &str = "entry_SYSCALL_64";
/// Linux moves itself by whole large pages.
const SLIDE_UNIT: u64 = 2 << 20;

/// What names a guest's addresses have.
#[derive(Default)]
pub(crate) struct Names {
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    symbols: Arc<Symbols>,
    files: Vec<Source>,
    /// What the kernel says of its stacks.
    orc: Option<Arc<Orc>>,
    /// Where SYSCALL went when the kernel was last looked for, whether or not it was found.
    settled: Option<u64>,
}

/// A file of `--symbols`.
struct Source {
    file: SymbolFile,
    module: String,
    lines: Option<Result<Lines, String>>,
}

/// The names of the machine that this process runs, for its log.
static LOGGED: OnceLock<Arc<Names>> = OnceLock::new();

impl Names {
    /// Reads the files.
    pub(crate) fn open(files: &[SymbolFile]) -> Result<Arc<Self>> {
        let mut symbols = Symbols::default();
        let mut sources = Vec::new();
        for file in files {
            let module = file.open()?;
            let source =
                Source { file: file.clone(), module: module.name().to_owned(), lines: None };
            sources.push(source);
            symbols.add(module);
        }
        let shared = Shared { symbols: Arc::new(symbols), files: sources, ..Shared::default() };
        Ok(Arc::new(Self { shared: Mutex::new(shared) }))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the log's lines name addresses by these.
    pub(crate) fn serve_log(self: &Arc<Self>) {
        // One machine runs in a process; those that only tests make may come second.
        let _ = LOGGED.set(Arc::clone(self));
    }

    /// What is known by now.
    pub(crate) fn current(&self) -> Arc<Symbols> {
        Arc::clone(&self.lock().symbols)
    }

    /// What is known, the kernel that runs on the CPU included. It is looked for once for each
    /// kernel; one that is not found is one without names.
    pub(crate) fn settle(&self, cpu: &mut Cpu) -> Arc<Symbols> {
        let entry = kernel::syscall_entry(cpu);
        if entry.is_some() && self.lock().settled != entry {
            let _ = self.load(cpu);
        }
        self.current()
    }

    /// The ELF file that a debugger may take for the guest's program: the first one that is where
    /// it says. Linux moves itself, and so is none.
    pub(crate) fn program(&self) -> Option<PathBuf> {
        let shared = self.lock();
        let is_there = |source: &&Source| {
            let mut modules = shared.symbols.modules().iter();
            let module = modules.find(|module| module.name() == source.module);
            let is_kernel = module.is_none_or(|module| module.find(SYSCALL_ENTRY).is_some());
            source.file.base.is_none() && source.file.is_elf() && !is_kernel
        };
        let source = shared.files.iter().find(is_there)?;
        std::path::absolute(&source.file.path).ok()
    }

    /// Looks for the kernel that runs on the CPU, even if it was looked for before.
    pub(crate) fn load(&self, cpu: &mut Cpu) -> Result<(), SymbolError> {
        let entry = kernel::syscall_entry(cpu).ok_or(SymbolError::NoKernel)?;
        self.lock().settled = Some(entry);
        self.lock().orc = None;
        if !self.follow(entry) {
            let module = kernel::read(cpu, entry)?;
            log::info!("the guest's kernel has {} symbols", module.len());
            Arc::make_mut(&mut self.lock().symbols).add(module);
        }
        self.lock().orc = kernel::read_orc(cpu, &self.current()).map(Arc::new);
        Ok(())
    }

    /// Moves the file of the kernel to where it runs, if there is one.
    fn follow(&self, entry: u64) -> bool {
        let mut shared = self.lock();
        let Shared { symbols, files, .. } = &mut *shared;
        let is_placed = |name: &str| {
            files.iter().any(|source| source.module == name && source.file.base.is_some())
        };
        let is_kernel = |module: &&mut symbols::Module| {
            !module.is_from_guest() && module.find(SYSCALL_ENTRY).is_some()
        };
        let mut all = Arc::make_mut(symbols).modules_mut().iter_mut();
        let Some(module) = all.find(is_kernel) else { return false };
        if is_placed(module.name()) {
            return true;
        }
        let Some(at) = module.find(SYSCALL_ENTRY).map(|symbol| symbol.address) else {
            return false;
        };
        let slide = module.slide().wrapping_add(entry.wrapping_sub(at));
        if !slide.is_multiple_of(SLIDE_UNIT) {
            log::warn!("{}: is not the kernel that runs", module.name());
            return false;
        }
        module.set_slide(slide);
        true
    }

    /// Writes all names to a file as `System.map` has them.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let write = || {
            let mut out = BufWriter::new(File::create(path)?);
            let symbols = self.current();
            symbols.modules().iter().try_for_each(|module| module.write_system_map(&mut out))?;
            out.flush()
        };
        write().with_context(|| format!("--save-symbols: cannot write '{}'", path.display()))
    }

    /// Walks the stack of the CPU, over `most` functions at most.
    pub(crate) fn walk(&self, cpu: &mut Cpu, most: usize) -> Walk {
        self.settle(cpu);
        let orc = self.lock().orc.clone();
        stack::walk(cpu, orc.as_deref(), most)
    }

    /// The source of an address, the innermost inlined function first; nothing where no file has
    /// lines for it.
    pub(crate) fn source(&self, address: u64) -> Vec<SourceFrame> {
        let mut shared = self.lock();
        let Shared { symbols, files, .. } = &mut *shared;
        let frames = files.iter_mut().rev().map(|source| {
            let module = symbols.modules().iter().find(|module| module.name() == source.module);
            let slide = module.map_or(0, symbols::Module::slide);
            match source.lines() {
                Ok(lines) => lines.frames(address.wrapping_sub(slide)),
                Err(_) => Vec::new(),
            }
        });
        frames.into_iter().find(|frames| !frames.is_empty()).unwrap_or_default()
    }
}

/// The lines of files, for who asks about all of them.
impl Names {
    /// True if some file has lines.
    pub(crate) fn has_lines(&self) -> bool {
        self.lock().files.iter_mut().any(|source| source.lines().is_ok())
    }

    /// The line of the code at an address.
    pub(crate) fn line(&self, address: u64) -> Option<SourceLine> {
        self.source(address).pop()?.line
    }

    /// Tells `tell` of all code that has a line: its address, its bytes, file and line.
    pub(crate) fn each_line(&self, tell: &mut dyn FnMut(u64, u64, &str, u32)) {
        let mut shared = self.lock();
        let Shared { symbols, files, .. } = &mut *shared;
        for source in files {
            let module = symbols.modules().iter().find(|module| module.name() == source.module);
            let slide = module.map_or(0, symbols::Module::slide);
            let Ok(lines) = source.lines() else { continue };
            for range in lines.ranges(0, u64::MAX) {
                tell(range.address.wrapping_add(slide), range.size, range.file, range.line);
            }
        }
    }
}

impl Source {
    fn lines(&mut self) -> &Result<Lines, String> {
        let file = &self.file;
        self.lines.get_or_insert_with(|| {
            let lines = Lines::open(&file.path).map_err(|error| error.to_string());
            if let Err(error) = &lines {
                log::info!("--symbols {}: {error}", file.path.display());
            }
            lines
        })
    }
}

/// The function that a frame is in. A call may be the last instruction of its function.
pub(crate) fn function_of<'a>(symbols: &'a Symbols, frame: &Frame) -> Option<Place<'a>> {
    let back = u64::from(frame.is_return);
    let mut place = symbols.at(frame.address.wrapping_sub(back))?;
    place.offset += back;
    Some(place)
}

/// All addresses of the function of that name.
pub(crate) fn extent(symbols: &Symbols, name: &str) -> Option<RangeInclusive<u64>> {
    let Symbol { address, size, .. } = symbols.find(name)?;
    let size = if size == 0 { size_of_code(symbols, address) } else { size };
    Some(address..=address.saturating_add(size - 1))
}

/// How far the symbol at `address` reaches, if it does not say so.
fn size_of_code(symbols: &Symbols, address: u64) -> u64 {
    /// Longer functions have a size.
    const SIZE_MAX: u64 = 64 << 10;
    let is_same = |at: u64| symbols.at(at).is_some_and(|place| place.symbol.address == address);
    (1..SIZE_MAX).find(|size| !is_same(address.wrapping_add(*size))).unwrap_or(SIZE_MAX)
}

/// ` <name+0x1f>`, or nothing: what stands behind an address.
pub(crate) struct Named<'a>(pub(crate) Option<Place<'a>>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |place| write!(out, " <{place}>"))
    }
}

/// A line of the log with names behind the addresses that have one.
pub(crate) fn explained(line: &str) -> String {
    // Who logs while names are looked up does without them.
    let symbols = LOGGED.get().and_then(|names| {
        let shared = names.shared.try_lock().ok()?;
        Some(Arc::clone(&shared.symbols))
    });
    match symbols.filter(|symbols| !symbols.is_empty()) {
        Some(symbols) => explained_by(line, &symbols),
        None => line.to_owned(),
    }
}

fn explained_by(line: &str, symbols: &Symbols) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("0x") {
        let digits = rest.get(start + 2..).unwrap_or_default();
        let count = digits.bytes().take_while(u8::is_ascii_hexdigit).count();
        let (head, behind) = rest.split_at(start + 2 + count);
        let address = u64::from_str_radix(digits.get(..count).unwrap_or_default(), 16);
        out.push_str(head);
        // Data has names too, but most small numbers are no addresses.
        let place = address.ok().and_then(|address| symbols.at(address));
        let code = place.filter(|place| place.symbol.is_code());
        // Writing to a String cannot fail.
        let _ = write!(out, "{}", Named(code));
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_the_log_get_names() {
        let mut builder = symbols::Builder::new("vmlinux");
        builder.push(0xffff_ffff_8100_1000, 0x100, 'T', "start").expect("there is room");
        let mut symbols = Symbols::default();
        symbols.add(builder.finish());
        for (line, expected) in [
            ("#PF at 0xffffffff81001010, 0x10", "#PF at 0xffffffff81001010 <start+0x10>, 0x10"),
            ("0xffffffff81001000", "0xffffffff81001000 <start>"),
            ("0x and 0xfffffffffffffffffffff, é", "0x and 0xfffffffffffffffffffff, é"),
        ] {
            assert_eq!(explained_by(line, &symbols), expected);
        }
    }
}
