//! Commands that stop the machine and let it go on.

use std::fmt;

use super::{Answer, Call, Command, Effect, Run, cpu_number, reply};
use crate::debug::parse;

pub(super) const COMMANDS: &[Command] = &[
    Command::new("stop", &[], "[CPU]", "stop the machine, or one CPU of it", |call| {
        Ok(Effect::Run(Run::Stop(one_cpu(call)?)))
    }),
    Command::new(
        "cont",
        &["c"],
        "[CPU]",
        "let the machine go on, or one CPU that stands",
        |call| Ok(Effect::Run(Run::Continue(one_cpu(call)?))),
    ),
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

/// The CPU that is named, if one is.
fn one_cpu(call: &Call<'_>) -> Result<Option<usize>, String> {
    let is_named = !call.arguments.is_empty();
    is_named.then(|| cpu_number(call.machine, call.arguments)).transpose()
}

fn step(call: &mut Call<'_>) -> Answer {
    let count = match call.arguments {
        "" => Some(1),
        count => parse::number(count),
    };
    let count = count.filter(|count| (1..=STEPS_MAX).contains(count));
    let count = count.ok_or_else(|| format!("step: take 1 to {STEPS_MAX} instructions"))?;
    Ok(Effect::Run(Run::Step(count)))
}

/// Whether the machine runs, and which of its CPUs do not.
struct Status {
    is_halted: bool,
    held: Vec<usize>,
}

fn status(call: &Call<'_>) -> Status {
    Status { is_halted: call.machine.is_halted(), held: call.machine.all_held() }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_halted {
            return writeln!(out, "VM status: paused");
        }
        writeln!(out, "VM status: running")?;
        self.held.iter().try_for_each(|cpu| writeln!(out, "CPU {cpu} stands"))
    }
}
