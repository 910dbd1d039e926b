//! Loading data and stack segment registers.
//!
//! Source: SDM Vol. 2B, "MOV-Move", "Loading a segment register while in protected mode".

use decoder::Vendor;

use crate::Cpu;
use crate::descriptor::Selector;
use crate::exception::{Exception, Exec};
use crate::state::{Segment, attr, seg};
use crate::transfer::table::Fault;

impl Cpu {
    /// Loads ES, SS, DS, FS or GS with the checks of the mode.
    pub(crate) fn load_segment(&mut self, register: usize, selector: u16) -> Exec {
        let register = register % 6;
        let segment = if self.mode.is_real_or_v86() {
            self.real_segment(register, selector)
        } else if register == seg::SS {
            self.new_stack_segment(Selector(selector))?
        } else {
            self.data_segment(register, Selector(selector))?
        };
        self.state.segments[register] = segment;
        if register == seg::SS {
            // The width of the stack may have changed.
            self.mode_changed();
        }
        Ok(())
    }

    /// What a load gives in real mode, where attributes and limit stay ("unreal mode"), and in
    /// virtual-8086 mode, where they are as entering the mode made them.
    pub(crate) fn real_segment(&self, register: usize, selector: u16) -> Segment {
        let old = self.state.segments[register % 6];
        let base = u64::from(selector) << 4;
        if old.has(attr::UNUSABLE) {
            // Null when protected mode was left: usable again.
            return Segment::real(selector);
        }
        Segment { selector, base, ..old }
    }

    fn new_stack_segment(&mut self, selector: Selector) -> Exec<Segment> {
        let cpl = self.state.cpl;
        let may_be_null = self.mode.is_64() && cpl != 3 && selector.rpl() == cpl;
        if selector.is_null() && may_be_null {
            return Ok(Segment::null(selector, 0));
        }
        self.stack_segment(selector, cpl, Exception::gp)
    }

    fn data_segment(&mut self, register: usize, selector: Selector) -> Exec<Segment> {
        if selector.is_null() {
            return Ok(self.null_segment(register, selector));
        }
        self.readable_segment(selector, Exception::gp)
    }

    /// The segment that a selector that is not null gives for reading, its accessed bit set.
    pub(crate) fn readable_segment(&mut self, selector: Selector, fault: Fault) -> Exec<Segment> {
        let entry = self.descriptor(selector, fault)?;
        let descriptor = &entry.descriptor;
        let is_privileged =
            selector.rpl() <= descriptor.dpl() && self.state.cpl <= descriptor.dpl();
        if !descriptor.is_readable() || !descriptor.is_conforming() && !is_privileged {
            return Err(fault(selector.code()));
        }
        if !descriptor.is_present() {
            return Err(Exception::np(selector.code()));
        }
        self.mark_accessed(&entry)?;
        Ok(descriptor.segment(selector))
    }

    /// A null selector: AMD processors keep the base of FS and GS, Intel's clear it (APM Vol. 2,
    /// "Segment Registers in 64-Bit Mode").
    fn null_segment(&self, register: usize, selector: Selector) -> Segment {
        let keeps_base = self.env.cpuid.vendor() == Vendor::Amd;
        let base = if keeps_base { self.state.segments[register % 6].base } else { 0 };
        Segment::null(selector, base)
    }

    /// Behind a return to a less privileged level: data segments that `cpl` may not have become
    /// null, so that they are not left open (SDM Vol. 2B, "RET").
    pub(crate) fn drop_privileged_segments(&mut self, cpl: u8) {
        for register in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = self.state.segments[register];
            let is_conforming = segment.has(attr::CODE | attr::DC);
            if !segment.has(attr::UNUSABLE) && !is_conforming && segment.dpl() < cpl {
                self.state.segments[register] = Segment::null(Selector(0), segment.base);
            }
        }
    }
}
