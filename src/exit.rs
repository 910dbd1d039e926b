//! Exit statuses: one table for the code, `--help` and docs/command-line.md.

use crate::vm::{Outcome, Quit};

/// What was asked for failed: a file, the host, a guest that cannot go on.
pub(crate) const FAILED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
const POWERED_OFF: u8 = 0;
const RESET: u8 = 3;
const TRIPLE_FAULT: u8 = 4;
const PANICKED: u8 = 6;
/// `EX_SOFTWARE` of BSD's sysexits.h, where people look for such things.
const INTERNAL: u8 = 70;

/// What shells add to a signal's number.
const SIGNAL_BASE: i32 = 128;

/// Statuses of `volvelle run`, with what they mean.
///
/// Odd statuses above 1 are the guest's own while it has a `--debug-exit` port; only 3 and 129 are
/// ours too.
#[rustfmt::skip]
pub(crate) const TABLE: &[(&str, &str)] = &[
    ("0",       "the guest powered off, or the user left with Ctrl-A x"),
    ("1",       "what was asked for failed: a file, the host, a guest that cannot start"),
    ("2",       "the command line is wrong"),
    ("3",       "the guest reset, with --no-reboot (a kernel panic with panic=-1 ends so)"),
    ("4",       "the guest shut down by a triple fault, with --no-reboot"),
    ("6",       "the guest said that it panicked"),
    ("70",      "an error in Volvelle itself"),
    ("2v+1",    "the guest wrote v to the --debug-exit port (the low 8 bits)"),
    ("128+n",   "signal n ended the run: 129 SIGHUP, 130 SIGINT, 143 SIGTERM"),
];

/// Whose exit statuses the caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Those of [`TABLE`].
    Native,
    /// QEMU's: whatever ends the machine in order is 0.
    Qemu,
}

/// The status a run ends with.
pub(crate) fn status(outcome: Outcome, dialect: Dialect) -> u8 {
    match (dialect, outcome) {
        (_, Outcome::DebugExit(value)) => (value << 1 | 1) as u8,
        (_, Outcome::Quit(Quit::Internal)) => INTERNAL,
        (_, Outcome::PoweredOff | Outcome::Quit(Quit::User)) | (Dialect::Qemu, _) => POWERED_OFF,
        (Dialect::Native, Outcome::Reset) => RESET,
        (Dialect::Native, Outcome::TripleFault) => TRIPLE_FAULT,
        (Dialect::Native, Outcome::Panicked) => PANICKED,
        (Dialect::Native, Outcome::Quit(Quit::Signal(number))) => (SIGNAL_BASE + number) as u8,
    }
}

/// [`TABLE`] as `--help` shows it.
pub(crate) fn help() -> String {
    let rows = TABLE.iter().map(|(status, meaning)| format!("  {status:<7} {meaning}\n"));
    format!("Exit status:\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_status_in_both_dialects() {
        #[rustfmt::skip]
        let rows = [
            // outcome                          native  QEMU
            (Outcome::PoweredOff,                  0,    0),
            (Outcome::Reset,                       3,    0),
            (Outcome::TripleFault,                 4,    0),
            (Outcome::Panicked,                    6,    0),
            (Outcome::DebugExit(0),                1,    1),
            (Outcome::DebugExit(1),                3,    3),
            (Outcome::DebugExit(77),             155,  155),
            (Outcome::DebugExit(0xffff_ffff),    255,  255),
            (Outcome::Quit(Quit::User),            0,    0),
            (Outcome::Quit(Quit::Signal(15)),    143,    0),
            (Outcome::Quit(Quit::Internal),       70,   70),
        ];
        for (outcome, native, qemu) in rows {
            assert_eq!(status(outcome, Dialect::Native), native, "{outcome:?}");
            assert_eq!(status(outcome, Dialect::Qemu), qemu, "{outcome:?}");
        }
    }

    #[test]
    fn the_documentation_has_the_same_table() {
        let pages = [include_str!("../docs/command-line.md"), include_str!("../README.md")];
        for (status, meaning) in TABLE {
            let row = format!("| `{status}` | {meaning} |");
            assert!(pages.iter().all(|page| page.contains(&row)), "{row}");
        }
    }
}
