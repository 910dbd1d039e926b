//! Code that was executed, as DynamoRIO's drcov writes it (format version 2), for the tools that
//! show coverage in disassemblers.
//!
//! A module of the guest's symbols is one of the file's, as far as the format's offsets of 32 bits
//! reach; what is in none is put into modules of 1 GiB. Instructions that follow each other are one
//! block.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use symbols::Symbols;
use trace::{Block, Event};

use super::cache::Cache;
use super::{Moment, View};

/// Blocks that are kept at most; others are dropped, with a word about it.
const RUNS_MAX: usize = 16 << 20;
/// Modules that the format has numbers for.
const MODULES_MAX: usize = u16::MAX as usize;
/// Bytes of a module at most.
const BYTES_MAX: u64 = 1 << 32;
/// log2 of the bytes of a module that no symbol is about.
const REGION_SHIFT: u32 = 30;

/// Instructions that follow each other: where, and how many bytes.
pub(super) type Run = (u64, u16);

/// The runs of a block.
pub(super) fn runs(block: &Block) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for insn in block.insns() {
        let (start, bytes) = (block.linear(insn.rip), insn.bytes.len() as u16);
        match runs.last_mut() {
            Some((first, length)) if first.wrapping_add(u64::from(*length)) == start => {
                *length += bytes;
            }
            _ => runs.push((start, bytes)),
        }
    }
    runs
}

/// The coverage of a trace.
pub(super) struct Drcov<W> {
    out: W,
    symbols: Arc<Symbols>,
    seen: Cache<()>,
    runs: BTreeSet<Run>,
    is_full: bool,
}

impl<W: Write> Drcov<W> {
    pub(super) fn new(out: W, symbols: Arc<Symbols>) -> Self {
        Self { out, symbols, seen: Cache::default(), runs: BTreeSet::new(), is_full: false }
    }
}

/// A module of the file: where it is, its name.
struct Module {
    start: u64,
    end: u64,
    path: String,
}

/// Names and addresses are told apart by what tools ask of them.
fn modules(symbols: &Symbols, runs: &BTreeSet<Run>) -> Vec<Module> {
    let mut modules: Vec<Module> = symbols
        .modules()
        .iter()
        .map(|module| {
            let (start, end) = module.range();
            let start = start & !0xfff;
            let end = end.min(start.saturating_add(BYTES_MAX));
            Module { start, end, path: module.name().to_owned() }
        })
        .collect();
    let mut region = None;
    for &(start, _) in runs {
        let is_known = |module: &Module| (module.start..module.end).contains(&start);
        if region == Some(start >> REGION_SHIFT) || modules.iter().any(is_known) {
            continue;
        }
        region = Some(start >> REGION_SHIFT);
        let first = start >> REGION_SHIFT << REGION_SHIFT;
        let end = first.saturating_add((1 << REGION_SHIFT) - 1);
        modules.push(Module { start: first, end, path: format!("[{first:#x}]") });
        if modules.len() == MODULES_MAX {
            break;
        }
    }
    modules
}

impl<W: Write> View for Drcov<W> {
    fn block(&mut self, _: &Moment, block: &Arc<Block>) -> io::Result<()> {
        let Self { seen, runs: all, is_full, .. } = self;
        seen.get(block, |block| {
            for run in runs(block) {
                if all.len() < RUNS_MAX {
                    all.insert(run);
                } else if !std::mem::replace(is_full, true) {
                    log::warn!("the trace has more blocks than drcov is written for");
                }
            }
        });
        Ok(())
    }

    fn event(&mut self, _: &Moment, _: &Event) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let modules = modules(&self.symbols, &self.runs);
        let mut table = Vec::new();
        let mut count = 0;
        for &(start, bytes) in &self.runs {
            let of = modules.iter().position(|it| (it.start..it.end).contains(&start));
            let offset = of.and_then(|of| Some(start - modules.get(of)?.start));
            let offset = offset.and_then(|offset| u32::try_from(offset).ok());
            let (Some(of), Some(offset)) = (of, offset) else { continue };
            table.extend(offset.to_le_bytes());
            table.extend(bytes.to_le_bytes());
            table.extend((of as u16).to_le_bytes());
            count += 1;
        }
        let out = &mut self.out;
        writeln!(out, "DRCOV VERSION: 2\nDRCOV FLAVOR: volvelle")?;
        writeln!(out, "Module Table: version 2, count {}", modules.len())?;
        writeln!(out, "Columns: id, base, end, entry, path")?;
        for (number, Module { start, end, path }) in modules.iter().enumerate() {
            writeln!(out, "{number:>3}, {start:#018x}, {end:#018x}, {:#018x}, {path}", 0)?;
        }
        writeln!(out, "BB Table: {count} bbs")?;
        out.write_all(&table)?;
        out.flush()
    }
}
