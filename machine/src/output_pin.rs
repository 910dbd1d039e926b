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
    /// A rising edge has to be seen before the level staged.
    owes_edge: AtomicBool,
}

impl OutputPin {
    /// A low pin on `line`.
    pub fn new(line: InterruptLine) -> Self {
        Self { line, staged: AtomicBool::new(false), owes_edge: AtomicBool::new(false) }
    }

    /// Notes the level the pin is to have. Called under the chip's lock; true if it is a change,
    /// after which the caller unlocks and calls [`OutputPin::flush`].
    pub fn stage(&self, level: bool) -> bool {
        self.staged.swap(level, Ordering::SeqCst) != level
    }

    /// Notes that the pin is to show a rising edge, whatever its level is now, and then `level`.
    /// Called under the chip's lock, which the caller drops to call [`OutputPin::flush`].
    pub fn stage_edge(&self, level: bool) {
        self.staged.store(level, Ordering::SeqCst);
        self.owes_edge.store(true, Ordering::SeqCst);
    }

    /// Drives the line to the level staged last. Called with no chip lock held.
    pub fn flush(&self) {
        loop {
            if self.owes_edge.swap(false, Ordering::SeqCst) {
                self.line.set(false);
                self.line.set(true);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::Recorder;

    #[test]
    fn an_edge_is_seen_on_a_pin_that_is_high_already() {
        let lines = Recorder::new();
        let pin = OutputPin::new(lines.line(1));
        assert!(pin.stage(true));
        pin.flush();
        assert!(!pin.stage(true), "no change");
        pin.stage_edge(true);
        pin.flush();
        assert_eq!((lines.rises(1), lines.level(1)), (2, true));
    }
}
