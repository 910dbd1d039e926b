//! Commands on the events at which CPUs stop.

use std::fmt;

use cpu::debugger::{Catchpoint, Caught};

use super::points::set;
use super::{Command, reply};
use crate::debug::{Point, parse};

const WHAT: &str = "exception [N], interrupt [N], triple-fault, mode, cr3, msr [N|r [N]], \
    port N[-M] or mmio FIRST[-LAST]";

pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        "catch",
        &[],
        "exception|interrupt|triple-fault|mode|cr3|msr|port|mmio ...",
        "stop at such an event; `catch help` says more",
        |call| set(call.machine, Point::Catchpoint(read(call.arguments)?)),
    ),
    Command::new("info catch", &[], "", "what is caught, and what was caught last", |call| {
        let catchpoints = call.on_cpu(|cpu| cpu.debugger().catchpoints().to_vec())?;
        reply(Caughts { catchpoints, last: call.machine.last_caught() })
    }),
];

/// What is to be caught.
fn read(text: &str) -> Result<Catchpoint, String> {
    let (what, rest) = super::word(text);
    let vector = || number(rest, u64::from(u8::MAX)).map(|number| number.map(|n| n as u8));
    let msr = |text: &str| {
        number(text, u64::from(u32::MAX)).map(|number| number.map(|number| number as u32))
    };
    Ok(match what {
        "exception" => Catchpoint::Exception(vector()?),
        "interrupt" => Catchpoint::Interrupt(vector()?),
        "triple-fault" if rest.is_empty() => Catchpoint::TripleFault,
        "mode" if rest.is_empty() => Catchpoint::Mode,
        "cr3" if rest.is_empty() => Catchpoint::Cr3,
        "msr" => match super::word(rest) {
            ("r", number) => Catchpoint::MsrRead(msr(number)?),
            _ => Catchpoint::MsrWrite(msr(rest)?),
        },
        "port" => {
            let (first, last) = range(rest, u64::from(u16::MAX))?;
            Catchpoint::Port(first as u16, last as u16)
        }
        "mmio" => {
            let (first, last) = range(rest, u64::MAX)?;
            Catchpoint::Mmio(first, last)
        }
        _ => return Err(format!("catch {text}: take {WHAT}")),
    })
}

/// A number that is at most `most`, or none.
fn number(text: &str, most: u64) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = parse::number(text).filter(|number| *number <= most);
    number.map(Some).ok_or_else(|| format!("{text}: give a number of at most {most:#x}"))
}

/// The first and the last number of a range, which may be one alone.
fn range(text: &str, most: u64) -> Result<(u64, u64), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first.trim(), most)?, number(last.trim(), most)?) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("{text}: give a number or FIRST-LAST")),
    }
}

/// What is caught, and what was.
struct Caughts {
    catchpoints: Vec<Catchpoint>,
    last: Option<Caught>,
}

impl fmt::Display for Caughts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for catchpoint in &self.catchpoints {
            writeln!(out, "catch {catchpoint}")?;
        }
        if self.catchpoints.is_empty() {
            writeln!(out, "nothing is caught")?;
        }
        self.last.map_or(Ok(()), |last| writeln!(out, "the last one was: {last}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_caught_is_read_and_shown_alike() {
        let rows = [
            ("exception", Catchpoint::Exception(None)),
            ("exception 14", Catchpoint::Exception(Some(14))),
            ("interrupt 0x20", Catchpoint::Interrupt(Some(0x20))),
            ("triple-fault", Catchpoint::TripleFault),
            ("mode", Catchpoint::Mode),
            ("cr3", Catchpoint::Cr3),
            ("msr", Catchpoint::MsrWrite(None)),
            ("msr 0xc0000080", Catchpoint::MsrWrite(Some(0xc000_0080))),
            ("msr r", Catchpoint::MsrRead(None)),
            ("msr r 0x10", Catchpoint::MsrRead(Some(0x10))),
            ("port 0x3f8-0x3ff", Catchpoint::Port(0x3f8, 0x3ff)),
            ("mmio 0xfee00000-0xfee00fff", Catchpoint::Mmio(0xfee0_0000, 0xfee0_0fff)),
        ];
        for (text, expected) in rows {
            let catchpoint = read(text).unwrap();
            assert_eq!(catchpoint, expected, "{text}");
            assert_eq!(catchpoint.to_string(), text);
        }
        assert_eq!(read("port 0x80"), Ok(Catchpoint::Port(0x80, 0x80)));
        for text in ["", "fire", "exception 256", "cr3 1", "port", "port 2-1", "msr x", "mmio -"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
