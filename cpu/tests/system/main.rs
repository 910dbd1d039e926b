//! System instructions and events, as tables from the manuals' pseudo-code.

mod bench;
mod control;
mod debug;
mod descriptors;
mod events;
mod flags;
mod processor;
mod segments;
mod syscalls;
mod tasks;
mod transfers;
mod virtual_8086;
