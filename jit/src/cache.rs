//! Which code has been translated, and where it is.
//!
//! A block belongs to the code page it came from (a linear page, the RAM page behind it, and who
//! may
//! fetch from it), and to the mode it was translated for. Blocks are laid out in order of creation;
//! when the memory is full everything is dropped and begun anew, which is safe because only the
//! vCPU's own thread ever executes the code and it is outside then.
//!
//! A block that is dropped alone (its bytes were written) is *dead*: its entries and return sites
//! are made jumps to where a new block is looked up, so nobody who jumps to it need be known.

use cpu::mmu::View;
use rustc_hash::FxHashMap;

use crate::asm::displacement;
use crate::code_memory::CodeMemory;
use crate::context::{CODE_PAGES, FIRST_GLOBAL_PAGE};
use crate::emit::{Emitted, Entry, Link, Mark, MarkedFlags};
use crate::flow::Recipe;
use crate::thunks::Thunks;

/// What a block was translated for, besides its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModeKey {
    /// [`cpu::mode::Mode::key`].
    pub(crate) key: u64,
    pub(crate) view: View,
    /// FS and GS can be added without checks; for code outside 64-bit mode.
    pub(crate) whole: [bool; 2],
}

/// A linear page of code with the RAM behind it.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) linear: u64,
    is_user: bool,
    is_global: bool,
    blocks: Vec<u32>,
}

/// A translated block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rip: u64,
    pub(crate) mode: u16,
    /// Accesses are checked one by one.
    pub(crate) is_ungrouped: bool,
    /// Position of its first byte, and one past its last.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// One past its last instruction: constants follow.
    #[cfg(feature = "testing")]
    code_end: usize,
    live: usize,
    spilled: usize,
    pub(crate) guarded: usize,
    marks: Box<[Mark]>,
    recipes: Box<[Recipe]>,
    /// RIP of each step, as an offset from the block's.
    offsets: Box<[i32]>,
    return_sites: Box<[usize]>,
    dead_live: usize,
    dead_spilled: usize,
    /// Links that jump here.
    incoming: Vec<u32>,
    is_dead: bool,
}

impl Block {
    /// Position of an entry.
    pub(crate) fn entry(&self, entry: Entry) -> usize {
        match entry {
            Entry::Live => self.live,
            Entry::Spilled => self.spilled,
            Entry::Guarded => self.guarded,
        }
    }

    /// How many instructions it has.
    pub(crate) fn step_count(&self) -> usize {
        self.offsets.len()
    }
}

/// A link with the block that it leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnedLink {
    pub(crate) link: Link,
    /// The displacement before the link is made.
    unmade: [u8; 4],
}

/// What a host position belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Guest RIP of the instruction.
    pub(crate) rip: u64,
    /// The flags are in EFLAGS.
    pub(crate) is_live: bool,
    /// How the flags are to be computed, if they are nowhere.
    pub(crate) recipe: Option<Recipe>,
    /// Instructions of the block from this one on.
    pub(crate) left: u64,
}

/// Figures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) blocks: u64,
    pub(crate) instructions: u64,
    pub(crate) guest_bytes: u64,
    pub(crate) hot_bytes: u64,
    pub(crate) host_bytes: u64,
    pub(crate) links_made: u64,
    pub(crate) dead_blocks: u64,
    pub(crate) evictions: u64,
}

/// The index of everything translated.
pub(crate) struct Cache {
    pub(crate) code: CodeMemory,
    pub(crate) thunks: Thunks,
    used: usize,
    /// In order of position.
    blocks: Vec<Block>,
    links: Vec<OwnedLink>,
    lookup: FxHashMap<(u64, u32), u32>,
    pages: Vec<Option<Page>>,
    next_page: [usize; 2],
    by_mapping: FxHashMap<(u64, u64, bool, bool), u32>,
    by_linear: FxHashMap<u64, Vec<u32>>,
    by_ram: FxHashMap<u64, Vec<u32>>,
    modes: Vec<ModeKey>,
    /// Moves when everything was dropped: numbers from before mean nothing.
    pub(crate) generation: u64,
    pub(crate) figures: Figures,
}

/// Modes that can be told apart; more of them drop everything.
const MODES: usize = 1 << 12;

impl Cache {
    pub(crate) fn new(code: CodeMemory, thunks: Thunks) -> Self {
        let used = thunks.end;
        Self {
            code,
            thunks,
            used,
            blocks: Vec::new(),
            links: Vec::new(),
            lookup: FxHashMap::default(),
            pages: Vec::new(),
            next_page: [0, FIRST_GLOBAL_PAGE],
            by_mapping: FxHashMap::default(),
            by_linear: FxHashMap::default(),
            by_ram: FxHashMap::default(),
            modes: Vec::new(),
            generation: 0,
            figures: Figures::default(),
        }
    }

    /// Drops everything. Whoever calls it makes all code pages invalid and clears all jump caches.
    pub(crate) fn clear(&mut self) {
        self.used = self.thunks.end;
        self.blocks.clear();
        self.links.clear();
        self.lookup.clear();
        self.pages.clear();
        self.next_page = [0, FIRST_GLOBAL_PAGE];
        self.by_mapping.clear();
        self.by_linear.clear();
        self.by_ram.clear();
        self.modes.clear();
        self.generation += 1;
        self.figures.evictions += 1;
    }

    /// Position where the next block begins.
    pub(crate) fn next_start(&self) -> usize {
        (self.used + 15) & !15
    }

    /// The number of the first link of the next block.
    pub(crate) fn next_link(&self) -> u32 {
        self.links.len() as u32
    }

    /// The number of `key`; `None` if there are too many.
    pub(crate) fn mode(&mut self, key: ModeKey) -> Option<u16> {
        if let Some(number) = self.modes.iter().position(|known| *known == key) {
            return Some(number as u16);
        }
        if self.modes.len() == MODES {
            return None;
        }
        self.modes.push(key);
        Some((self.modes.len() - 1) as u16)
    }

    /// The number of a code page; `None` if there are too many.
    pub(crate) fn page(
        &mut self,
        linear: u64,
        ram_page: u64,
        is_user: bool,
        is_global: bool,
    ) -> Option<u32> {
        let key = (linear, ram_page, is_user, is_global);
        if let Some(&number) = self.by_mapping.get(&key) {
            return Some(number);
        }
        let (kind, end) = if is_global { (1, CODE_PAGES) } else { (0, FIRST_GLOBAL_PAGE) };
        let number = self.next_page[kind];
        if number == end {
            return None;
        }
        self.next_page[kind] += 1;
        if self.pages.len() <= number {
            self.pages.resize_with(number + 1, || None);
        }
        self.pages[number] = Some(Page { linear, is_user, is_global, blocks: Vec::new() });
        let number = number as u32;
        self.by_mapping.insert(key, number);
        self.by_linear.entry(linear).or_default().push(number);
        self.by_ram.entry(ram_page).or_default().push(number);
        Some(number)
    }

    /// How many page numbers of each kind are in use: not global, global.
    pub(crate) fn pages_in_use(&self) -> (usize, usize) {
        (self.next_page[0], self.next_page[1] - FIRST_GLOBAL_PAGE)
    }

    /// The code pages at linear page `linear`.
    pub(crate) fn pages_at(&self, linear: u64) -> &[u32] {
        self.by_linear.get(&linear).map_or(&[], Vec::as_slice)
    }

    /// All code pages with their numbers.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (usize, &Page)> {
        self.pages.iter().enumerate().filter_map(|(n, page)| page.as_ref().map(|page| (n, page)))
    }

    /// True if two pages differ in their RAM alone.
    pub(crate) fn is_same_kind(&self, one: u32, other: u32) -> bool {
        let page = |number: u32| self.pages.get(number as usize).and_then(Option::as_ref);
        page(one).zip(page(other)).is_some_and(|(one, other)| {
            one.is_user() == other.is_user() && one.is_global() == other.is_global()
        })
    }

    fn key(rip: u64, page: u32, mode: u16, is_ungrouped: bool) -> (u64, u32) {
        (rip ^ u64::from(mode) << 49 ^ u64::from(is_ungrouped) << 63, page)
    }

    /// The block at `rip` in `page`.
    pub(crate) fn find(
        &self,
        rip: u64,
        page: u32,
        mode: u16,
        is_ungrouped: bool,
    ) -> Option<(u32, &Block)> {
        let &number = self.lookup.get(&Self::key(rip, page, mode, is_ungrouped))?;
        let block = self.blocks.get(number as usize)?;
        // The key folds numbers into one; the block knows them apart.
        (block.rip == rip && block.mode == mode && block.is_ungrouped == is_ungrouped)
            .then_some((number, block))
    }

    /// The RIP of each block that is not dead, and its bytes.
    #[cfg(feature = "testing")]
    pub(crate) fn translated(&self) -> Vec<(u64, Vec<u8>)> {
        let blocks = self.blocks.iter().filter(|block| !block.is_dead);
        blocks.map(|block| (block.rip, self.code.read(block.start, block.code_end))).collect()
    }

    /// Block `number`.
    pub(crate) fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number as usize)
    }

    /// Link `number`.
    pub(crate) fn link(&self, number: u32) -> Option<OwnedLink> {
        self.links.get(number as usize).copied()
    }

    /// Adds a block. `None` if the memory is full.
    pub(crate) fn add(&mut self, new: NewBlock<'_>) -> Option<u32> {
        let NewBlock { rip, mode, is_ungrouped, pages, emitted, offsets, guest_bytes } = new;
        let start = self.next_start();
        if !self.code.write(start, &emitted.bytes) {
            return None;
        }
        let end = start + emitted.bytes.len();
        self.used = end;
        let number = self.blocks.len() as u32;
        self.links.extend(emitted.links.iter().map(|&link| OwnedLink {
            link,
            unmade: four_bytes(&emitted.bytes, link.at.wrapping_sub(start)),
        }));
        self.figures.blocks += 1;
        self.figures.instructions += offsets.len() as u64;
        self.figures.guest_bytes += guest_bytes as u64;
        self.figures.hot_bytes += (emitted.hot_end - start) as u64;
        self.figures.host_bytes += emitted.bytes.len() as u64;
        self.blocks.push(Block {
            rip,
            mode,
            is_ungrouped,
            start,
            end,
            #[cfg(feature = "testing")]
            code_end: start + emitted.code_bytes,
            live: emitted.live,
            spilled: emitted.spilled,
            guarded: emitted.guarded,
            marks: emitted.marks.into(),
            recipes: emitted.recipes.into(),
            offsets,
            return_sites: emitted.return_sites.into(),
            dead_live: emitted.dead_live,
            dead_spilled: emitted.dead_spilled,
            incoming: Vec::new(),
            is_dead: false,
        });
        for (position, &page) in pages.iter().enumerate() {
            if position == 0 {
                self.lookup.insert(Self::key(rip, page, mode, is_ungrouped), number);
            }
            if let Some(Some(page)) = self.pages.get_mut(page as usize) {
                page.blocks.push(number);
            }
        }
        Some(number)
    }

    /// Makes link `number` a jump to block `target`.
    pub(crate) fn make_link(&mut self, number: u32, target: u32) {
        let Some(OwnedLink { link, .. }) = self.link(number) else { return };
        let Some(block) = self.blocks.get(target as usize) else { return };
        if link.at == 0 || block.is_dead {
            return;
        }
        let value = displacement(link.at, block.entry(link.entry));
        self.code.write(link.at, &value.to_le_bytes());
        self.figures.links_made += 1;
        if let Some(block) = self.blocks.get_mut(target as usize) {
            block.incoming.push(number);
        }
    }

    /// Kills every block of RAM page `ram_page`. True if there was one.
    pub(crate) fn kill_page(&mut self, ram_page: u64) -> bool {
        let Some(pages) = self.by_ram.get(&ram_page) else { return false };
        let mut numbers = Vec::new();
        for &page in pages {
            if let Some(Some(page)) = self.pages.get_mut(page as usize) {
                numbers.append(&mut page.blocks);
            }
        }
        let has_some = !numbers.is_empty();
        for number in numbers {
            self.kill(number);
        }
        has_some
    }

    fn kill(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        if std::mem::replace(&mut block.is_dead, true) {
            return;
        }
        self.figures.dead_blocks += 1;
        let block = &self.blocks[number as usize];
        let jumps = [
            (block.guarded, block.dead_spilled),
            (block.spilled, block.dead_spilled),
            (block.live, block.dead_live),
        ];
        let mode = block.mode;
        let sites = block.return_sites.clone();
        let incoming = block.incoming.clone();
        let view = self.modes.get(usize::from(mode)).map_or(View::User, |mode| mode.view);
        for (at, target) in jumps {
            self.write_jump(at, target);
        }
        for number in incoming {
            if let Some(OwnedLink { link, unmade }) = self.link(number) {
                self.code.write(link.at, &unmade);
            }
        }
        let target = self.thunks.mispredicted(view);
        for &at in &sites {
            self.write_jump(at, target);
        }
        self.remove_lookup(number);
    }

    fn write_jump(&mut self, at: usize, target: usize) {
        let mut bytes = [0xe9, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&displacement(at + 1, target).to_le_bytes());
        self.code.write(at, &bytes);
    }

    fn remove_lookup(&mut self, number: u32) {
        let Some(block) = self.blocks.get(number as usize) else { return };
        let (rip, mode, is_ungrouped) = (block.rip, block.mode, block.is_ungrouped);
        let pages = self.by_linear.get(&(rip & !0xfff)).cloned().unwrap_or_default();
        for page in pages {
            let key = Self::key(rip, page, mode, is_ungrouped);
            if self.lookup.get(&key) == Some(&number) {
                self.lookup.remove(&key);
            }
        }
    }

    /// What host position `at` belongs to.
    pub(crate) fn locate(&self, at: usize) -> Option<Place> {
        let after = self.blocks.partition_point(|block| block.start <= at);
        let block = self.blocks.get(after.checked_sub(1)?)?;
        if at >= block.end {
            return None;
        }
        let offset = (at - block.start) as u32;
        let after = block.marks.partition_point(|mark| mark.host <= offset);
        let mark = block.marks.get(after.checked_sub(1)?)?;
        let step = usize::from(mark.step);
        Some(Place {
            rip: block.rip.wrapping_add_signed(i64::from(*block.offsets.get(step)?)),
            is_live: mark.flags == MarkedFlags::Live,
            recipe: match mark.flags {
                MarkedFlags::Recipe(number) => block.recipes.get(usize::from(number)).copied(),
                MarkedFlags::Live | MarkedFlags::Spilled => None,
            },
            left: (block.offsets.len() - step) as u64,
        })
    }

    /// Bytes of code memory in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// The four bytes of `bytes` at `at`; zeroes outside.
fn four_bytes(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

impl Page {
    /// True if CPL 3 fetches from it.
    pub(crate) fn is_user(&self) -> bool {
        self.is_user
    }

    /// True if it outlives loads of CR3.
    pub(crate) fn is_global(&self) -> bool {
        self.is_global
    }
}

/// A block to be added.
pub(crate) struct NewBlock<'a> {
    pub(crate) rip: u64,
    pub(crate) mode: u16,
    pub(crate) is_ungrouped: bool,
    pub(crate) pages: &'a [u32],
    pub(crate) emitted: Emitted,
    pub(crate) offsets: Box<[i32]>,
    pub(crate) guest_bytes: usize,
}
