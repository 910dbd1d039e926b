//! Commands on the points at which CPUs stop.
//!
//! The monitor's points have numbers. gdb's are shown beside them, and are gdb's to take away.

use std::fmt;
use std::sync::Arc;

use cpu::Cpu;
use cpu::debugger::{Breakpoint, CodeAddress, Condition, WatchKind, Watchpoint};

use symbols::Symbols;

use super::{Answer, Call, Command, reply};
use crate::debug::condition::{self, When};
use crate::debug::stop::Met;
use crate::debug::{Kind, Machine, Moved, Owner, Point, PointError, parse};
use crate::names::Named;

pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        "break",
        &["b"],
        "ADDRESS [phys] [cr3 VALUE] [cpu N] [if EXPRESSION]",
        "stop before an instruction: if $rcx == 5 && dword[jiffies] != 0",
        set_break,
    ),
    Command::new(
        "watch",
        &[],
        "[/r|/w|/a] ADDRESS [LENGTH]",
        "stop behind accesses: writes, or /r reads, /a both; 8 bytes, or LENGTH",
        set_watch,
    ),
    Command::new("delete", &["d"], "[NUMBER]", "take a point away, or all of them", delete),
    Command::new("info breakpoints", &["info b"], "", "where the CPU stops", |call| {
        reply(call.on_cpu(|cpu| points(call.machine, cpu))?)
    }),
    Command::new(
        "info watch",
        &[],
        "",
        "the access that met a watchpoint last, and what was there before",
        info_watch,
    ),
];

/// Bytes of a watchpoint that names no length.
const WATCH_BYTES: u64 = 8;

/// A point with the number that the monitor gave it, if it did.
pub(crate) struct Numbered {
    number: Option<u32>,
    point: Point,
    /// A breakpoint's, as it is shown.
    condition: String,
    names: Arc<Symbols>,
}

impl fmt::Display for Numbered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(out, "{number:<4}")?,
            None => write!(out, "gdb ")?,
        }
        match self.point {
            Point::Breakpoint(CodeAddress::Linear(at), _) => {
                let name = Named(self.names.at(at));
                writeln!(out, "break {at:#x}{name}{}", self.condition)
            }
            Point::Breakpoint(CodeAddress::Physical(at), _) => {
                writeln!(out, "break {at:#x} phys{}", self.condition)
            }
            Point::Catchpoint(catchpoint) => writeln!(out, "catch {catchpoint}"),
            Point::Watchpoint(Watchpoint { start, length, kind }) => {
                let name = Named(self.names.at(start));
                writeln!(out, "watch {start:#x}{name}, {length} bytes, {kind:?}")
            }
        }
    }
}

/// What stands behind `break`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish<'a> {
    address: String,
    is_physical: bool,
    cr3: Option<&'a str>,
    cpu: Option<&'a str>,
    expression: Option<&'a str>,
}

impl<'a> Wish<'a> {
    fn read(arguments: &'a str) -> Result<Self, String> {
        let mut wish = Self::default();
        let mut rest = arguments;
        loop {
            let (word, behind) = super::word(rest);
            match word {
                "" => break,
                "phys" => wish.is_physical = true,
                "if" => {
                    wish.expression = Some(behind);
                    break;
                }
                "cr3" | "cpu" => {
                    let (value, behind) = super::word(behind);
                    let place = if word == "cr3" { &mut wish.cr3 } else { &mut wish.cpu };
                    *place = Some(value).filter(|value| !value.is_empty());
                    if place.is_none() {
                        return Err(format!("{word}: say which"));
                    }
                    rest = behind;
                    continue;
                }
                // Words of one sum.
                part => wish.address += part,
            }
            rest = behind;
        }
        if wish.address.is_empty() {
            return Err("break: say where, as in break 0x7c00".into());
        }
        Ok(wish)
    }
}

fn set_break(call: &mut Call<'_>) -> Answer {
    let wish = Wish::read(call.arguments)?;
    let address = call.address_of(&wish.address)?;
    let cr3 = wish.cr3.map(|value| call.address_of(value)).transpose()?;
    let mut names = |name: &str| {
        let symbols = call.on_cpu(|cpu| call.machine.names().settle(cpu)).ok()?;
        symbols.find(name).map(|symbol| symbol.address)
    };
    let expression = wish.expression.map(|text| condition::parse(text, &mut names)).transpose()?;
    let only = wish.cpu.map(|number| super::cpu_number(call.machine, number)).transpose()?;
    let condition = When::new(cr3, expression).map(|when| Arc::new(when) as Arc<dyn Condition>);
    let at = if wish.is_physical {
        CodeAddress::Physical(address)
    } else {
        CodeAddress::Linear(address)
    };
    let breakpoint = Breakpoint { at, number: Kind::Monitor as u32, condition };
    let moved = call.machine.add_breakpoint(Owner::Monitor, &breakpoint, only).map_err(refusal)?;
    let shown = shown_condition(breakpoint.condition.as_ref());
    answer(call.machine, moved, Point::Breakpoint(at, Kind::Monitor), shown)
}

fn shown_condition(condition: Option<&Arc<dyn Condition>>) -> String {
    condition.map(|condition| condition.to_string()).unwrap_or_default()
}

fn set_watch(call: &mut Call<'_>) -> Answer {
    let kind = match call.format {
        "" | "w" => WatchKind::Write,
        "r" => WatchKind::Read,
        "a" => WatchKind::Access,
        other => return Err(format!("watch/{other}: take /r, /w or /a")),
    };
    let (address, length) = super::word(call.arguments);
    let start = call.address_of(address)?;
    let length = match length {
        "" => WATCH_BYTES,
        length => parse::number(length).ok_or_else(|| format!("watch: {length} is no length"))?,
    };
    set(call.machine, Point::Watchpoint(Watchpoint { start, length, kind }))
}

/// Sets a point without a condition, on all CPUs.
pub(super) fn set(machine: &Machine, point: Point) -> Answer {
    let moved = machine.add_point(Owner::Monitor, point).map_err(refusal)?;
    answer(machine, moved, point, String::new())
}

/// What is said of a point that was set, and of an engine that was changed for it.
fn answer(machine: &Machine, moved: Option<Moved>, point: Point, condition: String) -> Answer {
    let moved = moved.map(|moved| format!("{moved}\n")).unwrap_or_default();
    let names = machine.names().current();
    let numbered = Numbered { number: machine.number_of(point), point, condition, names };
    reply(format!("{moved}{numbered}"))
}

/// Why a point cannot be set.
fn refusal(error: PointError) -> String {
    match error {
        PointError::Refused => "there are as many as can be, or the range has no end".into(),
        PointError::Engine(reason) => reason.into(),
    }
}

fn delete(call: &mut Call<'_>) -> Answer {
    let points = call.machine.numbered_points();
    let chosen: Vec<_> = match call.arguments {
        "" | "all" => points,
        number => {
            let chosen = points.into_iter().find(|(known, _)| known.to_string() == number);
            let unknown = || format!("delete {number}: no such point; `info breakpoints`");
            vec![chosen.ok_or_else(unknown)?]
        }
    };
    for (_, point) in chosen {
        call.machine.remove_point(Owner::Monitor, point);
    }
    reply("")
}

/// Where a CPU stops.
pub(crate) struct Points(Vec<Numbered>);

/// Where the CPU stops.
pub(crate) fn points(machine: &Machine, cpu: &mut Cpu) -> Points {
    let names = machine.names().settle(cpu);
    let debugger = cpu.debugger();
    let numbered = |point| Numbered {
        number: machine.number_of(point),
        point,
        condition: String::new(),
        names: Arc::clone(&names),
    };
    let breakpoints = debugger.breakpoints().iter().map(|(at, number, condition)| Numbered {
        condition: shown_condition(condition),
        ..numbered(Point::Breakpoint(at, Kind::of(number)))
    });
    let watchpoints = debugger.watchpoints().iter().copied().map(Point::Watchpoint);
    let catchpoints = debugger.catchpoints().iter().copied().map(Point::Catchpoint);
    Points(breakpoints.chain(watchpoints.chain(catchpoints).map(numbered)).collect())
}

impl fmt::Display for Points {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(out, "it stops nowhere");
        }
        self.0.iter().try_for_each(|point| write!(out, "{point}"))
    }
}

fn info_watch(call: &mut Call<'_>) -> Answer {
    let Some(hit) = call.machine.last_watch() else { return reply("no watchpoint was met\n") };
    let names = call.machine.names();
    let met = call.on_cpu(|cpu| {
        let names = names.settle(cpu);
        Met::of(cpu, hit, names)
    })?;
    reply(format!("{met}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_behind_break_may_come_in_any_order_but_if_is_last() {
        let wish = Wish::read("$lstar + 8 cpu 1 phys cr3 0x1000 if $rcx == 5").unwrap();
        let expected = Wish {
            address: "$lstar+8".into(),
            is_physical: true,
            cr3: Some("0x1000"),
            cpu: Some("1"),
            expression: Some("$rcx == 5"),
        };
        assert_eq!(wish, expected);
        for (text, word) in [("", "say where"), ("phys", "say where"), ("1 cpu", "say which")] {
            assert!(Wish::read(text).unwrap_err().contains(word), "{text}");
        }
    }
}
