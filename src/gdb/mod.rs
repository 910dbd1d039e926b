//! gdb's remote protocol: a server for one client at a time.
//!
//! [`server`] lets clients in and serves them: a thread of its own reads what the client sends into
//! the [inbox](crate::debug::inbox), and the machine's owner, who alone may touch stopped CPUs,
//! stops the machine and answers. The packets are the `gdbstub` crate's, which [`target`] tells of
//! the machine by [`crate::debug`]; [`guard`] keeps packets away from it that ask for too much, and
//! reads what the crate leaves out: [`conditions`] of breakpoints, in the bytecode of [`agent`].
//! [`description`] is the target description, made of the table of registers; [`transfers`] is what
//! else gdb reads of the machine. What resumes CPUs one by one and tells of their stops is not the
//! crate's either: [`non_stop`], by the packets of [`notices`].
//!
//! Known departures: breakpoint commands in agent bytecode and tracing are not offered, so gdb runs
//! commands itself. What is told in words beside a stop is not in non-stop mode, which has no
//! packet for it; `info threads` shows it.

mod agent;
mod arch;
mod conditions;
mod description;
mod guard;
mod non_stop;
mod notices;
mod server;
mod target;
mod transfers;

pub(crate) use server::Server;
