//! JSON Lines: an object on a line for each instruction and event. Addresses are text, for JSON's
//! numbers are not exact beyond 53 bits.

use std::io::{self, Write};
use std::sync::Arc;

use cpu::exception;
use serde_json::{Value as Json_, json};
use symbols::Symbols;
use trace::{Block, Event, InterruptSource, Value};

use super::cache::Cache;
use super::events::verb;
use super::{Moment, View};
use crate::debug::Instructions;

/// The JSON Lines of a trace.
pub(super) struct Json<W> {
    out: W,
    symbols: Arc<Symbols>,
    instructions: Instructions,
    lines: Cache<Vec<String>>,
}

impl<W: Write> Json<W> {
    pub(super) fn new(out: W, symbols: Arc<Symbols>) -> Self {
        Self { out, symbols, instructions: Instructions::default(), lines: Cache::default() }
    }
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

fn name(symbols: &Symbols, address: u64) -> Option<String> {
    symbols.at(address).map(|place| place.to_string())
}

/// The ends of the lines of a block's instructions: what is the same each time.
fn lines(block: &Block, instructions: &mut Instructions, symbols: &Symbols) -> Vec<String> {
    let mode = block.mode();
    let insns = block.insns().map(|insn| {
        let linear = block.linear(insn.rip);
        let line = instructions.line(mode.width.bits(), insn.bytes, insn.rip, linear);
        let digits: String = insn.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut object = json!({
            "kind": "insn", "rip": hex(insn.rip), "linear": hex(linear), "bits": mode.width.bits(),
            "cpl": mode.cpl, "bytes": digits, "text": line.text,
        });
        let about = line.about.and_then(|address| name(symbols, address));
        for (key, name) in [("symbol", name(symbols, linear)), ("about", about)] {
            if let (Some(name), Some(object)) = (name, object.as_object_mut()) {
                object.insert(key.into(), name.into());
            }
        }
        object.to_string()
    });
    insns.collect()
}

fn object(event: &Event) -> Json_ {
    let value = |value: &Value| format!("{value:?}");
    match event {
        Event::Interrupt { vector, source } => json!({
            "kind": "interrupt", "vector": vector, "source": match source {
                InterruptSource::External => "external",
                InterruptSource::NonMaskable => "nmi",
                InterruptSource::Software => "software",
            },
        }),
        Event::Exception { vector, error_code, address } => json!({
            "kind": "exception", "vector": vector, "name": exception::name(*vector),
            "error_code": error_code, "address": hex(*address),
        }),
        Event::ControlRegister { number, value } => {
            json!({"kind": "cr", "number": number, "value": hex(*value)})
        }
        Event::Msr { access, number, value } => json!({
            "kind": "msr", "access": verb(*access), "number": hex(u64::from(*number)),
            "value": hex(*value),
        }),
        Event::Port { access, port, value: data } => json!({
            "kind": "port", "access": verb(*access), "port": port, "value": value(data),
        }),
        Event::Mmio { access, address, value: data } => json!({
            "kind": "mmio", "access": verb(*access), "address": hex(*address),
            "value": value(data),
        }),
        Event::Memory { access, address, value: data } => json!({
            "kind": "memory", "access": verb(*access), "address": hex(*address),
            "value": value(data),
        }),
        Event::Register { register, value: data } => {
            json!({"kind": "register", "name": register.name_of(data), "value": value(data)})
        }
        Event::Time { ns } => json!({"kind": "time", "ns": ns}),
        Event::Skipped { instructions } => json!({"kind": "skipped", "count": instructions}),
        Event::Begin => json!({"kind": "begin"}),
        Event::End => json!({"kind": "end"}),
        Event::Reset => json!({"kind": "reset"}),
    }
}

/// Writes an object with when it was in front of the rest.
fn put(out: &mut dyn Write, at: &Moment, count: u64, object: &str) -> io::Result<()> {
    let rest = object.strip_prefix('{').unwrap_or(object);
    writeln!(out, "{{\"cpu\":{},\"count\":{count},\"time_ns\":{},{rest}", at.cpu, at.time_ns)
}

impl<W: Write> View for Json<W> {
    fn block(&mut self, at: &Moment, block: &Arc<Block>) -> io::Result<()> {
        let Self { out, symbols, instructions, lines: cache } = self;
        let lines = cache.get(block, |block| lines(block, instructions, symbols));
        at.counts().zip(lines.iter()).try_for_each(|(count, line)| put(out, at, count, line))
    }

    fn event(&mut self, at: &Moment, event: &Event) -> io::Result<()> {
        put(&mut self.out, at, at.count, &object(event).to_string())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
