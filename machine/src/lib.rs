//! The chips of a PC, its tables and its loaders.
//!
//! One chip, one file: registers and state machine first, attachment to bus, line and timer behind.
//! No engine is named here; what the chips need of the CPUs is [`signals::CpuSignals`]. All chips
//! take their time from one [`clock::Clock`] and their wake-ups from one [`timers::Timers`].
#![forbid(unsafe_code)]

pub mod chip;
pub mod clock;
pub mod e820;
pub mod layout;
pub mod line;
pub mod loader;
pub mod signals;
pub mod timers;
