//! SIMD and x87 executed by the host's own instruction on the guest's state.

use decoder::Row;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::insn::Insn;

/// The thunks made so far.
pub(crate) struct Native;

impl Native {
    pub(crate) fn new() -> Self {
        Self
    }
    /// Called once when an instruction is decoded.
    pub(crate) fn prepare(&mut self, _insn: &mut Insn, _row: &Row) {}
}

/// Executes an instruction on the host's own unit.
pub(crate) fn execute(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::UD)
}
