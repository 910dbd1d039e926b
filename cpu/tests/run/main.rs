//! The run loop: what comes between instructions, how many of them run, and whose bytes they are.

mod bench;
mod code;
mod debug;
mod debugger;
mod events;
mod points;
