//! Functions, interrupts and exceptions over time, in the JSON of Chrome's trace viewer
//! ("Trace Event Format"), which ui.perfetto.dev reads too: a row for each CPU.
//!
//! Guest time is known now and then only; between, an instruction counts as a nanosecond.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::json;
use symbols::Symbols;
use trace::{Block, Event};

use super::calls::{Calls, Name, Sink};
use super::events::Told;
use super::{Moment, View};

/// The timeline of a trace.
pub(super) struct Perfetto<W> {
    calls: Calls,
    symbols: Arc<Symbols>,
    timeline: Timeline<W>,
}

/// One CPU's time.
#[derive(Clone, Copy, Default)]
struct Time {
    /// Guest time that was known, and what the CPU had retired then.
    known_ns: u64,
    count: u64,
    /// What was written last; a row never goes back.
    last_ns: u64,
}

struct Timeline<W> {
    out: W,
    is_begun: bool,
    times: HashMap<u16, Time>,
}

impl<W: Write> Timeline<W> {
    fn now_ns(&mut self, at: &Moment) -> io::Result<u64> {
        if !self.times.contains_key(&at.cpu) {
            let name = json!({"name": format!("CPU {}", at.cpu)});
            self.put(&json!({
                "name": "thread_name", "ph": "M", "pid": 0, "tid": at.cpu, "args": name,
            }))?;
        }
        let time = self.times.entry(at.cpu).or_default();
        if at.time_ns != time.known_ns || at.count < time.count {
            (time.known_ns, time.count) = (at.time_ns, at.count);
        }
        time.last_ns = time.last_ns.max(time.known_ns.saturating_add(at.count - time.count));
        Ok(time.last_ns)
    }

    fn put(&mut self, object: &serde_json::Value) -> io::Result<()> {
        let separator = if self.is_begun { ",\n" } else { "{\"traceEvents\":[\n" };
        self.is_begun = true;
        write!(self.out, "{separator}{object}")
    }

    /// Writes an event of the given phase; times are in microseconds.
    fn mark(&mut self, at: &Moment, phase: &str, name: Option<&str>) -> io::Result<()> {
        let us = self.now_ns(at)? as f64 / 1000.0;
        let mut object = json!({"ph": phase, "pid": 0, "tid": at.cpu, "ts": us});
        if let (Some(name), Some(object)) = (name, object.as_object_mut()) {
            object.insert("name".into(), name.into());
        }
        self.put(&object)
    }
}

impl<W: Write> Sink for Timeline<W> {
    fn enter(&mut self, at: &Moment, _: Name, text: &str) -> io::Result<()> {
        self.mark(at, "B", Some(text))
    }

    fn leave(&mut self, at: &Moment) -> io::Result<()> {
        self.mark(at, "E", None)
    }

    fn spend(&mut self, _: &Moment, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Perfetto<W> {
    pub(super) fn new(out: W, symbols: Arc<Symbols>) -> Self {
        let timeline = Timeline { out, is_begun: false, times: HashMap::new() };
        Self { calls: Calls::new(Arc::clone(&symbols)), symbols, timeline }
    }
}

impl<W: Write> View for Perfetto<W> {
    fn block(&mut self, at: &Moment, block: &Arc<Block>) -> io::Result<()> {
        self.calls.block(at, block, &mut self.timeline)
    }

    fn event(&mut self, at: &Moment, event: &Event) -> io::Result<()> {
        match event {
            Event::Memory { .. } | Event::Register { .. } | Event::Time { .. } => Ok(()),
            Event::Interrupt { .. }
            | Event::Exception { .. }
            | Event::Begin
            | Event::Skipped { .. } => self.calls.event(at, event, &mut self.timeline),
            _ => {
                self.calls.event(at, event, &mut self.timeline)?;
                let text = Told(event, &self.symbols).to_string();
                self.timeline.mark(at, "i", Some(&text))
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        // Each row ends where it was written last.
        let at = Moment { cpu: 0, count: 0, time_ns: 0 };
        self.calls.finish(&at, &mut self.timeline)?;
        if !self.timeline.is_begun {
            write!(self.timeline.out, "{{\"traceEvents\":[")?;
        }
        writeln!(self.timeline.out, "\n]}}")?;
        self.timeline.out.flush()
    }
}
