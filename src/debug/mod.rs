//! What a debugger can do to the machine while it is stopped: typed functions that know no protocol
//! and no engine.
//!
//! [`Machine`] reaches the CPUs; [`registers`] is the table of all registers with how each is read
//! and written; [`commands`] are the monitor's, functions that give data, whose text is a view of
//! it. Memory and the points at which a CPU stops are `cpu::debugger`'s and `cpu::mmu`'s.

pub(crate) mod commands;
mod disassembly;
mod machine;
mod parse;
pub(crate) mod registers;

pub(crate) use machine::{Machine, PointError};
