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

use crate::context::counter_index;
use crate::emit::CountedLinks;
use crate::plan::{Action, Step};
use crate::translate::{CodePage, Decoded, MAX_STEPS, Scratch, Wish, is_same};
use crate::vcpu::Inner;

/// How often a jump is taken until its target becomes a superblock, unless told: making one costs
/// as much as ten thousand instructions.
pub(crate) const AFTER: u32 = 4000;
/// Turns of a loop in a superblock at most.
const MAX_TURNS: usize = 8;
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
        let wish = Wish { rip, key, mode, is_ungrouped: false, is_superblock: true };
        self.read_bytes(page.1, 0, PAGE);
        self.follow_path(&wish, page.0);
        // Code is made for the mode that the state is in: the next time round may end in that.
        let is_same = self.cache.generation == generation && self.mode() == Some((key, mode));
        if !is_same || self.cpu.has_flushes() {
            return None;
        }
        self.make_superblock(&wish, page, old).or(old)
    }

    /// Interprets from RIP on, and makes the way that is taken the steps of the superblock: to the
    /// last time that it comes back to its head, or as far as there can be one.
    fn follow_path(&mut self, wish: &Wish, page: u32) {
        self.settle_x87();
        self.scratch.steps.clear();
        let (mut turns, mut whole_turns) = (0, 0);
        while turns < MAX_TURNS {
            let Some(count) = self.decode_to_jump(wish, self.cpu.state.rip) else { break };
            self.cpu.interpret(count as u64);
            let rip = self.cpu.state.rip;
            if !self.is_on_path(wish) || !self.scratch.follow_last_to(rip) {
                break;
            }
            if rip == wish.rip {
                turns += 1;
                whole_turns = self.scratch.steps.len();
            } else if self.is_superblock(rip, page, wish.mode) {
                break;
            }
        }
        self.mode_is_stale();
        if whole_turns != 0 {
            // What would be a part of another turn is left to the next time round.
            self.scratch.steps.truncate(whole_turns);
        }
        if let Some(last) = self.scratch.steps.last_mut() {
            last.unfollow();
        }
    }

    /// Decodes from `rip` to the next jump whose target may follow; how many instructions that is.
    /// `None` if there is none, behind what else can be part of the block.
    fn decode_to_jump(&mut self, wish: &Wish, rip: u64) -> Option<usize> {
        let max = self.options.block_size.clamp(1, MAX_STEPS);
        let (mut decoder, steps) = self.step_decoder(wish, PAGE);
        let before = steps.len();
        if !decoder.jump((rip & 0xfff) as usize, rip) {
            return None;
        }
        while steps.len() < max {
            let Decoded::Step { step, is_end } = decoder.next() else { break };
            steps.push(step);
            if step.is_jump() {
                return Some(steps.len() - before);
            }
            if is_end {
                break;
            }
        }
        None
    }

    /// True if all that has happened since the head was executed are instructions of its page, by
    /// RIP and by what a block depends on.
    fn is_on_path(&self, wish: &Wish) -> bool {
        let cpu = &self.cpu;
        let is_same_mode = cpu.mode.key == wish.key.key && cpu.view() == wish.key.view;
        is_same_mode
            && cpu.state.rip & !0xfff == wish.rip & !0xfff
            && cpu.state.activity == Activity::Active
            && cpu.is_unwatched()
            && cpu.is_flat()
            && !cpu.has_flushes()
    }

    fn is_superblock(&self, rip: u64, page: u32, mode: u16) -> bool {
        self.cache.find(rip, page, mode, false).is_some_and(|(_, block)| block.is_superblock)
    }

    /// Makes the superblock of the steps, in place of block `old`. `None` if an ordinary block does
    /// as well.
    fn make_superblock(&mut self, wish: &Wish, page: CodePage, old: Option<u32>) -> Option<u32> {
        let is_worth_it = self.scratch.steps.iter().any(Step::is_followed);
        if !is_worth_it || !self.mark_steps(page.1) {
            return None;
        }
        let guest_bytes = self.scratch.steps.iter().map(|step| step.iced.len()).sum();
        let generation = self.cache.generation;
        let made = self.emit(wish, &[page.0], guest_bytes);
        if let Some(old) = old.filter(|_| self.cache.generation == generation) {
            self.cache.kill(old);
        }
        made
    }

    /// Marks the bytes of all steps as code of the page at `ram_page`, and tells whether they still
    /// are what was decoded.
    fn mark_steps(&self, ram_page: u64) -> bool {
        let ram = self.cpu.ram();
        let steps = &self.scratch.steps;
        for step in steps {
            ram.flags().mark_code(ram_page >> 12, step.at as u64, step.iced.len() as u64);
        }
        steps.iter().all(|step| {
            let bytes = self.scratch.bytes.get(step.at..step.at + step.iced.len());
            bytes.is_some_and(|bytes| is_same(ram, ram_page + step.at as u64, bytes))
        })
    }
}

impl Scratch {
    /// Makes the path go on at `rip` behind the last step. False if that cannot lead there.
    fn follow_last_to(&mut self, rip: u64) -> bool {
        self.steps.last_mut().is_some_and(|last| {
            last.follow_to(rip);
            last.next() == rip
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
