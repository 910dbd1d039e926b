//! Interrupts through the interrupt vector table: real mode, and virtual-8086 mode with VME.
//!
//! Sources: SDM Vol. 3B, "Interrupt and Exception Handling" (8086 Emulation), "Software Interrupt
//! Handling Methods While Operating in Virtual-8086 Mode".

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::state::{cr4, rflags, seg};
use crate::transfer::event::Event;
use crate::transfer::stack::Size;

/// Offset in the TSS of the offset of the I/O permission bitmap.
const IO_MAP_BASE: u64 = 0x66;
/// The interrupt redirection bitmap: 32 bytes right before the I/O permission bitmap.
const REDIRECTION_BYTES: u64 = 32;

impl Cpu {
    /// An event in real mode.
    pub(crate) fn real_interrupt(&mut self, event: &Event) -> Exec {
        let entry = self.state.idtr.base.wrapping_add(self.ivt_offset(event)?);
        self.vector_through(event, entry, event.rflags)?;
        self.state.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.mode_changed();
        Ok(())
    }

    fn ivt_offset(&self, event: &Event) -> Exec<u64> {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.state.idtr.limit) {
            return Err(Exception::gp(event.gate_code()));
        }
        Ok(offset)
    }

    /// Pushes `flags`, CS and IP and goes where the table entry at `entry` says.
    fn vector_through(&mut self, event: &Event, entry: u64, flags: u64) -> Exec {
        let far: u32 = self.read_system(entry)?;
        let offset = u64::from(far & 0xffff);
        let cs = self.real_segment(seg::CS, (far >> 16) as u16);
        if offset > u64::from(cs.limit) {
            return Err(Exception::GP0);
        }
        let mut stack = self.current_stack();
        let frame = [flags, u64::from(self.code_selector().0), event.return_rip];
        self.push_frame(&mut stack, Size::Word, &frame)?;
        // Nothing faults from here on.
        self.adopt_stack(&stack);
        self.state.segments[seg::CS] = cs;
        self.state.rip = offset;
        self.next_rip = offset;
        Ok(())
    }

    /// INT n in virtual-8086 mode: true if it was handled inside the 8086 task, false if it goes
    /// through the protected-mode IDT.
    ///
    /// | CR4.VME | IOPL | redirection bit | |
    /// |---|---|---|---|
    /// | 0 | 3 | - | IDT |
    /// | 0 | < 3 | - | #GP(0) |
    /// | 1 | any | 0 | 8086 handler; with IOPL < 3, VIF stands for IF |
    /// | 1 | 3 | 1 | IDT |
    /// | 1 | < 3 | 1 | #GP(0) |
    pub(crate) fn virtual_8086_interrupt(&mut self, event: &Event) -> Exec<bool> {
        let is_trusted = self.state.rflags & rflags::IOPL == rflags::IOPL;
        let is_redirected = self.state.cr4 & cr4::VME != 0 && !self.is_intercepted(event.vector)?;
        if !is_redirected {
            return if is_trusted { Ok(false) } else { Err(Exception::GP0) };
        }
        let flags = if is_trusted { event.rflags } else { self.virtual_flags_image() };
        // The 8086 task's own table, at linear address 0.
        self.vector_through(event, u64::from(event.vector) * 4, flags)?;
        let interrupt = if is_trusted { rflags::IF } else { rflags::VIF };
        self.state.rflags &= !(interrupt | rflags::TF | rflags::NT);
        self.mode_changed();
        Ok(true)
    }

    /// The flags that a virtual-8086 task with IOPL < 3 sees pushed: IF is VIF, IOPL is 3.
    pub(crate) fn virtual_flags_image(&self) -> u64 {
        let flags = self.state.rflags & !rflags::IF | rflags::IOPL;
        if self.state.rflags & rflags::VIF != 0 { flags | rflags::IF } else { flags }
    }

    /// True if the redirection bitmap sends `vector` to the IDT.
    fn is_intercepted(&mut self, vector: u8) -> Exec<bool> {
        let tss = self.state.tr;
        if !tss.contains(IO_MAP_BASE, 2) {
            return Err(Exception::GP0);
        }
        let io_map: u16 = self.read_system(tss.base.wrapping_add(IO_MAP_BASE))?;
        let byte =
            u64::from(io_map).wrapping_sub(REDIRECTION_BYTES).wrapping_add(u64::from(vector / 8));
        if !tss.contains(byte, 1) {
            return Err(Exception::GP0);
        }
        let bits: u8 = self.read_system(tss.base.wrapping_add(byte))?;
        Ok(bits & 1 << (vector % 8) != 0)
    }
}
