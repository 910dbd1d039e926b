//! Instructions that a block has the interpreter execute.

use std::collections::BTreeMap;
use std::sync::Arc;

use cpu::interp::insn::Insn;
use iced_x86::Mnemonic;

/// A prepared instruction.
#[derive(Debug)]
struct Handler {
    insn: Arc<Insn>,
    /// How many instructions of its block are left, itself included.
    left: u64,
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
        self.handlers.push(Handler { insn: Arc::new(insn), left, calls: 0 });
    }

    /// Number `number`, to be executed, with the instructions left.
    pub(crate) fn call(&mut self, number: usize) -> Option<(Arc<Insn>, u64)> {
        let handler = self.handlers.get_mut(number)?;
        handler.calls += 1;
        Some((Arc::clone(&handler.insn), handler.left))
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
