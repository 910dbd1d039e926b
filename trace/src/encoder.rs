//! From what a CPU has executed to the bytes of its stream.
//!
//! What comes in are *words* (see `recorder.rs`): a block was begun, or the last one was left
//! before its end. A block is written when it is known how much of it was executed, so the newest
//! one waits.

use std::sync::Arc;

use crate::block::Block;
use crate::chunk::{BLOCKS_MAX, CODE_BYTES_MAX};
use crate::event::Event;
use crate::numbers::Numbers;
use crate::prediction::{Guess, Predictor};
use crate::recorder::Word;
use crate::varint::put;

/// The most that a byte tells of predicted blocks.
const RUN_MAX: u32 = 128;

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
    blocks: Vec<Arc<Block>>,
    numbers: Numbers,
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
            blocks: Vec::new(),
            numbers: Numbers::default(),
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
        self.numbers.forget();
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
        self.numbers.add(block.len() as u32);
        self.blocks.push(Arc::new(block));
    }

    /// The recorder numbers its blocks anew.
    pub(crate) fn forget(&mut self) {
        self.finish(0);
        self.blocks.clear();
        self.numbers = Numbers::default();
    }

    /// Takes words until a chunk is to be written; how many it took.
    pub(crate) fn words(&mut self, words: &[u32]) -> usize {
        let mut taken = 0;
        while let Some(&word) = words.get(taken)
            && !self.has_chunk()
            && !self.is_full()
        {
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
            taken += 1;
            taken += self.predicted(words.get(taken..).unwrap_or_default());
        }
        taken
    }

    /// Takes words as long as each ends what is predicted, until the run is full; how many it took.
    /// This is most of what is executed.
    fn predicted(&mut self, words: &[u32]) -> usize {
        let Some(Pending { first: 0, raw }) = self.pending else { return 0 };
        let (numbers, predictor) = (&self.numbers, &mut self.predictor);
        let (mut begun, mut taken, mut hits, mut instructions) = (Some(raw), 0, 0, 0);
        let room = RUN_MAX - 1 - self.run;
        while hits < room
            && let Some(&word) = words.get(taken)
        {
            let word = Word::of(word);
            if let Some(raw) = begun {
                let Some(known) = numbers.block(raw) else { break };
                let left = if let Word::Cut { left } = word { left } else { 0 };
                let count = known.length.wrapping_sub(left);
                if !predictor.hits(numbers.beginning(known, count)) {
                    break;
                }
                hits += 1;
                instructions += u64::from(count);
            }
            begun = if let Word::Block(raw) = word { Some(raw) } else { None };
            taken += 1;
        }
        self.pending = begun.map(|raw| Pending { raw, first: 0 });
        self.run += hits;
        self.count = self.count.saturating_add(instructions);
        taken
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
    fn finish(&mut self, left: u32) {
        let Some(Pending { raw, first }) = self.pending else { return };
        let Some(known) = self.numbers.block(raw) else {
            self.pending = None;
            return;
        };
        let end = known.length.saturating_sub(left);
        if end > first
            && let Some(id) = self.number(raw, first, end - first)
        {
            self.execute(id, end - first);
        }
        let first = first.max(end);
        self.pending = (first < known.length).then_some(Pending { raw, first });
    }

    /// The number of a part of a block, or of all of it, defined if need be.
    fn number(&mut self, raw: u32, first: u32, count: u32) -> Option<u32> {
        if let Some(id) = self.numbers.part(raw, first, count) {
            return Some(id);
        }
        let block = Arc::clone(self.blocks.get(raw as usize)?);
        let length = block.len() as u32;
        let whole = self.numbers.part(raw, 0, length).unwrap_or_else(|| {
            self.flush_run();
            self.out.push(DEFINITION);
            block.put(&mut self.out, self.last_rip);
            self.last_rip = block.rip();
            self.next_number(&block, raw, 0, length)
        });
        if count == length {
            return Some(whole);
        }
        self.flush_run();
        self.out.push(PART);
        put(&mut self.out, u64::from(whole));
        self.out.extend([first as u8, count as u8]);
        Some(self.next_number(&block, raw, first, count))
    }

    fn next_number(&mut self, block: &Block, raw: u32, first: u32, count: u32) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.code_bytes += block.size();
        self.numbers.set(raw, first, count, id);
        id
    }

    fn execute(&mut self, id: u32, length: u32) {
        self.count = self.count.saturating_add(u64::from(length));
        match self.predictor.follow(id) {
            Guess::ByThree => {
                self.run += 1;
                if self.run == RUN_MAX {
                    self.flush_run();
                }
            }
            Guess::ByOne => {
                self.flush_run();
                self.out.push(FOLLOWER);
            }
            Guess::Wrong => {
                self.flush_run();
                self.out.push(NUMBERED | (id & 0x3f) as u8);
                put(&mut self.out, u64::from(id >> 6));
            }
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
