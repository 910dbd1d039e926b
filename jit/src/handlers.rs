//! Instructions that a block has the interpreter execute.

use std::sync::Arc;

use cpu::interp::insn::Insn;

/// Prepared instructions, by the number that translated code knows.
#[derive(Default)]
pub(crate) struct Handlers {
    /// Each with how many instructions of its block are left, itself included.
    handlers: Vec<(Arc<Insn>, u64)>,
}

impl Handlers {
    /// The number of the next one.
    pub(crate) fn next(&self) -> u32 {
        self.handlers.len() as u32
    }

    /// Adds one.
    pub(crate) fn add(&mut self, insn: Insn, left: u64) {
        self.handlers.push((Arc::new(insn), left));
    }

    /// Number `number`, with the instructions left.
    pub(crate) fn get(&self, number: usize) -> Option<(Arc<Insn>, u64)> {
        self.handlers.get(number).cloned()
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.handlers.clear();
    }
}
