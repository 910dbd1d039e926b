//! `volvelle trace`: a trace as something that people and other programs read.
//!
//! A [`View`] takes the records of a trace one by one and writes as it goes, or counts and writes
//! at the end; none keeps the trace. What each of them needs of a block is made once and kept while
//! the block goes on being executed ([`cache`]).

mod cache;
mod calls;
mod compare;
mod coverage;
mod events;
mod json;
mod lcov;
mod perfetto;
mod stacks;
mod text;

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use symbols::Symbols;
use trace::{Block, Event, Item, Reader, Record, TraceError};

use crate::exit;
use crate::names::{self, Names, SymbolFile};

/// The form in which a trace is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line for each instruction and event
    Text,
    /// A JSON object on a line for each instruction and event
    Json,
    /// Functions, interrupts and exceptions over time, for ui.perfetto.dev and chrome://tracing
    Perfetto,
    /// Which blocks were executed, for coverage tools
    Drcov,
    /// How often each source line was executed, by the DWARF of --symbols
    Lcov,
    /// Call stacks with the instructions executed in them, a line each
    Folded,
    /// The same as a flame graph
    Svg,
}

/// What `volvelle trace` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The trace.
    pub(crate) trace: PathBuf,
    /// What it becomes.
    pub(crate) format: Format,
    /// Names of addresses.
    pub(crate) symbols: Vec<SymbolFile>,
    /// Where to write, if not to standard output.
    pub(crate) output: Option<PathBuf>,
    /// What to show of it.
    pub(crate) filter: Filter,
    /// Another trace, which is compared with it and neither shown.
    pub(crate) compare: Option<PathBuf>,
}

/// What is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Of this CPU alone.
    pub(crate) cpu: Option<u16>,
    /// Of this privilege level alone.
    pub(crate) cpl: Option<u8>,
    /// Instructions at these linear addresses, or in the function of that name.
    pub(crate) range: Option<Range>,
    /// From where this many instructions of a CPU were retired.
    pub(crate) from: Option<u64>,
    /// To there.
    pub(crate) to: Option<u64>,
}

/// Where instructions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// At these addresses.
    Addresses(RangeInclusive<u64>),
    /// In the function of that name.
    Symbol(String),
}

impl Range {
    fn resolve(&self, symbols: &Symbols) -> Result<RangeInclusive<u64>> {
        match self {
            Self::Addresses(range) => Ok(range.clone()),
            Self::Symbol(name) => names::extent(symbols, name).with_context(|| {
                format!("--range {name}: no such symbol; give --symbols, or START-END")
            }),
        }
    }
}

/// A record with what all views want to know of it.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) cpu: u16,
    /// Instructions that the CPU had retired before.
    pub(super) count: u64,
    pub(super) time_ns: u64,
}

impl Moment {
    /// What the CPU had retired before each instruction from here on. A file may say anything.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        let first = self.count;
        (0..).map(move |further| first.saturating_add(further))
    }
}

/// One form of a trace.
pub(super) trait View {
    /// All of a block's instructions were executed.
    fn block(&mut self, at: &Moment, block: &Arc<Block>) -> io::Result<()>;
    /// Something else happened.
    fn event(&mut self, at: &Moment, event: &Event) -> io::Result<()>;
    /// The trace has ended.
    fn finish(&mut self) -> io::Result<()>;
}

/// Shows the trace, or compares it; the exit status.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let names = Names::open(&options.symbols)?;
    match &options.compare {
        None => show(options, names),
        Some(other) => compare(options, other, &names),
    }
}

fn output(options: &Options) -> Result<BufWriter<Box<dyn Write>>> {
    let out: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(
            File::create(path)
                .with_context(|| format!("--output: cannot write to '{}'", path.display()))?,
        ),
        None => Box::new(io::stdout().lock()),
    };
    Ok(BufWriter::with_capacity(1 << 16, out))
}

fn compare(options: &Options, other: &Path, names: &Names) -> Result<u8> {
    let mut out = output(options)?;
    let paths = [options.trace.as_path(), other];
    let is_same = compare::compare(paths, &options.filter, &names.current(), &mut out)?;
    out.flush()?;
    Ok(if is_same { 0 } else { exit::FAILED })
}

fn show(options: &Options, names: Arc<Names>) -> Result<u8> {
    let shown = || format!("'{}'", options.trace.display());
    let reader = Reader::open(&options.trace).with_context(shown)?;
    let symbols = names.current();
    let range = options.filter.range.as_ref().map(|range| range.resolve(&symbols)).transpose()?;
    let out = output(options)?;
    let mut view: Box<dyn View> = match options.format {
        Format::Text => Box::new(text::Text::new(out, symbols)),
        Format::Json => Box::new(json::Json::new(out, symbols)),
        Format::Perfetto => Box::new(perfetto::Perfetto::new(out, symbols)),
        Format::Drcov => Box::new(coverage::Drcov::new(out, symbols)),
        Format::Lcov => Box::new(lcov::Lcov::new(out, names)?),
        Format::Folded => Box::new(stacks::Stacks::new(out, symbols, stacks::Form::Folded)),
        Format::Svg => Box::new(stacks::Stacks::new(out, symbols, stacks::Form::Picture)),
    };
    let written = match feed(&reader, &options.filter, range.as_ref(), &mut *view) {
        Err(Failure::Write(error)) => Err(error),
        Err(Failure::Read(error)) => {
            // What was whole is shown all the same.
            view.finish().or_else(not_broken)?;
            return Err(error.context(shown()));
        }
        Ok(()) => view.finish(),
    };
    written.or_else(not_broken).context("cannot write")?;
    Ok(0)
}

/// A reader that has seen enough is no error.
fn not_broken(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// Which side failed.
enum Failure {
    Read(Error),
    Write(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// The records of the CPUs that are wanted.
fn records(
    reader: &Reader,
    filter: &Filter,
) -> Box<dyn Iterator<Item = Result<Record, TraceError>>> {
    match filter.cpu {
        Some(cpu) => Box::new(reader.cpu(cpu)),
        None => Box::new(reader.merged()),
    }
}

/// Gives the view what the filter lets through.
fn feed(
    reader: &Reader,
    filter: &Filter,
    range: Option<&RangeInclusive<u64>>,
    view: &mut dyn View,
) -> Result<(), Failure> {
    let is_wanted = |record: &Record| {
        filter.cpu.is_none_or(|cpu| record.cpu == cpu)
            && filter.from.is_none_or(|from| record.count >= from)
    };
    for record in records(reader, filter) {
        let record = record.map_err(|error| Failure::Read(error.into()))?;
        if filter.to.is_some_and(|to| record.count >= to) {
            if filter.cpu.is_some() || reader.header().cpus == 1 {
                break;
            }
            continue;
        }
        if !is_wanted(&record) {
            continue;
        }
        let Record { cpu, count, time_ns, item } = record;
        let at = Moment { cpu, count, time_ns };
        match item {
            Item::Block(block) => {
                let is_level = filter.cpl.is_none_or(|cpl| block.mode().cpl == cpl);
                let is_inside = range.is_none_or(|range| meets(&block, range));
                if is_level && is_inside {
                    view.block(&at, &block)?;
                }
            }
            Item::Event(event) => view.event(&at, &event)?,
        }
    }
    Ok(())
}

/// True if some instruction of the block is in `range`.
fn meets(block: &Block, range: &RangeInclusive<u64>) -> bool {
    block.insns().any(|insn| range.contains(&block.linear(insn.rip)))
}

#[cfg(test)]
mod tests;
