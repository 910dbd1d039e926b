//! IRET in all its forms.
//!
//! Source: SDM Vol. 2A, "IRET/IRETD/IRETQ-Interrupt Return".

use crate::Cpu;
use crate::descriptor::Selector;
use crate::exception::{Exception, Exec};
use crate::mode::OperatingMode;
use crate::state::{Segment, attr, cr4, gpr, rflags, seg};
use crate::transfer::code::Target;
use crate::transfer::stack::{Size, Stack};

/// RFLAGS bits that IRET loads at any privilege and size.
const ALWAYS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;

impl Cpu {
    /// IRET with operands of `size`.
    pub(crate) fn interrupt_return(&mut self, size: Size) -> Exec {
        match self.mode.operating {
            OperatingMode::Real => self.return_real(size),
            OperatingMode::Virtual8086 => self.return_in_virtual_8086(size),
            OperatingMode::Protected if self.flag(rflags::NT) => self.return_from_task(),
            OperatingMode::Protected => self.return_protected(size),
            _ if self.flag(rflags::NT) => Err(Exception::GP0),
            OperatingMode::Compatibility | OperatingMode::Long64 => self.return_protected(size),
        }?;
        self.state.nmi_blocked = false;
        self.break_block = true;
        Ok(())
    }

    /// Pops RIP, CS and flags.
    fn pop_frame(&mut self, stack: &mut Stack, size: Size) -> Exec<(u64, Selector, u64)> {
        let offset = self.pop_from(stack, size)?;
        let selector = Selector(self.pop_from(stack, size)? as u16);
        let flags = self.pop_from(stack, size)?;
        Ok((offset, selector, flags))
    }

    fn return_real(&mut self, size: Size) -> Exec {
        let changed = ALWAYS | rflags::IF | rflags::IOPL | rflags::RF | rflags::AC | rflags::ID;
        self.return_to_segment(size, changed)
    }

    /// A return inside real or virtual-8086 mode that loads the flags in `changed`.
    fn return_to_segment(&mut self, size: Size, changed: u64) -> Exec {
        let mut stack = self.current_stack();
        let (offset, selector, flags) = self.pop_frame(&mut stack, size)?;
        let cs = self.real_segment(seg::CS, selector.0);
        if offset > u64::from(cs.limit) {
            return Err(Exception::GP0);
        }
        self.adopt_stack(&stack);
        self.set_flags(changed & size.mask(), flags);
        self.enter(&Target { cs, cpl: self.state.cpl, rip: offset });
        Ok(())
    }

    fn return_in_virtual_8086(&mut self, size: Size) -> Exec {
        if self.state.rflags & rflags::IOPL == rflags::IOPL {
            let changed = ALWAYS | rflags::IF | rflags::RF | rflags::AC | rflags::ID;
            return self.return_to_segment(size, changed);
        }
        if size != Size::Word || self.state.cr4 & cr4::VME == 0 {
            return Err(Exception::GP0);
        }
        // With VME, IF in the frame is VIF's.
        let mut stack = self.current_stack();
        let (_, _, flags) = self.pop_frame(&mut stack, size)?;
        let opens_with_pending = flags & rflags::IF != 0 && self.flag(rflags::VIP);
        if opens_with_pending || flags & rflags::TF != 0 {
            return Err(Exception::GP0);
        }
        self.return_to_segment(size, ALWAYS)?;
        let vif = if flags & rflags::IF != 0 { rflags::VIF } else { 0 };
        self.set_flags(rflags::VIF, vif);
        Ok(())
    }

    fn return_protected(&mut self, size: Size) -> Exec {
        let mut stack = self.current_stack();
        let (offset, selector, flags) = self.pop_frame(&mut stack, size)?;
        let may_enter_v86 = self.mode.operating == OperatingMode::Protected
            && size == Size::Dword
            && self.state.cpl == 0;
        if may_enter_v86 && flags & rflags::VM != 0 {
            return self.return_to_virtual_8086(&mut stack, offset, selector, flags);
        }
        let code = self.code_descriptor(selector)?;
        self.check_return_privilege(&code)?;
        let cpl = selector.rpl();
        // 64-bit mode always finds SS:RSP in the frame.
        let has_stack = self.mode.is_64() || cpl > self.state.cpl;
        let new_stack =
            if has_stack { self.pop_outer_stack(&mut stack, &code, size)? } else { stack };
        let target = self.target(&code, cpl, offset)?;
        // Nothing faults from here on. Which flags change depends on the old CPL.
        let changed = self.returned_flags(size);
        self.set_flags(changed, flags);
        self.return_outward(&target, &new_stack);
        Ok(())
    }

    /// The flags that IRET loads in protected and long mode.
    fn returned_flags(&self, size: Size) -> u64 {
        let iopl = ((self.state.rflags & rflags::IOPL) >> 12) as u8;
        let mut changed = ALWAYS | rflags::RF | rflags::AC | rflags::ID;
        if self.state.cpl <= iopl {
            changed |= rflags::IF;
        }
        if self.state.cpl == 0 {
            changed |= rflags::IOPL | rflags::VIF | rflags::VIP;
        }
        changed & size.mask()
    }

    /// From level 0 into virtual-8086 mode: six more values on the stack, no descriptor read.
    fn return_to_virtual_8086(
        &mut self,
        stack: &mut Stack,
        offset: u64,
        selector: Selector,
        flags: u64,
    ) -> Exec {
        if offset > 0xffff {
            return Err(Exception::GP0);
        }
        let rsp = self.pop_from(stack, Size::Dword)?;
        let mut selectors = [0; 5];
        for selector in &mut selectors {
            *selector = self.pop_from(stack, Size::Dword)? as u16;
        }
        // Nothing faults from here on.
        let order = [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS];
        for (register, selector) in order.into_iter().zip(selectors) {
            self.state.segments[register] = virtual_8086_segment(selector);
        }
        self.state.gpr[gpr::RSP] = rsp;
        self.state.rflags = flags & rflags::ALL | rflags::FIXED;
        let cs = virtual_8086_segment(selector.0);
        self.enter(&Target { cs, cpl: 3, rip: offset });
        Ok(())
    }
}

/// A segment register of virtual-8086 mode: 64 KiB, DPL 3 (SDM Vol. 3C, "Checks on Guest Segment
/// Registers" gives these attributes, F3H).
pub(crate) fn virtual_8086_segment(selector: u16) -> Segment {
    let real = Segment::real(selector);
    Segment { attributes: real.attributes | attr::DPL, ..real }
}
