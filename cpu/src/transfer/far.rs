//! Far jumps, calls and returns.
//!
//! Sources: SDM Vol. 2A, "JMP-Jump", "CALL-Call Procedure", SDM Vol. 2B, "RET-Return From
//! Procedure"; APM Vol. 2, "Call Gates" of long mode.

use crate::Cpu;
use crate::descriptor::{Gate, Selector, SystemType};
use crate::exception::{Exception, Exec};
use crate::state::{gpr, seg};
use crate::transfer::code::Target;
use crate::transfer::stack::{Size, Stack};
use crate::transfer::table::Entry;
use crate::transfer::task::Reason;

/// What a far CALL or JMP found at its selector.
enum Destination {
    Code(Entry),
    CallGate(Entry, Size),
    TaskGate(Entry),
    Tss(Entry),
}

impl Cpu {
    /// JMP ptr16:n and m16:n.
    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64) -> Exec {
        if self.mode.is_real_or_v86() {
            let target = self.real_target(selector, offset)?;
            self.enter(&target);
            return Ok(());
        }
        match self.destination(Selector(selector))? {
            Destination::Code(entry) => {
                self.check_direct_privilege(&entry)?;
                let target = self.target(&entry, self.state.cpl, offset)?;
                self.enter(&target);
                Ok(())
            }
            Destination::CallGate(entry, _) => self.jump_through_gate(&entry),
            Destination::TaskGate(entry) => self.transfer_to_task_gate(&entry, Reason::Jump),
            Destination::Tss(entry) => self.transfer_to_tss(&entry, Reason::Jump),
        }
    }

    /// CALL ptr16:n and m16:n.
    pub(crate) fn far_call(&mut self, selector: u16, offset: u64, size: Size) -> Exec {
        if self.mode.is_real_or_v86() {
            let target = self.real_target(selector, offset)?;
            return self.call_target(&target, size);
        }
        match self.destination(Selector(selector))? {
            Destination::Code(entry) => {
                self.check_direct_privilege(&entry)?;
                let target = self.target(&entry, self.state.cpl, offset)?;
                self.call_target(&target, size)
            }
            Destination::CallGate(entry, size) => self.call_through_gate(&entry, size),
            Destination::TaskGate(entry) => self.transfer_to_task_gate(&entry, Reason::Call),
            Destination::Tss(entry) => self.transfer_to_tss(&entry, Reason::Call),
        }
    }

    fn real_target(&self, selector: u16, offset: u64) -> Exec<Target> {
        let cs = self.real_segment(seg::CS, selector);
        if offset > u64::from(cs.limit) {
            return Err(Exception::GP0);
        }
        Ok(Target { cs, cpl: self.state.cpl, rip: offset })
    }

    /// Pushes the return address and goes to `target` with the same stack.
    fn call_target(&mut self, target: &Target, size: Size) -> Exec {
        let mut stack = self.current_stack();
        let frame = [self.selector(seg::CS), self.next_rip];
        self.push_frame(&mut stack, size, &frame)?;
        // Nothing faults from here on.
        self.adopt_stack(&stack);
        self.enter(target);
        Ok(())
    }

    fn destination(&mut self, selector: Selector) -> Exec<Destination> {
        if selector.is_null() {
            return Err(Exception::GP0);
        }
        let entry = self.descriptor(selector, Exception::gp)?;
        if entry.descriptor.is_code() {
            return Ok(Destination::Code(entry));
        }
        let destination = match entry.descriptor.system_type() {
            Some(SystemType::CallGate32) if self.mode.is_long() => {
                Destination::CallGate(entry, Size::Qword)
            }
            _ if self.mode.is_long() => return Err(Exception::gp(selector.code())),
            Some(SystemType::CallGate16) => Destination::CallGate(entry, Size::Word),
            Some(SystemType::CallGate32) => Destination::CallGate(entry, Size::Dword),
            Some(SystemType::TaskGate) => Destination::TaskGate(entry),
            Some(
                SystemType::Tss16Available
                | SystemType::Tss32Available
                | SystemType::Tss16Busy
                | SystemType::Tss32Busy,
            ) => Destination::Tss(entry),
            _ => return Err(Exception::gp(selector.code())),
        };
        let is_reachable = entry.descriptor.dpl() >= self.state.cpl.max(selector.rpl());
        if is_reachable { Ok(destination) } else { Err(Exception::gp(selector.code())) }
    }

    /// The gate's fields, its entry point in full, and the code segment it names.
    fn open_call_gate(&mut self, entry: &Entry) -> Exec<(Gate, Entry)> {
        let high = self.high_base(entry, Exception::gp)?;
        if !entry.descriptor.is_present() {
            return Err(Exception::np(entry.selector.code()));
        }
        let gate = entry.descriptor.gate();
        let code = self.code_descriptor(gate.selector)?;
        let is_wrong_width = self.mode.is_long() && !code.descriptor.is_long_code();
        if is_wrong_width || code.descriptor.dpl() > self.state.cpl {
            return Err(Exception::gp(gate.selector.code()));
        }
        Ok((Gate { offset: gate.offset | high, ..gate }, code))
    }

    fn jump_through_gate(&mut self, entry: &Entry) -> Exec {
        let (gate, code) = self.open_call_gate(entry)?;
        // A jump never changes the privilege, so non-conforming code must have the caller's.
        if !code.descriptor.is_conforming() && code.descriptor.dpl() != self.state.cpl {
            return Err(Exception::gp(gate.selector.code()));
        }
        let target = self.target(&code, self.state.cpl, gate.offset)?;
        self.enter(&target);
        Ok(())
    }

    fn call_through_gate(&mut self, entry: &Entry, size: Size) -> Exec {
        let (gate, code) = self.open_call_gate(entry)?;
        if code.descriptor.is_conforming() || code.descriptor.dpl() == self.state.cpl {
            let target = self.target(&code, self.state.cpl, gate.offset)?;
            return self.call_target(&target, size);
        }
        self.call_inner(&gate, &code, size)
    }

    /// To a more privileged level: a stack from the TSS, the old one on it, then the parameters.
    fn call_inner(&mut self, gate: &Gate, code: &Entry, size: Size) -> Exec {
        let cpl = code.descriptor.dpl();
        if !code.descriptor.is_present() {
            return Err(Exception::np(code.selector.code()));
        }
        let mut stack = if size == Size::Qword {
            let rsp = self.tss_pointer(u64::from(cpl))?;
            self.long_stack(rsp, cpl)
        } else {
            self.inner_stack(cpl)?
        };
        let target = self.target(code, cpl, gate.offset)?;
        let old = [self.selector(seg::SS), self.state.gpr[gpr::RSP]];
        self.push_frame(&mut stack, size, &old)?;
        if size != Size::Qword {
            self.copy_parameters(&mut stack, gate.parameters, size)?;
        }
        let back = [self.selector(seg::CS), self.next_rip];
        self.push_frame(&mut stack, size, &back)?;
        // Nothing faults from here on.
        self.adopt_stack(&stack);
        self.enter(&target);
        Ok(())
    }

    fn copy_parameters(&mut self, to: &mut Stack, count: u8, size: Size) -> Exec {
        let mut from = self.current_stack();
        let mut parameters = [0; 31];
        let count = usize::from(count).min(parameters.len());
        for parameter in &mut parameters[..count] {
            *parameter = self.pop_from(&mut from, size)?;
        }
        // The one at the top of the old stack is pushed last.
        parameters[..count].reverse();
        self.push_frame(to, size, &parameters[..count])
    }

    /// RETF: releases `release` bytes of parameters behind the return address.
    pub(crate) fn far_return(&mut self, size: Size, release: u64) -> Exec {
        let mut stack = self.current_stack();
        let offset = self.pop_from(&mut stack, size)?;
        let selector = self.pop_from(&mut stack, size)? as u16;
        if self.mode.is_real_or_v86() {
            let target = self.real_target(selector, offset)?;
            stack.advance(release);
            self.adopt_stack(&stack);
            self.enter(&target);
            return Ok(());
        }
        let code = self.code_descriptor(Selector(selector))?;
        self.check_return_privilege(&code)?;
        stack.advance(release);
        let cpl = code.selector.rpl();
        if cpl == self.state.cpl {
            let target = self.target(&code, cpl, offset)?;
            self.adopt_stack(&stack);
            self.enter(&target);
            return Ok(());
        }
        let mut outer = self.pop_outer_stack(&mut stack, &code, size)?;
        let target = self.target(&code, cpl, offset)?;
        outer.advance(release);
        self.return_outward(&target, &outer);
        Ok(())
    }

    /// Pops RSP and SS of a less privileged caller (or, in 64-bit mode, of any) and checks them.
    pub(crate) fn pop_outer_stack(
        &mut self,
        stack: &mut Stack,
        code: &Entry,
        size: Size,
    ) -> Exec<Stack> {
        if !code.descriptor.is_present() {
            return Err(Exception::np(code.selector.code()));
        }
        let rsp = self.pop_from(stack, size)?;
        let selector = Selector(self.pop_from(stack, size)? as u16);
        let cpl = code.selector.rpl();
        let is_to_long = self.mode.is_long() && code.descriptor.is_long_code();
        if selector.is_null() && is_to_long && cpl != 3 && selector.rpl() == cpl {
            return Ok(self.long_stack(rsp, cpl));
        }
        let segment = self.stack_segment(selector, cpl, Exception::gp)?;
        Ok(if is_to_long {
            self.long_stack(rsp, cpl).with_segment(segment)
        } else {
            self.stack_in(segment, rsp, cpl)
        })
    }

    /// Commits a return with another stack. Nothing faults here.
    pub(crate) fn return_outward(&mut self, target: &Target, stack: &Stack) {
        let is_outward = target.cpl > self.state.cpl;
        self.adopt_stack(stack);
        self.enter(target);
        if is_outward {
            self.drop_privileged_segments(target.cpl);
        }
    }
}
