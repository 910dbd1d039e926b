//! Commands on the points at which CPUs stop.
//!
//! The monitor's points have numbers. gdb's are shown beside them, and are gdb's to take away.

use std::fmt;

use cpu::Cpu;
use cpu::debugger::{WatchKind, Watchpoint};

use super::{Answer, Call, Command, reply};
use crate::debug::{Machine, Owner, Point, PointError, parse};

pub(super) const COMMANDS: &[Command] = &[
    Command::paused("break", &["b"], "ADDRESS", "stop every CPU before an instruction", set_break),
    Command::paused(
        "watch",
        &[],
        "[/r|/w|/a] ADDRESS [LENGTH]",
        "stop behind accesses: writes, or /r reads, /a both; 8 bytes, or LENGTH",
        set_watch,
    ),
    Command::paused("delete", &["d"], "[NUMBER]", "take a point away, or all of them", delete),
    Command::paused("info breakpoints", &["info b"], "", "where the CPU stops", |call| {
        reply(call.on_cpu(|cpu| points(call.machine, cpu))?)
    }),
    Command::paused(
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
}

impl fmt::Display for Numbered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(out, "{number:<4}")?,
            None => write!(out, "gdb ")?,
        }
        match self.point {
            Point::Breakpoint(linear) => writeln!(out, "break {linear:#x}"),
            Point::Watchpoint(Watchpoint { start, length, kind }) => {
                writeln!(out, "watch {start:#x}, {length} bytes, {kind:?}")
            }
        }
    }
}

fn set_break(call: &mut Call<'_>) -> Answer {
    let point = Point::Breakpoint(call.address()?);
    set(call.machine, point)
}

fn set_watch(call: &mut Call<'_>) -> Answer {
    let kind = match call.format {
        "" | "w" => WatchKind::Write,
        "r" => WatchKind::Read,
        "a" => WatchKind::Access,
        other => return Err(format!("watch/{other}: take /r, /w or /a")),
    };
    let (address, length) = super::word(call.arguments);
    let start = call.on_cpu(|cpu| parse::address(address, cpu))??;
    let length = match length {
        "" => WATCH_BYTES,
        length => parse::number(length).ok_or_else(|| format!("watch: {length} is no length"))?,
    };
    set(call.machine, Point::Watchpoint(Watchpoint { start, length, kind }))
}

fn set(machine: &Machine, point: Point) -> Answer {
    machine.add_point(Owner::Monitor, point).map_err(|error| match error {
        PointError::Refused => "there are as many as can be, or the range has no end".to_owned(),
        PointError::Engine(reason) => reason.to_owned(),
    })?;
    reply(Numbered { number: machine.number_of(point), point })
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
pub(crate) fn points(machine: &Machine, cpu: &Cpu) -> Points {
    let breakpoints = cpu.debugger().breakpoints().iter().copied().map(Point::Breakpoint);
    let watchpoints = cpu.debugger().watchpoints().iter().copied().map(Point::Watchpoint);
    let numbered = |point| Numbered { number: machine.number_of(point), point };
    Points(breakpoints.chain(watchpoints).map(numbered).collect())
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
    reply(watch(call.machine))
}

fn watch(machine: &Machine) -> String {
    let Some(hit) = machine.last_watch() else { return "no watchpoint was met\n".into() };
    let (start, at) = (hit.watchpoint.start, hit.address);
    let old = hit.old.map_or_else(|| "unknown".into(), |old| format!("{old:#x}"));
    format!("an access at {at:#x} met the watchpoint at {start:#x}, where was {old}\n")
}
