//! Where a session writes, and where others may write in between.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use machine::serial_backend::SerialBackend;

use crate::chardev::queue::OutputQueue;

const PROMPT: &str = "(volvelle) ";
/// Back to the first column, and away with what stands in the line.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Whether keys are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// As they are typed: on a terminal.
    On,
    /// Not: what is at the other end shows them itself, or is a program.
    Off,
}

#[derive(Default)]
struct Shown {
    /// The user is asked for a line, of which this much is there.
    prompted: Option<String>,
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
        if let Some(shown) = &mut self.lock().prompted {
            line.clone_into(shown);
        }
        if self.echo == Echo::On {
            self.write(echo);
        }
    }

    /// Asks for a line, of which `line` is there.
    pub(super) fn prompt(&self, line: &str) {
        self.lock().prompted = Some(line.to_owned());
        let line = if self.echo == Echo::On { line } else { "" };
        self.write(format!("{PROMPT}{line}").as_bytes());
    }

    /// Asks for no line any more.
    pub(super) fn leave(&self) {
        self.lock().prompted = None;
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

    /// Shows `text`, which nobody asked for, above the line. A reader who is so far behind that
    /// there is no room does without.
    fn tell(&self, cpu: usize, text: &str) {
        let mut shown = self.lock();
        shown.stopped = Some(cpu);
        let clear = if self.echo == Echo::On { CLEAR_LINE } else { "\n" };
        let line = shown.prompted.as_ref().map(|line| match self.echo {
            Echo::On => format!("{PROMPT}{line}"),
            Echo::Off => PROMPT.to_owned(),
        });
        drop(shown);
        let text = format!("{clear}{text}{}", line.unwrap_or_default());
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

    /// Shows that CPU `cpu` stopped, as `text` says.
    pub(crate) fn tell(&self, cpu: usize, text: &str) {
        let screens = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        screens.iter().filter_map(Weak::upgrade).for_each(|screen| screen.tell(cpu, text));
    }
}
