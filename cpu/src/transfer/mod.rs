//! Transfers of control that change privilege, mode or stack: events, far transfers, task switches.
//!
//! Every path first computes where it goes ([`code::Target`], [`stack::Stack`]) and writes what it
//! has to write to memory; only then does it change registers. So a fault on the way leaves the
//! registers as they were and the instruction can be restarted.

pub(crate) mod code;
mod event;
mod far;
mod gate;
mod iret;
mod real;
pub(crate) mod segment;
pub(crate) mod stack;
pub(crate) mod table;
pub(crate) mod task;

pub(crate) use event::Software;
