//! Superblocks: blocks along the path that hot code takes.
//!
//! Links that close loops count. When one has been taken [`Options::superblock_after`] times, its
//! target is hot: the interpreter executes what comes next, and the way that it takes becomes the
//! superblock, which follows jumps where an ordinary block leaves or ends. A loop has several of
//! its turns in one: accesses of all of them share checks, as far as their addresses differ by
//! constants. Where the path is left the links count too, so that what is hot behind them gets a
//! superblock of its own.
//!
//! A superblock takes the place of the block at its head; other ways into its middle have blocks of
//! their own as before. All of it lies in one page, like any block.
//!
//! [`Options::superblock_after`]: crate::Options::superblock_after

use cpu::state::Activity;

use crate::cache::ModeKey;
use crate::context::counter_index;
use crate::emit::CountedLinks;
use crate::plan::{Action, Step};
use crate::translate::{CodePage, Decoded, MAX_STEPS, Wish};
use crate::vcpu::Inner;

/// How often a jump is taken until its target becomes a superblock, unless told: making one costs
/// as much as some thousand instructions.
pub(crate) const AFTER: u32 = 1000;
/// Turns of a loop in a superblock at most.
const MAX_TURNS: usize = 8;
/// Places of a path at most: a repeated string instruction has one for each time it is looked at.
const MAX_PLACES: usize = 2 * MAX_STEPS;
/// Bytes of a page.
const PAGE: usize = 4096;

impl Inner {
    /// Which links of the block that `wish` asks for count.
    pub(crate) fn counted_links(&self, wish: &Wish) -> CountedLinks {
        let options = &self.options;
        if options.superblock_after == 0 || options.counting || wish.is_ungrouped {
            CountedLinks::None
        } else if wish.is_superblock {
            CountedLinks::Exits
        } else {
            CountedLinks::Backward
        }
    }

    /// Link `number`, whose target is at RIP, has become hot: it is made, to a superblock if there
    /// is a path for one.
    pub(crate) fn promote(&mut self, number: u32) {
        let after = self.options.superblock_after;
        if let Some(counter) = self.slots.current_context().counters.get_mut(counter_index(number))
        {
            *counter = after;
        }
        let generation = self.cache.generation;
        self.serve();
        let target = self.superblock_here();
        // Neither number means anything if all code was dropped meanwhile.
        if let Some(target) = target
            && self.cache.generation == generation
        {
            self.cache.make_link(number, target);
        }
    }

    /// The superblock at RIP, made if need be, or the block that does as well.
    fn superblock_here(&mut self) -> Option<u32> {
        let rip = self.cpu.state.rip;
        let (key, mode) = self.mode()?;
        let page = self.page_of(rip, key).ok()??;
        let found = self.cache.find(rip, page.0, mode, false);
        if let Some((number, block)) = found
            && block.is_superblock
        {
            return Some(number);
        }
        let old = found.map(|(number, _)| number);
        let generation = self.cache.generation;
        let mut path = self.record(rip, key);
        // Code is made for the mode that the state is in: the next time round may end in that.
        let is_same = self.cache.generation == generation && self.mode() == Some((key, mode));
        if !is_same || self.cpu.has_flushes() {
            return None;
        }
        path.truncate(self.end_of_path(&path, page.0, mode));
        let wish = Wish { rip, key, mode, is_ungrouped: false, is_superblock: true };
        self.make_superblock(&wish, page, &path, old).or(old)
    }

    /// Interprets from `head` on, and tells which way was taken: the addresses of instructions, for
    /// as long as they can be of one superblock.
    fn record(&mut self, head: u64, key: ModeKey) -> Vec<u64> {
        self.settle_x87();
        let mut path = vec![head];
        let mut turns = 0;
        while path.len() < MAX_PLACES && turns < MAX_TURNS {
            self.cpu.interpret(1);
            let rip = self.cpu.state.rip;
            if !self.is_on_path(head, rip, key) {
                break;
            }
            turns += usize::from(rip == head);
            path.push(rip);
        }
        self.mode_is_stale();
        path
    }

    /// True if nothing but instructions of the head's page has been executed, so that `rip` goes on
    /// with its path.
    fn is_on_path(&self, head: u64, rip: u64, key: ModeKey) -> bool {
        let cpu = &self.cpu;
        let is_same_mode = cpu.mode.key == key.key && cpu.view() == key.view;
        is_same_mode
            && rip & !0xfff == head & !0xfff
            && cpu.state.activity == Activity::Active
            && cpu.is_unwatched()
            && cpu.is_flat()
            && !cpu.has_flushes()
    }

    /// How much of `path` there is before the next superblock, which it goes on in.
    fn end_of_path(&self, path: &[u64], page: u32, mode: u16) -> usize {
        let is_head = |rip: u64| {
            self.cache.find(rip, page, mode, false).is_some_and(|(_, block)| block.is_superblock)
        };
        let head = path.iter().position(|&rip| is_head(rip));
        head.unwrap_or(path.len())
    }

    /// Makes the superblock along `path`, in place of block `old`. `None` if an ordinary block does
    /// as well.
    fn make_superblock(
        &mut self,
        wish: &Wish,
        page: CodePage,
        path: &[u64],
        old: Option<u32>,
    ) -> Option<u32> {
        self.read_bytes(page.1, 0, PAGE);
        if !self.decode_path(wish, path) || !self.mark_path(page.1) {
            return None;
        }
        let guest_bytes = self.scratch.steps.iter().map(|step| step.iced.len()).sum();
        let generation = self.cache.generation;
        let made = self.emit(wish, &[page.0], guest_bytes);
        if let Some(old) = old.filter(|_| self.cache.generation == generation) {
            self.cache.replace(old);
        }
        made
    }

    /// Decodes along `path`, whose page was read. False if it follows no jump.
    fn decode_path(&mut self, wish: &Wish, path: &[u64]) -> bool {
        let max = self.options.block_size.clamp(1, MAX_STEPS);
        let (mut decoder, steps) = self.step_decoder(wish, PAGE);
        steps.clear();
        let mut whole_turns = 0;
        for &rip in path {
            if steps.last().is_some_and(|step| step.iced.ip() == rip && !step.is_jump()) {
                // A repeated instruction that was not done yet.
                continue;
            }
            if rip == wish.rip {
                whole_turns = steps.len();
            }
            if let Some(last) = steps.last_mut() {
                last.follow_to(rip);
                if last.next() != rip {
                    break;
                }
            }
            if steps.len() == max || !decoder.jump((rip & 0xfff) as usize, rip) {
                break;
            }
            let Decoded::Step { step, is_end } = decoder.next() else { break };
            let is_open = !is_end || step.action == Action::Jump;
            steps.push(step);
            if !is_open {
                break;
            }
        }
        if whole_turns != 0 {
            // What would be a part of another turn is left to the next time round.
            steps.truncate(whole_turns);
            if let Some(last) = steps.last_mut() {
                last.unfollow();
            }
        }
        steps.iter().any(|step| step.is_followed())
    }

    /// Marks the bytes of all steps as code of the page at `ram_page`, and tells whether they still
    /// are what was decoded.
    fn mark_path(&self, ram_page: u64) -> bool {
        let ram = self.cpu.ram();
        let steps = &self.scratch.steps;
        for step in steps {
            ram.flags().mark_code(ram_page >> 12, step.at as u64, step.iced.len() as u64);
        }
        steps.iter().all(|step| {
            let bytes = self.scratch.bytes.get(step.at..step.at + step.iced.len());
            bytes.is_some_and(|bytes| {
                crate::translate::is_same(ram, ram_page + step.at as u64, bytes)
            })
        })
    }
}

impl Step {
    /// A jump that the path can follow, followed or not.
    fn is_jump(&self) -> bool {
        matches!(self.action, Action::Jump | Action::Branch(_)) || self.is_followed()
    }

    /// Lets the path end at the step.
    fn unfollow(&mut self) {
        self.action = match self.action {
            Action::FollowedJump => Action::Jump,
            Action::FollowedBranch(exit) => Action::Branch(exit ^ 1),
            action => action,
        };
    }

    /// A jump that the path follows.
    fn is_followed(&self) -> bool {
        matches!(self.action, Action::FollowedJump | Action::FollowedBranch(_))
    }
}
