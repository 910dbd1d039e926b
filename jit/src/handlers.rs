//! Instructions that a block has the interpreter execute.

use std::sync::Arc;

use cpu::interp::insn::Insn;

/// Prepared instructions, by the number that translated code knows.
#[derive(Default)]
pub(crate) struct Handlers {
    handlers: Vec<Arc<Insn>>,
}

impl Handlers {
    /// The number of the next one.
    pub(crate) fn next(&self) -> u32 {
        self.handlers.len() as u32
    }

    /// Adds one.
    pub(crate) fn add(&mut self, insn: Insn) {
        self.handlers.push(Arc::new(insn));
    }

    /// Number `number`.
    pub(crate) fn get(&self, number: usize) -> Option<Arc<Insn>> {
        self.handlers.get(number).cloned()
    }

    /// Drops all.
    pub(crate) fn clear(&mut self) {
        self.handlers.clear();
    }
}
