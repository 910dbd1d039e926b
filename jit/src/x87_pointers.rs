//! The guest's last x87 instruction and operand, from what the host's unit knows of its own.
//!
//! The unit notes the host addresses of the last instruction and of its operand (SDM Vol. 1, "x87
//! FPU Instruction and Data (Operand) Pointers"), so translated code need not. Who takes the unit's
//! contents out is told the two, and finds the guest's by the tables of blocks and by the TLB.
//! Whatever cannot be found stays as it was: a host whose processor saves no pointers without a
//! pending exception loses them in a switch of threads or a signal, as its own programs do.

use cpu::interp::insn::{has_memory_operand, operand_offset, operand_segment};
use cpu::mmu::View;
use cpu::native::x87_opcode;
use cpu::state::seg;
use iced_x86::{CodeSize, Instruction};

use crate::runtime::{self, HostPointers};
use crate::vcpu::Inner;

/// A translated x87 instruction that is no control instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct X87Step {
    /// Number of its block, and its own in it.
    pub(crate) block: u32,
    pub(crate) step: u16,
    /// What it makes of FOP.
    opcode: u16,
    view: View,
    /// FCS and FDS: selectors as they were when the block was made, since those of now may be of
    /// another privilege.
    code_selector: u16,
    data_selector: u16,
    iced: Instruction,
}

impl X87Step {
    /// True if it changes FDP.
    pub(crate) fn has_memory(&self) -> bool {
        has_memory_operand(&self.iced)
    }
}

impl Inner {
    /// Takes x87 state out of the host's unit, if it is there.
    pub(crate) fn settle_x87(&mut self) {
        if std::mem::take(&mut self.is_x87_live) {
            let host = runtime::save_x87(&mut self.cpu.state.fpu);
            self.note_x87_pointers(host);
        }
    }

    /// Puts x87 state into the host's unit, if it is not there.
    pub(crate) fn revive_x87(&mut self) {
        if !std::mem::replace(&mut self.is_x87_live, true) {
            runtime::load_x87(&self.cpu.state.fpu);
        }
    }

    /// Notes the pointers while the TLB still knows the last operand: translations are about to go,
    /// or another address space to come.
    pub(crate) fn note_x87_before_switch(&mut self) {
        // The unit is asked last: it takes 98 ticks on Zen 3, at each flush.
        if self.is_x87_live && !self.cache.x87_steps.is_empty() && runtime::has_x87_run() {
            self.settle_x87();
        }
    }

    /// Remembers the x87 instructions of block `number`, which was just made.
    pub(crate) fn remember_x87_steps(&mut self, number: u32, view: View) {
        let segments = &self.cpu.state.segments;
        for (step, bytes, iced) in self.scratch.steps() {
            let Some(opcode) = x87_opcode(iced, bytes) else { continue };
            // A prefix says nothing where there is no operand.
            let has_memory = has_memory_operand(iced);
            let segment = if has_memory { usize::from(operand_segment(iced)) } else { seg::DS };
            let new = X87Step {
                block: number,
                step,
                opcode,
                view,
                code_selector: segments[seg::CS].selector,
                data_selector: segments[segment].selector,
                iced: *iced,
            };
            self.cache.x87_steps.push(new);
        }
    }

    /// Makes the state's pointers those of the last x87 instruction of translated code, by the
    /// host's, if the unit has executed one since it was loaded.
    fn note_x87_pointers(&mut self, host: HostPointers) {
        if host.instruction == 0 {
            return;
        }
        let Some((last, owner)) = self.cache.x87_steps_at(host.instruction) else { return };
        let operand = self.x87_operand(owner.as_ref().unwrap_or(&last), host.operand);
        let fpu = &mut self.cpu.state.fpu;
        (fpu.fip, fpu.fcs, fpu.fop) = (last.iced.ip(), last.code_selector, last.opcode);
        if let Some((offset, selector)) = operand {
            (fpu.fdp, fpu.fds) = (offset, selector);
        }
    }

    /// FDP and FDS of an operand at a host address that ends in `host`, accessed by `step`, or by
    /// an unknown instruction of an earlier block if `step` has no memory operand: that one is
    /// taken to have used DS. No operand is in a segment with a base: those are interpreted.
    fn x87_operand(&mut self, step: &X87Step, host: u32) -> Option<(u64, u16)> {
        if host == 0 {
            return None;
        }
        let likely = operand_offset(&step.iced, &self.cpu.state.gpr);
        let offset = self.x87_linear(step.view, host, likely)?;
        let is_64 = step.iced.code_size() == CodeSize::Code64;
        Some((if is_64 { offset } else { offset & 0xffff_ffff }, step.data_selector))
    }

    /// The linear address that `view` reaches at a host address that ends in `host`. Where several
    /// are the same memory it is `likely` if that is one of them.
    fn x87_linear(&mut self, view: View, host: u32, likely: Option<u64>) -> Option<u64> {
        let context = self.slots.current_context();
        if host == context.bounce.as_ptr() as u32 {
            return Some(self.x87_bounced);
        }
        let page = context.page_at(view, host & !0xfff, likely)?;
        let found = page | u64::from(host & 0xfff);
        Some(likely.filter(|&likely| self.are_same(likely, found)).unwrap_or(found))
    }

    /// True if two linear addresses are one byte of memory.
    fn are_same(&mut self, one: u64, other: u64) -> bool {
        one == other || self.cpu.probe(one).is_some_and(|at| self.cpu.probe(other) == Some(at))
    }
}
