//! Figures about a translator's run.

use std::fmt;

use iced_x86::Mnemonic;

use crate::cache::Figures;
use crate::exit::Exit;
use crate::slots::FLUSHES;
use crate::vcpu::Inner;

/// Why translated code called or left, and how often.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlowReasons {
    pub(crate) tlb_misses: u64,
    /// Accesses that looked into the TLB, where they are counted.
    pub(crate) accesses: u64,
    pub(crate) page_crossings: u64,
    pub(crate) devices: u64,
    pub(crate) faults: u64,
    pub(crate) code_pages: u64,
    pub(crate) ungrouped: u64,
    /// Accesses that met a watchpoint, or might have.
    pub(crate) watched: u64,
    pub(crate) handlers: u64,
    pub(crate) signals: u64,
    pub(crate) interpreted: u64,
    /// Blocks checked against the interpreter, and how many of them differed.
    pub(crate) checked: u64,
    pub(crate) mismatches: u64,
    /// Exits, by kind.
    pub(crate) exits: [u64; Exit::COUNT],
}

/// What one vCPU's translator has done so far.
#[derive(Clone, Debug)]
pub struct Statistics {
    figures: Figures,
    slow: SlowReasons,
    flushes: [u64; FLUSHES.len()],
    used_bytes: usize,
    pages: (usize, usize),
    translation_ns: u64,
    is_counting: bool,
    /// The mnemonics whose handlers were called most.
    called: Vec<(Mnemonic, u64)>,
}

impl Statistics {
    /// Blocks whose results the interpreter did not confirm (`Options::cross_check`).
    pub fn mismatches(&self) -> u64 {
        self.slow.mismatches
    }

    /// Guest instructions in all blocks that were made.
    pub fn translated_instructions(&self) -> u64 {
        self.figures.instructions
    }

    /// Accesses that took the slow path.
    pub fn tlb_misses(&self) -> u64 {
        self.slow.tlb_misses
    }

    /// Times that the interpreter was called.
    pub fn interpreted(&self) -> u64 {
        self.slow.interpreted
    }

    /// Times that translated code was left.
    pub fn exits(&self) -> u64 {
        self.slow.exits.iter().sum()
    }

    /// True if the vCPU's count of retired instructions is exact.
    pub fn is_counting(&self) -> bool {
        self.is_counting
    }
}

impl Inner {
    pub(crate) fn statistics(&self) -> Statistics {
        Statistics {
            figures: self.cache.figures,
            slow: self.slow,
            flushes: self.slots.flushes,
            used_bytes: self.cache.used(),
            pages: self.cache.pages_in_use(),
            translation_ns: self.translation_ns,
            is_counting: self.options.counting,
            called: self.handlers.calls().into_iter().take(16).collect(),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { figures, slow, .. } = self;
        let per = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        writeln!(
            f,
            "blocks {} ({} dead, {} superblocks), instructions {}, links {}, evictions {}",
            figures.blocks,
            figures.dead_blocks,
            figures.superblocks,
            figures.instructions,
            figures.links_made,
            figures.evictions
        )?;
        writeln!(
            f,
            "guest bytes {}, host bytes {} ({:.2} a guest byte on the path, {:.2} in all), used {}",
            figures.guest_bytes,
            figures.host_bytes,
            per(figures.hot_bytes, figures.guest_bytes),
            per(figures.host_bytes, figures.guest_bytes),
            self.used_bytes
        )?;
        writeln!(
            f,
            "translation {:.1} ms, {:.0} ns an instruction",
            self.translation_ns as f64 / 1e6,
            per(self.translation_ns, figures.instructions)
        )?;
        writeln!(
            f,
            "slow accesses {} (over pages {}, devices {}, faults {}, code pages {}, ungrouped {}, \
             watched {})",
            slow.tlb_misses,
            slow.page_crossings,
            slow.devices,
            slow.faults,
            slow.code_pages,
            slow.ungrouped,
            slow.watched
        )?;
        if slow.accesses != 0 {
            let hits = 100.0 * (1.0 - per(slow.tlb_misses, slow.accesses));
            writeln!(f, "looks into the TLB {}, hits {hits:.3} %", slow.accesses)?;
        }
        writeln!(
            f,
            "handlers {}, signals {}, interpreted {}",
            slow.handlers, slow.signals, slow.interpreted
        )?;
        list(f, "exits", &Exit::NAMES, &slow.exits)?;
        list(f, "flushes", &FLUSHES, &self.flushes)?;
        writeln!(f, "code pages {}, global {}", self.pages.0, self.pages.1)?;
        if slow.checked != 0 {
            writeln!(f, "blocks checked {}, differing {}", slow.checked, slow.mismatches)?;
        }
        write!(f, "most called:")?;
        self.called.iter().try_for_each(|(mnemonic, calls)| write!(f, " {mnemonic:?} {calls}"))
    }
}

/// One line of numbers with their names.
fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[&str], numbers: &[u64]) -> fmt::Result {
    write!(f, "{what}:")?;
    names.iter().zip(numbers).try_for_each(|(name, number)| write!(f, " {name} {number}"))?;
    writeln!(f)
}
