//! Counts of shifts as the CPU takes them, for tests that must know what a count leaves open.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::state::gpr::RCX;

/// Bits of the first operand.
pub fn operand_bits(instruction: &Instruction) -> u64 {
    let bytes = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    };
    8 * bytes as u64
}

/// The count of a shift or rotate as the CPU masks it.
pub fn count(instruction: &Instruction, gpr: &[u64; 16]) -> u64 {
    let last = instruction.op_count().saturating_sub(1);
    let count = match instruction.op_kind(last) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => gpr[RCX],
    };
    count & if operand_bits(instruction) == 64 { 63 } else { 31 }
}

/// True if the host's result may be another than ours: SHLD and SHRD of 16 bits by more than 16,
/// undefined by the manuals (SDM Vol. 2B, "SHLD"), are ours as AMD's processors have them.
pub fn is_open(instruction: &Instruction, gpr: &[u64; 16]) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && count(instruction, gpr) > operand_bits(instruction)
        && crate::cpuid::host::vendor() != decoder::Vendor::Amd
}
