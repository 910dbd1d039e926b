//! Where a session writes, and where others may write in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use machine::serial_backend::SerialBackend;

use crate::chardev::queue::OutputQueue;

const PROMPT: &str = "(volvelle) ";
/// Back to the first column, and away with what stands in the line.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Bytes that are held for behind an answer, and no more of them once there are so many.
const HELD_MAX: usize = 4096;

/// Whether keys are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// As they are typed: on a terminal.
    On,
    /// Not: what is at the other end shows them itself, or is a program.
    Off,
}

/// What the user does.
#[derive(Default)]
enum User {
    /// Something else: what is typed is not for the monitor.
    #[default]
    Away,
    /// Waits for an answer.
    Waits,
    /// Is asked for a line, of which this much is there.
    Types(String),
}

#[derive(Default)]
struct Shown {
    user: User,
    /// What comes behind the answer.
    held: String,
    /// The CPU that stopped since the session last looked.
    stopped: Option<usize>,
}

/// See the head of this file.
pub(crate) struct Screen {
    output: Arc<OutputQueue>,
    echo: Echo,
    shown: Mutex<Shown>,
}

impl Screen {
    /// A screen at the other end of `output`.
    pub(crate) fn new(output: Arc<OutputQueue>, echo: Echo) -> Arc<Self> {
        Arc::new(Self { output, echo, shown: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, and waits for room if there is none.
    pub(super) fn write(&self, text: &[u8]) {
        self.output.write(text);
    }

    /// Writes a key's echo behind the line, which is `line` with it.
    pub(super) fn echo(&self, echo: &[u8], line: &str) {
        if let User::Types(shown) = &mut self.lock().user {
            line.clone_into(shown);
        }
        if self.echo == Echo::On {
            self.write(echo);
        }
    }

    /// Asks for a line, of which `line` is there.
    pub(super) fn prompt(&self, line: &str) {
        let mut shown = self.lock();
        shown.user = User::Types(line.to_owned());
        let held = std::mem::take(&mut shown.held);
        drop(shown);
        let line = if self.echo == Echo::On { line } else { "" };
        self.write(format!("{held}{PROMPT}{line}").as_bytes());
    }

    /// The user has asked something.
    pub(super) fn wait(&self) {
        self.lock().user = User::Waits;
    }

    /// The user has turned to something else.
    pub(super) fn leave(&self) {
        self.lock().user = User::Away;
    }

    /// Shows the line anew, of which `line` is there.
    pub(super) fn redraw(&self, line: &str) {
        if self.echo == Echo::On {
            self.write(CLEAR_LINE.as_bytes());
            self.prompt(line);
        }
    }

    /// The CPU that stopped since the last call, if one did.
    pub(super) fn take_stopped(&self) -> Option<usize> {
        self.lock().stopped.take()
    }

    /// Shows `text`, which nobody asked for, above the line or behind the answer. A reader who is
    /// so far behind that there is no room does without.
    fn tell(&self, cpu: usize, text: &str) {
        let mut shown = self.lock();
        shown.stopped = Some(cpu);
        let line = match (&shown.user, self.echo) {
            (User::Types(line), Echo::On) => format!("{PROMPT}{line}"),
            (User::Types(_), Echo::Off) => PROMPT.to_owned(),
            (User::Away, _) => String::new(),
            (User::Waits, _) => {
                if shown.held.len() < HELD_MAX {
                    shown.held.push_str(text);
                }
                return;
            }
        };
        drop(shown);
        let clear = if self.echo == Echo::On { CLEAR_LINE } else { "\n" };
        let text = format!("{clear}{text}{line}");
        self.output.offer(text.as_bytes());
    }
}

/// The screens of a machine.
#[derive(Default)]
pub(crate) struct Audience(Mutex<Vec<Weak<Screen>>>);

impl Audience {
    /// Lets `screen` hear of stops for as long as it is there.
    pub(super) fn join(&self, screen: &Arc<Screen>) {
        let mut screens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        screens.retain(|screen| screen.strong_count() != 0);
        screens.push(Arc::downgrade(screen));
    }

    /// Waits until everything that was answered is written.
    pub(crate) fn flush(&self) {
        self.screens().for_each(|screen| screen.output.flush());
    }

    fn screens(&self) -> impl Iterator<Item = Arc<Screen>> {
        let screens = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        screens.into_iter().filter_map(|screen| screen.upgrade())
    }

    /// Shows that CPU `cpu` stopped, as `text` says.
    pub(crate) fn tell(&self, cpu: usize, text: &str) {
        self.screens().for_each(|screen| screen.tell(cpu, text));
    }
}
