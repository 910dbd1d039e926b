//! Catchpoints: events of the architecture at which a CPU stops, wherever they happen.
//!
//! A CPU stops at the first instruction boundary behind the event: in the handler of an exception
//! or interrupt, behind the instruction that wrote the register or accessed the device. All of them
//! are found where the interpreter's functions do what is caught, which every engine but KVM calls;
//! each looks at one flag.

use std::fmt;

use crate::Cpu;
use crate::exception::{self, Exception};
use crate::mode::OperatingMode;

/// Catchpoints of a CPU at most.
pub const CATCHPOINTS_MAX: usize = 256;

/// What to stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Catchpoint {
    /// Exceptions with this vector, or all; software's INT3 and INTO too.
    Exception(Option<u8>),
    /// Interrupts with this vector, or all: maskable ones, NMIs, and INT n.
    Interrupt(Option<u8>),
    /// A triple fault.
    TripleFault,
    /// Another operating mode than before.
    Mode,
    /// A load of CR3.
    Cr3,
    /// WRMSR to this MSR, or any.
    MsrWrite(Option<u32>),
    /// RDMSR from this MSR, or any.
    MsrRead(Option<u32>),
    /// IN and OUT at ports from the first to the last.
    Port(u16, u16),
    /// Accesses to what is no RAM, at physical addresses from the first to the last.
    Mmio(u64, u64),
}

/// What a CPU stopped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// An exception was delivered.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
        /// RIP of the instruction that raised it.
        rip: u64,
    },
    /// An interrupt was delivered.
    Interrupt {
        /// Its vector.
        vector: u8,
        /// RIP that it came at.
        rip: u64,
    },
    /// A triple fault: the CPU is shut down.
    TripleFault {
        /// RIP of the instruction that raised the first one.
        rip: u64,
    },
    /// The mode is another one.
    Mode {
        /// What it was.
        old: OperatingMode,
        /// What it is.
        new: OperatingMode,
    },
    /// CR3 was loaded.
    Cr3 {
        /// What it was.
        old: u64,
        /// What it is.
        new: u64,
    },
    /// An MSR was accessed.
    Msr {
        /// Which.
        number: u32,
        /// What was read or written.
        value: u64,
        /// By WRMSR.
        is_write: bool,
    },
    /// A port was accessed.
    Port {
        /// The first one.
        port: u16,
        /// How many bytes.
        bytes: u8,
        /// What was read or written.
        value: u64,
        /// By OUT.
        is_write: bool,
    },
    /// A device was accessed, or nothing was there.
    Mmio {
        /// The physical address.
        address: u64,
        /// How many bytes.
        bytes: u8,
        /// What was read or written.
        value: u64,
        /// Whether it was written.
        is_write: bool,
    },
}

impl Catchpoint {
    fn takes(&self, caught: &Caught) -> bool {
        let is = |wanted: Option<u8>, vector: u8| wanted.is_none_or(|wanted| wanted == vector);
        match (*self, *caught) {
            (Self::Exception(wanted), Caught::Exception { vector, .. }) => is(wanted, vector),
            (Self::Interrupt(wanted), Caught::Interrupt { vector, .. }) => is(wanted, vector),
            (Self::TripleFault, Caught::TripleFault { .. })
            | (Self::Mode, Caught::Mode { .. })
            | (Self::Cr3, Caught::Cr3 { .. }) => true,
            (Self::MsrWrite(wanted), Caught::Msr { number, is_write: true, .. })
            | (Self::MsrRead(wanted), Caught::Msr { number, is_write: false, .. }) => {
                wanted.is_none_or(|wanted| wanted == number)
            }
            (Self::Port(first, last), Caught::Port { port, bytes, .. }) => {
                let end = u32::from(port) + u32::from(bytes);
                port <= last && u32::from(first) < end
            }
            (Self::Mmio(first, last), Caught::Mmio { address, bytes, .. }) => {
                address <= last && first <= address.saturating_add(u64::from(bytes) - 1)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Catchpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |out: &mut fmt::Formatter<'_>, what: &str, number: Option<u64>| match number {
            Some(number) => write!(out, "{what} {number:#x}"),
            None => out.write_str(what),
        };
        match *self {
            Self::Exception(vector) => match vector {
                Some(vector) => write!(out, "exception {vector}"),
                None => out.write_str("exception"),
            },
            Self::Interrupt(vector) => one(out, "interrupt", vector.map(u64::from)),
            Self::TripleFault => out.write_str("triple-fault"),
            Self::Mode => out.write_str("mode"),
            Self::Cr3 => out.write_str("cr3"),
            Self::MsrWrite(number) => one(out, "msr", number.map(u64::from)),
            Self::MsrRead(number) => one(out, "msr r", number.map(u64::from)),
            Self::Port(first, last) => write!(out, "port {first:#x}-{last:#x}"),
            Self::Mmio(first, last) => write!(out, "mmio {first:#x}-{last:#x}"),
        }
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |is_write: bool| if is_write { "write of" } else { "read of" };
        match *self {
            Self::Exception { vector, error_code, rip } => {
                let name = exception::name(vector);
                write!(out, "exception {vector} {name} at RIP {rip:#x}")?;
                error_code.map_or(Ok(()), |code| write!(out, ", error code {code:#x}"))
            }
            Self::Interrupt { vector, rip } => {
                write!(out, "interrupt {vector:#x} at RIP {rip:#x}")
            }
            Self::TripleFault { rip } => write!(out, "triple fault at RIP {rip:#x}"),
            Self::Mode { old, new } => write!(out, "change from {old} to {new}"),
            Self::Cr3 { old, new } => write!(out, "load of CR3, from {old:#x} to {new:#x}"),
            Self::Msr { number, value, is_write } => {
                write!(out, "{} MSR {number:#x}, {value:#x}", way(is_write))
            }
            Self::Port { port, bytes, value, is_write } => {
                write!(out, "{} port {port:#x}, {bytes} bytes, {value:#x}", way(is_write))
            }
            Self::Mmio { address, bytes, value, is_write } => {
                write!(out, "{} {bytes} bytes at {address:#x}, {value:#x}", way(is_write))
            }
        }
    }
}

impl Cpu {
    /// Stops at `event`, if somebody wants that.
    #[inline]
    pub(crate) fn catch(&mut self, event: impl FnOnce() -> Caught) {
        if self.debugger.is_catching() {
            self.catch_slow(event());
        }
    }

    #[cold]
    fn catch_slow(&mut self, caught: Caught) {
        if self.debugger.catchpoints.iter().any(|catchpoint| catchpoint.takes(&caught)) {
            self.note_debug_stop(super::DebugStop::Caught(caught));
        }
    }

    /// Stops at an exception that the instruction at RIP has raised.
    #[inline]
    pub(crate) fn catch_exception(&mut self, exception: Exception, rip: u64) {
        let Exception { vector, error_code } = exception;
        let error_code = error_code.map(u32::from);
        self.catch(|| Caught::Exception { vector: vector as u8, error_code, rip });
    }

    /// Stops if the mode is another than at the boundary before.
    pub(super) fn catch_mode(&mut self) {
        let new = self.mode.operating;
        if let Some(old) = self.debugger.mode.replace(new)
            && old != new
        {
            self.catch(|| Caught::Mode { old, new });
        }
    }
}
