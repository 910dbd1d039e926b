//! The x86-64 architecture, once, and the interpreter that executes it one instruction at a time.
//!
//! [`Cpu`] is one virtual CPU: its architectural [`state::State`], its view of memory ([`mmu`]) and
//! its doors to the outside ([`platform`]). [`interp`] fetches, decodes, caches and executes;
//! [`transfer`] changes privilege and delivers events; [`native`] runs SIMD and x87 on the host's
//! own units. [`engine`] is what a program that owns vCPU threads sees of any engine.
//!
//! Neighbours: `decoder` says what an instruction is, `memory` holds its operands. No device, no
//! thread and no host clock is known here.
//!
//! Invariant: nothing a guest does panics; what the architecture leaves undefined is what the host
//! CPU does, or is named where it is chosen.

pub mod cpuid;
pub mod debug;
pub mod debugger;
pub mod descriptor;
pub mod edit;
pub mod engine;
pub mod events;
pub mod exception;
pub mod flags;
pub mod fpu;
mod handover;
mod host_engine;
pub mod interp;
pub mod mmu;
pub mod mode;
pub mod msr;
pub mod native;
pub mod platform;
pub mod pv;
pub mod recording;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timing;
pub mod transfer;
mod translator;
pub mod xstate;

mod cpu;
mod reset;

pub use cpu::{Cpu, Environment};
pub use handover::Handover;
pub use translator::{CodePage, DataPage, FastSystemCalls};
