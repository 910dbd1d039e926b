//! How often source lines were executed, as lcov's tools read it (geninfo(1), "TRACEFILE FORMAT").
//!
//! A line counts as often as that of its pieces of code that was executed most.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Result, bail};
use trace::{Block, Event};

use super::cache::Cache;
use super::coverage::{Run, runs};
use super::{Moment, View};
use crate::names::Names;

/// Runs of instructions that are counted at most.
const RUNS_MAX: usize = 16 << 20;

/// The line counts of a trace.
pub(super) struct Lcov<W> {
    out: W,
    names: Arc<Names>,
    runs: Cache<Vec<Run>>,
    counts: HashMap<Run, u64>,
}

impl<W: Write> Lcov<W> {
    pub(super) fn new(out: W, names: Arc<Names>) -> Result<Self> {
        if !names.has_lines() {
            bail!("--format lcov: give --symbols an ELF file with DWARF, such as vmlinux");
        }
        Ok(Self { out, names, runs: Cache::default(), counts: HashMap::new() })
    }

    /// How often the code from each address on was executed, up to the next address.
    fn steps(&self) -> BTreeMap<u64, u64> {
        let mut changes: BTreeMap<u64, i128> = BTreeMap::new();
        for (&(start, bytes), &count) in &self.counts {
            *changes.entry(start).or_default() += i128::from(count);
            *changes.entry(start.saturating_add(u64::from(bytes))).or_default() -=
                i128::from(count);
        }
        let mut sum = 0;
        let step = |(address, change)| {
            sum += change;
            (address, u64::try_from(sum).unwrap_or(u64::MAX))
        };
        changes.into_iter().map(step).collect()
    }
}

/// How often what is at `start`, `bytes` long, was executed.
fn count(steps: &BTreeMap<u64, u64>, start: u64, bytes: u64) -> u64 {
    let before = steps.range(..=start).next_back().map_or(0, |(_, &count)| count);
    let end = start.saturating_add(bytes.max(1));
    steps.range(start..end).map(|(_, &count)| count).max().unwrap_or(0).max(before)
}

/// What is known of a file.
#[derive(Default)]
struct SourceFile {
    lines: BTreeMap<u32, u64>,
    /// By name: the line where a function begins, and how often it was entered.
    functions: BTreeMap<String, (u32, u64)>,
}

impl SourceFile {
    fn write(&self, path: &str, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "TN:\nSF:{path}")?;
        for (name, (line, _)) in &self.functions {
            writeln!(out, "FN:{line},{name}")?;
        }
        for (name, (_, count)) in &self.functions {
            writeln!(out, "FNDA:{count},{name}")?;
        }
        let hit = self.functions.values().filter(|(_, count)| *count != 0).count();
        writeln!(out, "FNF:{}\nFNH:{hit}", self.functions.len())?;
        for (line, count) in &self.lines {
            writeln!(out, "DA:{line},{count}")?;
        }
        let hit = self.lines.values().filter(|count| **count != 0).count();
        writeln!(out, "LF:{}\nLH:{hit}\nend_of_record", self.lines.len())
    }
}

impl<W: Write> View for Lcov<W> {
    fn block(&mut self, _: &Moment, block: &Arc<Block>) -> io::Result<()> {
        for run in self.runs.get(block, runs).iter() {
            if self.counts.len() >= RUNS_MAX && !self.counts.contains_key(run) {
                continue;
            }
            let count = self.counts.entry(*run).or_default();
            *count = count.saturating_add(1);
        }
        Ok(())
    }

    fn event(&mut self, _: &Moment, _: &Event) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let steps = self.steps();
        let mut files: BTreeMap<String, SourceFile> = BTreeMap::new();
        self.names.each_line(&mut |address, bytes, path, line| {
            let hits = count(&steps, address, bytes);
            if !files.contains_key(path) {
                files.insert(path.to_owned(), SourceFile::default());
            }
            let Some(file) = files.get_mut(path) else { return };
            let known = file.lines.entry(line).or_default();
            *known = hits.max(*known);
        });
        for symbol in self.names.current().modules().iter().flat_map(symbols::Module::symbols) {
            if !symbol.is_code() || symbol.size == 0 {
                continue;
            }
            let Some(place) = self.names.line(symbol.address) else { continue };
            if let Some(file) = files.get_mut(&place.file) {
                let entered = count(&steps, symbol.address, 1);
                file.functions.insert(symbol.name.to_owned(), (place.line, entered));
            }
        }
        files.iter().try_for_each(|(path, file)| file.write(path, &mut self.out))?;
        self.out.flush()
    }
}
