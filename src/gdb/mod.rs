//! gdb's remote protocol: a server for one client at a time.
//!
//! [`server`] lets clients in and serves them: a thread of its own reads what the client sends into
//! the [inbox](crate::debug::inbox), and the machine's owner, who alone may touch stopped CPUs,
//! stops the machine and answers. The packets are the `gdbstub` crate's, which [`target`] tells of
//! the machine by [`crate::debug`]; [`guard`] keeps packets away from it that ask for too much, and
//! reads what the crate leaves out: [`conditions`] of breakpoints, in the bytecode of [`agent`].
//! [`description`] is the target description, made of the table of registers.
//!
//! Known departures: breakpoint commands in agent bytecode, non-stop mode and tracing are not
//! offered, so gdb runs commands itself and stops all CPUs.

mod agent;
mod arch;
mod conditions;
mod description;
mod guard;
mod server;
mod target;

pub(crate) use server::Server;
