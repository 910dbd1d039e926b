//! The KVM engine: guests executed by the host's own virtualization, on the same memory, ports and
//! chips as the other engines.
//!
//! [`KvmVm`] is one virtual machine of the kernel, [`KvmCpu`] one of its CPUs behind the trait that
//! all engines have. KVM executes instructions, and a [`cpu::Cpu`] beside each of its CPUs takes
//! what happens between two of them, in the same way as on the other engines. An instruction that
//! KVM cannot execute is the interpreter's.
//!
//! Local APICs, interrupts between CPUs and HLT are the kernel's, which borrows the registers of
//! the machine's chips while the machine runs (`apics`, `lapic`). On a host whose kernel's are
//! missing or no good they are the machine's own here as on every engine.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst.

mod apic_probe;
mod apics;
mod calls;
mod cpuid;
mod debug_probe;
mod debugging;
mod doorbells;
mod error;
mod exits;
mod kick;
mod lapic;
mod msr_filter;
mod msrs;
mod probe;
mod registers;
mod routes;
mod run_page;
mod slots;
mod small_guest;
mod standstill;
mod statistics;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
mod xsave;

pub use apics::Message;
pub use debug_probe::{DebugRegisters, debug_registers};
pub use debugging::check_debug_points;
pub use error::{KvmError, Obstacle, Weakness};
pub use probe::probe;
pub use statistics::Statistics;
pub use vcpu::KvmCpu;
pub use vm::{Apics, Clocks, KvmVm, tsc_hz};
