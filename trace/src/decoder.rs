//! From the bytes of a stream to its records; the mirror of `encoder.rs`.

use std::sync::Arc;

use crate::block::Block;
use crate::chunk::{BLOCKS_MAX, CODE_BYTES_MAX};
use crate::encoder::{DEFINITION, FOLLOWER, NUMBERED, PART};
use crate::event::{self, Event};
use crate::prediction::Predictor;
use crate::varint::{Cursor, Damage};

/// What is known of a stream within a segment.
pub(crate) struct Decoder {
    blocks: Vec<Arc<Block>>,
    code_bytes: usize,
    last_rip: u64,
    predictor: Predictor,
    /// Predicted blocks that were read and not given yet.
    run: u32,
}

/// A record of a stream.
pub(crate) enum Decoded {
    Block(Arc<Block>),
    Event(Event),
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { blocks: Vec::new(), code_bytes: 0, last_rip: 0, predictor: Predictor::new(), run: 0 }
    }

    /// The next record. `None` where the bytes end.
    pub(crate) fn next(&mut self, from: &mut Cursor<'_>) -> Result<Option<Decoded>, Damage> {
        loop {
            if let Some(run) = self.run.checked_sub(1) {
                self.run = run;
                return self.execute(self.predictor.by_three()).map(Some);
            }
            if from.left() == 0 {
                return Ok(None);
            }
            let first = from.byte()?;
            match first {
                0..NUMBERED => self.run = u32::from(first) + 1,
                NUMBERED..FOLLOWER => {
                    let high = from.at_most(u64::from(BLOCKS_MAX >> 6), NO_BLOCK)?;
                    let id = (high as u32) << 6 | u32::from(first & 0x3f);
                    return self.execute(id).map(Some);
                }
                FOLLOWER => return self.execute(self.predictor.by_one()).map(Some),
                DEFINITION => {
                    let block = Block::get(from, self.last_rip)?;
                    self.last_rip = block.rip();
                    self.define(Arc::new(block))?;
                }
                PART => self.define_part(from)?,
                _ => return Event::get(first, from).map(|event| Some(Decoded::Event(event))),
            }
        }
    }

    fn execute(&mut self, id: u32) -> Result<Decoded, Damage> {
        let block = self.blocks.get(id as usize).ok_or(NO_BLOCK)?;
        let block = Arc::clone(block);
        self.predictor.follow(id);
        Ok(Decoded::Block(block))
    }

    fn define(&mut self, block: Arc<Block>) -> Result<(), Damage> {
        self.code_bytes += block.size();
        if self.blocks.len() >= BLOCKS_MAX as usize || self.code_bytes > CODE_BYTES_MAX {
            return Err("there are too many blocks");
        }
        self.blocks.push(block);
        Ok(())
    }

    fn define_part(&mut self, from: &mut Cursor<'_>) -> Result<(), Damage> {
        let of = from.at_most(u64::from(BLOCKS_MAX), NO_BLOCK)?;
        let (first, count) = (from.byte()?, from.byte()?);
        let whole = self.blocks.get(of as usize).ok_or(NO_BLOCK)?;
        let part = whole.part(usize::from(first), usize::from(count));
        self.define(Arc::new(part.ok_or("a part of a block is none")?))
    }
}

const NO_BLOCK: Damage = "there is no such block";

const _: () = assert!(event::FIRST == PART + 1);
