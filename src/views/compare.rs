//! Two traces side by side: are they the same, and if not, where do they part?
//!
//! What a trace's blocks are is its engine's affair, and when a CPU began to run the scheduler's;
//! so instructions are compared one by one, with the events between them, and not the moments of
//! guest time nor how many instructions a filter has left out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use symbols::Symbols;
use trace::{Block, Event, Item, Reader, Record, TraceError};

use super::text::Text;
use super::{Filter, Moment, View, records};

/// Instructions and events shown before the first that differs, and from it on.
const SHOWN: usize = 8;

/// Instructions or an event of one CPU.
#[derive(Clone)]
struct Part {
    at: Moment,
    item: Item,
    /// Instructions of the block that are not part of it, at its start.
    done: usize,
}

impl Part {
    /// Instructions that are left of a block.
    fn left(&self) -> usize {
        match &self.item {
            Item::Block(block) => block.len().saturating_sub(self.done),
            Item::Event(_) => 0,
        }
    }

    /// How many instructions from here on are the same in both, or 1 for the same event.
    fn same(&self, other: &Self) -> usize {
        if self.at.cpu != other.at.cpu {
            return 0;
        }
        match (&self.item, &other.item) {
            (Item::Event(ours), Item::Event(theirs)) => usize::from(ours == theirs),
            (Item::Block(ours), Item::Block(theirs)) => ours.common(self.done, theirs, other.done),
            _ => 0,
        }
    }

    /// Shows at most `most` of its instructions.
    fn show(&self, most: usize, text: &mut dyn View) -> io::Result<usize> {
        let block = match &self.item {
            Item::Event(event) => return text.event(&self.at, event).map(|()| 1),
            Item::Block(block) => block,
        };
        let mut shown = Block::new(block.mode(), block.base());
        for insn in block.insns().skip(self.done).take(most) {
            shown.push(insn.rip, insn.bytes);
        }
        let count = self.at.count.saturating_add(self.done as u64);
        text.block(&Moment { count, ..self.at }, &Arc::new(shown))?;
        Ok(self.left().min(most))
    }
}

/// One of the traces.
struct Side<'a> {
    path: &'a Path,
    records: Box<dyn Iterator<Item = Result<Record, TraceError>>>,
    now: Option<Part>,
}

impl<'a> Side<'a> {
    fn open(path: &'a Path, filter: &Filter) -> Result<Self> {
        let reader = Reader::open(path).with_context(|| format!("'{}'", path.display()))?;
        Ok(Self { path, records: records(&reader, filter), now: None })
    }

    /// What comes next, if anything does.
    fn settle(&mut self) -> Result<Option<&Part>> {
        while self.now.is_none() {
            let Some(record) = self.records.next() else { break };
            let Record { cpu, count, time_ns, item } =
                record.with_context(|| format!("'{}'", self.path.display()))?;
            let is_compared =
                !matches!(item, Item::Event(Event::Time { .. } | Event::Skipped { .. }));
            let at = Moment { cpu, count, time_ns };
            self.now = is_compared.then_some(Part { at, item, done: 0 });
        }
        Ok(self.now.as_ref())
    }

    /// Leaves `count` instructions or an event behind.
    fn advance(&mut self, count: usize) {
        if let Some(part) = &mut self.now {
            part.done += count;
            if part.left() == 0 {
                self.now = None;
            }
        }
    }

    /// Shows what comes next, each line behind `mark`.
    fn show(&mut self, mark: &str, symbols: &Arc<Symbols>, out: &mut dyn Write) -> Result<()> {
        let mut lines = Vec::new();
        let mut text = Text::new(&mut lines, Arc::clone(symbols));
        let mut left = SHOWN;
        while left > 0
            && let Some(part) = self.settle()?
        {
            let shown = part.show(left, &mut text)?;
            left -= shown;
            self.advance(shown);
        }
        let lines = String::from_utf8_lossy(&lines);
        Ok(lines.lines().try_for_each(|line| writeln!(out, "{mark} {line}"))?)
    }
}

/// What both traces have had last.
#[derive(Default)]
struct Recent(VecDeque<(Part, usize)>);

impl Recent {
    /// Both have had the first `count` of the part's instructions.
    fn note(&mut self, part: &Part, count: usize) {
        if self.0.len() == SHOWN {
            self.0.pop_front();
        }
        self.0.push_back((part.clone(), count));
    }

    fn show(&self, symbols: &Arc<Symbols>, out: &mut dyn Write) -> io::Result<()> {
        let mut lines = Vec::new();
        let mut text = Text::new(&mut lines, Arc::clone(symbols));
        for (part, count) in &self.0 {
            part.show(*count, &mut text)?;
        }
        let lines = String::from_utf8_lossy(&lines);
        let skipped = lines.lines().count().saturating_sub(SHOWN);
        lines.lines().skip(skipped).try_for_each(|line| writeln!(out, "  {line}"))
    }
}

/// Compares two traces, and shows how they go on where they part. True if they are the same.
pub(super) fn compare(
    [first, second]: [&Path; 2],
    filter: &Filter,
    symbols: &Arc<Symbols>,
    out: &mut dyn Write,
) -> Result<bool> {
    let (mut ours, mut theirs) = (Side::open(first, filter)?, Side::open(second, filter)?);
    let (mut instructions, mut events) = (0_u64, 0_u64);
    let mut recent = Recent::default();
    loop {
        let (our, their) = (ours.settle()?, theirs.settle()?);
        let (Some(our), Some(their)) = (our, their) else { break };
        let same = our.same(their);
        if same == 0 {
            break;
        }
        recent.note(our, same);
        match our.item {
            Item::Block(_) => instructions += same as u64,
            Item::Event(_) => events += 1,
        }
        ours.advance(same);
        theirs.advance(same);
    }
    let is_same = ours.now.is_none() && theirs.now.is_none();
    let common = format!("{instructions} instructions and {events} events");
    if is_same {
        writeln!(out, "the same: {common}")?;
        return Ok(true);
    }
    writeln!(out, "the same for {common}, then different:")?;
    recent.show(symbols, out)?;
    ours.show("<", symbols, out)?;
    theirs.show(">", symbols, out)?;
    Ok(false)
}
