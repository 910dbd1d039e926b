//! From what a CPU has executed to the bytes of its stream.
//!
//! What comes in are *words* (see `recorder.rs`): a block was begun, or the last one was left
//! before its end. A block is written when it is known how much of it was executed, so the newest
//! one waits.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::block::Block;
use crate::chunk::{BLOCKS_MAX, CODE_BYTES_MAX};
use crate::event::Event;
use crate::prediction::Predictor;
use crate::recorder::Word;
use crate::varint::put;

/// No number of a block.
const UNDEFINED: u32 = u32::MAX;
/// The most that a byte tells of predicted blocks.
const RUN_MAX: u32 = 128;

/// A block as the recorder knows it.
struct Known {
    block: Arc<Block>,
    /// Its number in the segment.
    id: u32,
    length: u32,
}

/// A run of instructions of a block that was begun and is not written yet.
#[derive(Clone, Copy)]
struct Pending {
    raw: u32,
    /// The first instruction that is not written.
    first: u32,
}

/// The encoder of one CPU's stream.
pub(crate) struct Encoder {
    /// By the recorder's number.
    known: Vec<Known>,
    /// Numbers of parts, by the recorder's number, first instruction and how many.
    parts: FxHashMap<(u32, u8, u8), u32>,
    predictor: Predictor,
    next_id: u32,
    code_bytes: usize,
    last_rip: u64,
    pending: Option<Pending>,
    /// Predicted blocks that are not written yet.
    run: u32,
    out: Vec<u8>,
    chunk_bytes: usize,
    count: u64,
    time_ns: u64,
    started: (u64, u64),
}

/// A chunk's bytes.
pub(crate) struct Raw {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u64,
    pub(crate) time_ns: u64,
}

impl Encoder {
    /// An encoder of chunks of about `chunk_bytes`.
    pub(crate) fn new(chunk_bytes: usize) -> Self {
        Self {
            known: Vec::new(),
            parts: FxHashMap::default(),
            predictor: Predictor::new(),
            next_id: 0,
            code_bytes: 0,
            last_rip: 0,
            pending: None,
            run: 0,
            out: Vec::new(),
            chunk_bytes,
            count: 0,
            time_ns: 0,
            started: (0, 0),
        }
    }

    /// Begins a segment.
    pub(crate) fn begin_segment(&mut self) {
        self.known.iter_mut().for_each(|known| known.id = UNDEFINED);
        self.parts.clear();
        self.predictor = Predictor::new();
        (self.next_id, self.code_bytes, self.last_rip) = (0, 0, 0);
    }

    /// True if the chunk is to be written.
    pub(crate) fn has_chunk(&self) -> bool {
        self.out.len() >= self.chunk_bytes
    }

    /// True if there is something to be written.
    pub(crate) fn has_some(&self) -> bool {
        !self.out.is_empty() || self.run != 0
    }

    /// True if no more blocks should be defined in the segment.
    pub(crate) fn is_full(&self) -> bool {
        self.next_id > BLOCKS_MAX - 4 || self.code_bytes > CODE_BYTES_MAX / 2
    }

    /// Ends the chunk.
    pub(crate) fn take_chunk(&mut self) -> Raw {
        self.flush_run();
        let (count, time_ns) = self.started;
        self.started = (self.count, self.time_ns);
        Raw { bytes: std::mem::take(&mut self.out), count, time_ns }
    }

    /// The recorder's next block.
    pub(crate) fn define(&mut self, block: Block) {
        let length = block.len() as u32;
        self.known.push(Known { block: Arc::new(block), id: UNDEFINED, length });
    }

    /// The recorder numbers its blocks anew.
    pub(crate) fn forget(&mut self) {
        self.finish(0);
        self.known.clear();
        self.parts.clear();
    }

    /// Takes words until a chunk is to be written; how many it took.
    pub(crate) fn words(&mut self, words: &[u32]) -> usize {
        for (index, &word) in words.iter().enumerate() {
            if self.has_chunk() || self.is_full() {
                return index;
            }
            match Word::of(word) {
                Word::Block(raw) => {
                    self.finish(0);
                    self.pending = Some(Pending { raw, first: 0 });
                }
                Word::Cut { left } => {
                    self.finish(left);
                    self.pending = None;
                }
            }
        }
        words.len()
    }

    /// An event before the last `left` instructions of the newest block. `count` says how many
    /// instructions were retired before it, if somebody has counted.
    pub(crate) fn event(&mut self, event: Event, left: u32, count: Option<u64>) {
        self.finish(left);
        if let Some(count) = count {
            self.catch_up(count);
        }
        match event {
            Event::Time { ns } if ns == self.time_ns => return,
            Event::Time { ns } => self.time_ns = ns,
            Event::Skipped { instructions } => {
                self.count = self.count.saturating_add(instructions);
            }
            _ => {}
        }
        self.flush_run();
        event.put(&mut self.out);
    }

    /// Tells what was executed without being recorded.
    fn catch_up(&mut self, count: u64) {
        let Some(instructions) = count.checked_sub(self.count).filter(|skipped| *skipped != 0)
        else {
            return;
        };
        self.count = count;
        if !self.has_some() {
            self.started.0 = count;
            return;
        }
        self.flush_run();
        Event::Skipped { instructions }.put(&mut self.out);
    }

    /// Writes what was executed of the newest block, but for its last `left` instructions, and
    /// lets those wait.
    #[inline]
    fn finish(&mut self, left: u32) {
        let Some(pending) = self.pending else { return };
        let Some(known) = self.known.get(pending.raw as usize) else {
            self.pending = None;
            return;
        };
        let (id, length) = (known.id, known.length);
        if pending.first == 0 && left == 0 && id != UNDEFINED {
            self.pending = None;
            return self.execute(id, length);
        }
        self.finish_part(pending, length, left);
    }

    fn finish_part(&mut self, pending: Pending, length: u32, left: u32) {
        let end = length.saturating_sub(left);
        if end > pending.first {
            let id = self.number(pending.raw, pending.first, end - pending.first);
            if let Some(id) = id {
                self.execute(id, end - pending.first);
            }
        }
        let first = pending.first.max(end);
        self.pending = (first < length).then_some(Pending { first, ..pending });
    }

    /// The number of a part of a block, or of all of it, defined if need be.
    fn number(&mut self, raw: u32, first: u32, count: u32) -> Option<u32> {
        let known = self.known.get_mut(raw as usize)?;
        let block = Arc::clone(&known.block);
        if known.id == UNDEFINED {
            known.id = self.next_id;
            self.next_id += 1;
            self.code_bytes += block.size();
            self.flush_run();
            self.out.push(DEFINITION);
            block.put(&mut self.out, self.last_rip);
            self.last_rip = block.rip();
        }
        let whole = self.known.get(raw as usize)?;
        if first == 0 && count == whole.length {
            return Some(whole.id);
        }
        let (of, key) = (whole.id, (raw, first as u8, count as u8));
        if let Some(&id) = self.parts.get(&key) {
            return Some(id);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.code_bytes += block.size();
        self.parts.insert(key, id);
        self.flush_run();
        self.out.push(PART);
        put(&mut self.out, u64::from(of));
        self.out.extend([first as u8, count as u8]);
        Some(id)
    }

    #[inline]
    fn execute(&mut self, id: u32, length: u32) {
        self.count = self.count.saturating_add(u64::from(length));
        if self.predictor.guess() == id {
            self.run += 1;
            if self.run == RUN_MAX {
                self.flush_run();
            }
        } else {
            self.flush_run();
            self.put_missed(id);
        }
        self.predictor.learn(id);
    }

    fn put_missed(&mut self, id: u32) {
        let (_, short) = self.predictor.guesses();
        if short == id {
            self.out.push(FOLLOWER);
        } else {
            self.out.push(NUMBERED | (id & 0x3f) as u8);
            put(&mut self.out, u64::from(id >> 6));
        }
    }

    fn flush_run(&mut self) {
        if let Some(run) = self.run.checked_sub(1) {
            self.out.push(run as u8);
            self.run = 0;
        }
    }
}

/// The first byte of a block by its number.
pub(crate) const NUMBERED: u8 = 0x80;
/// The block that followed the last one the last time.
pub(crate) const FOLLOWER: u8 = 0xc0;
/// A definition.
pub(crate) const DEFINITION: u8 = 0xc1;
/// A definition as a part of another block.
pub(crate) const PART: u8 = 0xc2;
