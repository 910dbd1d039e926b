//! Decoded code, cached by where its bytes are.
//!
//! A block is a run of instructions inside one page of RAM, found again by RAM offset, RIP and
//! mode. Its bytes are marked as code and kept: when the page's code generation has moved, because
//! some marked bytes of the page were written, they are marked again and compared with what is
//! there now, so a store near code costs a comparison and not a decode. An instruction that spans
//! two pages is a block of its own, compared at every use and therefore not marked. The order of
//! the steps is that of `memory/src/page_flags.rs`.
//!
//! The cache is direct-mapped and bounded; nothing a guest does makes it grow.

use decoder::{BlockEnd, MAX_INSTRUCTION_BYTES};
use iced_x86::Instruction;
use memory::PAGE_SIZE;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::undefined;
use crate::interp::insn::{Handler, Insn};
use crate::mmu::access::Place;
use crate::state::seg;

/// Slots of the cache.
const SLOTS: usize = 8192;
/// Instructions in a block at most.
const MAX_INSTRUCTIONS: usize = 32;
/// Bytes of a block at most.
const MAX_BYTES: usize = MAX_INSTRUCTIONS * MAX_INSTRUCTION_BYTES;

/// A decoded run of instructions.
pub(crate) struct Block {
    /// RAM offset of the first byte; all ones for code outside RAM, which is never found again.
    at: u64,
    rip: u64,
    mode_key: u64,
    /// Code generation of the page, read before the bytes were last known to be these.
    generation: u32,
    /// The last instruction spans into the next page; the block is that one instruction.
    straddles: bool,
    /// RIP of the last byte.
    last_ip: u64,
    /// The encoded bytes.
    pub(crate) bytes: Box<[u8]>,
    /// The instructions.
    pub(crate) insns: Box<[Insn]>,
    /// Its number in a trace, if it has one.
    pub(crate) recorded: Option<u32>,
}

/// The cache of one CPU.
pub(crate) struct BlockCache {
    slots: Vec<Option<Box<Block>>>,
}

/// A block taken out of its slot to be run.
pub(crate) struct Taken {
    slot: usize,
    pub(crate) block: Box<Block>,
}

impl BlockCache {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect() }
    }

    #[inline]
    fn slot_of(at: u64, mode_key: u64) -> usize {
        let mixed = (at ^ at >> 13 ^ mode_key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as usize % SLOTS
    }

    /// Puts a block back after it ran.
    #[inline]
    pub(crate) fn put(&mut self, taken: Taken) {
        if let Some(slot) = self.slots.get_mut(taken.slot) {
            *slot = Some(taken.block);
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.slots.fill_with(|| None);
    }
}

impl Cpu {
    /// The linear address of the next instruction.
    #[inline]
    pub fn linear_ip(&self) -> u64 {
        if self.mode.is_64() {
            self.state.rip
        } else {
            self.state.segments[seg::CS].base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Takes the block at RIP out of the cache, decoding it first if need be.
    #[inline]
    pub(crate) fn take_block(&mut self) -> Exec<Taken> {
        let linear = self.linear_ip();
        if let Some(at) = self.mmu.lookup_fetch(linear) {
            let slot = BlockCache::slot_of(at, self.mode.key);
            if let Some(entry) = self.blocks.slots.get_mut(slot)
                && let Some(block) = entry.as_ref()
                && block.at == at
                && block.rip == self.state.rip
                && block.mode_key == self.mode.key
                && block.generation == self.ram.flags().generation(at >> 12)
                && !block.straddles
                && (self.mode.is_64()
                    || block.last_ip <= u64::from(self.state.segments[seg::CS].limit))
                && let Some(block) = entry.take()
            {
                return Ok(Taken { slot, block });
            }
        }
        self.take_block_slow(linear)
    }

    #[cold]
    fn take_block_slow(&mut self, linear: u64) -> Exec<Taken> {
        if self.mode.is_64() && !self.mode.is_canonical(self.state.rip) {
            return Err(Exception::GP0);
        }
        let limit = u64::from(self.state.segments[seg::CS].limit);
        if !self.mode.is_64() && self.state.rip > limit {
            return Err(Exception::GP0);
        }
        let Place::Ram(at) = self.fetch_place(linear)? else {
            return self.decode_outside_ram(linear);
        };
        let slot = BlockCache::slot_of(at, self.mode.key);
        let generation = self.ram.flags().generation(at >> 12);
        let cached = self.blocks.slots.get_mut(slot).and_then(Option::take);
        if let Some(mut block) = cached
            && block.at == at
            && block.rip == self.state.rip
            && block.mode_key == self.mode.key
            && (self.mode.is_64() || block.last_ip <= limit)
            && self.mark_and_compare(&block, linear, at)?
        {
            block.generation = generation;
            return Ok(Taken { slot, block });
        }
        let mut block = self.decode_block(linear, at, generation)?;
        if !block.straddles && !self.mark_and_compare(&block, linear, at)? {
            // Another thread writes here now: these instructions were there once and run once.
            block.at = u64::MAX;
        }
        Ok(Taken { slot, block })
    }

    /// Marks the bytes of `block` as code. True if they are what is in memory.
    fn mark_and_compare(&mut self, block: &Block, linear: u64, at: u64) -> Exec<bool> {
        if !block.straddles {
            let count = block.bytes.len() as u64;
            self.ram.flags().mark_code(at >> 12, at & (PAGE_SIZE - 1), count);
        }
        let mut now = [0; MAX_BYTES];
        let count = block.bytes.len().min(now.len());
        if block.straddles {
            let first = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
            self.ram.read_bytes(at, &mut now[..first.min(MAX_INSTRUCTION_BYTES)]);
            self.fetch_next_page(linear, first, &mut now[..count])?;
        } else {
            self.ram.read_bytes(at, &mut now[..count]);
        }
        Ok(now[..count] == *block.bytes)
    }

    /// The first `count` bytes of the instruction at `linear`, which is being executed, as they are
    /// now; zeroes behind them.
    pub(crate) fn code_bytes(
        &mut self,
        linear: u64,
        count: usize,
    ) -> Option<[u8; MAX_INSTRUCTION_BYTES]> {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let count = count.min(bytes.len());
        let first = count.min((PAGE_SIZE - (linear & (PAGE_SIZE - 1))) as usize);
        let Ok(Place::Ram(at)) = self.code_place(linear) else { return None };
        self.ram.read_bytes(at, &mut bytes[..first]);
        if first < count {
            self.fetch_next_page(linear, first, &mut bytes[..count]).ok()?;
        }
        Some(bytes)
    }

    /// Where code at `linear` is, by the cached translation if there is one.
    fn code_place(&mut self, linear: u64) -> Exec<Place> {
        match self.mmu.lookup_fetch(linear) {
            Some(at) => Ok(Place::Ram(at)),
            None => self.fetch_place(linear),
        }
    }

    /// Fills `bytes[first..]` from the page behind the one of `linear`.
    fn fetch_next_page(&mut self, linear: u64, first: usize, bytes: &mut [u8]) -> Exec {
        let next = linear.wrapping_add(first as u64);
        let next = if self.mode.is_64() { next } else { next & 0xffff_ffff };
        if self.mode.is_64() && !self.mode.is_canonical(next) {
            return Err(Exception::GP0);
        }
        let place = self.code_place(next)?;
        let Some(rest) = bytes.get_mut(first..) else { return Ok(()) };
        match place {
            Place::Ram(at) => self.ram.read_bytes(at, rest),
            Place::Space(at) => {
                for (index, byte) in (0..).zip(rest) {
                    *byte = self.env.space.read(at.wrapping_add(index), memory::Width::Byte) as u8;
                }
            }
            Place::Lapic(_) => rest.fill(0xff),
        }
        Ok(())
    }

    /// Decodes from RAM offset `at` to the end of the block.
    fn decode_block(&mut self, linear: u64, at: u64, generation: u32) -> Exec<Box<Block>> {
        let mut bytes = [0; MAX_BYTES];
        let left = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
        let window = left.min(MAX_BYTES);
        let bytes = &mut bytes[..window];
        self.ram.read_bytes(at, bytes);
        let insns = self.decode_run(bytes, window == left)?;
        if insns.is_empty() {
            return self.decode_straddling(linear, at, left, generation);
        }
        Ok(self.finish(at, generation, false, bytes, insns))
    }

    fn finish(
        &self,
        at: u64,
        generation: u32,
        straddles: bool,
        bytes: &[u8],
        insns: Vec<Insn>,
    ) -> Box<Block> {
        let end = insns.last().map_or(self.state.rip, |insn| insn.next_ip);
        let length = end.wrapping_sub(self.state.rip) as usize;
        // How many bytes make an instruction undecodable is not known, so none can be compared:
        // such a block is not found again.
        let is_lasting = !insns.iter().any(|insn| insn.iced.is_invalid());
        Box::new(Block {
            at: if is_lasting { at } else { u64::MAX },
            rip: self.state.rip,
            mode_key: self.mode.key,
            generation,
            straddles,
            last_ip: end.wrapping_sub(1),
            bytes: bytes.get(..length).unwrap_or(bytes).into(),
            insns: insns.into(),
            recorded: None,
        })
    }

    /// Decodes whole instructions from `bytes` until one ends the block. Empty if the first one
    /// does not fit; `may_continue` says that more bytes follow in the next page, else it is #GP.
    fn decode_run(&mut self, bytes: &[u8], may_continue: bool) -> Exec<Vec<Insn>> {
        let found = self.scanner.scan(bytes, self.state.rip, self.mode.code_bits, MAX_INSTRUCTIONS);
        let limit = u64::from(self.state.segments[seg::CS].limit);
        let mut insns = Vec::with_capacity(found.instructions.len());
        for iced in found.instructions {
            let last = iced.next_ip().wrapping_sub(1);
            if !self.mode.is_64() && (last > limit || last < iced.ip()) {
                // The limit is met inside this instruction: the ones before it still run.
                return if insns.is_empty() { Err(Exception::GP0) } else { Ok(insns) };
            }
            let start = iced.ip().wrapping_sub(self.state.rip) as usize;
            let (insn, ends_block) = self.prepare(iced, bytes.get(start..).unwrap_or_default());
            insns.push(insn);
            if ends_block {
                return Ok(insns);
            }
        }
        if insns.is_empty() {
            match found.end {
                BlockEnd::Invalid => insns.push(self.invalid(undefined)),
                BlockEnd::TooLong => return Err(Exception::GP0),
                BlockEnd::Window if !may_continue => return Err(Exception::GP0),
                BlockEnd::Window | BlockEnd::Instruction | BlockEnd::Limit => {}
            }
        }
        Ok(insns)
    }

    /// An undecodable instruction at RIP. It never completes, so its length does not matter.
    fn invalid(&self, handler: Handler) -> Insn {
        let mut iced = Instruction::default();
        iced.set_ip(self.state.rip);
        iced.set_next_ip(self.state.rip.wrapping_add(1));
        Insn::new(iced, handler)
    }

    /// Decodes the one instruction that starts `left` bytes before the page's end and goes on.
    fn decode_straddling(
        &mut self,
        linear: u64,
        at: u64,
        left: usize,
        generation: u32,
    ) -> Exec<Box<Block>> {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let first = left.min(MAX_INSTRUCTION_BYTES);
        self.ram.read_bytes(at, &mut bytes[..first]);
        self.fetch_next_page(linear, first, &mut bytes)?;
        let mut insns = self.decode_run(&bytes, false)?;
        insns.truncate(1);
        Ok(self.finish(at, generation, true, &bytes, insns))
    }

    /// Decodes one instruction from ROM-less, RAM-less space: devices or nothing.
    fn decode_outside_ram(&mut self, linear: u64) -> Exec<Taken> {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let left = (PAGE_SIZE - (linear & (PAGE_SIZE - 1))) as usize;
        let first = left.min(MAX_INSTRUCTION_BYTES);
        if let Place::Space(at) = self.fetch_place(linear)? {
            for (index, byte) in (0..).zip(&mut bytes[..first]) {
                *byte = self.env.space.read(at.wrapping_add(index), memory::Width::Byte) as u8;
            }
        }
        let mut insns = self.decode_run(&bytes[..first], true)?;
        if insns.is_empty() {
            self.fetch_next_page(linear, first, &mut bytes)?;
            insns = self.decode_run(&bytes, false)?;
        }
        insns.truncate(1);
        let block = self.finish(u64::MAX, 0, true, &bytes, insns);
        Ok(Taken { slot: usize::MAX, block })
    }
}
