//! Interrupt and trap gates of protected and long mode.
//!
//! Source: SDM Vol. 2A, "INT n/INTO/INT3/INT1-Call to Interrupt Procedure".

use crate::Cpu;
use crate::descriptor::{Descriptor, Gate, Selector, SystemType};
use crate::exception::{Exception, Exec};
use crate::state::{Segment, gpr, rflags, seg};
use crate::transfer::code::Target;
use crate::transfer::event::Event;
use crate::transfer::stack::{Size, Stack};
use crate::transfer::table::Entry;

impl Cpu {
    /// An event in protected or virtual-8086 mode.
    pub(crate) fn legacy_gate(&mut self, event: &Event) -> Exec {
        let address = self.idt_address(event, 8)?;
        let descriptor = Descriptor::parse(self.read_system(address)?);
        let (size, is_interrupt) = match descriptor.system_type() {
            Some(SystemType::TaskGate) => {
                self.check_gate(event, &descriptor)?;
                return self.task_gate_event(event, descriptor.gate().selector);
            }
            Some(SystemType::InterruptGate16) => (Size::Word, true),
            Some(SystemType::TrapGate16) => (Size::Word, false),
            Some(SystemType::InterruptGate32) => (Size::Dword, true),
            Some(SystemType::TrapGate32) => (Size::Dword, false),
            _ => return Err(Exception::gp(event.gate_code())),
        };
        self.check_gate(event, &descriptor)?;
        let gate = descriptor.gate();
        let code = self.code_descriptor(gate.selector)?;
        let cpl = self.handler_cpl(&code)?;
        let target = if cpl < self.state.cpl {
            self.enter_inner_handler(event, &gate, &code, size)?
        } else {
            self.enter_same_handler(event, &gate, &code, size)?
        };
        // Nothing faults from here on.
        if self.state.rflags & rflags::VM != 0 {
            self.drop_virtual_8086_segments();
        }
        self.state.rflags = self.handler_flags(is_interrupt);
        self.enter(&target);
        Ok(())
    }

    /// A gate's own checks: DPL for software interrupts, then presence.
    fn check_gate(&self, event: &Event, gate: &Descriptor) -> Exec {
        if event.is_software && gate.dpl() < self.state.cpl {
            return Err(Exception::gp(event.gate_code()));
        }
        if !gate.is_present() {
            return Err(Exception::np(event.gate_code()));
        }
        Ok(())
    }

    /// The CPL of a handler: the current one for conforming code, else the segment's DPL.
    fn handler_cpl(&self, code: &Entry) -> Exec<u8> {
        let Entry { selector, descriptor, .. } = code;
        let fault = Err(Exception::gp(selector.code()));
        let current = self.state.cpl;
        if descriptor.dpl() > current {
            return fault;
        }
        let cpl = if descriptor.is_conforming() { current } else { descriptor.dpl() };
        // Out of virtual-8086 mode the only way is to level 0.
        if self.state.rflags & rflags::VM != 0 && cpl != 0 {
            return fault;
        }
        Ok(cpl)
    }

    fn enter_same_handler(
        &mut self,
        event: &Event,
        gate: &Gate,
        code: &Entry,
        size: Size,
    ) -> Exec<Target> {
        let target = self.target(code, self.state.cpl, gate.offset)?;
        let mut stack = self.current_stack();
        self.push_event(&mut stack, event, size)?;
        self.adopt_stack(&stack);
        Ok(target)
    }

    /// To a more privileged level: the stack comes from the TSS, and the old one goes on it.
    fn enter_inner_handler(
        &mut self,
        event: &Event,
        gate: &Gate,
        code: &Entry,
        size: Size,
    ) -> Exec<Target> {
        let cpl = code.descriptor.dpl();
        if !code.descriptor.is_present() {
            return Err(Exception::np(code.selector.code()));
        }
        let mut stack = self.inner_stack(cpl)?;
        let target = self.target(code, cpl, gate.offset)?;
        if self.state.rflags & rflags::VM != 0 {
            let selectors = [seg::GS, seg::FS, seg::DS, seg::ES].map(|n| self.selector(n));
            self.push_frame(&mut stack, size, &selectors)?;
        }
        let old = [self.selector(seg::SS), self.state.gpr[gpr::RSP]];
        self.push_frame(&mut stack, size, &old)?;
        self.push_event(&mut stack, event, size)?;
        self.adopt_stack(&stack);
        Ok(target)
    }

    /// Pushes flags, CS, RIP and the error code, if there is one.
    fn push_event(&mut self, stack: &mut Stack, event: &Event, size: Size) -> Exec {
        let frame = [event.rflags, self.selector(seg::CS), event.return_rip];
        self.push_frame(stack, size, &frame)?;
        match event.error_code {
            Some(code) => self.push_to(stack, size, u64::from(code)),
            None => Ok(()),
        }
    }

    pub(crate) fn selector(&self, register: usize) -> u64 {
        u64::from(self.state.segments[register % 6].selector)
    }

    /// Behind an event in virtual-8086 mode the data segments mean nothing to protected mode.
    fn drop_virtual_8086_segments(&mut self) {
        for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
            self.state.segments[register] = Segment::null(Selector(0), 0);
        }
    }

    /// An event in long mode.
    pub(crate) fn long_gate(&mut self, event: &Event) -> Exec {
        let address = self.idt_address(event, 16)?;
        let descriptor = Descriptor::parse(self.read_system(address)?);
        let is_interrupt = match descriptor.system_type() {
            Some(SystemType::InterruptGate32) => true,
            Some(SystemType::TrapGate32) => false,
            _ => return Err(Exception::gp(event.gate_code())),
        };
        self.check_gate(event, &descriptor)?;
        let high: u64 = self.read_system(address.wrapping_add(8))?;
        let gate = descriptor.gate();
        let code = self.code_descriptor(gate.selector)?;
        let cpl = self.handler_cpl(&code)?;
        if !code.descriptor.is_long_code() {
            return Err(Exception::gp(gate.selector.code()));
        }
        let target = self.target(&code, cpl, gate.offset | high << 32)?;
        let mut stack = self.long_handler_stack(cpl, gate.ist)?;
        stack.rsp &= !0xf;
        let old = [self.selector(seg::SS), self.state.gpr[gpr::RSP]];
        self.push_frame(&mut stack, Size::Qword, &old)?;
        self.push_event(&mut stack, event, Size::Qword)?;
        // Nothing faults from here on.
        self.adopt_stack(&stack);
        self.state.rflags = self.handler_flags(is_interrupt);
        self.enter(&target);
        Ok(())
    }

    /// IST names a stack for every privilege; else one changes with the privilege only.
    fn long_handler_stack(&mut self, cpl: u8, ist: u8) -> Exec<Stack> {
        let is_inner = cpl < self.state.cpl;
        let slot = match ist {
            0 if !is_inner => return Ok(self.current_stack_64()),
            0 => u64::from(cpl),
            ist => 3 + u64::from(ist & 7),
        };
        let rsp = self.tss_pointer(slot)?;
        let fresh = self.long_stack(rsp, cpl);
        let segment = if is_inner { fresh.segment } else { self.state.segments[seg::SS] };
        Ok(fresh.with_segment(segment))
    }
}
