//! Events in words.

use std::fmt;

use cpu::exception;
use symbols::Symbols;
use trace::{Access, Event, InterruptSource};

use crate::names::Named;

const PAGE_FAULT: u8 = 14;

/// What an interrupt is called.
pub(super) fn interrupt(vector: u8, source: InterruptSource) -> String {
    match source {
        InterruptSource::External => format!("interrupt {vector:#04x}"),
        InterruptSource::NonMaskable => "NMI".into(),
        InterruptSource::Software => format!("int {vector:#04x}"),
    }
}

/// The words for an access.
pub(super) fn verb(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

/// An event as a line has it.
pub(super) struct Told<'a>(pub(super) &'a Event, pub(super) &'a Symbols);

impl fmt::Display for Told<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(event, symbols) = *self;
        match *event {
            Event::Interrupt { vector, source } => out.write_str(&interrupt(vector, source)),
            Event::Exception { vector, error_code, address } => {
                out.write_str(exception::name(vector))?;
                if let Some(code) = error_code {
                    write!(out, ", error code {code:#x}")?;
                }
                if vector == PAGE_FAULT {
                    write!(out, ", address {address:#x}{}", Named(symbols.at(address)))?;
                }
                Ok(())
            }
            Event::ControlRegister { number, value } => write!(out, "cr{number} = {value:#x}"),
            Event::Msr { access, number, value } => {
                write!(out, "{} msr {number:#x}: {value:#x}", verb(access))
            }
            Event::Port { access, port, value } => {
                write!(out, "{} port {port:#x}: {value:?}", verb(access))
            }
            Event::Mmio { access, address, value } => {
                write!(out, "{} device {address:#x}: {value:?}", verb(access))
            }
            Event::Memory { access, address, value } => {
                let name = Named(symbols.at(address));
                write!(out, "{} {address:#x}{name}: {value:?}", verb(access))
            }
            Event::Register { register, value } => {
                write!(out, "{} = {value:?}", register.name_of(&value))
            }
            Event::Time { ns } => write!(out, "time {ns} ns"),
            Event::Skipped { instructions } => {
                write!(out, "{instructions} instructions were not recorded")
            }
            Event::Begin => out.write_str("recording begins"),
            Event::End => out.write_str("recording ends"),
            Event::Reset => out.write_str("is reset"),
        }
    }
}
