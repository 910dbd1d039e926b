//! A chip's output pin: the level is decided under the chip's lock and driven after it.
//!
//! Problem: a line must not be driven with the chip's lock held, but between unlocking and driving
//! another thread may decide and drive the opposite, and a level would stay wrong for ever.
//! Strategy: [`OutputPin::stage`] notes the level under the lock; [`OutputPin::flush`] drives what
//! was staged last, and looks again after driving. Whoever drives last has looked after it, so the
//! wire ends at the level staged last.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::line::InterruptLine;

/// An output pin on a line.
pub struct OutputPin {
    line: InterruptLine,
    staged: AtomicBool,
}

impl OutputPin {
    /// A low pin on `line`.
    pub fn new(line: InterruptLine) -> Self {
        Self { line, staged: AtomicBool::new(false) }
    }

    /// Notes the level the pin is to have. Called under the chip's lock; true if it is a change,
    /// after which the caller unlocks and calls [`OutputPin::flush`].
    pub fn stage(&self, level: bool) -> bool {
        self.staged.swap(level, Ordering::SeqCst) != level
    }

    /// Drives the line to the level staged last. Called with no chip lock held.
    pub fn flush(&self) {
        loop {
            let level = self.staged.load(Ordering::SeqCst);
            self.line.set(level);
            // Bounded: it goes round only when another thread staged in the meantime.
            if self.staged.load(Ordering::SeqCst) == level {
                return;
            }
        }
    }

    /// The level staged last.
    pub fn level(&self) -> bool {
        self.staged.load(Ordering::SeqCst)
    }
}
