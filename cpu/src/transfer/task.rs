//! Hardware task switches.
//!
//! Source: SDM Vol. 3A, "Task Management", "Task Switching" (the numbered steps are its) and
//! "Exception Conditions Checked During a Task Switch".

use crate::Cpu;
use crate::debug::DR6_BT;
use crate::debugger::Caught;
use crate::descriptor::{Descriptor, Selector, SystemType};
use crate::exception::{Exception, Exec};
use crate::mmu::View;
use crate::state::{Segment, attr, cr0, cr4, rflags, seg};
use crate::transfer::event::Event;
use crate::transfer::iret::virtual_8086_segment;
use crate::transfer::stack::Size;
use crate::transfer::table::{Entry, Fault};

/// What starts a task switch, and so what becomes of busy bits, NT and the back link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Jump,
    Call,
    Event,
    Return,
}

impl Reason {
    /// The old task stays busy and the new one links back to it.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event)
    }
}

/// Where a task state segment keeps things.
struct Layout {
    size: Size,
    cr3: Option<usize>,
    ip: usize,
    flags: usize,
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    registers: usize,
    /// ES, CS, SS, DS and, if there are six, FS and GS.
    segments: usize,
    segment_count: usize,
    ldt: usize,
    /// The word whose bit 0 is T.
    trap: Option<usize>,
    /// The smallest limit.
    limit: u32,
}

static TSS16: Layout = Layout {
    size: Size::Word,
    cr3: None,
    ip: 0xe,
    flags: 0x10,
    registers: 0x12,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    trap: None,
    limit: 0x2b,
};

static TSS32: Layout = Layout {
    size: Size::Dword,
    cr3: Some(0x1c),
    ip: 0x20,
    flags: 0x24,
    registers: 0x28,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    trap: Some(0x64),
    limit: 0x67,
};

impl Layout {
    fn of(attributes: u16) -> &'static Self {
        if attributes & 8 != 0 { &TSS32 } else { &TSS16 }
    }
    fn register(&self, number: usize) -> usize {
        self.registers + number * self.size.bytes() as usize
    }
    fn segment(&self, number: usize) -> usize {
        self.segments + number * self.size.bytes() as usize
    }
}

/// A task state segment as it was read before the switch.
struct Image {
    layout: &'static Layout,
    bytes: [u8; 0x68],
}

impl Image {
    fn word(&self, at: usize) -> u16 {
        let byte = |at: usize| u16::from(self.bytes.get(at).copied().unwrap_or(0));
        byte(at) | byte(at + 1) << 8
    }
    /// A value of the layout's width.
    fn value(&self, at: usize) -> u64 {
        match self.layout.size {
            Size::Word => u64::from(self.word(at)),
            _ => u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16,
        }
    }
    fn selector(&self, number: usize) -> Selector {
        let exists = number < self.layout.segment_count;
        Selector(if exists { self.word(self.layout.segment(number)) } else { 0 })
    }
}

fn is_available_tss(descriptor: &Descriptor) -> bool {
    let kind = descriptor.system_type();
    matches!(kind, Some(SystemType::Tss16Available | SystemType::Tss32Available))
}

fn is_busy_tss(descriptor: &Descriptor) -> bool {
    matches!(descriptor.system_type(), Some(SystemType::Tss16Busy | SystemType::Tss32Busy))
}

impl Cpu {
    /// JMP or CALL to a TSS.
    pub(crate) fn transfer_to_tss(&mut self, entry: &Entry, reason: Reason) -> Exec {
        let code = entry.selector.code();
        if entry.selector.is_local() || !is_available_tss(&entry.descriptor) {
            return Err(Exception::gp(code));
        }
        if !entry.descriptor.is_present() {
            return Err(Exception::np(code));
        }
        let (rip, flags) = (self.next_rip, self.state.rflags);
        self.switch_task(entry, reason, rip, flags).map(|_| ())
    }

    /// JMP or CALL to a task gate.
    pub(crate) fn transfer_to_task_gate(&mut self, gate: &Entry, reason: Reason) -> Exec {
        if !gate.descriptor.is_present() {
            return Err(Exception::np(gate.selector.code()));
        }
        let tss = self.gate_tss(gate.descriptor.gate().selector)?;
        self.transfer_to_tss(&tss, reason)
    }

    fn gate_tss(&mut self, selector: Selector) -> Exec<Entry> {
        if selector.is_local() {
            return Err(Exception::gp(selector.code()));
        }
        self.descriptor(selector, Exception::gp)
    }

    /// An event through a task gate for the TSS of `selector`.
    pub(crate) fn task_gate_event(&mut self, event: &Event, selector: Selector) -> Exec {
        let tss = self.gate_tss(selector)?;
        if !is_available_tss(&tss.descriptor) {
            return Err(Exception::gp(selector.code()));
        }
        if !tss.descriptor.is_present() {
            return Err(Exception::np(selector.code()));
        }
        let size = self.switch_task(&tss, Reason::Event, event.return_rip, event.rflags)?;
        if let Some(code) = event.error_code {
            let mut stack = self.current_stack();
            self.push_to(&mut stack, size, u64::from(code))?;
            self.adopt_stack(&stack);
        }
        Ok(())
    }

    /// IRET with NT: back to the task that the back link names.
    pub(crate) fn return_from_task(&mut self) -> Exec {
        let selector = Selector(self.read_system(self.state.tr.base)?);
        let code = selector.code();
        if selector.is_local() {
            return Err(Exception::ts(code));
        }
        let tss = self.descriptor(selector, Exception::ts)?;
        if !is_busy_tss(&tss.descriptor) {
            return Err(Exception::ts(code));
        }
        if !tss.descriptor.is_present() {
            return Err(Exception::np(code));
        }
        let (rip, flags) = (self.next_rip, self.state.rflags & !rflags::NT);
        self.switch_task(&tss, Reason::Return, rip, flags).map(|_| ())
    }

    /// Switches to the task of `new`; `rip` and `flags` are what the old task goes on with. Faults
    /// up to step 8 find the old task's registers untouched, later ones belong to the new task.
    fn switch_task(&mut self, new: &Entry, reason: Reason, rip: u64, flags: u64) -> Exec<Size> {
        let image = self.read_task(new)?;
        self.check_task_writes(new, reason)?;
        let old = self.state.tr;
        let old_descriptor = self.task_descriptor_address(old.selector);
        if !reason.nests() {
            self.mark_available(old_descriptor)?;
        }
        self.save_task(rip, flags)?;
        if reason.nests() {
            self.write_system(new.descriptor.base, old.selector)?;
        }
        if reason != Reason::Return {
            self.mark_busy(new.address)?;
        }
        let tr = new.descriptor.segment(new.selector);
        self.state.tr = Segment { attributes: tr.attributes | 2, ..tr };
        let nested = if reason.nests() { rflags::NT } else { 0 };
        self.load_task(&image, nested)?;
        Ok(image.layout.size)
    }

    /// Reads the new TSS whole, so that the switch has one point of no return.
    fn read_task(&mut self, new: &Entry) -> Exec<Image> {
        let layout = Layout::of(new.descriptor.attributes);
        if new.descriptor.limit < layout.limit {
            return Err(Exception::ts(new.selector.code()));
        }
        let mut image = Image { layout, bytes: [0; 0x68] };
        let length = layout.limit as usize + 1;
        if let Some(bytes) = image.bytes.get_mut(..length) {
            self.read_linear_bytes(new.descriptor.base, bytes, View::Supervisor)?;
        }
        Ok(image)
    }

    /// Step 5: everything that the switch writes can be written.
    fn check_task_writes(&mut self, new: &Entry, reason: Reason) -> Exec {
        let old = self.state.tr;
        let layout = Layout::of(old.attributes);
        let saved = layout.ldt - layout.ip;
        self.check_system_write(old.base.wrapping_add(layout.ip as u64), saved as u64)?;
        if reason.nests() {
            self.check_system_write(new.descriptor.base, 2)?;
        }
        if reason != Reason::Return {
            self.check_system_write(new.address, 8)?;
        }
        self.check_system_write(self.task_descriptor_address(old.selector), 8)
    }

    fn task_descriptor_address(&self, selector: u16) -> u64 {
        self.state.gdtr.base.wrapping_add(Selector(selector).offset())
    }

    /// Saves the registers in the current TSS.
    fn save_task(&mut self, rip: u64, flags: u64) -> Exec {
        let tss = self.state.tr;
        let layout = Layout::of(tss.attributes);
        self.write_task(layout, layout.ip, rip)?;
        self.write_task(layout, layout.flags, flags)?;
        for number in 0..8 {
            self.write_task(layout, layout.register(number), self.state.gpr[number])?;
        }
        for number in 0..layout.segment_count {
            let selector = self.state.segments[number].selector;
            self.write_system(tss.base.wrapping_add(layout.segment(number) as u64), selector)?;
        }
        Ok(())
    }

    fn write_task(&mut self, layout: &Layout, at: usize, value: u64) -> Exec {
        let address = self.state.tr.base.wrapping_add(at as u64);
        match layout.size {
            Size::Word => self.write_system(address, value as u16),
            _ => self.write_system(address, value as u32),
        }
    }

    /// Loads the registers of the new task, then the descriptors of its segments.
    fn load_task(&mut self, image: &Image, nested: u64) -> Exec {
        let layout = image.layout;
        // Visible state first: a fault in the descriptors finds all of it in place.
        self.state.rip = image.value(layout.ip);
        self.next_rip = self.state.rip;
        self.state.rflags = (image.value(layout.flags) & rflags::ALL) | rflags::FIXED | nested;
        for number in 0..8u8 {
            let value = image.value(layout.register(usize::from(number)));
            match layout.size {
                Size::Word => self.set_reg(number, value as u16),
                _ => self.set_reg(number, value as u32),
            }
        }
        let is_v86 = self.flag(rflags::VM);
        for number in 0..6 {
            let selector = image.selector(number);
            self.state.segments[number] =
                if is_v86 { virtual_8086_segment(selector.0) } else { Segment::null(selector, 0) };
        }
        self.state.cpl = if is_v86 { 3 } else { image.selector(seg::CS).rpl() };
        self.finish_task_state(image);
        let cr3 = layout.cr3.map(|at| image.value(at));
        self.load_task_cr3(cr3)?;
        self.load_task_ldt(Selector(image.word(layout.ldt)))?;
        if !is_v86 {
            self.load_task_segments(image)?;
        }
        self.mode_changed();
        if self.state.rip > u64::from(self.state.segments[seg::CS].limit) {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    /// CR0.TS, the local breakpoints, and the T flag's trap.
    fn finish_task_state(&mut self, image: &Image) {
        const LOCAL_ENABLES: u64 = 0x155;
        self.state.cr0 |= cr0::TS;
        self.state.dr[7] &= !LOCAL_ENABLES;
        if image.layout.trap.is_some_and(|at| image.word(at) & 1 != 0) {
            self.pending_dr6 |= DR6_BT;
        }
        self.suppress_step = true;
        self.mode_changed();
    }

    fn load_task_cr3(&mut self, cr3: Option<u64>) -> Exec {
        let Some(cr3) = cr3.filter(|_| self.state.cr0 & cr0::PG != 0) else { return Ok(()) };
        if self.state.cr4 & cr4::PAE != 0 {
            self.load_pdptes(cr3)?;
        }
        let old = std::mem::replace(&mut self.state.cr3, cr3);
        self.record_control(3, cr3);
        self.flush_translations();
        self.catch(|| Caught::Cr3 { old, new: cr3 });
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: Selector) -> Exec {
        self.state.ldtr = Segment::null(selector, 0);
        let ldtr = self.ldt_segment(selector, Exception::ts, Exception::ts)?;
        self.state.ldtr = ldtr;
        Ok(())
    }

    /// The LDTR that `selector` gives; `fault` is for a wrong one, `absent` for a missing one.
    pub(crate) fn ldt_segment(
        &mut self,
        selector: Selector,
        fault: Fault,
        absent: Fault,
    ) -> Exec<Segment> {
        if selector.is_null() {
            return Ok(Segment::null(selector, 0));
        }
        if selector.is_local() {
            return Err(fault(selector.code()));
        }
        let entry = self.descriptor(selector, fault)?;
        if entry.descriptor.system_type() != Some(SystemType::Ldt) {
            return Err(fault(selector.code()));
        }
        if !entry.descriptor.is_present() {
            return Err(absent(selector.code()));
        }
        let base = entry.descriptor.base | self.high_base(&entry, fault)?;
        if !self.is_canonical_base(base) {
            return Err(fault(selector.code()));
        }
        Ok(Segment { base, ..entry.descriptor.segment(selector) })
    }

    /// CS, then SS, whose privilege CS decides, then the data segments.
    fn load_task_segments(&mut self, image: &Image) -> Exec {
        let cpl = self.state.cpl;
        let ss = image.selector(seg::SS);
        if ss.is_null() {
            return Err(Exception::ts(0));
        }
        let cs = self.task_code_segment(image.selector(seg::CS))?;
        self.state.segments[seg::CS] = cs;
        // Now, because the next segment may fault, and that is delivered in the new task's mode.
        self.mode_changed();
        self.state.segments[seg::SS] = self.stack_segment(ss, cpl, Exception::ts)?;
        self.mode_changed();
        for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let selector = image.selector(register);
            if !selector.is_null() {
                let segment = self.readable_segment(selector, Exception::ts)?;
                self.state.segments[register] = segment;
            }
        }
        Ok(())
    }

    fn task_code_segment(&mut self, selector: Selector) -> Exec<Segment> {
        let fault = Exception::ts(selector.code());
        if selector.is_null() {
            return Err(fault);
        }
        let entry = self.descriptor(selector, Exception::ts)?;
        let descriptor = &entry.descriptor;
        let fits = if descriptor.is_conforming() {
            descriptor.dpl() <= selector.rpl()
        } else {
            descriptor.dpl() == selector.rpl()
        };
        if !descriptor.is_code() || !fits {
            return Err(fault);
        }
        if !descriptor.is_present() {
            return Err(Exception::np(selector.code()));
        }
        self.mark_accessed(&entry)?;
        Ok(Segment {
            attributes: descriptor.attributes | attr::ACCESSED,
            ..descriptor.segment(selector)
        })
    }
}
