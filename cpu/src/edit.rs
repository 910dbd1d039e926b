//! Registers changed from outside, by a debugger, at an instruction boundary.
//!
//! What the processor's own instructions would refuse is refused here, so that no engine meets a
//! state that no guest could have made; what a change entails is done. A refused change changes
//! nothing.

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::state::{Activity, InterruptShadow, Segment, TableRegister, attr, rflags, seg};
use crate::xstate::xcr0;

/// Number of LDTR behind the six segment registers of [`seg`].
pub const LDTR: usize = 6;
/// Number of TR.
pub const TR: usize = 7;
/// The bits of [`attr`] that a segment register can have.
const ATTRIBUTES: u16 = attr::TYPE
    | attr::S
    | attr::DPL
    | attr::P
    | attr::UNUSABLE
    | attr::AVL
    | attr::L
    | attr::DB
    | attr::G;

impl Cpu {
    /// Goes on at `rip`: a CPU in HLT wakes for it.
    pub fn set_rip(&mut self, rip: u64) -> Exec {
        let is_valid = if self.mode.is_64() { self.mode.is_canonical(rip) } else { rip >> 32 == 0 };
        if !is_valid {
            return Err(Exception::GP0);
        }
        self.state.rip = rip;
        self.state.shadow = InterruptShadow::None;
        if self.state.activity == Activity::Halted {
            self.state.activity = Activity::Active;
        }
        Ok(())
    }

    /// Replaces RFLAGS but for VM, which no instruction but IRET changes; others that do not exist
    /// are ignored.
    pub fn set_rflags(&mut self, value: u64) -> Exec {
        if (value ^ self.state.rflags) & rflags::VM != 0 {
            return Err(Exception::GP0);
        }
        self.state.rflags = value & rflags::ALL | rflags::FIXED;
        self.mode_changed();
        Ok(())
    }

    /// Replaces XCR0, as XSETBV does.
    pub fn set_xcr0(&mut self, value: u64) -> Exec {
        if !xcr0::is_valid(value, xcr0::supported(self.env.cpuid.features())) {
            return Err(Exception::GP0);
        }
        self.state.xcr0 = value;
        self.mode_changed();
        Ok(())
    }

    /// Replaces MXCSR, as LDMXCSR does.
    pub fn set_mxcsr(&mut self, value: u32) -> Exec {
        if value & !self.native.mxcsr_mask() != 0 {
            return Err(Exception::GP0);
        }
        self.state.fpu.mxcsr = value;
        Ok(())
    }

    /// Replaces PKRU. Translations remember rights, so they go.
    pub fn set_pkru(&mut self, value: u32) {
        self.state.pkru = value;
        self.flush_translations();
    }

    /// Segment register `number`: those of [`seg`], [`LDTR`], [`TR`].
    pub fn segment(&self, number: usize) -> &Segment {
        match number {
            LDTR => &self.state.ldtr,
            TR => &self.state.tr,
            _ => self.state.segments.get(number).unwrap_or(&self.state.segments[seg::DS]),
        }
    }

    /// Replaces a segment register with its hidden part. The CPL stays.
    pub fn set_segment(&mut self, number: usize, segment: Segment) -> Exec {
        if segment.attributes & !ATTRIBUTES != 0 {
            return Err(Exception::GP0);
        }
        self.check_base(segment.base)?;
        match number {
            LDTR => self.state.ldtr = segment,
            TR => self.state.tr = segment,
            _ => *self.state.segments.get_mut(number).ok_or(Exception::GP0)? = segment,
        }
        self.mode_changed();
        Ok(())
    }

    /// Replaces GDTR.
    pub fn set_gdtr(&mut self, table: TableRegister) -> Exec {
        self.check_base(table.base)?;
        self.state.gdtr = table;
        Ok(())
    }

    /// Replaces IDTR.
    pub fn set_idtr(&mut self, table: TableRegister) -> Exec {
        self.check_base(table.base)?;
        self.state.idtr = table;
        Ok(())
    }

    fn check_base(&self, base: u64) -> Exec {
        let is_valid =
            if self.mode.is_long() { self.mode.is_canonical(base) } else { base >> 32 == 0 };
        if is_valid { Ok(()) } else { Err(Exception::GP0) }
    }
}
