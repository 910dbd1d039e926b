//! Commands on the machine as a whole.

use std::fmt;

use machine::signals::PowerEvent;

use super::{Answer, Call, Command, Effect, no_cpu, reply};
use crate::cli::values;
use crate::config::EngineKind;
use crate::logging::{self, Filter};
use crate::vm::Request;

pub(super) const COMMANDS: &[Command] = &[
    Command::new("quit", &["q"], "", "end the run", |_| Ok(Effect::Quit)).anytime(),
    Command::new("system_reset", &[], "", "reset the machine, as by its button", |call| {
        call.machine.board().control.request(Request::Power(PowerEvent::Reset));
        reply("")
    }),
    Command::new("system_powerdown", &[], "", "press the power button", |call| {
        call.machine.board().pc.acpi_pm().power_button();
        reply("")
    })
    .anytime(),
    Command::new("nmi", &[], "", "send an NMI to every CPU, by LINT1", |call| {
        call.machine.board().pc.nmi();
        reply("")
    })
    .anytime(),
    Command::new(
        "accel",
        &[],
        "[jit|interp|kvm]",
        "the engine, or another one from here on, of those of --switch-engines",
        accel,
    ),
    Command::new(
        "vanish",
        &[],
        "continue|stay",
        "what a stopped guest does if gdb vanishes",
        vanish,
    )
    .anytime(),
    Command::new(
        "log",
        &[],
        "[none|ITEMS]",
        "what is logged, or other items of --log from here on",
        // CPUs look at what is logged of their blocks when they begin to run.
        log,
    ),
    Command::new("info jit", &[], "", "figures of the CPU's translator", jit_figures),
    Command::new(
        "trace",
        &[],
        "[on FILE[,KEY=VALUE...]|off]",
        "record what is executed, as --trace does",
        trace,
    ),
    Command::new("info kvm", &[], "", "whether KVM is the engine", |call| reply(kvm(call))),
    Command::new("info version", &[], "", "the version", |_| reply(Version)).anytime(),
];

/// The engine that the guest runs on.
struct Accel(Option<EngineKind>);

fn accel(call: &mut Call<'_>) -> Answer {
    if !call.arguments.is_empty() {
        let engine = values::engine(call.arguments).map_err(|error| format!("accel: {error}"))?;
        call.machine.board().switcher.switch(engine).map_err(|error| error.to_string())?;
        return reply("");
    }
    reply(Accel(call.machine.engine()))
}

impl fmt::Display for Accel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |engine| writeln!(out, "{engine}"))
    }
}

/// Whether KVM is the engine.
struct Kvm {
    is_engine: bool,
}

fn kvm(call: &Call<'_>) -> Kvm {
    Kvm { is_engine: call.machine.engine() == Some(EngineKind::Kvm) }
}

impl fmt::Display for Kvm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "kvm support: {}", if self.is_engine { "enabled" } else { "disabled" })
    }
}

/// The program's version.
struct Version;

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "Volvelle {}", env!("CARGO_PKG_VERSION"))
    }
}

/// What is logged.
struct Logged(Vec<Filter>);

fn log(call: &mut Call<'_>) -> Answer {
    let filters = match call.arguments {
        "" => return reply(Logged(logging::filters())),
        "help" => return reply(logging::help()),
        "none" => Vec::new(),
        items => items
            .split(',')
            .map(|item| logging::parse_item(item.trim()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("log: {error}"))?
            .concat(),
    };
    logging::change(filters).map_err(|error| format!("log: {error}"))?;
    reply("")
}

impl fmt::Display for Logged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(out, "warnings");
        }
        self.0.iter().try_for_each(|filter| writeln!(out, "{filter}"))
    }
}

fn trace(call: &mut Call<'_>) -> Answer {
    let tracer = &call.machine.board().tracer;
    let (word, wanted) = super::word(call.arguments);
    match word {
        "" => reply(if tracer.is_on() { "on\n" } else { "off\n" }),
        "on" => {
            let wanted = crate::cli::trace(wanted).map_err(|error| format!("trace: {error}"))?;
            let names = call.on_cpu(|cpu| call.machine.names().settle(cpu))?;
            tracer.start(&wanted, &names).map_err(|error| format!("trace: {error:#}"))?;
            reply("on\n")
        }
        "off" if tracer.stop() => reply("off\n"),
        "off" => Err("trace: there is none".into()),
        _ => Err("trace: take on FILE or off".into()),
    }
}

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
