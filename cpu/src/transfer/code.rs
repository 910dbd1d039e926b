//! Code segments as targets of transfers.

use crate::Cpu;
use crate::descriptor::{Descriptor, Selector};
use crate::exception::{Exception, Exec};
use crate::state::{Segment, attr, seg};
use crate::transfer::table::Entry;

/// Where a transfer goes, everything checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) cs: Segment,
    pub(crate) cpl: u8,
    pub(crate) rip: u64,
}

impl Cpu {
    /// The code descriptor of `selector`: not null, in its table, code.
    pub(crate) fn code_descriptor(&mut self, selector: Selector) -> Exec<Entry> {
        if selector.is_null() {
            return Err(Exception::GP0);
        }
        let entry = self.descriptor(selector, Exception::gp)?;
        if !entry.descriptor.is_code() {
            return Err(Exception::gp(selector.code()));
        }
        Ok(entry)
    }

    /// A direct far jump or call: a conforming segment may be more privileged, another must have
    /// the privilege of the caller.
    pub(crate) fn check_direct_privilege(&self, entry: &Entry) -> Exec {
        let Entry { selector, descriptor, .. } = entry;
        let cpl = self.state.cpl;
        let is_allowed = if descriptor.is_conforming() {
            descriptor.dpl() <= cpl
        } else {
            selector.rpl() <= cpl && descriptor.dpl() == cpl
        };
        if is_allowed { Ok(()) } else { Err(Exception::gp(selector.code())) }
    }

    /// A far return or IRET: the RPL is the new CPL and never more privileged than the old one.
    pub(crate) fn check_return_privilege(&self, entry: &Entry) -> Exec {
        let Entry { selector, descriptor, .. } = entry;
        let rpl = selector.rpl();
        let fits = if descriptor.is_conforming() {
            descriptor.dpl() <= rpl
        } else {
            descriptor.dpl() == rpl
        };
        if rpl >= self.state.cpl && fits { Ok(()) } else { Err(Exception::gp(selector.code())) }
    }

    /// Checks presence, L and D, and that `offset` is inside; sets the accessed bit. The registers
    /// change in [`Cpu::enter`].
    pub(crate) fn target(&mut self, entry: &Entry, cpl: u8, offset: u64) -> Exec<Target> {
        let Entry { selector, descriptor, .. } = entry;
        if !descriptor.is_present() {
            return Err(Exception::np(selector.code()));
        }
        let is_long_mode = self.mode.is_long();
        let both = attr::L | attr::DB;
        if is_long_mode && descriptor.attributes & both == both {
            return Err(Exception::gp(selector.code()));
        }
        self.check_entry_point(descriptor, is_long_mode, offset)?;
        self.mark_accessed(entry)?;
        let cs = descriptor.segment(selector.with_rpl(cpl));
        Ok(Target { cs, cpl, rip: offset })
    }

    fn check_entry_point(&self, code: &Descriptor, is_long_mode: bool, offset: u64) -> Exec {
        let is_inside = if is_long_mode && code.is_long_code() {
            self.mode.is_canonical(offset)
        } else {
            offset <= u64::from(code.limit)
        };
        if is_inside { Ok(()) } else { Err(Exception::GP0) }
    }

    /// Goes to `target`: CS, CPL and RIP. Call last, when nothing can fault any more.
    pub(crate) fn enter(&mut self, target: &Target) {
        self.state.segments[seg::CS] = target.cs;
        self.state.cpl = target.cpl;
        // Both: an instruction continues at `next_rip`, an event at `state.rip`.
        self.state.rip = target.rip;
        self.next_rip = target.rip;
        self.mode_changed();
    }
}
