//! Access to the global and local descriptor tables.

use crate::Cpu;
use crate::descriptor::{Descriptor, Selector};
use crate::exception::{Exception, Exec};
use crate::state::attr;

/// An exception that takes a selector as its error code: [`Exception::gp`] and its like.
pub(crate) type Fault = fn(u16) -> Exception;

/// A descriptor and where it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) selector: Selector,
    /// Linear address of the descriptor.
    pub(crate) address: u64,
    pub(crate) descriptor: Descriptor,
}

/// The byte of a descriptor that holds type, DPL and present bit.
const ACCESS_BYTE: u64 = 5;
/// The busy bit of a TSS descriptor's type.
const BUSY: u8 = 2;

impl Cpu {
    /// The linear address of a descriptor of `bytes` bytes, or `None` if its table ends before it.
    fn descriptor_address(&self, selector: Selector, bytes: u64) -> Option<u64> {
        let (base, limit) = if selector.is_local() {
            let ldtr = &self.state.ldtr;
            if ldtr.has(attr::UNUSABLE) {
                return None;
            }
            (ldtr.base, u64::from(ldtr.limit))
        } else {
            (self.state.gdtr.base, u64::from(self.state.gdtr.limit))
        };
        let offset = selector.offset();
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// Reads the descriptor of `selector`, or `None` if it lies outside its table.
    pub(crate) fn find_descriptor(&mut self, selector: Selector) -> Exec<Option<Entry>> {
        let Some(address) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let descriptor = Descriptor::parse(self.read_system(address)?);
        Ok(Some(Entry { selector, address, descriptor }))
    }

    /// Reads the descriptor of `selector`; `fault` says what one outside its table raises.
    pub(crate) fn descriptor(&mut self, selector: Selector, fault: Fault) -> Exec<Entry> {
        self.find_descriptor(selector)?.ok_or(fault(selector.code()))
    }

    /// Bits 63 to 32 of the base of a system descriptor, shifted in place; 0 outside long mode.
    /// `fault` is for one that the table cuts off or whose upper half has a type.
    pub(crate) fn high_base(&mut self, entry: &Entry, fault: Fault) -> Exec<u64> {
        if !self.mode.is_long() {
            return Ok(0);
        }
        let code = entry.selector.code();
        self.descriptor_address(entry.selector, 16).ok_or(fault(code))?;
        let high: u64 = self.read_system(entry.address.wrapping_add(8))?;
        // Bits 12 to 8 of the last doubleword must look like no type at all.
        if high >> 40 & 0x1f != 0 {
            return Err(fault(code));
        }
        Ok(high << 32)
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(&mut self, entry: &Entry) -> Exec {
        if entry.descriptor.attributes & attr::ACCESSED != 0 {
            return Ok(());
        }
        self.set_system_bits(entry.address.wrapping_add(ACCESS_BYTE), attr::ACCESSED as u8)
    }

    /// Sets the busy bit of the TSS descriptor at `address`.
    pub(crate) fn mark_busy(&mut self, address: u64) -> Exec {
        self.set_system_bits(address.wrapping_add(ACCESS_BYTE), BUSY)
    }

    /// Clears the busy bit of the TSS descriptor at `address`.
    pub(crate) fn mark_available(&mut self, address: u64) -> Exec {
        self.clear_system_bits(address.wrapping_add(ACCESS_BYTE), BUSY)
    }
}
