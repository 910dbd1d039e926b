//! What a debugger can do to the machine while it is stopped: typed functions that know no protocol
//! and no engine.
//!
//! [`Machine`] reaches the CPUs and the board; [`registers`] is the table of all registers with
//! how each is read and written; [`commands`] are the monitor's, functions that give data, whose
//! text is a view of it. Memory and the points at which a CPU stops are `cpu::debugger`'s and
//! `cpu::mmu`'s; [`points`] keeps who set which. What clients ask for waits in the [`inbox`] for
//! the machine's owner.

pub(crate) mod commands;
mod condition;
mod disassembly;
pub(crate) mod inbox;
mod machine;
mod parse;
mod points;
pub(crate) mod registers;
mod stop;

pub(crate) use disassembly::Instructions;
pub(crate) use machine::{Board, Machine, Moved};
pub(crate) use points::{Kind, Owner, Point, PointError};
pub(crate) use stop::{StopReport, Why};
