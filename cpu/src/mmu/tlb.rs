//! The interpreter's translation cache.

use crate::debug::Breakpoints;
use crate::mmu::{Access, FlushLog, View};
use crate::state::{State, cr0, rflags};

/// Entries of each table.
const ENTRIES: usize = 1024;
/// Tables: three views, each for reads, writes and fetches; and one that is never filled.
const TABLES: usize = 10;
/// The table that never hits: data breakpoints or alignment checks make every access take the
/// slow path.
const SLOW: usize = 9;
/// An epoch lives in the low bits of a tag, where a page address has none.
const EPOCH_LIMIT: u64 = 1 << 12;
/// A tag that no lookup makes: epoch 0 is never current.
const EMPTY: u64 = 0;
/// Bits of the filter of large pages.
const LARGE_FILTER_BITS: u64 = 1024;

#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// Linear page address with the epoch in its low bits.
    tag: u64,
    /// Offset of the page in RAM.
    page: u64,
}

/// Translations of one CPU, and which of them the current mode may use.
///
/// Everything is dropped at once by moving the epoch. Strategy: more is flushed than the
/// architecture asks for (global pages and other PCIDs go too), never less.
pub struct Mmu {
    tables: Box<[[Entry; ENTRIES]; TABLES]>,
    epoch: u64,
    view: View,
    read_table: usize,
    write_table: usize,
    /// The kinds of breakpoints that DR7 enables.
    breakpoints: Breakpoints,
    /// Which 2 MiB ranges may have entries made from a large page, hashed.
    large: [u64; (LARGE_FILTER_BITS / 64) as usize],
    /// The generation of the physical space that the entries were made under.
    pub(crate) space_generation: u64,
    /// The current local APIC page, or all ones if it is disabled or in x2APIC mode.
    pub(crate) lapic_page: u64,
    /// What other caches of translations must drop.
    pub(crate) flushes: FlushLog,
}

impl Mmu {
    pub(crate) fn new() -> Self {
        let empty = Entry { tag: EMPTY, page: 0 };
        let tables: Box<[[Entry; ENTRIES]]> = vec![[empty; ENTRIES]; TABLES].into_boxed_slice();
        Self {
            // The length is TABLES by construction; the fallback only satisfies the types.
            tables: tables.try_into().unwrap_or_else(|_| Box::new([[empty; ENTRIES]; TABLES])),
            epoch: 1,
            view: View::Supervisor,
            read_table: 0,
            write_table: 1,
            breakpoints: Breakpoints::default(),
            large: [0; (LARGE_FILTER_BITS / 64) as usize],
            space_generation: u64::MAX,
            lapic_page: u64::MAX,
            flushes: FlushLog::default(),
        }
    }

    /// Who is asking when an instruction accesses memory explicitly.
    #[inline]
    pub(crate) fn view(&self) -> View {
        self.view
    }

    /// The kinds of breakpoints that are enabled.
    #[inline(always)]
    pub(crate) fn breakpoints(&self) -> Breakpoints {
        self.breakpoints
    }

    /// Selects the tables that fit the registers, and notes which breakpoints DR7 enables.
    pub(crate) fn select_view(&mut self, state: &State) {
        self.view = if state.cpl == 3 {
            View::User
        } else if state.rflags & rflags::AC != 0 {
            View::SupervisorAc
        } else {
            View::Supervisor
        };
        let is_checked =
            state.cpl == 3 && state.cr0 & cr0::AM != 0 && state.rflags & rflags::AC != 0;
        self.breakpoints = Breakpoints::of(state.dr[7]);
        if is_checked || self.breakpoints.has_data {
            (self.read_table, self.write_table) = (SLOW, SLOW);
        } else {
            let base = self.view as usize * 3;
            (self.read_table, self.write_table) = (base, base + 1);
        }
    }

    /// The RAM offset of `linear`, if the current view may read it.
    #[inline(always)]
    pub(crate) fn lookup_read(&self, linear: u64) -> Option<u64> {
        self.lookup(self.read_table, linear)
    }

    /// The RAM offset of `linear`, if the current view may write it.
    #[inline(always)]
    pub(crate) fn lookup_write(&self, linear: u64) -> Option<u64> {
        self.lookup(self.write_table, linear)
    }

    /// The RAM offset of `linear`, if the current view may fetch from it.
    #[inline(always)]
    pub(crate) fn lookup_fetch(&self, linear: u64) -> Option<u64> {
        self.lookup(self.view as usize * 3 + 2, linear)
    }

    /// The RAM offset of `linear`, if `view` may read or write it, whoever is asking otherwise.
    #[inline]
    pub(crate) fn lookup_as(&self, view: View, linear: u64, access: Access) -> Option<u64> {
        if self.read_table == SLOW {
            return None;
        }
        self.lookup(view as usize * 3 + usize::from(access == Access::Write), linear)
    }

    #[inline(always)]
    fn lookup(&self, table: usize, linear: u64) -> Option<u64> {
        let entry = &self.tables[table % TABLES][(linear >> 12) as usize % ENTRIES];
        (entry.tag == (linear & !0xfff | self.epoch)).then_some(entry.page | linear & 0xfff)
    }

    /// Remembers that `view` may do `access` to the page of `linear`, which is at `ram_page`.
    pub(crate) fn insert(
        &mut self,
        view: View,
        access: Access,
        linear: u64,
        ram_page: u64,
        is_large: bool,
    ) {
        let kind = match access {
            Access::Read => 0,
            Access::Write => 1,
            Access::Execute => 2,
        };
        let tag = linear & !0xfff | self.epoch;
        self.tables[view as usize * 3 + kind][(linear >> 12) as usize % ENTRIES] =
            Entry { tag, page: ram_page };
        if is_large {
            let bit = large_bit(linear);
            self.large[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Drops every translation.
    pub fn flush_all(&mut self) {
        self.epoch += 1;
        if self.epoch == EPOCH_LIMIT {
            self.epoch = 1;
            for table in self.tables.iter_mut() {
                table.fill(Entry { tag: EMPTY, page: 0 });
            }
        }
        self.large = [0; (LARGE_FILTER_BITS / 64) as usize];
    }

    /// Drops the translations of one linear page, of whatever size it is mapped with.
    pub fn flush_page(&mut self, linear: u64) {
        let bit = large_bit(linear);
        if self.large[(bit / 64) as usize] & 1 << (bit % 64) != 0 {
            return self.flush_all();
        }
        for table in self.tables.iter_mut() {
            let entry = &mut table[(linear >> 12) as usize % ENTRIES];
            if entry.tag & !0xfff == linear & !0xfff {
                entry.tag = EMPTY;
            }
        }
    }
}

/// Both a 4 MiB, a 2 MiB and a 1 GiB page reach here 4 KiB at a time; the filter is by 1 GiB so
/// that one bit covers every fragment of the page.
fn large_bit(linear: u64) -> u64 {
    (linear >> 30) % LARGE_FILTER_BITS
}
