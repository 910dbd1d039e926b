//! Segmentation: from segment and offset to a linear address, with the checks of each mode.
//!
//! Source: SDM Vol. 3A, "Limit Checking" and "Type Checking"; 64-bit: "Canonical Address Checking".

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::state::{attr, seg};

impl Cpu {
    /// The linear address of `bytes` bytes at `offset` in segment register `segment`.
    #[inline(always)]
    pub(crate) fn linear(
        &self,
        segment: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Exec<u64> {
        if !self.mode.is_64() {
            return self.linear_legacy(segment, offset, bytes, access);
        }
        let base = if segment >= seg::FS { self.state.segments[segment % 6].base } else { 0 };
        let linear = base.wrapping_add(offset);
        let last = linear.wrapping_add(bytes - 1);
        if self.mode.is_canonical(linear) && self.mode.is_canonical(last) {
            Ok(linear)
        } else {
            Err(if segment == seg::SS { Exception::SS0 } else { Exception::GP0 })
        }
    }

    #[inline]
    fn linear_legacy(&self, segment: usize, offset: u64, bytes: u64, access: Access) -> Exec<u64> {
        let register = &self.state.segments[segment % 6];
        let fault = if segment == seg::SS { Exception::SS0 } else { Exception::GP0 };
        let is_allowed = !register.has(attr::UNUSABLE)
            && (self.mode.is_real_or_v86() || may_access(register.attributes, access));
        if !is_allowed {
            return Err(fault);
        }
        let last = offset.wrapping_add(bytes - 1);
        let limit = u64::from(register.limit);
        let is_expand_down = register.attributes & (attr::CODE | attr::DC) == attr::DC;
        let is_inside = if is_expand_down {
            let top = if register.has(attr::DB) { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            last <= limit && last >= offset
        };
        if is_inside { Ok(register.base.wrapping_add(offset) & 0xffff_ffff) } else { Err(fault) }
    }
}

/// True if a segment with `attributes` may be accessed so.
fn may_access(attributes: u16, access: Access) -> bool {
    let is_code = attributes & attr::CODE != 0;
    let rw = attributes & attr::RW != 0;
    match access {
        Access::Read => !is_code || rw,
        Access::Write => !is_code && rw,
        Access::Execute => is_code,
    }
}
