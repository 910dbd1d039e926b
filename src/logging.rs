//! `--log` and `--log-file`: which targets are logged, and where to.
//!
//! Targets are fixed names (`docs/command-line.md`, "Logging"), so that a filter goes on working
//! when code moves between files. Without `--log`, warnings and errors go to standard error. The
//! monitor's `log` changes at run time what is logged, and never where to.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use anyhow::Context;
use log::{LevelFilter, Log, Metadata, Record};

use crate::names;

/// What can be asked for: a target with all below it, and what it tells.
#[rustfmt::skip]
pub(crate) const TARGETS: &[(&str, &str)] = &[
    ("cpu",         "the processor: all of the following"),
    ("cpu::cr",     "control registers as they are written"),
    ("cpu::exec",   "blocks as they are executed, by the interpreter alone: slow"),
    ("cpu::exception", "exceptions as they are delivered"),
    ("cpu::io",     "accesses to ports and to devices' memory"),
    ("cpu::irq",    "interrupts as they are delivered"),
    ("cpu::mmu",    "page faults, and what the page walk found"),
    ("cpu::msr",    "accesses to model-specific registers"),
    ("dev",         "every chip; dev::rtc and its like for one"),
    ("gdb",         "the server of gdb: clients that come, go and are dropped"),
    ("guest_error", "mistakes of the guest's software"),
    ("jit",         "the translator: code made, thrown away, and what it cannot translate"),
    ("jit::in_asm", "blocks of the guest's as they are translated"),
    ("jit::out_asm", "the host's code that they become"),
    ("kvm",         "the engine KVM: all of the following"),
    ("kvm::exit",   "what KVM gives up on"),
    ("kvm::memory", "memory that KVM refuses"),
    ("kvm::msr",    "model-specific registers that KVM does not keep"),
    ("monitor",     "the monitor: clients that cannot be served"),
    ("volvelle",    "the program: engine, terminal, sockets, threads"),
];

/// Short names of targets, as QEMU's `-d` has them, with the level at which they tell it.
#[rustfmt::skip]
pub(crate) const ALIASES: &[(&str, &[(&str, LevelFilter)])] = &[
    ("in_asm",     &[("jit::in_asm", LevelFilter::Debug)]),
    ("out_asm",    &[("jit::out_asm", LevelFilter::Debug)]),
    ("exec",       &[("cpu::exec", LevelFilter::Debug)]),
    ("int",        &[("cpu::irq", LevelFilter::Debug), ("cpu::exception", LevelFilter::Trace)]),
    ("exceptions", &[("cpu::exception", LevelFilter::Trace)]),
    ("irq",        &[("cpu::irq", LevelFilter::Debug)]),
    ("mmu",        &[("cpu::mmu", LevelFilter::Trace)]),
    ("io",         &[("cpu::io", LevelFilter::Trace)]),
    ("msr",        &[("cpu::msr", LevelFilter::Trace)]),
    ("cr",         &[("cpu::cr", LevelFilter::Debug)]),
];

/// The level of an item that names none.
const ITEM_LEVEL: LevelFilter = LevelFilter::Debug;
/// The level of what no item names.
const DEFAULT_LEVEL: LevelFilter = LevelFilter::Warn;

/// What to log, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// Targets with their levels, later ones over earlier ones.
    pub(crate) filters: Vec<Filter>,
    /// A file to write to instead of standard error.
    pub(crate) file: Option<PathBuf>,
}

/// One item of `--log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The target, or none for all of them.
    pub(crate) target: Option<String>,
    /// The most detailed level that is shown.
    pub(crate) level: LevelFilter,
}

impl fmt::Display for Filter {
    /// As the command line has it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = self.level.as_str().to_ascii_lowercase();
        match &self.target {
            Some(target) => write!(out, "{target}={level}"),
            None => out.write_str(&level),
        }
    }
}

/// Reads one item: that of [`parse_filter`], or a short name.
pub(crate) fn parse_item(item: &str) -> Result<Vec<Filter>, String> {
    let Some((_, targets)) = ALIASES.iter().find(|(alias, _)| *alias == item) else {
        return parse_filter(item).map(|filter| vec![filter]);
    };
    let filter =
        |&(target, level): &(&str, LevelFilter)| Filter { target: Some(target.to_owned()), level };
    Ok(targets.iter().map(filter).collect())
}

/// Reads one item: `LEVEL`, `TARGET` or `TARGET=LEVEL`.
pub(crate) fn parse_filter(item: &str) -> Result<Filter, String> {
    if let Ok(level) = item.parse() {
        return Ok(Filter { target: None, level });
    }
    let (target, level) = match item.split_once('=') {
        Some((target, level)) => (target, parse_level(level)?),
        None => (item, ITEM_LEVEL),
    };
    if !is_known(target) {
        return Err(format!("'{target}' is no log target; `--log help` lists them"));
    }
    Ok(Filter { target: Some(target.to_owned()), level })
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| {
        format!("'{text}' is no level; take one of off, error, warn, info, debug, trace")
    })
}

/// Chips name their own targets below `dev`.
fn is_known(target: &str) -> bool {
    let chip = target.strip_prefix("dev::").unwrap_or_default();
    let is_chip = !chip.is_empty()
        && chip.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    is_chip || TARGETS.iter().any(|(name, _)| *name == target)
}

/// What `--log help` prints.
pub(crate) fn help() -> String {
    let rows = TARGETS.iter().map(|(name, about)| format!("  {name:<15} {about}\n"));
    let aliases = ALIASES.iter().map(|(alias, targets)| {
        let each = targets.iter().map(|(target, level)| format!("{target}={level}"));
        let all = each.collect::<Vec<_>>().join(",").to_lowercase();
        format!("  {alias:<15} {all}\n")
    });
    format!(
        "Items of --log, separated by commas: LEVEL, TARGET, TARGET=LEVEL or NAME.\n\n\
         Targets:\n{}\nNames:\n{}\n\
         Levels: off, error, warn, info, debug, trace. A target without one is logged at debug;\n\
         what is not named, at warn.\n",
        rows.collect::<String>(),
        aliases.collect::<String>()
    )
}

/// What is logged now, and by what.
struct Current {
    filters: Vec<Filter>,
    file: Option<File>,
    logger: Option<env_logger::Logger>,
}

/// The program's logger, whose filter changes while it runs.
struct Switchable(RwLock<Current>);

static LOGGER: Switchable =
    Switchable(RwLock::new(Current { filters: Vec::new(), file: None, logger: None }));

impl Switchable {
    fn with(&self, act: impl FnOnce(&env_logger::Logger)) {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(logger) = &current.logger {
            act(logger);
        }
    }
}

impl Log for Switchable {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let mut is_enabled = false;
        self.with(|logger| is_enabled = logger.enabled(metadata));
        is_enabled
    }

    fn log(&self, record: &Record<'_>) {
        self.with(|logger| logger.log(record));
    }

    fn flush(&self) {
        self.with(Log::flush);
    }
}

impl Current {
    /// Logs by `filters` from here on.
    fn apply(&mut self, filters: Vec<Filter>) -> std::io::Result<LevelFilter> {
        let mut builder = env_logger::Builder::new();
        builder.filter_level(DEFAULT_LEVEL).format(|out, record| {
            let (time, level, target) = (out.timestamp(), record.level(), record.target());
            let text = names::explained(&record.args().to_string());
            writeln!(out, "[{time} {level:<5} {target}] {text}")
        });
        for filter in &filters {
            builder.filter(filter.target.as_deref(), filter.level);
        }
        if let Some(file) = &self.file {
            builder.target(env_logger::Target::Pipe(Box::new(file.try_clone()?)));
        }
        let logger = builder.build();
        let level = logger.filter();
        (self.filters, self.logger) = (filters, Some(logger));
        Ok(level)
    }
}

/// Starts logging. Fails if the file cannot be made.
pub(crate) fn start(config: &LogConfig) -> anyhow::Result<()> {
    let file = match &config.file {
        None => None,
        Some(path) => Some(
            File::create(path)
                .with_context(|| format!("--log-file: cannot write to '{}'", path.display()))?,
        ),
    };
    LOGGER.0.write().unwrap_or_else(PoisonError::into_inner).file = file;
    change(config.filters.clone())?;
    // A second start cannot happen: main starts it once.
    let _ = log::set_logger(&LOGGER);
    Ok(())
}

/// Logs by `filters` from here on.
pub(crate) fn change(filters: Vec<Filter>) -> std::io::Result<()> {
    let mut current = LOGGER.0.write().unwrap_or_else(PoisonError::into_inner);
    let level = current.apply(filters)?;
    drop(current);
    log::set_max_level(level);
    Ok(())
}

/// What is logged now beyond warnings.
pub(crate) fn filters() -> Vec<Filter> {
    LOGGER.0.read().unwrap_or_else(PoisonError::into_inner).filters.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(target: Option<&str>, level: LevelFilter) -> Filter {
        Filter { target: target.map(str::to_owned), level }
    }

    #[test]
    fn an_item_is_a_level_a_target_or_both() {
        assert_eq!(parse_filter("info"), Ok(filter(None, LevelFilter::Info)));
        assert_eq!(parse_filter("cpu::mmu"), Ok(filter(Some("cpu::mmu"), LevelFilter::Debug)));
        assert_eq!(
            parse_filter("dev::rtc=trace"),
            Ok(filter(Some("dev::rtc"), LevelFilter::Trace))
        );
        assert_eq!(
            parse_filter("guest_error=off"),
            Ok(filter(Some("guest_error"), LevelFilter::Off))
        );
    }

    #[test]
    fn a_filter_is_shown_as_it_is_given() {
        for item in ["info", "cpu::mmu=trace", "guest_error=off"] {
            assert_eq!(parse_filter(item).map(|filter| filter.to_string()), Ok(item.to_owned()));
        }
    }

    #[test]
    fn short_names_stand_for_targets_that_there_are() {
        for (alias, targets) in ALIASES {
            assert!(targets.iter().all(|(target, _)| is_known(target)), "{alias}");
            assert_eq!(parse_item(alias).map(|filters| filters.len()), Ok(targets.len()));
        }
        assert_eq!(parse_item("cr"), Ok(vec![filter(Some("cpu::cr"), LevelFilter::Debug)]));
        assert_eq!(parse_item("info"), Ok(vec![filter(None, LevelFilter::Info)]));
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        for (item, named) in [("cpi", "'cpi'"), ("dev::", "'dev::'"), ("cpu=loud", "'loud'")] {
            let error = parse_filter(item).unwrap_err();
            assert!(error.contains(named), "{item}: {error}");
        }
    }
}
