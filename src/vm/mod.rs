//! The machine as a running thing: its CPUs and chips put together, scheduled, stopped and reset.

mod adapters;
mod boot;
mod control;
mod entropy;
mod mailboxes;
mod serial_scheduler;
mod threads;
mod timer_thread;
