//! Commands on the machine as a whole.

use super::{Answer, Call, Command, Effect, no_cpu, reply};

pub(super) const COMMANDS: &[Command] = &[
    Command::anytime("quit", &["q"], "", "end the run", |_| Ok(Effect::Quit)),
    Command::anytime(
        "vanish",
        &[],
        "continue|stay",
        "what a stopped guest does if gdb vanishes",
        vanish,
    ),
    Command::paused("info jit", &[], "", "figures of the CPU's translator", jit_figures),
];

fn vanish(call: &mut Call<'_>) -> Answer {
    let what = call.arguments;
    match what {
        "continue" | "stay" => {
            call.context.goes_on_alone = what == "continue";
            reply(format!("{what}\n"))
        }
        _ => Err("vanish: take continue or stay".into()),
    }
}

fn jit_figures(call: &mut Call<'_>) -> Answer {
    reply(call.machine.engine_figures(call.context.cpu).ok_or_else(|| no_cpu(call.machine))?)
}
