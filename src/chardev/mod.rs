//! Character devices' other ends: the terminal, files and sockets.
//!
//! Output goes through a bounded [`queue::OutputQueue`] with a writer thread, so that a guest's
//! byte costs no system call; input goes through an [`input::Inlet`], which hands bytes on as fast
//! as the guest's port takes them.

pub(crate) mod escape;
pub(crate) mod input;
pub(crate) mod queue;
pub(crate) mod socket;
pub(crate) mod stdio;
pub(crate) mod terminal;
