//! State between the CPU and the context: what translated code works on, and what it leaves.
//!
//! Translated code changes privilege by itself (SYSCALL, SYSRETQ) and flips EFLAGS.AC (STAC, CLAC).
//! The CPU's segments, mode and view follow when Rust gets to see the state: by
//! [`Inner::save_context`], or by [`Inner::settle`] in helpers that go back to the code.

use cpu::engine::Vcpu;
use cpu::mmu::View;
use cpu::state::{rflags, seg};

use crate::code_memory::Notes;
use crate::context::{CALLED, Context, RETURNED, view_index};
use crate::vcpu::Inner;

impl Inner {
    /// State to context.
    pub(crate) fn load_context(&mut self, budget: u64) {
        let fpu: *mut cpu::fpu::FpuState = &raw mut self.cpu.state.fpu;
        let events = self.cpu.events().pending_address();
        let (bottom, ac_bottom) = (self.stacks.bottom(), self.stacks.ac_bottom());
        let cpl = u32::from(self.cpu.state.cpl);
        self.entered_budget = budget;
        let context = self.slots.current_context();
        context.fpu = fpu;
        context.host_mxcsr = 0x1f80;
        context.events = events;
        context.cpl = cpl;
        context.system_calls = 0;
        context.stack_bottom = bottom;
        context.ac_stack_bottom = ac_bottom;
        context.saved_rsp = bottom;
        self.reload_context(budget);
    }

    /// As [`Inner::load_context`], for code that goes on where it was: its stack stays.
    pub(crate) fn reload_context(&mut self, budget: u64) {
        let can_change = [View::User, View::Supervisor]
            .iter()
            .all(|&view| self.family[view_index(view)].is_some());
        let calls = if can_change { self.cpu.fast_system_calls() } else { None };
        let time = self.cpu.linear_tsc().unwrap_or_default();
        let notes = self.notes.as_ref().map_or(0, Notes::start);
        let state = &self.cpu.state;
        let context = self.slots.current_context();
        context.gpr = state.gpr;
        put_flags(context, state.rflags);
        context.fs_base = state.segments[seg::FS].base;
        context.gs_base = state.segments[seg::GS].base;
        context.kernel_gs_base = state.msrs.kernel_gs_base;
        context.cr2 = state.cr2;
        context.pkru = state.pkru;
        context.time = time;
        context.tsc_aux = state.msrs.tsc_aux as u32;
        for (selector, segment) in context.selectors.iter_mut().zip(&state.segments) {
            *selector = u32::from(segment.selector);
        }
        context.budget = budget;
        context.notes = notes;
        context.has_system_calls = u32::from(calls.is_some());
        if let Some(calls) = calls {
            let kept = !calls.mask as u32;
            context.system_entry = calls.entry;
            context.kept_status = (kept & 0xd5) << 8 | kept >> 11 & 1;
            context.kept_flags = kept | rflags::FIXED as u32;
        }
    }

    /// Context to state, RIP apart.
    pub(crate) fn save_context(&mut self) {
        self.settle();
        let state = &mut self.cpu.state;
        let context = self.slots.current_context();
        state.gpr = context.gpr;
        state.rflags = flags_of(context);
        state.segments[seg::FS].base = context.fs_base;
        state.segments[seg::GS].base = context.gs_base;
        state.msrs.kernel_gs_base = context.kernel_gs_base;
        let (before, after) = (self.entered_budget, context.budget);
        context.budget = 0;
        self.entered_budget = 0;
        if self.options.counting {
            self.cpu.add_retired(before.wrapping_sub(after));
        }
    }

    /// Takes over the privilege and the EFLAGS.AC that translated code has got to. Helpers that go
    /// by the CPU's mode or view call it first.
    pub(crate) fn settle(&mut self) {
        let context = self.slots.current_context();
        let calls = std::mem::take(&mut context.system_calls);
        let alignment_flag = u64::from(context.alignment_flag);
        if calls == 0 && self.cpu.state.rflags & rflags::AC == alignment_flag {
            return;
        }
        let (has_called, has_returned) = (calls & CALLED != 0, calls & RETURNED != 0);
        self.cpu.follow_system_calls(has_called, has_returned, alignment_flag);
        self.mode = None;
    }
}

/// RFLAGS into the context's parts.
fn put_flags(context: &mut Context, flags: u64) {
    let special = rflags::STATUS | rflags::IF | rflags::DF | rflags::AC;
    context.flags = (flags as u32 & 0xd5) << 8 | (flags >> 11 & 1) as u32;
    context.interrupt_flag = (flags & rflags::IF) as u32;
    context.direction_flag = (flags & rflags::DF) as u32;
    context.alignment_flag = (flags & rflags::AC) as u32;
    context.system_flags = (flags & !special) as u32;
}

/// RFLAGS from the context's parts.
fn flags_of(context: &Context) -> u64 {
    let status = context.flags >> 8 & 0xd5 | (context.flags & 1) << 11;
    u64::from(
        status
            | context.interrupt_flag
            | context.direction_flag
            | context.alignment_flag
            | context.system_flags,
    )
}
