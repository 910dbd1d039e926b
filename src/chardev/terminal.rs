//! The terminal in raw mode, put back whatever happens.

use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The mode the terminal had, while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal raw; dropping it, a panic, or [`restore`] puts it back.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return None;
        }
        let saved = tcgetattr(stdin).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        // Output keeps its translation: our own messages end in plain newlines.
        raw.output_modes = saved.output_modes;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        restore_on_panic();
        if tcsetattr(stdin, OptionalActions::Now, &raw).is_err() {
            restore();
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, if it is raw.
pub(crate) fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // A terminal that went away cannot be put back, and nobody looks at it.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &saved);
    }
}

fn restore_on_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
    });
}
