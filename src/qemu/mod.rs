//! QEMU's command line, for what already drives QEMU: test suites, scripts, libvirt.
//!
//! Options are a table ([`options`]); each changes a [`draft::Draft`], and the finished draft is
//! the same [`Config`](crate::config::Config) that the native command line builds. What an option
//! asks for and Volvelle has not is refused by the option's name, never ignored. Errors end with
//! status 1, as QEMU's do.

mod chardev;
mod device;
mod draft;
mod key_values;
mod machine;
mod monitor;
mod options;
mod refused;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::cli::{Action, Launch, Refusal};
use crate::exit::{self, Dialect};
use draft::Draft;
use options::{OPTIONS, Takes};

/// The program's name that asks for this command line.
const PROGRAM: &str = "qemu-system-x86_64";
/// The version whose command line this follows.
const FOLLOWED_VERSION: &str = "10.0.2";

/// Why an option ends the parsing.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// It cannot be followed, and why.
    Refused(String),
    /// It asks for this text.
    Print(String),
}

impl From<String> for Stop {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Refused(reason.to_owned())
    }
}

/// True if the program was called by the name of QEMU's.
pub(crate) fn is_called_by(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(PROGRAM))
}

/// Understands QEMU's options.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Action, Refusal> {
    let mut draft = Draft::default();
    let read = read(arguments, &mut draft);
    let log = std::mem::take(&mut draft.log);
    match read.and_then(|()| draft.finish()) {
        Ok((config, notes)) => {
            Ok(Action::Run(Box::new(Launch { config, log, dialect: Dialect::Qemu, notes })))
        }
        Err(Stop::Print(text)) => Ok(Action::Print(text)),
        Err(Stop::Refused(message)) => Err(Refusal { message, status: exit::FAILED }),
    }
}

fn read(arguments: &[OsString], draft: &mut Draft) -> Result<(), Stop> {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let word = text(word)?;
        let Some(name) = option_name(word) else {
            return Err(format!("{word}: not supported yet (there are no disks)").into());
        };
        let Some(option) = OPTIONS.iter().find(|option| option.names.contains(&name)) else {
            return Err(refused::reason(name).into());
        };
        let in_option = |stop| match stop {
            Stop::Refused(reason) => Stop::Refused(format!("-{name}: {reason}")),
            print @ Stop::Print(_) => print,
        };
        match option.takes {
            Takes::Nothing(act) => act(draft),
            Takes::Value(_, act) => {
                let value = words.next().ok_or_else(|| in_option("needs a value".into()))?;
                act(draft, text(value)?)
            }
        }
        .map_err(in_option)?;
    }
    Ok(())
}

/// The name behind one dash or two; None for what is no option.
fn option_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name)).filter(|name| !name.is_empty())
}

fn text(word: &OsStr) -> Result<&str, Stop> {
    word.to_str().ok_or_else(|| format!("{}: not UTF-8", word.to_string_lossy()).into())
}

/// The first line is read by scripts for the version of the command line.
fn version() -> String {
    format!(
        "QEMU emulator version {FOLLOWED_VERSION} compatible (Volvelle {})\n\
         This is Volvelle, not QEMU: it takes those of QEMU's options that `-help` lists.\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn help() -> String {
    let rows = OPTIONS.iter().map(|option| {
        let value = match option.takes {
            Takes::Nothing(_) => String::new(),
            Takes::Value(value, _) => format!(" {value}"),
        };
        format!("  -{}{value}\n      {}\n", option.names.join(", -"), option.about)
    });
    format!(
        "{}\nUsage: {PROGRAM} [options]\n\n{}\nAny other option is refused by name.\n",
        version(),
        rows.collect::<String>()
    )
}

#[cfg(test)]
mod tests;
