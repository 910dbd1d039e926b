//! A line for each instruction and event.

use std::io::{self, Write};
use std::sync::Arc;

use symbols::Symbols;
use trace::{Block, Event};

use super::cache::Cache;
use super::events::Told;
use super::{Moment, View};
use crate::debug::Instructions;

/// The text of a trace.
pub(super) struct Text<W> {
    out: W,
    symbols: Arc<Symbols>,
    instructions: Instructions,
    lines: Cache<Vec<String>>,
}

impl<W: Write> Text<W> {
    pub(super) fn new(out: W, symbols: Arc<Symbols>) -> Self {
        Self { out, symbols, instructions: Instructions::default(), lines: Cache::default() }
    }
}

fn lines(block: &Block, instructions: &mut Instructions, symbols: &Symbols) -> Vec<String> {
    let bits = block.mode().width.bits();
    let insns = block.insns().map(|insn| {
        let line = instructions.line(bits, insn.bytes, insn.rip, block.linear(insn.rip));
        line.named(symbols)
    });
    insns.collect()
}

impl<W: Write> View for Text<W> {
    fn block(&mut self, at: &Moment, block: &Arc<Block>) -> io::Result<()> {
        let Self { out, symbols, instructions, lines: cache } = self;
        let lines = cache.get(block, |block| lines(block, instructions, symbols));
        at.counts()
            .zip(lines.iter())
            .try_for_each(|(count, line)| writeln!(out, "{:>3} {count:>12} {line}", at.cpu))
    }

    fn event(&mut self, at: &Moment, event: &Event) -> io::Result<()> {
        writeln!(self.out, "{:>3} {:>12} -- {}", at.cpu, at.count, Told(event, &self.symbols))
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
