//! Where the guest's status flags are while a block is translated.
//!
//! They live in EFLAGS across instructions and blocks. The checks of memory accesses destroy EFLAGS;
//! before the first one the flags are *spilled* to [`crate::context::Context::flags`], so that a
//! fault can always tell them, and restored only where somebody reads them or changes a part.

use decoder::{Class, Row};
use iced_x86::{Instruction, Mnemonic};

/// The six flags of arithmetic.
pub(crate) const STATUS: u32 = 0x8d5;

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// In EFLAGS only.
    Live,
    /// In the context only.
    Spilled,
    /// In both.
    Both,
}

/// What an instruction does to the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Reads some.
    Reads,
    /// Changes some and keeps or reads others.
    Changes,
    /// Replaces all, whatever they were.
    Replaces,
}

/// What `iced` does to the status flags on the host.
pub(crate) fn effect(row: &Row, iced: &Instruction) -> Effect {
    let touched = (row.flags_written | row.flags_undefined) & STATUS;
    if touched == 0 {
        return if row.flags_read & STATUS != 0 { Effect::Reads } else { Effect::None };
    }
    if touched == STATUS && row.flags_read & STATUS == 0 && is_whole(row, iced) {
        return Effect::Replaces;
    }
    Effect::Changes
}

/// True if what the instruction leaves undefined does not depend on the flags before it on any
/// processor: logic clears AF on all of them. Of the others nobody promises it.
fn is_whole(row: &Row, iced: &Instruction) -> bool {
    if row.flags_undefined & STATUS == 0 {
        return true;
    }
    row.class == Class::Alu
        && matches!(iced.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test)
        || shift_replaces(iced)
}

/// Shifts by a constant that is not 0 replace all flags on the processors that were tried.
fn shift_replaces(iced: &Instruction) -> bool {
    use Mnemonic as M;
    if !matches!(iced.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar) || iced.op_count() != 2 {
        return false;
    }
    let width_mask = if iced.op0_register().size() == 8 { 63 } else { 31 };
    let is_constant = iced.op1_kind() == iced_x86::OpKind::Immediate8;
    is_constant
        && u32::from(iced.immediate8()) & width_mask != 0
        && *crate::host::SHIFTS_REPLACE_FLAGS
}
