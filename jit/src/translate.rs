//! Finding a block, and making it when there is none.

use cpu::exception::Exception;
use cpu::mmu::View;
use iced_x86::{Code, Decoder, DecoderError, Instruction, Mnemonic};

use crate::cache::{ModeKey, NewBlock};
use crate::emit::{Emitted, Emitter, Entry, Link, Surroundings};
use crate::grouping::Grouper;
use crate::listing;
use crate::plan::{self, Action, Step, Target};
use crate::vcpu::Inner;

/// Instructions in a block at most.
pub(crate) const MAX_STEPS: usize = 64;
/// Conditional jumps that a block goes on behind.
const MAX_BRANCHES: usize = 6;
/// Tries to read bytes that do not change meanwhile.
const TRIES: usize = 4;
/// The longest instruction.
const MAX_INSTRUCTION_BYTES: usize = 15;
/// Bytes of a block at most, and of what its only instruction has on the next page.
const MAX_BYTES: usize = (MAX_STEPS + 1) * MAX_INSTRUCTION_BYTES;
/// Bytes that are read at most: a superblock's are all of its page.
const MAX_READ: usize = 4096;
const _: () = assert!(MAX_BYTES <= MAX_READ);
/// Bytes that are read at first: nearly all blocks have less.
const FIRST_BYTES: usize = 160;
/// One translation of so many has its time taken.
const TIMED: u64 = 8;

/// What blocks are made with, kept from one to the next for its memory.
pub(crate) struct Scratch {
    /// Bytes that a block is decoded from.
    pub(crate) bytes: Vec<u8>,
    pub(crate) steps: Vec<Step>,
    grouper: Grouper,
    emitted: Emitted,
    gates: Gates,
    /// Translations so far.
    count: u64,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            bytes: vec![0; MAX_READ],
            steps: Vec::with_capacity(MAX_STEPS),
            grouper: Grouper::default(),
            emitted: Emitted::default(),
            gates: Gates::default(),
            count: 0,
        }
    }
}

impl Scratch {
    /// The steps of the block that is being made: number, bytes from the first of its encoding on,
    /// and instruction.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (u16, &[u8], &Instruction)> {
        self.steps.iter().zip(0..).map(|(step, number)| {
            (number, self.bytes.get(step.at..).unwrap_or_default(), &step.iced)
        })
    }
}

/// Which forms raise an exception instead of executing: the CPU's answers by mode and form.
#[derive(Default)]
struct Gates {
    modes: Vec<(u64, Box<[Option<bool>]>)>,
}

impl Gates {
    /// Modes whose answers are kept.
    const MODES: usize = 8;

    /// The answers in the mode of key `key`, by form.
    fn of_mode(&mut self, key: u64) -> &mut [Option<bool>] {
        let known = self.modes.iter().position(|(known, _)| *known == key);
        let index = known.unwrap_or_else(|| {
            if self.modes.len() == Self::MODES {
                self.modes.clear();
            }
            self.modes.push((key, vec![None; Code::values().len()].into()));
            self.modes.len() - 1
        });
        self.modes.get_mut(index).map_or(&mut [], |(_, answers)| answers)
    }
}

/// Whether `iced` is gated, by what is known of its form. A LOCK prefix has rules of its own.
fn is_gated(cpu: &cpu::Cpu, answers: &mut [Option<bool>], iced: &Instruction) -> bool {
    let ask = || cpu.is_gated(decoder::row(iced.code()), iced);
    match answers.get_mut(iced.code() as usize) {
        Some(answer) if !iced.has_lock_prefix() => *answer.get_or_insert_with(ask),
        _ => ask(),
    }
}

/// Where the bytes are that a block was decoded from.
#[derive(Clone, Copy)]
struct Source {
    /// Number of the code page, and of the next one if the first instruction reaches into it.
    pages: [u32; 2],
    page_count: usize,
    /// Offset in RAM of the first byte, and of the bytes on the next page.
    at: u64,
    next_at: u64,
    /// Bytes on the first page.
    first: usize,
}

impl Source {
    fn pages(&self) -> &[u32] {
        self.pages.get(..self.page_count).unwrap_or_default()
    }
}

/// What a block is made for.
#[derive(Clone, Copy)]
pub(crate) struct Wish {
    pub(crate) rip: u64,
    pub(crate) key: ModeKey,
    pub(crate) mode: u16,
    pub(crate) is_ungrouped: bool,
    pub(crate) is_superblock: bool,
}

/// A page of code: its number in the cache, and its offset in RAM.
pub(crate) type CodePage = (u32, u64);

/// What decoding the next instruction of a path has come to.
pub(crate) enum Decoded {
    Step {
        step: Step,
        is_end: bool,
    },
    /// There is more to it than bytes were read.
    Cut,
    /// It is no part of a block.
    Outside,
}

/// What decodes the instructions of a block.
pub(crate) struct StepDecoder<'a> {
    cpu: &'a cpu::Cpu,
    target: Target<'a>,
    answers: &'a mut [Option<bool>],
    decoder: Decoder<'a>,
    /// Where the block begins.
    start: u64,
    is_checked: bool,
}

impl StepDecoder<'_> {
    /// True if the block must end before `ip`, for what a trace is told begins or ends there.
    fn is_told_otherwise(&self, ip: u64) -> bool {
        self.cpu.is_recorded()
            && (self.cpu.records_address(ip) != self.cpu.records_address(self.start)
                || self.cpu.is_recording_trigger(ip))
    }

    /// Goes on with the byte at `position`, whose address is `rip`.
    pub(crate) fn jump(&mut self, position: usize, rip: u64) -> bool {
        self.decoder.set_ip(rip);
        self.decoder.set_position(position).is_ok()
    }

    /// The next instruction's step.
    pub(crate) fn next(&mut self) -> Decoded {
        if !self.decoder.can_decode() {
            return Decoded::Cut;
        }
        let ip = self.decoder.ip();
        if self.cpu.has_breakpoint(ip) || self.is_told_otherwise(ip) {
            return Decoded::Outside;
        }
        let at = self.decoder.position();
        let iced = self.decoder.decode();
        if iced.is_invalid() {
            let is_cut = self.decoder.last_error() == DecoderError::NoMoreBytes;
            return if is_cut { Decoded::Cut } else { Decoded::Outside };
        }
        if !self.target.mode.is_64() && iced.next_ip() >> 32 != 0 {
            return Decoded::Outside;
        }
        let is_gated = is_gated(self.cpu, self.answers, &iced);
        let mut step = plan::step(&self.target, iced, at, is_gated);
        let is_sti = step.action == Action::SetInterruptFlag(true);
        if is_sti && self.may_sleep_next() {
            step.action = Action::Handler;
        }
        if self.is_checked && !step.action.is_repeatable() {
            return Decoded::Outside;
        }
        let is_end = is_gated || is_sti || step.action.ends_block(step.row);
        Decoded::Step { step, is_end }
    }

    /// True if the next instruction may be one that waits for interrupts. Behind STI it must have
    /// the shadow: an interrupt that comes between the two ends the wait, and taken before it, it
    /// would leave the CPU waiting for the next.
    fn may_sleep_next(&mut self) -> bool {
        let (ip, position) = (self.decoder.ip(), self.decoder.position());
        let next = self.decoder.can_decode().then(|| self.decoder.decode().mnemonic());
        self.jump(position, ip);
        next.is_none_or(|next| {
            matches!(next, Mnemonic::Hlt | Mnemonic::Mwait | Mnemonic::Mwaitx | Mnemonic::INVALID)
        })
    }
}

impl Inner {
    /// The block at `rip`, made if need be. `None` if the place is to be interpreted.
    pub(crate) fn find_block(
        &mut self,
        rip: u64,
        key: ModeKey,
        mode: u16,
        is_ungrouped: bool,
    ) -> Result<Option<u32>, Exception> {
        let Some((page, ram_page)) = self.page_of(rip, key)? else { return Ok(None) };
        if let Some((number, block)) = self.cache.find(rip, page, mode, is_ungrouped) {
            if block.second_page().is_none() {
                return Ok(Some(number));
            }
            // Without the second page the interpreter raises what fetching it does.
            let Ok(Some((second, _))) = self.page_of(self.next_page(rip), key) else {
                return Ok(None);
            };
            // The page behind may be another one than it was when the block was made.
            let mut blocks = self.cache.blocks_at(rip, page, mode, is_ungrouped);
            if let Some((number, _)) = blocks.find(|(_, block)| block.second_page() == Some(second))
            {
                return Ok(Some(number));
            }
        }
        let wish = Wish { rip, key, mode, is_ungrouped, is_superblock: false };
        self.scratch.count += 1;
        if !self.scratch.count.is_multiple_of(TIMED) {
            return self.make_block(wish, (page, ram_page));
        }
        let started = std::time::Instant::now();
        let made = self.make_block(wish, (page, ram_page));
        self.translation_ns += started.elapsed().as_nanos() as u64 * TIMED;
        made
    }

    /// The number of the code page of `rip`, which is then valid, and its offset in RAM.
    pub(crate) fn page_of(
        &mut self,
        rip: u64,
        key: ModeKey,
    ) -> Result<Option<CodePage>, Exception> {
        if self.cpu.mode.is_64() && !self.cpu.mode.is_canonical(rip) {
            return Ok(None);
        }
        match self.valid_page(rip, key.view) {
            Some(page) => Ok(Some(page)),
            None => self.code_page(rip, key),
        }
    }

    /// The code page that a guard would let code at `rip` run by: what a TLB knows.
    fn valid_page(&mut self, rip: u64, view: View) -> Option<CodePage> {
        let valid = &self.slots.current_context().valid;
        self.cache.pages_at(rip & !0xfff).iter().find_map(|&number| {
            let is_valid = valid.get(number as usize).is_some_and(|valid| *valid != 0);
            let page = self.cache.page_of(number).filter(|_| is_valid)?;
            (page.is_user() == (view == View::User)).then_some((number, page.ram_page))
        })
    }

    /// Asks the page tables for the code page of `rip`.
    fn code_page(&mut self, rip: u64, key: ModeKey) -> Result<Option<CodePage>, Exception> {
        let Some(page) = self.cpu.code_page(rip)? else { return Ok(None) };
        let is_user = key.view == View::User;
        let linear = rip & !0xfff;
        let number = match self.cache.page(linear, page.ram_page, is_user, page.is_global) {
            Some(number) => number,
            None => {
                self.clear_cache();
                return Ok(None);
            }
        };
        self.slots.note(linear, key.view, page.is_global, page.shift);
        let valid = &mut self.slots.current_context().valid;
        // Another mapping of the same linear page is no longer the one that fetches see.
        for &other in self.cache.pages_at(linear) {
            if other != number
                && self.cache.is_same_kind(other, number)
                && let Some(valid) = valid.get_mut(other as usize)
            {
                *valid = 0;
            }
        }
        if let Some(valid) = valid.get_mut(number as usize) {
            *valid = 1;
        }
        Ok(Some((number, page.ram_page)))
    }

    fn next_page(&self, rip: u64) -> u64 {
        let next = (rip & !0xfff).wrapping_add(4096);
        if self.cpu.mode.is_64() { next } else { next & 0xffff_ffff }
    }

    /// Makes a block; a function of its own for profiles.
    #[inline(never)]
    fn make_block(&mut self, wish: Wish, page: CodePage) -> Result<Option<u32>, Exception> {
        for _ in 0..TRIES {
            let Some(source) = self.decode(&wish, page)? else { return Ok(None) };
            let length = self.scratch.steps.last().map_or(0, |step| step.at + step.iced.len());
            if !self.mark(&source, length) {
                continue;
            }
            return Ok(self.emit(&wish, source.pages(), length));
        }
        Ok(None)
    }

    /// Reads and decodes; `None` if there is nothing to translate.
    fn decode(
        &mut self,
        wish: &Wish,
        (page, ram_page): CodePage,
    ) -> Result<Option<Source>, Exception> {
        let rip = wish.rip;
        let at = ram_page | rip & 0xfff;
        let left = (4096 - (rip & 0xfff)) as usize;
        let max = self.options.block_size.clamp(1, MAX_STEPS);
        let mut source = Source { pages: [page, 0], page_count: 1, at, next_at: 0, first: 0 };
        let most = left.min(max * MAX_INSTRUCTION_BYTES);
        for first in [most.min(FIRST_BYTES), most] {
            source.first = first;
            self.read_bytes(at, 0, first);
            if self.decode_steps(wish, first, max) || first == most {
                break;
            }
        }
        if !self.scratch.steps.is_empty() {
            return Ok(Some(source));
        }
        if left >= MAX_INSTRUCTION_BYTES {
            return Ok(None);
        }
        // The first instruction may reach into the next page.
        let next = self.next_page(rip);
        let Ok(Some((second, second_ram))) = self.page_of(next, wish.key) else { return Ok(None) };
        source.next_at = second_ram;
        source.pages = [page, second];
        source.page_count = 2;
        self.read_bytes(second_ram, source.first, MAX_INSTRUCTION_BYTES);
        self.decode_steps(wish, source.first + MAX_INSTRUCTION_BYTES, 1);
        Ok((!self.scratch.steps.is_empty()).then_some(source))
    }

    /// Reads `count` bytes at offset `from` of RAM to place `at` of the bytes to be decoded.
    pub(crate) fn read_bytes(&mut self, from: u64, at: usize, count: usize) {
        if let Some(bytes) = self.scratch.bytes.get_mut(at..at + count) {
            read(self.cpu.ram(), from, bytes);
        }
    }

    /// Decodes the first `count` bytes that were read to steps, at most `max`. False if more bytes
    /// might give more steps.
    fn decode_steps(&mut self, wish: &Wish, count: usize, max: usize) -> bool {
        let (mut decoder, steps) = self.step_decoder(wish, count);
        let mut branches = 0;
        steps.clear();
        while steps.len() < max {
            let (step, is_end) = match decoder.next() {
                Decoded::Step { step, is_end } => (step, is_end),
                Decoded::Cut => return false,
                Decoded::Outside => break,
            };
            let is_branch = matches!(step.action, Action::Branch(_));
            let goes_back = is_branch && step.iced.near_branch_target() <= step.iced.ip();
            steps.push(step);
            branches += usize::from(is_branch);
            if is_end || goes_back || branches == MAX_BRANCHES {
                break;
            }
        }
        true
    }

    /// What decodes the first `count` bytes that were read, from `wish.rip` on, and where its steps
    /// go.
    pub(crate) fn step_decoder(
        &mut self,
        wish: &Wish,
        count: usize,
    ) -> (StepDecoder<'_>, &mut Vec<Step>) {
        let mode = &self.cpu.mode;
        let target = Target {
            mode,
            has_numeric_exceptions: self.cpu.state.cr0 & cpu::state::cr0::NE != 0,
            fs_is_whole: wish.key.whole[0],
            gs_is_whole: wish.key.whole[1],
        };
        let Scratch { bytes, steps, gates, .. } = &mut self.scratch;
        let bytes = bytes.get(..count).unwrap_or_default();
        let decoder = StepDecoder {
            cpu: &self.cpu,
            target,
            answers: gates.of_mode(mode.key),
            decoder: Decoder::with_ip(mode.code_bits, bytes, wish.rip, self.cpu.decoder_options()),
            start: wish.rip,
            is_checked: self.options.cross_check,
        };
        (decoder, steps)
    }

    /// Marks the bytes as code, and tells whether they still are what was decoded.
    fn mark(&self, source: &Source, length: usize) -> bool {
        let ram = self.cpu.ram();
        let first = length.min(source.first);
        ram.flags().mark_code(source.at >> 12, source.at & 0xfff, first as u64);
        let Some((low, high)) =
            self.scratch.bytes.get(..length).and_then(|bytes| bytes.split_at_checked(first))
        else {
            return false;
        };
        if !high.is_empty() {
            ram.flags().mark_code(source.next_at >> 12, 0, high.len() as u64);
        }
        is_same(ram, source.at, low) && is_same(ram, source.next_at, high)
    }

    /// Emits the block of the steps and adds it to the cache.
    pub(crate) fn emit(&mut self, wish: &Wish, pages: &[u32], guest_bytes: usize) -> Option<u32> {
        let &Wish { rip, key, mode, is_ungrouped, is_superblock } = wish;
        if !is_ungrouped && !self.options.counting {
            let Scratch { grouper, steps, .. } = &mut self.scratch;
            grouper.group_accesses(steps, self.cpu.mode.is_64());
        }
        let Ok(recorded) = self.recorded_number() else {
            self.clear_cache();
            return None;
        };
        let around = Surroundings {
            thunks: &self.cache.thunks,
            view: key.view,
            is_64: self.cpu.mode.is_64(),
            is_counting: self.options.counting,
            counts_accesses: self.options.count_accesses,
            recorded,
            counted_links: self.counted_links(wish),
            first_link: self.cache.next_link(),
            first_handler: self.handlers.next(),
        };
        let Scratch { steps, bytes, emitted, .. } = &mut self.scratch;
        let start = self.cache.next_start();
        Emitter::new(around, start, rip, steps, bytes, emitted).emit(pages, emitted);
        for &number in &emitted.handlers {
            let step = steps.get(usize::from(number))?;
            let bytes = bytes.get(step.at..).unwrap_or_default();
            let insn = self.cpu.prepare_instruction(step.iced, bytes);
            self.handlers.add(insn, (steps.len() - usize::from(number)) as u64);
        }
        listing::log_guest(rip, steps.iter().map(|step| &step.iced));
        listing::log_host(rip, self.cache.code.base() + start, &emitted.bytes);
        let first_link = around.first_link;
        let added = self.cache.add(&NewBlock {
            rip,
            mode,
            is_ungrouped,
            is_superblock,
            pages,
            emitted,
            steps,
            guest_bytes,
        });
        match added {
            Some(number) => {
                self.remember_x87_steps(number, key.view);
                self.make_known_links(wish, pages, first_link);
            }
            None => self.clear_cache(),
        }
        if let (Some(map), Some(block)) =
            (&self.options.perf_map, added.and_then(|n| self.cache.block(n)))
        {
            let range = block.range();
            map.add(self.cache.code.base() + range.start, range.len(), rip);
        }
        added
    }

    /// Makes those links of the newest block, from number `first` on, whose targets are known
    /// already: each spares the code to be left once.
    fn make_known_links(&mut self, wish: &Wish, pages: &[u32], first: u32) {
        if self.options.cross_check {
            return;
        }
        for number in first..self.cache.next_link() {
            let Some(link) = self.cache.link(number) else { return };
            if link.at != 0
                && !link.is_hot
                && let Some(target) = self.known_target(wish, pages, &link)
            {
                self.cache.make_link(number, target);
            }
        }
    }

    /// The block that `link`, of a block of `pages`, leads to.
    fn known_target(&mut self, wish: &Wish, pages: &[u32], link: &Link) -> Option<u32> {
        let page = match link.entry {
            Entry::Guarded => self.valid_page(link.target, wish.key.view)?.0,
            Entry::Live | Entry::Spilled => *pages.first()?,
        };
        let found = self.cache.find(link.target, page, wish.mode, link.is_ungrouped);
        found.map(|(number, _)| number)
    }
}

/// Copies bytes of RAM out. A loop of loads: `rep movsb` takes longer to begin than most blocks are
/// long.
fn read(ram: &memory::Ram, at: u64, out: &mut [u8]) {
    let (words, rest) = out.as_chunks_mut();
    let mut at = at;
    for word in words {
        *word = ram.load::<u64>(at).to_le_bytes();
        at += 8;
    }
    for (byte, at) in rest.iter_mut().zip(at..) {
        *byte = ram.load::<u8>(at);
    }
}

/// True if the bytes at offset `at` of RAM are `expected`.
pub(crate) fn is_same(ram: &memory::Ram, at: u64, expected: &[u8]) -> bool {
    let (words, rest) = expected.as_chunks();
    let bytes_at = at + (expected.len() - rest.len()) as u64;
    (at..).step_by(8).zip(words).all(|(at, &word)| ram.load::<u64>(at).to_le_bytes() == word)
        && (bytes_at..).zip(rest).all(|(at, &byte)| ram.load::<u8>(at) == byte)
}
