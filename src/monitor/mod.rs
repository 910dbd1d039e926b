//! The monitor: commands on the machine from its terminal or a socket, while it runs.
//!
//! Keys come from a reader into a [`keyboard`]; a [`session`] on a thread of its own makes lines of
//! them with the [`editor`], has them answered, and writes to a [`screen`]. A command that looks at
//! CPUs or chips goes to the machine's owner by the [inbox](crate::debug::inbox), who stops the
//! machine for the moment it takes. Commands themselves are [`crate::debug::commands`].

mod editor;
pub(crate) mod keyboard;
mod screen;
mod session;
mod socket;

pub(crate) use screen::{Audience, Echo, Screen};
pub(crate) use session::{Office, start};
pub(crate) use socket::Socket;
