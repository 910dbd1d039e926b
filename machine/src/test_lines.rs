//! What unit tests plug into a chip: lines, back-ends and power sinks that remember.

use std::sync::{Arc, Mutex};

use crate::guard::lock;
use crate::line::{InterruptLine, LineSink};
use crate::serial_backend::SerialBackend;
use crate::signals::{PowerEvent, PowerSink};

/// Remembers every level set, pin by pin.
#[derive(Default)]
pub(crate) struct Recorder {
    events: Mutex<Vec<(u32, bool)>>,
}

impl Recorder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A line into `pin` of this recorder.
    pub(crate) fn line(self: &Arc<Self>, pin: u32) -> InterruptLine {
        InterruptLine::new(Arc::clone(self) as Arc<dyn LineSink>, pin)
    }

    /// The level of `pin` now.
    pub(crate) fn level(&self, pin: u32) -> bool {
        lock(&self.events).iter().rev().find(|(at, _)| *at == pin).is_some_and(|(_, level)| *level)
    }

    /// How often `pin` went from low to high.
    pub(crate) fn rises(&self, pin: u32) -> usize {
        let mut level = false;
        let mut rises = 0;
        for &(at, new) in lock(&self.events).iter().filter(|(at, _)| *at == pin) {
            assert_eq!(at, pin);
            rises += usize::from(new && !level);
            level = new;
        }
        rises
    }
}

impl LineSink for Recorder {
    fn set_line(&self, pin: u32, level: bool) {
        lock(&self.events).push((pin, level));
    }
}

/// Remembers what was sent.
#[derive(Default)]
pub(crate) struct Sent(Mutex<Vec<u8>>);

impl Sent {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        lock(&self.0).clone()
    }
}

impl SerialBackend for Sent {
    fn write(&self, bytes: &[u8]) {
        lock(&self.0).extend_from_slice(bytes);
    }
}

/// Remembers the power events.
#[derive(Default)]
pub(crate) struct PowerLog(Mutex<Vec<PowerEvent>>);

impl PowerLog {
    pub(crate) fn events(&self) -> Vec<PowerEvent> {
        lock(&self.0).clone()
    }
}

impl PowerSink for PowerLog {
    fn power(&self, event: PowerEvent) {
        lock(&self.0).push(event);
    }
}
