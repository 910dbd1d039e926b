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
use crate::plan::Step;
use crate::thunks::Thunks;
use crate::x87_pointers::X87Step;

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
    pub(crate) ram_page: u64,
    is_user: bool,
    is_global: bool,
    /// By line of 64 bytes: one more than the number of the newest block that begins there; 0 for
    /// none.
    lines: Box<[u32; 64]>,
    /// Blocks that begin on the page before.
    behind: Vec<u32>,
}

/// Where the line of `rip` is in [`Page::lines`].
fn line(rip: u64) -> usize {
    (rip >> 6 & 63) as usize
}

/// A translated block. Positions are from the start of code memory; what a block has any number of
/// is in lists of the cache, where the next block's part begins behind it.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rip: u64,
    /// Position of its first byte, and one past its last.
    start: u32,
    end: u32,
    /// One past its last instruction: constants follow.
    #[cfg(feature = "testing")]
    code_end: u32,
    live: u32,
    spilled: u32,
    guarded: u32,
    dead_live: u32,
    dead_spilled: u32,
    first_mark: u32,
    first_offset: u32,
    first_recipe: u32,
    first_site: u32,
    /// One more than the number of a link that jumps here; 0 for none.
    incoming: u32,
    /// As [`Page::lines`]: the block before it that begins in its line.
    older: u32,
    /// One more than the number of the page that its one instruction reaches into; 0 for none.
    second_page: u32,
    pub(crate) mode: u16,
    steps: u8,
    /// Accesses are checked one by one.
    pub(crate) is_ungrouped: bool,
    /// It follows the jumps that were taken when it had become hot.
    pub(crate) is_superblock: bool,
    is_dead: bool,
}

const _: () = assert!(crate::translate::MAX_STEPS <= u8::MAX as usize);

impl Block {
    /// The page that its one instruction reaches into.
    pub(crate) fn second_page(&self) -> Option<u32> {
        self.second_page.checked_sub(1)
    }

    /// Position of an entry.
    pub(crate) fn entry(&self, entry: Entry) -> usize {
        let position = match entry {
            Entry::Live => self.live,
            Entry::Spilled => self.spilled,
            Entry::Guarded => self.guarded,
        };
        position as usize
    }

    /// Position of the entry for whoever comes from anywhere.
    pub(crate) fn guarded(&self) -> usize {
        self.guarded as usize
    }

    /// The positions of its bytes.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    /// How many instructions it has.
    pub(crate) fn step_count(&self) -> usize {
        usize::from(self.steps)
    }
}

/// A link as it is kept; see [`Link`].
#[derive(Clone, Copy, Debug)]
struct StoredLink {
    /// [`Link::target`], or the RIP of [`Link::undo`]: such links have no other target.
    target: u64,
    /// [`Link::at`], or what [`Link::undo`] moved RSP by.
    at: u32,
    /// The displacement before the link is made.
    unmade: [u8; 4],
    /// One more than the number of the next link to the same block; 0 for none.
    next: u32,
    entry: Entry,
    is_ungrouped: bool,
    is_interpreted: bool,
    is_hot: bool,
    has_undo: bool,
    is_made: bool,
}

impl StoredLink {
    fn new(link: &Link, unmade: [u8; 4]) -> Self {
        let Link { at, target, entry, is_ungrouped, is_interpreted, is_hot, undo } = *link;
        let (target, at) = match undo {
            Some((rip, moved)) => (rip, moved as i32 as u32),
            None => (target, at as u32),
        };
        Self {
            target,
            at,
            unmade,
            next: 0,
            entry,
            is_ungrouped,
            is_interpreted,
            is_hot,
            has_undo: undo.is_some(),
            is_made: false,
        }
    }

    fn link(&self) -> Link {
        let Self { entry, is_ungrouped, is_interpreted, is_hot, .. } = *self;
        let target = self.target;
        let (at, undo) = if self.has_undo {
            (0, Some((target, i64::from(self.at as i32))))
        } else {
            (self.at as usize, None)
        };
        Link { at, target, entry, is_ungrouped, is_interpreted, is_hot, undo }
    }
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
    pub(crate) superblocks: u64,
    pub(crate) evictions: u64,
}

/// The index of everything translated.
pub(crate) struct Cache {
    pub(crate) code: CodeMemory,
    pub(crate) thunks: Thunks,
    used: usize,
    /// In order of position.
    blocks: Vec<Block>,
    links: Vec<StoredLink>,
    marks: Vec<Mark>,
    /// RIP of each step, as an offset from its block's.
    offsets: Vec<i16>,
    recipes: Vec<Recipe>,
    /// In order of blocks and steps.
    pub(crate) x87_steps: Vec<X87Step>,
    /// Positions of return sites.
    sites: Vec<u32>,
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
            marks: Vec::new(),
            offsets: Vec::new(),
            recipes: Vec::new(),
            x87_steps: Vec::new(),
            sites: Vec::new(),
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
        self.marks.clear();
        self.offsets.clear();
        self.recipes.clear();
        self.x87_steps.clear();
        self.sites.clear();
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
        let lines = Box::new([0; 64]);
        self.pages[number] =
            Some(Page { linear, ram_page, is_user, is_global, lines, behind: Vec::new() });
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

    /// Code page `number`.
    pub(crate) fn page_of(&self, number: u32) -> Option<&Page> {
        self.pages.get(number as usize).and_then(Option::as_ref)
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

    /// The newest block at `rip` in `page`.
    pub(crate) fn find(
        &self,
        rip: u64,
        page: u32,
        mode: u16,
        is_ungrouped: bool,
    ) -> Option<(u32, &Block)> {
        self.blocks_at(rip, page, mode, is_ungrouped).next()
    }

    /// All blocks at `rip` in `page`, the newest first: more than one if they reach into different
    /// pages, or were made anew.
    pub(crate) fn blocks_at(
        &self,
        rip: u64,
        page: u32,
        mode: u16,
        is_ungrouped: bool,
    ) -> impl Iterator<Item = (u32, &Block)> {
        let mut next = self.page_of(page).map_or(0, |page| page.lines[line(rip)]);
        let in_line = std::iter::from_fn(move || {
            let number = next.checked_sub(1)?;
            let block = self.blocks.get(number as usize)?;
            next = block.older;
            Some((number, block))
        });
        in_line.filter(move |(_, block)| {
            block.rip == rip
                && block.mode == mode
                && block.is_ungrouped == is_ungrouped
                && !block.is_dead
        })
    }

    /// The blocks that are not dead.
    #[cfg(feature = "testing")]
    pub(crate) fn translated(&self) -> Vec<Translated> {
        let first = self.blocks.first().map_or(0, |block| block.start);
        let blocks = self.blocks.iter().filter(|block| !block.is_dead);
        let translated = |block: &Block| Translated {
            rip: block.rip,
            position: (block.start - first) as usize,
            bytes: self.code.read(block.start as usize, block.code_end as usize),
        };
        blocks.map(translated).collect()
    }

    /// Block `number`.
    pub(crate) fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number as usize)
    }

    /// Link `number`.
    pub(crate) fn link(&self, number: u32) -> Option<Link> {
        self.links.get(number as usize).map(StoredLink::link)
    }

    /// Adds a block. `None` if the memory is full.
    pub(crate) fn add(&mut self, new: &NewBlock<'_>) -> Option<u32> {
        let &NewBlock { rip, mode, is_ungrouped, is_superblock, pages, emitted, steps, .. } = new;
        let start = self.next_start();
        let end = start + emitted.bytes.len();
        if u32::try_from(end).is_err() || !self.code.write(start, &emitted.bytes) {
            return None;
        }
        self.used = end;
        self.note_figures(new, start);
        let number = self.blocks.len() as u32;
        self.blocks.push(Block {
            rip,
            start: start as u32,
            end: end as u32,
            #[cfg(feature = "testing")]
            code_end: (start + emitted.code_bytes) as u32,
            live: emitted.live as u32,
            spilled: emitted.spilled as u32,
            guarded: emitted.guarded as u32,
            dead_live: emitted.dead_live as u32,
            dead_spilled: emitted.dead_spilled as u32,
            first_mark: self.marks.len() as u32,
            first_offset: self.offsets.len() as u32,
            first_recipe: self.recipes.len() as u32,
            first_site: self.sites.len() as u32,
            incoming: 0,
            older: 0,
            second_page: pages.get(1).map_or(0, |page| page + 1),
            mode,
            steps: steps.len() as u8,
            is_ungrouped,
            is_superblock,
            is_dead: false,
        });
        self.links.extend(emitted.links.iter().map(|link| {
            StoredLink::new(link, four_bytes(&emitted.bytes, link.at.wrapping_sub(start)))
        }));
        self.marks.extend_from_slice(&emitted.marks);
        self.recipes.extend_from_slice(&emitted.recipes);
        self.sites.extend(emitted.return_sites.iter().map(|&site| site as u32));
        self.offsets.extend(steps.iter().map(|step| step.iced.ip().wrapping_sub(rip) as i16));
        self.note_pages(pages, number);
        Some(number)
    }

    /// Lets block `number`, which is the newest, be found by its pages.
    fn note_pages(&mut self, pages: &[u32], number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        for (position, &page) in pages.iter().enumerate() {
            let Some(Some(page)) = self.pages.get_mut(page as usize) else { continue };
            if position == 0 {
                block.older = std::mem::replace(&mut page.lines[line(block.rip)], number + 1);
            } else {
                page.behind.push(number);
            }
        }
    }

    fn note_figures(&mut self, new: &NewBlock<'_>, start: usize) {
        self.figures.blocks += 1;
        self.figures.superblocks += u64::from(new.is_superblock);
        self.figures.instructions += new.steps.len() as u64;
        self.figures.guest_bytes += new.guest_bytes as u64;
        self.figures.hot_bytes += (new.emitted.hot_end - start) as u64;
        self.figures.host_bytes += new.emitted.bytes.len() as u64;
    }

    /// Makes link `number` a jump to block `target`.
    pub(crate) fn make_link(&mut self, number: u32, target: u32) {
        let Some(link) = self.links.get_mut(number as usize) else { return };
        let Some(block) = self.blocks.get_mut(target as usize) else { return };
        if link.has_undo || link.at == 0 || block.is_dead {
            return;
        }
        let at = link.at as usize;
        let value = displacement(at, block.entry(link.entry));
        // A link that jumped somewhere before stays in that block's list: the entries of dead
        // blocks are found to be dead by whoever comes by a link that they do not know.
        if !std::mem::replace(&mut link.is_made, true) {
            link.next = std::mem::replace(&mut block.incoming, number + 1);
        }
        self.code.write(at, &value.to_le_bytes());
        self.figures.links_made += 1;
    }

    /// Kills every block of RAM page `ram_page`. True if there was one.
    pub(crate) fn kill_page(&mut self, ram_page: u64) -> bool {
        let Some(pages) = self.by_ram.get(&ram_page) else { return false };
        let mut numbers = Vec::new();
        for &page in pages {
            let Some(Some(page)) = self.pages.get_mut(page as usize) else { continue };
            numbers.append(&mut page.behind);
            for newest in page.lines.iter_mut() {
                let mut next = std::mem::take(newest);
                while let Some(number) = next.checked_sub(1) {
                    numbers.push(number);
                    next = self.blocks.get(number as usize).map_or(0, |block| block.older);
                }
            }
        }
        let has_some = !numbers.is_empty();
        for number in numbers {
            self.kill(number);
        }
        has_some
    }

    /// Kills every block of the RAM pages that linear page `linear` is known to be mapped to.
    pub(crate) fn kill_linear_page(&mut self, linear: u64) {
        let ram_page = |&page: &u32| self.page_of(page).map(|page| page.ram_page);
        let ram_pages: Vec<u64> = self.pages_at(linear).iter().filter_map(ram_page).collect();
        for page in ram_pages {
            self.kill_page(page);
        }
    }

    /// Kills block `number`: whoever comes to it looks for another one.
    pub(crate) fn kill(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        if std::mem::replace(&mut block.is_dead, true) {
            return;
        }
        self.figures.dead_blocks += 1;
        let jumps = [
            (block.guarded, block.dead_spilled),
            (block.spilled, block.dead_spilled),
            (block.live, block.dead_live),
        ];
        let mut incoming = std::mem::take(&mut block.incoming);
        let view = self.modes.get(usize::from(block.mode)).map_or(View::User, |mode| mode.view);
        let first_site = block.first_site;
        for (at, target) in jumps {
            self.write_jump(at as usize, target as usize);
        }
        while let Some(link) =
            incoming.checked_sub(1).and_then(|link| self.links.get_mut(link as usize))
        {
            link.is_made = false;
            incoming = std::mem::take(&mut link.next);
            self.code.write(link.at as usize, &link.unmade);
        }
        let target = self.thunks.mispredicted(view);
        let next = self.blocks.get(number as usize + 1).map(|block| block.first_site);
        for site in first_site..next.unwrap_or(self.sites.len() as u32) {
            if let Some(&at) = self.sites.get(site as usize) {
                self.write_jump(at as usize, target);
            }
        }
    }

    fn write_jump(&mut self, at: usize, target: usize) {
        let mut bytes = [0xe9, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&displacement(at + 1, target).to_le_bytes());
        self.code.write(at, &bytes);
    }

    /// The number of the block at host position `at`, and the mark that holds there.
    fn mark_at(&self, at: usize) -> Option<(usize, &Mark)> {
        let after = self.blocks.partition_point(|block| block.start as usize <= at);
        let number = after.checked_sub(1)?;
        let block = self.blocks.get(number)?;
        if at >= block.end as usize {
            return None;
        }
        let offset = at as u32 - block.start;
        let marks_end = self.blocks.get(after).map_or(self.marks.len(), |b| b.first_mark as usize);
        let marks = self.marks.get(block.first_mark as usize..marks_end)?;
        let mark = marks.get(marks.partition_point(|mark| mark.host <= offset).checked_sub(1)?)?;
        Some((number, mark))
    }

    /// The x87 instruction at the host address that ends in `low`, and the last one of its block
    /// up to it that has a memory operand.
    pub(crate) fn x87_steps_at(&self, low: u32) -> Option<(X87Step, Option<X87Step>)> {
        let at = low.wrapping_sub(self.code.base() as u32) as usize;
        let (number, mark) = self.mark_at(at)?;
        let place = |step: &X87Step| (step.block as usize, step.step);
        let here = (number, mark.step);
        let end = self.x87_steps.partition_point(|step| place(step) <= here);
        let until = self.x87_steps.get(..end)?;
        let last = until.last().filter(|step| place(step) == here)?;
        let of_block = until.iter().rev().take_while(|step| step.block == last.block);
        Some((*last, of_block.copied().find(X87Step::has_memory)))
    }

    /// What host position `at` belongs to.
    pub(crate) fn locate(&self, at: usize) -> Option<Place> {
        let (number, mark) = self.mark_at(at)?;
        let block = self.blocks.get(number)?;
        let step_offset =
            *self.offsets.get(block.first_offset as usize + usize::from(mark.step))?;
        let recipe = |number: u8| {
            self.recipes.get(block.first_recipe as usize + usize::from(number)).copied()
        };
        Some(Place {
            rip: block.rip.wrapping_add_signed(i64::from(step_offset)),
            is_live: mark.flags == MarkedFlags::Live,
            recipe: match mark.flags {
                MarkedFlags::Recipe(number) => recipe(number),
                MarkedFlags::Live | MarkedFlags::Spilled => None,
            },
            left: block.step_count().saturating_sub(usize::from(mark.step)) as u64,
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

/// A block's code, for tests.
#[cfg(feature = "testing")]
#[derive(Clone, Debug)]
pub struct Translated {
    /// Guest RIP of the block.
    pub rip: u64,
    /// Where its code is, from the first block's on.
    pub position: usize,
    /// The code.
    pub bytes: Vec<u8>,
}

/// A block to be added.
pub(crate) struct NewBlock<'a> {
    pub(crate) rip: u64,
    pub(crate) mode: u16,
    pub(crate) is_ungrouped: bool,
    pub(crate) is_superblock: bool,
    pub(crate) pages: &'a [u32],
    pub(crate) emitted: &'a Emitted,
    pub(crate) steps: &'a [Step],
    pub(crate) guest_bytes: usize,
}
