//! What the owner of a vCPU thread sees of any engine.

use std::sync::Arc;

use crate::events::Events;
use crate::state::State;

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// HLT (or MWAIT) with nothing to do: sleep until one of the `wake` bits of [`Events`] is set.
    Halt {
        /// The [`Events`] bits that end the sleep; others may stay set meanwhile.
        wake: u32,
    },
    /// An application processor waits for a start-up IPI: sleep until [`Events::SIPI`],
    /// [`Events::INIT`] or [`Events::EXIT`].
    WaitForSipi,
    /// A triple fault: the machine resets, or the CPU stays shut down.
    Shutdown,
    /// [`Events::request_exit`] was called.
    Requested,
    /// The budget is used up: exactly that many instructions were retired. Fewer were if the guest
    /// does nothing but raise exceptions whose handlers raise exceptions.
    Budget,
    /// The CPU stopped for a debugger ([`crate::debugger`]), and does so until it is resumed.
    Debug,
    /// The debugger holds the CPU while others run: sleep until [`Events::EXIT`].
    Held,
    /// The engine cannot go on, and has said why in the log.
    Failed,
}

/// One virtual CPU on some engine.
pub trait Vcpu: Send {
    /// Runs until something needs the owner, or `budget` instructions were retired.
    fn run(&mut self, budget: u64) -> VmExit;
    /// Instructions retired since the machine was made; REP counts once an uninterrupted part.
    fn retired(&self) -> u64;
    /// The architectural state, at an instruction boundary. Behind [`VmExit::Halt`] it may be an
    /// older one: who wants it asks for an exit ([`Events::request_exit`]).
    fn state(&self) -> &State;
    /// Replaces the state; everything derived from the old one is dropped.
    fn set_state(&mut self, state: State);
    /// The mailbox through which other threads reach this CPU.
    fn events(&self) -> &Arc<Events>;
}
