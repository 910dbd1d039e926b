//! Commands that stop the machine and let it go on.

use std::fmt;

use super::{Answer, Call, Command, Effect, Run, reply};
use crate::debug::parse;

pub(super) const COMMANDS: &[Command] = &[
    Command::new("stop", &[], "", "stop the machine", |_| Ok(Effect::Run(Run::Stop))),
    Command::new("cont", &["c"], "", "let it go on", |_| Ok(Effect::Run(Run::Continue))),
    Command::new(
        "step",
        &["s", "si"],
        "[COUNT]",
        "execute instructions of the CPU; the others stand still",
        step,
    ),
    Command::new("info status", &[], "", "whether the machine runs", |call| reply(status(call))),
];

/// Instructions of one `step` at most: each stops the machine.
const STEPS_MAX: u64 = 1 << 20;

fn step(call: &mut Call<'_>) -> Answer {
    let count = match call.arguments {
        "" => Some(1),
        count => parse::number(count),
    };
    let count = count.filter(|count| (1..=STEPS_MAX).contains(count));
    let count = count.ok_or_else(|| format!("step: take 1 to {STEPS_MAX} instructions"))?;
    Ok(Effect::Run(Run::Step(count)))
}

/// Whether the machine runs.
struct Status {
    is_halted: bool,
}

fn status(call: &Call<'_>) -> Status {
    Status { is_halted: call.machine.is_halted() }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "VM status: {}", if self.is_halted { "paused" } else { "running" })
    }
}
