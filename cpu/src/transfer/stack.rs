//! The stack of a transfer, before it is in SS:RSP.

use crate::Cpu;
use crate::descriptor::Selector;
use crate::exception::{Exception, Exec};
use crate::mmu::View;
use crate::state::{Segment, attr, gpr, rflags, seg};
use crate::transfer::table::Fault;

/// The width of one slot of a frame: the operand size of the transfer, or its gate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Word,
    Dword,
    Qword,
}

impl Size {
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
    /// Ones for the bits of the width.
    pub(crate) const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// A stack to push to and pop from; SS:RSP stay as they are until [`Cpu::adopt_stack`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) segment: Segment,
    pub(crate) rsp: u64,
    bits: u32,
    view: View,
    fault: Exception,
}

impl Stack {
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// The same stack under another SS: long mode ignores the hidden part but keeps it.
    pub(crate) fn with_segment(self, segment: Segment) -> Self {
        Self { segment, ..self }
    }

    /// Moves the pointer by `bytes`, in the width of the stack.
    pub(crate) fn advance(&mut self, bytes: u64) {
        let mask = self.mask();
        let moved = self.rsp.wrapping_add(bytes) & mask;
        // A 32-bit pointer clears the upper half as every 32-bit register write does.
        self.rsp = if self.bits == 16 { self.rsp & !mask | moved } else { moved };
    }
}

impl Cpu {
    /// SS:RSP as they are, with the rights of the current code.
    pub(crate) fn current_stack(&self) -> Stack {
        Stack {
            segment: self.state.segments[seg::SS],
            rsp: self.state.gpr[gpr::RSP],
            bits: self.mode.stack_bits,
            view: self.mmu.view(),
            fault: Exception::SS0,
        }
    }

    /// SS:RSP as they are, for a frame that long mode writes: 64 bits wide whatever SS is.
    pub(crate) fn current_stack_64(&self) -> Stack {
        Stack { bits: 64, ..self.current_stack() }
    }

    /// A stack of 64-bit mode for code at `cpl`.
    pub(crate) fn long_stack(&self, rsp: u64, cpl: u8) -> Stack {
        // Loaded with a null selector, as every change of CPL in long mode does.
        let segment = Segment::null(Selector(u16::from(cpl)), 0);
        Stack { segment, rsp, bits: 64, view: self.view_at(cpl), fault: Exception::SS0 }
    }

    /// A stack in `segment` for code at `cpl`; faults on it name its selector.
    pub(crate) fn stack_in(&self, segment: Segment, rsp: u64, cpl: u8) -> Stack {
        let bits = if segment.has(attr::DB) { 32 } else { 16 };
        let fault = Exception::ss(Selector(segment.selector).code());
        Stack { segment, rsp, bits, view: self.view_at(cpl), fault }
    }

    fn view_at(&self, cpl: u8) -> View {
        if cpl == 3 {
            View::User
        } else if self.state.rflags & rflags::AC != 0 {
            View::SupervisorAc
        } else {
            View::Supervisor
        }
    }

    fn stack_linear(&self, stack: &Stack, bytes: u64) -> Exec<u64> {
        let offset = stack.rsp & stack.mask();
        if stack.bits == 64 {
            let last = offset.wrapping_add(bytes - 1);
            let is_canonical = self.mode.is_canonical(offset) && self.mode.is_canonical(last);
            return if is_canonical { Ok(offset) } else { Err(stack.fault) };
        }
        if stack.segment.has(attr::UNUSABLE) || !stack.segment.contains(offset, bytes) {
            return Err(stack.fault);
        }
        Ok(stack.segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes to `stack`. A fault leaves the pointer where it was.
    pub(crate) fn push_to(&mut self, stack: &mut Stack, size: Size, value: u64) -> Exec {
        let mut moved = *stack;
        moved.advance(size.bytes().wrapping_neg());
        let linear = self.stack_linear(&moved, size.bytes())?;
        match size {
            Size::Word => self.write_as(stack.view, linear, value as u16)?,
            Size::Dword => self.write_as(stack.view, linear, value as u32)?,
            Size::Qword => self.write_as(stack.view, linear, value)?,
        }
        *stack = moved;
        Ok(())
    }

    /// Pushes `values`, the first one first.
    pub(crate) fn push_frame(&mut self, stack: &mut Stack, size: Size, values: &[u64]) -> Exec {
        values.iter().try_for_each(|&value| self.push_to(stack, size, value))
    }

    /// Pops from `stack`.
    pub(crate) fn pop_from(&mut self, stack: &mut Stack, size: Size) -> Exec<u64> {
        let linear = self.stack_linear(stack, size.bytes())?;
        let value = match size {
            Size::Word => u64::from(self.read_as::<u16>(stack.view, linear)?),
            Size::Dword => u64::from(self.read_as::<u32>(stack.view, linear)?),
            Size::Qword => self.read_as::<u64>(stack.view, linear)?,
        };
        stack.advance(size.bytes());
        Ok(value)
    }

    /// Makes `stack` SS:RSP. The caller calls [`Cpu::mode_changed`] once CS and CPL fit.
    pub(crate) fn adopt_stack(&mut self, stack: &Stack) {
        self.state.segments[seg::SS] = stack.segment;
        self.state.gpr[gpr::RSP] = stack.rsp;
    }

    /// The segment that `selector` gives for a stack of code at `cpl`, its accessed bit set.
    /// `fault` is what all but "not present" raises: #GP for MOV, POP and returns, #TS for stacks
    /// from a TSS (SDM Vol. 2, "MOV", "RET", "INT n").
    pub(crate) fn stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        fault: Fault,
    ) -> Exec<Segment> {
        if selector.is_null() {
            return Err(fault(0));
        }
        let entry = self.descriptor(selector, fault)?;
        let descriptor = &entry.descriptor;
        let fits = selector.rpl() == cpl && descriptor.dpl() == cpl;
        if !fits || !descriptor.is_writable_data() {
            return Err(fault(selector.code()));
        }
        if !descriptor.is_present() {
            return Err(Exception::ss(selector.code()));
        }
        self.mark_accessed(&entry)?;
        Ok(descriptor.segment(selector))
    }

    /// The stack that the TSS of a legacy mode names for `cpl`.
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Exec<Stack> {
        let tss = self.state.tr;
        let level = u64::from(cpl);
        // SS follows the pointer in both layouts.
        let is_32 = tss.attributes & 8 != 0;
        let (at, pointer_bytes) = if is_32 { (4 + 8 * level, 4) } else { (2 + 4 * level, 2) };
        if !tss.contains(at, pointer_bytes + 2) {
            return Err(Exception::ts(Selector(tss.selector).code()));
        }
        let address = tss.base.wrapping_add(at);
        let rsp = if is_32 {
            u64::from(self.read_system::<u32>(address)?)
        } else {
            u64::from(self.read_system::<u16>(address)?)
        };
        let selector = Selector(self.read_system(address.wrapping_add(pointer_bytes))?);
        let segment = self.stack_segment(selector, cpl, Exception::ts)?;
        Ok(self.stack_in(segment, rsp, cpl))
    }

    /// RSPn (0 to 2) or ISTn (4 to 10, as 3 + n) of the 64-bit TSS.
    pub(crate) fn tss_pointer(&mut self, slot: u64) -> Exec<u64> {
        let tss = self.state.tr;
        let at = 4 + 8 * slot;
        if !tss.contains(at, 8) {
            return Err(Exception::ts(Selector(tss.selector).code()));
        }
        self.read_system(tss.base.wrapping_add(at))
    }
}
