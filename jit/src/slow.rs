//! Code out of line: slow paths of memory accesses, and links before they are made.

use std::mem::offset_of;

use crate::asm::{Alu, Mem, Patch, Rm, cc};
use crate::context::{Context, counter_index};
use crate::emit::{Emitter, Entry};
use crate::flow::Flags;
use crate::memory_access::{TLB_DELTA, TLB_READ, TLB_WRITE};
use crate::plan::Step;
use crate::registers::{RCX, S0, S1};
use crate::wanted::Wanted;

/// A memory access's slow path, to be emitted behind the block.
pub(crate) struct SlowPath {
    pub(crate) from: Patch,
    pub(crate) back: usize,
    pub(crate) step: u16,
    pub(crate) kind: SlowKind,
    /// Where the flags are when it is entered.
    pub(crate) flags: Flags,
}

pub(crate) enum SlowKind {
    /// S0 is address XOR tag; S1 the entry. Wanted: S0 the host address.
    Access { wanted: Wanted },
    /// The address is known; S0 is wanted to be the host page.
    Constant { address: u64, wanted: Wanted },
    /// As Access for the lowest byte of a group. Wanted: S0 the delta.
    Group { wanted: Wanted },
    /// As Group; S0 is the address XOR the tag of the stack's own entry, and S1 is free.
    Stack { wanted: Wanted },
    /// No access: the instruction is to be interpreted.
    Interpreted,
    /// Nothing but a link of the block.
    Link { link: usize, must_spill: bool },
    /// As Link, with a count of how often it is taken; `hot` is taken when that is used up.
    CountedLink { link: usize, hot: usize },
}

/// Marks a slow path of a link as one by the address in S0.
pub(crate) const INDIRECT: usize = 2;
/// Marks one that has its instruction interpreted.
pub(crate) const RETRY: usize = 3;

/// FWAIT.
const FWAIT: [u8; 1] = [0x9b];
/// JRCXZ over an exchange of registers and a jump.
const JRCXZ_OVER_LINK: [u8; 2] = [0xe3, 3 + 5];

impl Emitter<'_> {
    pub(crate) fn emit_slow_paths(&mut self) {
        let mut paths = std::mem::take(&mut self.slow);
        for path in &paths {
            self.asm.patch_here(path.from);
            self.current = path.step;
            self.flags = path.flags;
            self.mark(path.step, path.flags.marked());
            self.raise_pending_x87(path);
            self.emit_slow_path(path);
        }
        paths.clear();
        self.slow = paths;
    }

    /// An x87 exception that waits comes before anything that a translation of the operand's
    /// address would leave. On the fast path the instruction itself raises it in time.
    fn raise_pending_x87(&mut self, path: &SlowPath) {
        let is_access = !matches!(path.kind, SlowKind::Link { .. } | SlowKind::CountedLink { .. });
        let waits = |step: &Step| step.row.waits_for_x87 && !step.row.loads_past_x87;
        if is_access && self.steps.get(usize::from(path.step)).is_some_and(waits) {
            self.asm.raw(&FWAIT);
        }
    }

    fn emit_slow_path(&mut self, path: &SlowPath) {
        let (thunks, view) = (self.around.thunks, self.around.view);
        match path.kind {
            SlowKind::Access { wanted } => {
                self.recover_address(wanted.is_write);
                self.asm.constant(S1, wanted.word());
                self.asm.call_to(thunks.access(view));
                self.asm.jmp_to(path.back);
            }
            SlowKind::Constant { address, wanted } => {
                self.asm.constant(S0, address);
                self.asm.constant(S1, wanted.word());
                self.asm.call_to(thunks.access(view));
                let offset = (address & 0xfff) as i32;
                if offset != 0 {
                    self.asm.lea(S0, Mem::at(S0).with_disp(-offset));
                }
                self.asm.jmp_to(path.back);
            }
            SlowKind::Group { wanted } => {
                self.recover_address(wanted.is_write);
                self.find_group(wanted);
                self.asm.jmp_to(path.back);
            }
            SlowKind::Interpreted => {
                self.asm.constant(S1, Wanted::NOTHING.word());
                self.asm.call_to(thunks.access(view));
            }
            SlowKind::Stack { wanted } => self.emit_stack_slow_path(path, wanted),
            SlowKind::Link { link, .. } if path.back == INDIRECT => {
                self.asm.constant(S1, u64::from(self.around.first_link) + link as u64);
                self.asm.jmp_to(thunks.leave_indirect);
            }
            SlowKind::Link { link, .. } if path.back == RETRY => self.leave_by(link, false),
            SlowKind::Link { link, must_spill } => {
                let mut is_live = path.flags != Flags::Spilled;
                if path.back != 0 {
                    // A jump of its own, after what the link needs.
                    self.note_cut(self.steps_left());
                    if must_spill {
                        self.spill_flags();
                    }
                    self.uncount_rest();
                    let patch = self.asm.jmp();
                    self.asm.patch_here(patch);
                    if let Some(link) = self.links.get_mut(link) {
                        link.at = patch.0;
                    }
                    is_live &= self.links.get(link).is_some_and(|l| l.entry == Entry::Live);
                }
                self.leave_by(link, is_live);
            }
            SlowKind::CountedLink { link, hot } => self.emit_counted_link(path, link, hot),
        }
    }

    /// Counts without touching a flag, goes on by `link`, and leaves by `hot` at zero.
    fn emit_counted_link(&mut self, path: &SlowPath, link: usize, hot: usize) {
        let is_live = path.flags != Flags::Spilled;
        if self.notes_exits() {
            self.note_cut(self.steps_left());
            let patch = self.asm.jmp();
            self.asm.patch_here(patch);
            if let Some(link) = self.links.get_mut(hot) {
                link.at = patch.0;
            }
        }
        let counter = self.counter(hot);
        self.asm.load32(S1, counter);
        self.asm.lea32(S1, Mem::at(S1).with_disp(-1));
        self.asm.store32(counter, S1);
        self.asm.exchange(S1, RCX);
        self.asm.raw(&JRCXZ_OVER_LINK);
        self.asm.exchange(S1, RCX);
        let patch = self.asm.jmp();
        if let Some(link) = self.links.get_mut(link) {
            link.at = patch.0;
        }
        self.asm.exchange(S1, RCX);
        self.leave_by(hot, is_live);
        self.asm.patch_here(patch);
        self.leave_by(link, is_live);
    }

    /// The counter of the block's link `link`.
    fn counter(&self, link: usize) -> Mem {
        let index = counter_index(self.around.first_link + link as u32);
        Mem::context(offset_of!(Context, counters) + size_of::<u32>() * index)
    }

    /// Calls for a group's delta, unless it is to go on in code that checks accesses one by one.
    fn find_group(&mut self, wanted: Wanted) {
        let alone = self.leave_group_at_page_end(wanted.size);
        self.asm.constant(S1, wanted.word());
        self.asm.call_to(self.around.thunks.group(self.around.view));
        self.asm.jcc_to(cc::B, alone);
    }

    /// A group whose bytes, from the address in S0 on, lie in two pages goes on in code that checks
    /// its accesses one by one. Gives the position from which others get there too.
    fn leave_group_at_page_end(&mut self, span: u32) -> usize {
        self.asm.mov32(S1, S0);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S1), 0xfff);
        self.asm.alu_imm(false, Alu::Cmp, Rm::Reg(S1), 4096 - span as i32);
        let inside = self.asm.jcc(cc::BE);
        let alone = self.asm.here();
        if let Flags::Recipe(number) = self.flags {
            self.compute_flags(number);
            self.spill_flags();
        }
        self.note_cut(self.steps_left() + 1);
        let patch = self.asm.jmp();
        let link = self.add_link(patch.0, self.rip_here(), Entry::Spilled, None);
        if let Some(link) = self.links.get_mut(link) {
            link.is_ungrouped = true;
        }
        self.asm.patch_here(patch);
        self.leave_by(link, false);
        self.asm.patch_here(inside);
        alone
    }

    /// S0 becomes the address again.
    fn recover_address(&mut self, is_write: bool) {
        let tag = self.offsets.tlb + if is_write { TLB_WRITE } else { TLB_READ };
        self.asm.alu(Alu::Xor, S0, Rm::Mem(Mem::context_at(S1, tag)));
    }

    /// The stack is in another page than last time: the TLB may know it, else the helper.
    fn emit_stack_slow_path(&mut self, path: &SlowPath, wanted: Wanted) {
        let tag = self.stack_tag();
        self.asm.alu(Alu::Xor, S0, Rm::Mem(tag));
        // Only a page that may be written serves pushes and pops alike.
        self.compare(wanted.size, true);
        let miss = self.asm.jcc(cc::A);
        let entry = |field| Mem::context_at(S1, self.offsets.tlb + field);
        let (write_tag, delta) = (entry(TLB_WRITE), entry(TLB_DELTA));
        self.asm.load(S0, write_tag);
        self.asm.store(tag, S0);
        self.asm.load(S0, delta);
        let kept = self.stack_delta();
        self.asm.store(kept, S0);
        self.asm.jmp_to(path.back);
        self.asm.patch_here(miss);
        self.recover_address(true);
        self.find_group(wanted);
        self.asm.jmp_to(path.back);
    }
}

const _: i32 = TLB_READ;
