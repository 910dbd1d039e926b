//! Commands on the points at which CPUs stop.

use std::fmt;

use cpu::Cpu;

use super::{Answer, Call, Command, Context, reply};

pub(super) const COMMANDS: &[Command] = &[
    Command::paused("info breakpoints", &["info b"], "", "where the CPU stops", |call| {
        reply(call.on_cpu(points)?)
    }),
    Command::paused(
        "info watch",
        &[],
        "",
        "the access that met a watchpoint last, and what was there before",
        info_watch,
    ),
];

/// Where a CPU stops.
pub(crate) struct Points {
    breakpoints: Vec<u64>,
    watchpoints: Vec<cpu::debugger::Watchpoint>,
}

/// Where the CPU stops.
pub(crate) fn points(cpu: &mut Cpu) -> Points {
    Points {
        breakpoints: cpu.debugger().breakpoints().iter().copied().collect(),
        watchpoints: cpu.debugger().watchpoints().to_vec(),
    }
}

impl fmt::Display for Points {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for linear in &self.breakpoints {
            writeln!(out, "break {linear:#x}")?;
        }
        for watchpoint in &self.watchpoints {
            let (start, length) = (watchpoint.start, watchpoint.length);
            writeln!(out, "watch {start:#x}, {length} bytes, {:?}", watchpoint.kind)?;
        }
        if self.breakpoints.is_empty() && self.watchpoints.is_empty() {
            writeln!(out, "it stops nowhere")?;
        }
        Ok(())
    }
}

fn info_watch(call: &mut Call<'_>) -> Answer {
    reply(watch(call.context))
}

fn watch(context: &Context) -> String {
    let Some(hit) = context.last_watch else { return "no watchpoint was met\n".into() };
    let (start, at) = (hit.watchpoint.start, hit.address);
    let old = hit.old.map_or_else(|| "unknown".into(), |old| format!("{old:#x}"));
    format!("an access at {at:#x} met the watchpoint at {start:#x}, where was {old}\n")
}
