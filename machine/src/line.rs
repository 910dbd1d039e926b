//! Interrupt lines: a wire from a chip's output to another's input.

use std::sync::Arc;

/// The input side of interrupt lines: the interrupt controllers, or the board's routing.
pub trait LineSink: Send + Sync {
    /// Input `pin` is now high or low. Called with no lock of the raising chip held.
    fn set_line(&self, pin: u32, level: bool);
}

/// The output side of one line. Cloning it makes a second driver of the same wire: the sink sees
/// the last level set, so chips that share a level-triggered line go through an OR of their own.
#[derive(Clone)]
pub struct InterruptLine {
    sink: Arc<dyn LineSink>,
    pin: u32,
}

impl InterruptLine {
    /// A line into input `pin` of `sink`.
    pub fn new(sink: Arc<dyn LineSink>, pin: u32) -> Self {
        Self { sink, pin }
    }

    /// A line that goes nowhere.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl LineSink for Nowhere {
            fn set_line(&self, _pin: u32, _level: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    /// Drives the line.
    pub fn set(&self, level: bool) {
        self.sink.set_line(self.pin, level);
    }

    /// Drives the line high, then low: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}
