//! What stands between an instruction and its execution, decided once when it is decoded.
//!
//! Everything asked here is part of [`crate::mode::Mode::key`] or fixed when the machine is made,
//! so a decoded block never outlives its verdict.

use decoder::{Class, Executor, Modes, Privilege, Row, Unit, row};
use iced_x86::{Instruction, OpKind};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::{self, undefined};
use crate::interp::insn::{Handler, Insn, has_memory_operand};
use crate::state::{cr0, cr4, rflags};

/// XCR0 bits that VEX instructions need: SSE and AVX state.
const XCR0_AVX: u64 = 0b110;
/// XCR0 bits that EVEX instructions need besides: opmask and both ZMM parts.
const XCR0_AVX512: u64 = 0b1110_0110;

fn general_protection(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::GP0)
}

fn device_not_available(_: &mut Cpu, _: &Insn) -> Exec {
    Err(Exception::NM)
}

impl Cpu {
    /// The instruction ready to run, and whether it ends its block. `bytes` are its encoding and
    /// what follows.
    pub(crate) fn prepare(&mut self, iced: Instruction, bytes: &[u8]) -> (Insn, bool) {
        let row = row(iced.code());
        if let Some(handler) = self.gate(row, &iced) {
            return (Insn::new(iced, handler), true);
        }
        let mut insn = match row.executor {
            Executor::Native => Insn::new(iced, crate::native::execute),
            Executor::Interpreter => {
                let forms = dispatch::forms(iced.code());
                let handler = if has_memory_operand(&iced) { forms.memory } else { forms.register };
                Insn::new(iced, handler)
            }
            Executor::Undefined => Insn::new(iced, undefined),
        };
        if row.executor == Executor::Native {
            self.native.prepare(&mut insn, row, bytes);
        }
        (insn, row.ends_block)
    }

    /// What the instruction raises instead of executing, if it does.
    pub(crate) fn gate(&self, row: &Row, iced: &Instruction) -> Option<Handler> {
        // LOCK MOV CR0, which decodes on AMD only, is CR8.
        let is_lock_legal =
            row.lock && iced.op0_kind() == OpKind::Memory || row.class == Class::ControlRegister;
        let exists = row.executor != Executor::Undefined
            && self.env.cpuid.features().contains_all(row.features)
            && row.modes.contains(self.current_mode())
            && (!iced.has_lock_prefix() || is_lock_legal);
        if !exists {
            return Some(undefined);
        }
        self.unit_gate(row.unit).or_else(|| self.privilege_gate(row.privilege))
    }

    fn current_mode(&self) -> Modes {
        let bits = match self.mode.code_bits {
            16 => Modes::BITS16,
            32 => Modes::BITS32,
            _ => Modes::BITS64,
        };
        if self.mode.is_real_or_v86() { bits.union(Modes::REAL_V86) } else { bits }
    }

    /// SDM Vol. 3A, "Emulation of Hardware Features", Vol. 2A, "Exceptions" of the VEX and EVEX
    /// classes.
    fn unit_gate(&self, unit: Unit) -> Option<Handler> {
        let state = &self.state;
        let is_emulated = state.cr0 & cr0::EM != 0;
        let is_switched = state.cr0 & cr0::TS != 0;
        let is_sse_off = is_emulated || state.cr4 & cr4::OSFXSR == 0;
        let lacks = |bits: u64| state.cr4 & cr4::OSXSAVE == 0 || state.xcr0 & bits != bits;
        let is_undefined = match unit {
            Unit::General | Unit::System => return None,
            Unit::X87 if is_emulated => return Some(device_not_available),
            Unit::X87 => false,
            Unit::Mmx => is_emulated,
            Unit::Sse | Unit::SseMmx => is_sse_off,
            Unit::Avx => lacks(XCR0_AVX) || self.mode.is_real_or_v86(),
            Unit::Avx512 => lacks(XCR0_AVX512) || self.mode.is_real_or_v86(),
        };
        if is_undefined {
            Some(undefined)
        } else if is_switched {
            Some(device_not_available)
        } else {
            None
        }
    }

    /// The privileges that depend on nothing but the mode; the others are the handler's.
    fn privilege_gate(&self, privilege: Privilege) -> Option<Handler> {
        let is_below = self.mode.cpl != 0;
        let cr4 = self.state.cr4;
        let iopl = (self.state.rflags & rflags::IOPL) >> 12;
        let is_denied = match privilege {
            Privilege::Cpl0Undefined if is_below => return Some(undefined),
            Privilege::Cpl0 => is_below,
            Privilege::Umip => is_below && cr4 & cr4::UMIP != 0,
            Privilege::Tsd => is_below && cr4 & cr4::TSD != 0,
            Privilege::Pce => is_below && cr4 & cr4::PCE == 0,
            // PVI and VME may turn the denial into VIF's business: the handler decides then.
            Privilege::Iopl => u64::from(self.mode.cpl) > iopl && cr4 & (cr4::PVI | cr4::VME) == 0,
            Privilege::Any
            | Privilege::Cpl0Undefined
            | Privilege::V86Iopl
            | Privilege::IoPermission => false,
        };
        is_denied.then_some(general_protection as Handler)
    }
}
