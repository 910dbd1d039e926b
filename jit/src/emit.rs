//! From the steps of a block to host code: the frame that all steps share.
//!
//! Code of a block, in order: entries, the steps, and out of line whatever is not on the path that
//! is expected: slow paths of memory accesses, links to other blocks before they are made.
//!
//! Entries: *live* (flags in EFLAGS; from the same page), *spilled* (flags in the context; from the
//! same page), and *guarded* (flags in the context; from anywhere: checks that the block's linear
//! page still is where the code came from). Direct jumps inside a page need no guard, since whoever
//! executes the jump has the page mapped.

use std::mem::{offset_of, take};

use cpu::mmu::View;

use crate::asm::{Alu, Asm, Mem, Patch, Rm, cc};
use crate::context::{Context, JUMP_HASH, JUMP_SHIFT, JUMP_UNITS, ViewOffsets, view_offsets};
use crate::flags::SPILL_BYTES;
use crate::flow::{Effect, Flags, Recipe};
use crate::plan::{Action, Step};
use crate::registers::{GUEST_RSP, Number, S0, S1, host};
use crate::slow::{INDIRECT, RETRY, SlowKind, SlowPath};
use crate::thunks::Thunks;

/// Where a jump from one block to another is, until and after it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Position of the 32-bit displacement to patch; 0 if the exit cannot become a jump.
    pub(crate) at: usize,
    /// Guest RIP of the target.
    pub(crate) target: u64,
    /// How the target is entered.
    pub(crate) entry: Entry,
    /// The target is to be a block without groups.
    pub(crate) is_ungrouped: bool,
    /// The instruction at the target is to be interpreted.
    pub(crate) is_interpreted: bool,
    /// It is taken when its counter is used up: the target is hot.
    pub(crate) is_hot: bool,
    /// For returns and indirect transfers: RIP of the instruction, and by how much it moved RSP.
    pub(crate) undo: Option<(u64, i64)>,
}

/// The entries of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Flags in EFLAGS, same page.
    Live,
    /// Flags in the context, same page.
    Spilled,
    /// Flags in the context, page to be checked.
    Guarded,
}

/// What a host position belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Offset from the start of the block's code.
    pub(crate) host: u32,
    /// Index of the step.
    pub(crate) step: u16,
    /// Where the guest's status flags are.
    pub(crate) flags: MarkedFlags,
}

/// Where the status flags are at a host position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkedFlags {
    /// In EFLAGS.
    Live,
    /// In the context.
    Spilled,
    /// They are what this recipe of the block gives.
    Recipe(u8),
}

/// What the translation of a block is. It is kept from block to block for its memory.
#[derive(Default)]
pub(crate) struct Emitted {
    pub(crate) bytes: Vec<u8>,
    /// How many of them are code; the rest are constants.
    #[cfg(feature = "testing")]
    pub(crate) code_bytes: usize,
    /// Positions of the entries.
    pub(crate) live: usize,
    pub(crate) spilled: usize,
    pub(crate) guarded: usize,
    /// Where the entries of a dead block go.
    pub(crate) dead_live: usize,
    pub(crate) dead_spilled: usize,
    /// Where out-of-line code begins.
    pub(crate) hot_end: usize,
    /// In order of position.
    pub(crate) marks: Vec<Mark>,
    pub(crate) links: Vec<Link>,
    /// What [`MarkedFlags::Recipe`] numbers.
    pub(crate) recipes: Vec<Recipe>,
    /// Positions behind calls, to which host returns go.
    pub(crate) return_sites: Vec<usize>,
    /// Steps that call a handler, in order.
    pub(crate) handlers: Vec<u16>,
    /// Memory of the emitter.
    slow: Vec<SlowPath>,
    constants: Vec<(Patch, u64)>,
}

impl Emitted {
    /// Empties it.
    fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
        self.links.clear();
        self.recipes.clear();
        self.return_sites.clear();
        self.handlers.clear();
        self.slow.clear();
        self.constants.clear();
    }
}

/// What is fixed for all blocks of a mode.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) thunks: &'a Thunks,
    pub(crate) view: View,
    pub(crate) is_64: bool,
    /// Instructions are counted.
    pub(crate) is_counting: bool,
    /// Accesses are counted.
    pub(crate) counts_accesses: bool,
    /// The block's number in a trace that is told of it.
    pub(crate) recorded: Option<u32>,
    /// Which links count how often they are taken.
    pub(crate) counted_links: CountedLinks,
    /// Host address of the mailbox and of the first link's number.
    pub(crate) first_link: u32,
    pub(crate) first_handler: u32,
}

/// Which links of a block inside its page count how often they are taken, to find hot targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountedLinks {
    None,
    /// Those that close loops.
    Backward,
    /// All that leave a superblock: what is hot behind it deserves one too.
    Exits,
}

/// The emitter of one block.
pub(crate) struct Emitter<'a> {
    pub(crate) asm: Asm,
    pub(crate) around: Surroundings<'a>,
    pub(crate) offsets: ViewOffsets,
    pub(crate) flags: Flags,
    /// The step that last set the flags, if they have not been touched since.
    pub(crate) producer: Option<u16>,
    pub(crate) recipes: Vec<Recipe>,
    /// Guest RIP of the block.
    pub(crate) rip: u64,
    pub(crate) steps: &'a [Step],
    /// The step being emitted.
    pub(crate) current: u16,
    /// The code bytes from the block's first on.
    pub(crate) code: &'a [u8],
    /// S0 holds the delta of this group.
    pub(crate) delta_in_s0: Option<u8>,
    /// Words behind the code, and who compares with them.
    constants: Vec<(Patch, u64)>,
    pub(crate) slow: Vec<SlowPath>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) links: Vec<Link>,
    return_sites: Vec<usize>,
    /// Steps that call a handler, in order.
    pub(crate) handlers: Vec<u16>,
    /// Whoever gets here has passed a safe point in this block.
    has_polled: bool,
}

macro_rules! context {
    ($($field:tt)+) => {
        crate::asm::Mem::context(std::mem::offset_of!(crate::context::Context, $($field)+))
    };
}
pub(crate) use context;

/// The context's copy of guest register `number`.
pub(crate) const fn in_context(number: Number) -> Mem {
    Mem::context(offset_of!(Context, gpr) + 8 * number as usize)
}

/// Where the flags must be when a block's first step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Live,
    Spilled,
    Any,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(
        around: Surroundings<'a>,
        start: usize,
        rip: u64,
        steps: &'a [Step],
        code: &'a [u8],
        memory: &mut Emitted,
    ) -> Self {
        memory.clear();
        Self {
            asm: Asm::new(start, take(&mut memory.bytes)),
            around,
            offsets: view_offsets(around.view),
            flags: Flags::Live,
            producer: None,
            recipes: take(&mut memory.recipes),
            constants: take(&mut memory.constants),
            rip,
            steps,
            current: 0,
            code,
            delta_in_s0: None,
            slow: take(&mut memory.slow),
            marks: take(&mut memory.marks),
            links: take(&mut memory.links),
            return_sites: take(&mut memory.return_sites),
            handlers: take(&mut memory.handlers),
            has_polled: false,
        }
    }

    /// Emits the whole block to `emitted`. `pages` are the numbers of the code pages that it comes
    /// from.
    pub(crate) fn emit(&mut self, pages: &[u32], emitted: &mut Emitted) {
        let is_straddling = pages.len() > 1;
        let need = if self.around.is_counting { Need::Spilled } else { self.need() };
        // Back to the dispatcher for this very block: when a page is not mapped as it was, or when
        // the block is dead.
        let again = self.add_link(0, self.rip, Entry::Guarded, None);
        let guarded = self.asm.here();
        let mut misses = [None; 2];
        for (miss, &page) in misses.iter_mut().zip(pages) {
            let valid = offset_of!(Context, valid) + page as usize;
            self.asm.cmp8_imm(Mem::context(valid), 0);
            *miss = Some(self.asm.jcc(cc::E));
        }
        let (mut live, mut spilled) = self.emit_entries(need);
        self.emit_steps();
        let hot_end = self.asm.here();
        for miss in misses.into_iter().flatten() {
            self.asm.patch_here(miss);
        }
        self.mark(0, MarkedFlags::Spilled);
        let dead_spilled = self.asm.here();
        self.leave_by(again, false);
        let dead_live = self.asm.here();
        self.leave_by(again, true);
        if is_straddling {
            // The second page is nobody's jump's own.
            live = self.asm.here();
            self.spill_flags();
            self.asm.jmp_to(guarded);
            spilled = guarded;
        }
        self.emit_slow_paths();
        #[cfg(feature = "testing")]
        let code_bytes = self.asm.bytes.len();
        for &(patch, word) in &self.constants {
            self.asm.patch_here(patch);
            self.asm.raw(&word.to_le_bytes());
        }
        *emitted = Emitted {
            #[cfg(feature = "testing")]
            code_bytes,
            bytes: take(&mut self.asm.bytes),
            live,
            spilled,
            guarded,
            dead_live,
            dead_spilled,
            hot_end,
            marks: take(&mut self.marks),
            links: take(&mut self.links),
            recipes: take(&mut self.recipes),
            return_sites: take(&mut self.return_sites),
            handlers: take(&mut self.handlers),
            slow: take(&mut self.slow),
            constants: take(&mut self.constants),
        };
    }

    /// The entries behind the guard: live, spilled. They are at least five bytes apart, so that
    /// each can be made a jump.
    fn emit_entries(&mut self, need: Need) -> (usize, usize) {
        match need {
            Need::Any => {
                let spilled = self.asm.here();
                self.asm.raw(&[0x0f, 0x1f, 0x44, 0, 0]);
                self.flags = Flags::Live;
                (self.asm.here(), spilled)
            }
            Need::Live => {
                let spilled = self.asm.here();
                self.restore_flags();
                self.flags = Flags::Live;
                (self.asm.here(), spilled)
            }
            Need::Spilled => {
                // Over the spill of the live entry.
                self.asm.raw(&[0xeb, SPILL_BYTES as u8]);
                let live = self.asm.here();
                self.spill_flags();
                self.flags = Flags::Spilled;
                (live, self.asm.here())
            }
        }
    }

    /// What the first step that cares about flags wants.
    fn need(&self) -> Need {
        for step in self.steps {
            if self.destroys_flags(step) {
                return Need::Spilled;
            }
            match step.effect {
                Effect::None if step.action == Action::Handler => return Need::Spilled,
                // A fault of the instruction shows them.
                Effect::None if may_fault_by_itself(step.row) => return Need::Live,
                Effect::None => {}
                Effect::Reads | Effect::Changes => return Need::Live,
                // A fault in the instruction itself would show the flags before it.
                Effect::Replaces if step.row.class == decoder::Class::MulDiv => return Need::Live,
                Effect::Replaces => return Need::Any,
            }
        }
        Need::Live
    }

    /// True if the step needs EFLAGS for itself before it looks at the guest's.
    fn destroys_flags(&self, step: &Step) -> bool {
        match step.action {
            Action::Copy => step.has_memory,
            Action::Handler
            | Action::String(_)
            | Action::BitString
            | Action::AbsoluteMov
            | Action::TranslateByte
            | Action::SystemCall
            | Action::SystemReturn
            | Action::WriteBase
            | Action::ReadProtectionKeys
            | Action::ReadTime
            | Action::SetInterruptFlag(_) => true,
            action => action.accesses_by_itself(),
        }
    }

    fn emit_steps(&mut self) {
        self.count_block();
        self.note_block();
        let steps = self.steps;
        for (index, step) in steps.iter().enumerate() {
            self.current = index as u16;
            self.mark(self.current, self.flags.marked());
            self.emit_step(step);
        }
        let is_open = steps.last().is_none_or(|step| !step.action.is_transfer());
        if is_open {
            let next = steps.last().map_or(self.rip, Step::next);
            self.jump_to(next);
        }
    }

    /// Takes the block's instructions off the budget, where they are counted.
    fn count_block(&mut self) {
        if !self.around.is_counting {
            return;
        }
        self.mark(0, MarkedFlags::Spilled);
        let budget = context!(budget);
        let count = self.steps.len() as i32;
        self.asm.alu_imm(true, Alu::Cmp, Rm::Mem(budget), count);
        // Not enough: the rest is the interpreter's.
        let enough = self.asm.jcc(cc::B + 1); // AE
        let link = self.add_link(0, self.rip, Entry::Guarded, None);
        self.leave_by(link, false);
        self.asm.patch_here(enough);
        self.asm.alu_imm(true, Alu::Sub, Rm::Mem(budget), count);
    }

    /// Gives back what of the block will not be executed after the current step.
    pub(crate) fn uncount_rest(&mut self) {
        if !self.around.is_counting {
            return;
        }
        let rest = self.steps.len() as i32 - i32::from(self.current) - 1;
        if rest == 0 {
            return;
        }
        // Flag-free: the flags may be live here.
        let budget = context!(budget);
        self.asm.load(S1, budget);
        self.asm.lea(S1, Mem::at(S1).with_disp(rest));
        self.asm.store(budget, S1);
    }

    /// Notes that what comes next belongs to step `step`.
    pub(crate) fn mark(&mut self, step: u16, flags: MarkedFlags) {
        let host = (self.asm.here() - self.asm.start()) as u32;
        self.marks.push(Mark { host, step, flags });
    }

    /// Linear page of an address.
    pub(crate) fn is_same_page(&self, target: u64) -> bool {
        target & !0xfff == self.rip & !0xfff
    }

    // Guest registers.

    /// A host register that holds guest register `number`: its own, or `scratch` after a load.
    pub(crate) fn read(&mut self, number: Number, scratch: Number) -> Number {
        host(number).unwrap_or_else(|| {
            self.asm.load(scratch, in_context(number));
            if scratch == S0 {
                self.delta_in_s0 = None;
            }
            scratch
        })
    }

    /// Puts `from` into guest register `number`.
    pub(crate) fn write(&mut self, number: Number, from: Number) {
        match host(number) {
            Some(to) => self.asm.mov(to, from),
            None => self.asm.store(in_context(number), from),
        }
    }

    // Leaving.

    /// Registers a link; its number.
    pub(crate) fn add_link(
        &mut self,
        at: usize,
        target: u64,
        entry: Entry,
        undo: Option<(u64, i64)>,
    ) -> usize {
        self.links.push(Link {
            at,
            target,
            entry,
            undo,
            is_ungrouped: false,
            is_interpreted: false,
            is_hot: false,
        });
        self.links.len() - 1
    }

    /// Leaves to the dispatcher by link `link`. Destroys S1.
    pub(crate) fn leave_by(&mut self, link: usize, is_live: bool) {
        self.asm.constant(S1, u64::from(self.around.first_link) + link as u64);
        let thunks = self.around.thunks;
        self.asm.jmp_to(if is_live { thunks.leave_live } else { thunks.leave_spilled });
    }

    /// Goes on at `target`, as the last thing of the block's path.
    pub(crate) fn jump_to(&mut self, target: u64) {
        if target <= self.rip_here() && self.current > 0 || target <= self.rip {
            self.poll_once();
        }
        self.uncount_rest();
        if !self.is_same_page(target) {
            // Whoever is there may want them: no recipe will do.
            self.want_spilled();
            self.flags = Flags::Spilled;
        }
        let patch = self.asm.jmp();
        self.link_at(patch, target, false);
    }

    /// RIP of the current step.
    pub(crate) fn rip_here(&self) -> u64 {
        self.steps.get(usize::from(self.current)).map_or(self.rip, |step| step.iced.ip())
    }

    /// Goes to `target` on condition `code`; falls through otherwise.
    pub(crate) fn branch_to(&mut self, code: u8, target: u64) {
        self.want_flags();
        if target <= self.rip_here() {
            self.poll_once();
        }
        self.leave_on(code, target);
    }

    /// Goes on with the next step, which is at the target of `step`, a jump; on condition `exit` it
    /// leaves for the instruction behind the jump instead.
    pub(crate) fn follow(&mut self, step: &Step, exit: Option<u8>) {
        if exit.is_some() {
            self.want_flags();
        }
        if step.iced.near_branch_target() <= self.rip_here() {
            self.poll_once();
        }
        if let Some(exit) = exit {
            self.leave_on(exit, step.iced.next_ip());
        }
    }

    /// Leaves for `target` on condition `code`, with the flags in EFLAGS.
    fn leave_on(&mut self, code: u8, target: u64) {
        let patch = self.asm.jcc(code);
        self.link_at(patch, target, true);
    }

    /// Makes the jump at `patch` a link to `target`. `is_side` says that the path goes on behind
    /// it, so whatever the link needs must be out of line.
    pub(crate) fn link_at(&mut self, patch: Patch, target: u64, is_side: bool) {
        let is_same_page = self.is_same_page(target);
        let needs_code =
            is_side && (!is_same_page || self.around.is_counting || self.notes_exits());
        let entry = match (is_same_page, self.flags) {
            (false, _) => Entry::Guarded,
            (true, Flags::Spilled) => Entry::Spilled,
            (true, _) => Entry::Live,
        };
        if self.is_counted(target) {
            return self.count_link(patch, target, entry);
        }
        let at = if needs_code { 0 } else { patch.0 };
        let link = self.add_link(at, target, entry, None);
        let must_spill = is_side && !is_same_page && self.flags == Flags::Live;
        let kind = SlowKind::Link { link, must_spill };
        self.add_slow(patch, usize::from(needs_code), kind);
    }

    /// True if a link to `target` counts how often it is taken.
    fn is_counted(&self, target: u64) -> bool {
        self.is_same_page(target)
            && match self.around.counted_links {
                CountedLinks::None => false,
                CountedLinks::Backward => target <= self.rip_here(),
                CountedLinks::Exits => target != self.rip,
            }
    }

    /// Makes the jump at `patch` a link to `target`, by way of code that counts until it is hot.
    fn count_link(&mut self, patch: Patch, target: u64, entry: Entry) {
        let hot = self.add_link(patch.0, target, entry, None);
        if let Some(link) = self.links.get_mut(hot) {
            link.is_hot = true;
        }
        let link = self.add_link(0, target, entry, None);
        self.add_slow(patch, 0, SlowKind::CountedLink { link, hot });
    }

    /// A safe point, if the way here had none: a superblock of several turns of a loop needs one.
    fn poll_once(&mut self) {
        if !std::mem::replace(&mut self.has_polled, true) {
            self.poll();
        }
    }

    /// A load that faults when somebody wants this vCPU to stop. Destroys S1.
    pub(crate) fn poll(&mut self) {
        self.remark();
        self.asm.load(S1, context!(safepoint));
        self.asm.load(S1, Mem::at(S1));
    }

    /// Looks up the guest address in S0 in the jump cache, flags being spilled: behind it S1 is the
    /// index of the code's address, or the link was taken.
    ///
    /// A miss leaves to the address; with `retry` it has the instruction interpreted, before any of
    /// its effects.
    pub(crate) fn look_up_jump(&mut self, retry: bool) {
        self.look_up_jump_of(self.offsets, retry);
    }

    /// The same in the jump cache of another view.
    pub(crate) fn look_up_jump_of(&mut self, view: ViewOffsets, retry: bool) {
        let rip = self.rip_here();
        let link = self.add_link(0, rip, Entry::Guarded, Some((rip, 0)));
        if let Some(link) = self.links.get_mut(link) {
            link.is_interpreted = retry;
        }
        let back = if retry { RETRY } else { INDIRECT };
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(context!(poll)), 0);
        let stop = self.asm.jcc(cc::NE);
        emit_jump_hash(&mut self.asm);
        let rips = self.jump_slot(view.jump_rips);
        self.asm.alu(Alu::Cmp, S0, Rm::Mem(rips));
        let miss = self.asm.jcc(cc::NE);
        for from in [stop, miss] {
            let kind = SlowKind::Link { link, must_spill: false };
            self.add_slow(from, back, kind);
        }
    }

    /// The slot of the jump cache that S1 is the index of.
    pub(crate) fn jump_slot(&self, offset: i32) -> Mem {
        Mem { base: None, index: Some((S1, 3)), disp: offset, is_gs: true }
    }

    /// What follows a host call: where the callee's host RET comes back to, with the guest's return
    /// address in S0.
    pub(crate) fn return_site(&mut self, next: u64) {
        self.return_sites.push(self.asm.here());
        if let Ok(short) = i32::try_from(next as i64) {
            self.asm.alu_imm(true, Alu::Cmp, Rm::Reg(S0), short);
        } else {
            // Not by way of S1: it holds the link by which a wild return is undone.
            let patch = self.asm.cmp_relative(S0);
            self.constants.push((patch, next));
        }
        self.asm.jcc_to(cc::NE, self.around.thunks.mispredicted(self.around.view));
        self.flags = Flags::Spilled;
        let patch = self.asm.jmp();
        self.link_at(patch, next, false);
    }

    /// The bytes of a step's encoding.
    pub(crate) fn encoding(&self, step: &Step) -> &'a [u8] {
        self.code.get(step.at..step.at + step.iced.len()).unwrap_or_default()
    }

    /// Guest RSP moves by `bytes`, flags untouched.
    pub(crate) fn move_stack(&mut self, bytes: i32) {
        let sum = Mem::at(GUEST_RSP).with_disp(bytes);
        if self.around.is_64 {
            self.asm.lea(GUEST_RSP, sum);
        } else {
            self.asm.lea32(GUEST_RSP, sum);
        }
    }
}

/// S1 becomes what eight times leads to the jump cache's entry of the address in S0.
pub(crate) fn emit_jump_hash(asm: &mut Asm) {
    asm.imul32(S1, S0, JUMP_HASH);
    asm.shr32(S1, (JUMP_SHIFT - JUMP_UNITS) as u8);
    asm.alu_imm(false, Alu::And, Rm::Reg(S1), -1 << JUMP_UNITS);
}

/// True if the instruction may fault for a reason that is not of memory: an unmasked exception.
fn may_fault_by_itself(row: &decoder::Row) -> bool {
    row.waits_for_x87 || row.class == decoder::Class::SimdFloat
}
