//! Finding a block, and making it when there is none.

use cpu::exception::Exception;
use cpu::mmu::View;
use iced_x86::Decoder;

use crate::cache::{ModeKey, NewBlock};
use crate::emit::{Emitter, Surroundings};
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

/// Bytes that a block is decoded from, and where they are.
struct Source {
    /// Number of the code page, and of the next one if the first instruction reaches into it.
    pages: Vec<u32>,
    /// Offset in RAM of the first byte, and of the bytes on the next page.
    at: u64,
    next_at: u64,
    /// Bytes on the first page.
    first: usize,
    bytes: Vec<u8>,
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
        let Some((page, ram_page)) = self.code_page(rip, key)? else { return Ok(None) };
        if let Some((number, block)) = self.cache.find(rip, page, mode, is_ungrouped) {
            let needs_second = block.step_count() == 1 && rip & 0xfff > 0xfff - 14;
            if !needs_second || self.second_page_is_known(rip, key)? {
                return Ok(Some(number));
            }
        }
        let started = std::time::Instant::now();
        let made = self.make_block(rip, key, mode, is_ungrouped, (page, ram_page));
        self.translation_ns += started.elapsed().as_nanos() as u64;
        made
    }

    /// The number of the code page of `rip`, which is then valid, and its offset in RAM.
    fn code_page(&mut self, rip: u64, key: ModeKey) -> Result<Option<(u32, u64)>, Exception> {
        if self.cpu.mode.is_64() && !self.cpu.mode.is_canonical(rip) {
            return Ok(None);
        }
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
        // Another mapping of the same linear page is no longer the one that fetches see.
        let others: Vec<u32> = self.cache.pages_at(linear).to_vec();
        self.slots.note(linear, key.view, page.is_global, page.shift);
        let valid = &mut self.slots.current_context().valid;
        for other in others {
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

    /// Maps the page behind the one of `rip` again. True if it has a number, so that a block's
    /// guard can find it.
    fn second_page_is_known(&mut self, rip: u64, key: ModeKey) -> Result<bool, Exception> {
        let next = self.next_page(rip);
        Ok(self.code_page(next, key)?.is_some())
    }

    fn next_page(&self, rip: u64) -> u64 {
        let next = (rip & !0xfff).wrapping_add(4096);
        if self.cpu.mode.is_64() { next } else { next & 0xffff_ffff }
    }

    fn make_block(
        &mut self,
        rip: u64,
        key: ModeKey,
        mode: u16,
        is_ungrouped: bool,
        (page, ram_page): (u32, u64),
    ) -> Result<Option<u32>, Exception> {
        for _ in 0..TRIES {
            let Some((source, mut steps)) = self.decode(rip, key, page, ram_page)? else {
                return Ok(None);
            };
            let length = steps.last().map_or(0, |step| step.at + step.iced.len());
            if !self.mark(&source, length) {
                continue;
            }
            if !is_ungrouped && !self.options.counting {
                plan::group_accesses(&mut steps, self.cpu.mode.is_64());
            }
            return Ok(self.emit(rip, (key, mode), is_ungrouped, &source, &steps));
        }
        Ok(None)
    }

    /// Reads and decodes; `None` if there is nothing to translate.
    fn decode(
        &mut self,
        rip: u64,
        key: ModeKey,
        page: u32,
        ram_page: u64,
    ) -> Result<Option<(Source, Vec<Step>)>, Exception> {
        let at = ram_page | rip & 0xfff;
        let left = (4096 - (rip & 0xfff)) as usize;
        let max = self.options.block_size.clamp(1, MAX_STEPS);
        let mut bytes = vec![0; left.min(max * MAX_INSTRUCTION_BYTES)];
        self.cpu.ram().read_bytes(at, &mut bytes);
        let first = bytes.len();
        let mut source = Source { pages: vec![page], at, next_at: 0, first, bytes };
        let steps = self.steps(rip, key, &source.bytes, max);
        if !steps.is_empty() {
            return Ok(Some((source, steps)));
        }
        if left >= MAX_INSTRUCTION_BYTES {
            return Ok(None);
        }
        // The first instruction may reach into the next page.
        let next = self.next_page(rip);
        let Ok(Some((second, second_ram))) = self.code_page(next, key) else { return Ok(None) };
        let mut more = [0; MAX_INSTRUCTION_BYTES];
        self.cpu.ram().read_bytes(second_ram, &mut more);
        source.next_at = second_ram;
        source.pages.push(second);
        source.bytes.extend_from_slice(&more);
        let steps = self.steps(rip, key, &source.bytes, 1);
        Ok((!steps.is_empty()).then_some((source, steps)))
    }

    /// The steps that `bytes` decode to, at most `max`.
    fn steps(&self, rip: u64, key: ModeKey, bytes: &[u8], max: usize) -> Vec<Step> {
        let mode = self.cpu.mode;
        let target = Target {
            mode: &mode,
            has_numeric_exceptions: self.cpu.state.cr0 & cpu::state::cr0::NE != 0,
            fs_is_whole: key.whole[0],
            gs_is_whole: key.whole[1],
        };
        let options = self.cpu.decoder_options();
        let mut decoder = Decoder::with_ip(mode.code_bits, bytes, rip, options);
        let mut steps = Vec::with_capacity(max.min(24));
        let mut branches = 0;
        while steps.len() < max && decoder.can_decode() {
            let at = decoder.position();
            let iced = decoder.decode();
            if iced.is_invalid() || !mode.is_64() && iced.next_ip() >> 32 != 0 {
                break;
            }
            let is_gated = self.cpu.is_gated(decoder::row(iced.code()), &iced);
            let step = plan::step(&target, iced, at, is_gated);
            if self.options.cross_check && !step.action.is_repeatable() {
                break;
            }
            let is_end = is_gated || step.action.ends_block(step.row);
            let is_branch = matches!(step.action, Action::Branch(_));
            let goes_back = is_branch && iced.near_branch_target() <= iced.ip();
            steps.push(step);
            branches += usize::from(is_branch);
            if is_end || goes_back || branches == MAX_BRANCHES {
                break;
            }
        }
        steps
    }

    /// Marks the bytes as code, and tells whether they still are what was decoded.
    fn mark(&mut self, source: &Source, length: usize) -> bool {
        let ram = self.cpu.ram();
        let first = length.min(source.first);
        ram.flags().mark_code(source.at >> 12, source.at & 0xfff, first as u64);
        let mut now = vec![0; length];
        let (low, high) = now.split_at_mut(first);
        ram.read_bytes(source.at, low);
        if !high.is_empty() {
            ram.flags().mark_code(source.next_at >> 12, 0, high.len() as u64);
            ram.read_bytes(source.next_at, high);
        }
        source.bytes.get(..length) == Some(&now)
    }

    fn emit(
        &mut self,
        rip: u64,
        (key, mode): (ModeKey, u16),
        is_ungrouped: bool,
        source: &Source,
        steps: &[Step],
    ) -> Option<u32> {
        let around = Surroundings {
            thunks: &self.cache.thunks,
            view: key.view,
            is_64: self.cpu.mode.is_64(),
            is_counting: self.options.counting,
            first_link: self.cache.next_link(),
            first_handler: self.handlers.next(),
        };
        let mut emitter = Emitter::new(around, self.cache.next_start(), rip, steps, &source.bytes);
        let emitted = emitter.emit(&source.pages);
        let handlers = std::mem::take(&mut emitter.handlers);
        for number in handlers {
            let step = steps.get(usize::from(number))?;
            let bytes = source.bytes.get(step.at..).unwrap_or_default();
            let insn = self.cpu.prepare_instruction(step.iced, bytes);
            self.handlers.add(insn, (steps.len() - usize::from(number)) as u64);
        }
        let offsets = steps.iter().map(|step| step.iced.ip().wrapping_sub(rip) as i32).collect();
        let guest_bytes = steps.last().map_or(0, |step| step.at + step.iced.len());
        let new = NewBlock {
            rip,
            mode,
            is_ungrouped,
            pages: &source.pages,
            emitted,
            offsets,
            guest_bytes,
        };
        let added = self.cache.add(new);
        if added.is_none() {
            self.clear_cache();
        }
        if let (Some(map), Some(block)) =
            (&self.options.perf_map, added.and_then(|n| self.cache.block(n)))
        {
            map.add(self.cache.code.base() + block.start, block.end - block.start, rip);
        }
        added
    }
}
