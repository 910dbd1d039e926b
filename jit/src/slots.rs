//! Address-space slots: which context belongs to which PCID, and what flushes do to them.
//!
//! A slot keeps the TLBs, the jump caches and the valid code pages of one PCID while others run.
//! The pool is small and fixed; the slot that was left longest ago goes first.

use std::sync::Arc;

use cpu::mmu::{Flush, View};
use rustc_hash::FxHashSet;

use crate::cache::Cache;
use crate::code_memory::Contexts;
use crate::context::{
    Context, FIRST_GLOBAL_PAGE, JUMPS, VIEWS, empty, entry_index, jump_index, no_page, view_index,
};
use crate::runtime::context_at;

/// Slots of a vCPU.
pub(crate) const SLOTS: usize = 8;

/// Entries of a jump cache that are noted to be cleared one by one: beyond it all of them are.
const MOST_NOTED_JUMPS: usize = JUMPS / 8;
const _: () = assert!(JUMPS <= 1 << 16);

/// Large pages that are remembered one by one.
const MOST_LARGE_PAGES: usize = 1 << 16;
/// log2 of the sizes of large pages.
const LARGE_SHIFTS: [u32; 3] = [21, 22, 30];

#[derive(Clone, Copy, Debug)]
struct Slot {
    pcid: Option<u16>,
    last_used: u64,
    /// The supervisor's TLB has translations that are not global.
    has_local_supervisor: bool,
    /// The mode that each view's jump cache was filled for.
    jump_modes: [u16; 3],
}

/// See [`Slots::writers`]; pages leave the low bits free.
const ONE_WRITER: u64 = 1;
const MANY_WRITERS: u64 = 2;

const NO_MODE: u16 = u16::MAX;

const FREE: Slot =
    Slot { pcid: None, last_used: 0, has_local_supervisor: false, jump_modes: [NO_MODE; 3] };

/// What the statistics call flushes, by kind.
pub(crate) const FLUSHES: [&str; 4] = ["everything", "not global", "address space", "page"];

/// All slots of a vCPU.
pub(crate) struct Slots {
    contexts: Arc<Contexts>,
    /// By page of RAM: the linear page by which stores reach it without being noted, with
    /// [`ONE_WRITER`], or [`MANY_WRITERS`], or 0.
    writers: Box<[u64]>,
    slots: [Slot; SLOTS],
    /// By slot and view: the entries of its jump cache that are used, and one more than
    /// [`MOST_NOTED_JUMPS`] if they are not all noted.
    jumps: [[Vec<u16>; 3]; SLOTS],
    /// Large pages that some slot may have parts of.
    large: FxHashSet<u64>,
    /// There were too many of them.
    is_any_large: bool,
    current: usize,
    clock: u64,
    /// What counters of links begin with.
    superblock_after: u32,
    /// Flushes done, by kind, for the figures.
    pub(crate) flushes: [u64; FLUSHES.len()],
}

/// A large page as one number.
fn large_page(linear: u64, shift: u32) -> u64 {
    linear >> shift << 6 | u64::from(shift)
}

impl Slots {
    pub(crate) fn new(contexts: Arc<Contexts>, ram_pages: usize, superblock_after: u32) -> Self {
        let writers = vec![0; ram_pages].into();
        let slots = [FREE; SLOTS];
        let mut slots = Self {
            contexts,
            writers,
            slots,
            jumps: Default::default(),
            large: FxHashSet::default(),
            is_any_large: false,
            current: 0,
            clock: 0,
            superblock_after,
            flushes: [0; FLUSHES.len()],
        };
        for index in 0..SLOTS {
            slots.empty(index);
        }
        slots
    }

    fn context(&mut self, index: usize) -> &mut Context {
        let address = self.contexts.address(index);
        context_at(address, self)
    }

    /// The number of the current slot.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// The context of the current slot.
    pub(crate) fn current_context(&mut self) -> &mut Context {
        self.context(self.current)
    }

    /// True if the slot of `pcid` is the current one.
    pub(crate) fn is_selected(&self, pcid: u16) -> bool {
        self.slots[self.current].pcid == Some(pcid)
    }

    /// Makes the slot of `pcid`, which is not the current one, that.
    pub(crate) fn select(&mut self, pcid: u16) {
        self.clock += 1;
        self.slots[self.current].last_used = self.clock;
        let found = self.slots.iter().position(|slot| slot.pcid == Some(pcid));
        self.current = found.unwrap_or_else(|| {
            let oldest = (0..SLOTS).min_by_key(|&index| {
                (self.slots[index].pcid.is_some(), self.slots[index].last_used)
            });
            let index = oldest.unwrap_or(0);
            self.empty(index);
            self.slots[index].pcid = Some(pcid);
            index
        });
    }

    /// Empties a slot of everything.
    fn empty(&mut self, index: usize) {
        let superblock_after = self.superblock_after;
        let context = self.context(index);
        context.counters.fill(superblock_after);
        context.clear_tlbs();
        context.valid.fill(0);
        self.clear_jumps(index);
        self.slots[index] = FREE;
    }

    /// Makes the jump cache of `view` that of mode `mode`.
    pub(crate) fn prepare_jumps(&mut self, view: View, mode: u16) {
        let current = self.current;
        let known = &mut self.slots[current].jump_modes[view_index(view)];
        if *known != mode {
            *known = mode;
            self.clear_jumps_of(current, view);
        }
    }

    /// Lets jumps of `view` to `rip` find `code`.
    pub(crate) fn set_jump(&mut self, view: View, rip: u64, code: u64) {
        self.current_context().jumps(view).set(rip, code);
        let noted = &mut self.jumps[self.current][view_index(view)];
        if noted.len() <= MOST_NOTED_JUMPS {
            noted.push(jump_index(rip) as u16);
        }
    }

    fn clear_jumps(&mut self, index: usize) {
        for view in VIEWS {
            self.clear_jumps_of(index, view);
        }
    }

    /// Forgets the jumps of a view, at a cost by how many there are.
    fn clear_jumps_of(&mut self, index: usize, view: View) {
        let mut noted = std::mem::take(&mut self.jumps[index][view_index(view)]);
        let jumps = self.context(index).jumps(view);
        if noted.len() > MOST_NOTED_JUMPS {
            jumps.clear();
        } else {
            jumps.clear_entries(noted.iter().map(|&index| usize::from(index)));
        }
        noted.clear();
        self.jumps[index][view_index(view)] = noted;
    }

    /// Forgets all jumps and valid code pages of all slots: the cache was cleared.
    pub(crate) fn forget_code(&mut self) {
        for index in 0..SLOTS {
            self.context(index).valid.fill(0);
            self.clear_jumps(index);
            self.slots[index].jump_modes = [NO_MODE; 3];
        }
    }

    /// Notes what a translation of the current slot was made of.
    pub(crate) fn note(&mut self, linear: u64, view: View, is_global: bool, shift: u32) {
        let slot = &mut self.slots[self.current];
        slot.has_local_supervisor |= view == View::Supervisor && !is_global;
        if shift > 12 {
            if self.large.len() < MOST_LARGE_PAGES {
                self.large.insert(large_page(linear, shift));
            } else {
                self.is_any_large = true;
            }
        }
    }

    /// Does what `flush` asks for.
    pub(crate) fn flush(&mut self, flush: Flush, cache: &Cache) {
        let kind = match flush {
            Flush::Everything => 0,
            Flush::NonGlobal => 1,
            Flush::Pcid(_) => 2,
            Flush::Page(_) => 3,
        };
        self.flushes[kind] += 1;
        match flush {
            Flush::Everything => {
                (0..SLOTS).for_each(|index| self.flush_all(index, cache));
                self.large.clear();
                self.is_any_large = false;
            }
            Flush::NonGlobal => (0..SLOTS).for_each(|index| self.flush_local(index, cache)),
            Flush::Pcid(pcid) => {
                if let Some(index) = self.slots.iter().position(|slot| slot.pcid == Some(pcid)) {
                    self.flush_local(index, cache);
                }
            }
            Flush::Page(linear) => self.flush_page(linear & !0xfff, cache),
        }
    }

    fn flush_all(&mut self, index: usize, cache: &Cache) {
        if self.slots[index].pcid.is_none() {
            return;
        }
        let (_, globals) = cache.pages_in_use();
        let context = self.context(index);
        context.clear_tlb(View::Supervisor);
        let end = FIRST_GLOBAL_PAGE + globals;
        context.valid[FIRST_GLOBAL_PAGE..end].fill(0);
        self.slots[index].has_local_supervisor = false;
        self.flush_local(index, cache);
    }

    /// Drops what is not global of a slot.
    fn flush_local(&mut self, index: usize, cache: &Cache) {
        if self.slots[index].pcid.is_none() {
            return;
        }
        let (locals, _) = cache.pages_in_use();
        let has_local_supervisor = self.slots[index].has_local_supervisor;
        let context = self.context(index);
        context.clear_tlb(View::User);
        context.clear_tlb(View::SupervisorAc);
        if has_local_supervisor {
            context.clear_tlb(View::Supervisor);
        }
        context.valid[..locals].fill(0);
        self.slots[index].has_local_supervisor = false;
    }

    /// Drops a page of all slots: who it is global for is not known.
    fn flush_page(&mut self, linear: u64, cache: &Cache) {
        let pages = cache.pages_at(linear);
        for index in 0..SLOTS {
            if self.slots[index].pcid.is_none() {
                continue;
            }
            let context = self.context(index);
            context.drop_page(linear);
            for &page in pages {
                if let Some(valid) = context.valid.get_mut(page as usize) {
                    *valid = 0;
                }
            }
        }
        for shift in LARGE_SHIFTS {
            if self.large.remove(&large_page(linear, shift)) || self.is_any_large {
                for index in 0..SLOTS {
                    if self.slots[index].pcid.is_some() {
                        self.flush_range(index, linear, shift, cache);
                    }
                }
            }
        }
    }

    /// Drops every part of a large page of `1 << shift` bytes.
    fn flush_range(&mut self, index: usize, linear: u64, shift: u32, cache: &Cache) {
        let range = linear >> shift;
        let context = self.context(index);
        context.forget_shortcuts();
        for view in VIEWS {
            for (number, entry) in context.tlb(view).iter_mut().enumerate() {
                if entry.read_tag >> shift == range || entry.write_tag >> shift == range {
                    *entry = empty(number);
                }
            }
        }
        for (number, _) in cache.pages().filter(|(_, page)| page.linear >> shift == range) {
            context.valid[number] = 0;
        }
    }

    /// Notes that stores by linear page `linear` reach page `number` of RAM without being noted.
    pub(crate) fn note_writer(&mut self, number: u64, linear: u64) {
        if let Some(writer) = self.writers.get_mut(number as usize) {
            *writer = match *writer {
                0 => linear | ONE_WRITER,
                known if known == linear | ONE_WRITER => known,
                _ => MANY_WRITERS,
            };
        }
    }

    /// Lets stores to page `number` of RAM, at host address `host`, be noted again.
    pub(crate) fn drop_write_tags(&mut self, number: u64, host: u64) {
        let writer = self.writers.get_mut(number as usize).map_or(MANY_WRITERS, std::mem::take);
        if writer == 0 {
            return;
        }
        for index in 0..SLOTS {
            if self.slots[index].pcid.is_none() {
                continue;
            }
            let context = self.context(index);
            context.forget_shortcuts();
            if writer == MANY_WRITERS {
                context.drop_write_tags(host);
                continue;
            }
            for view in VIEWS {
                if let Some(entry) = context.entry(view, writer)
                    && entry.host == host
                {
                    entry.write_tag = no_page(entry_index(writer));
                }
            }
        }
    }
}
