//! Instructions that a block has the interpreter execute.

use std::collections::BTreeMap;

use cpu::interp::insn::Insn;
use decoder::{Class, Unit};
use iced_x86::Mnemonic;

/// A prepared instruction.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) insn: Insn,
    /// How many instructions of its block are left, itself included.
    pub(crate) left: u64,
    /// It looks at the x87 state.
    pub(crate) needs_x87: bool,
    /// It may load a segment register.
    pub(crate) loads_segment: bool,
    /// How often it was executed.
    calls: u64,
}

/// Prepared instructions, by the number that translated code knows.
#[derive(Default)]
pub(crate) struct Handlers {
    handlers: Vec<Handler>,
    /// Calls of handlers that are gone.
    past: BTreeMap<Mnemonic, u64>,
}

impl Handlers {
    /// The number of the next one.
    pub(crate) fn next(&self) -> u32 {
        self.handlers.len() as u32
    }

    /// Adds one, with the instructions of its block that are left.
    pub(crate) fn add(&mut self, insn: Insn, left: u64) {
        let row = decoder::row(insn.iced.code());
        let needs_x87 = matches!(row.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx)
            || matches!(row.class, Class::StateImage | Class::X87);
        let loads_segment = matches!(row.class, Class::Segment | Class::Stack);
        self.handlers.push(Handler { insn, left, needs_x87, loads_segment, calls: 0 });
    }

    /// Number `number`, to be executed.
    pub(crate) fn call(&mut self, number: usize) -> Option<&Handler> {
        let handler = self.handlers.get_mut(number)?;
        handler.calls += 1;
        Some(handler)
    }

    /// Number `number`.
    pub(crate) fn get(&self, number: usize) -> Option<&Handler> {
        self.handlers.get(number)
    }

    /// Calls so far, by mnemonic, the most frequent first.
    pub(crate) fn calls(&self) -> Vec<(Mnemonic, u64)> {
        let mut sums = self.past.clone();
        for handler in &self.handlers {
            *sums.entry(handler.insn.iced.mnemonic()).or_default() += handler.calls;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|&(_, calls)| std::cmp::Reverse(calls));
        sums
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.past = self.calls().into_iter().collect();
        self.handlers.clear();
    }
}
