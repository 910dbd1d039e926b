//! What of a result the manuals leave open, which is not compared.

use decoder::{Class, Row};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::state::{Output, Registers};

const CF: u64 = 1;
const OF: u64 = 1 << 11;

/// The flags that are undefined after `instruction` in this state. The row's mask is right but for
/// shifts, whose flags hang on the count (SDM Vol. 2B, "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR").
pub fn flags(row: &Row, instruction: &Instruction, registers: &Registers) -> u64 {
    let mask = u64::from(row.flags_undefined);
    if row.class != Class::Shift {
        return mask;
    }
    let bits = operand_bits(instruction);
    let is_beyond = matches!(instruction.mnemonic(), M::Shl | M::Sal | M::Shr);
    match count(instruction, registers) {
        0 => 0,
        1 => mask & !OF,
        count if is_beyond && count >= bits => mask | CF,
        _ => mask,
    }
}

/// True if even the result is undefined: SHLD and SHRD of 16 bits by more than 16 (SDM Vol. 2B,
/// "SHLD").
pub fn result(instruction: &Instruction, registers: &Registers) -> bool {
    matches!(instruction.mnemonic(), M::Shld | M::Shrd)
        && count(instruction, registers) > operand_bits(instruction)
}

/// Where both operands of CMPS fault, either fault may be the one: the host's own choice changes
/// with REP.
pub fn equate_faults(instruction: &Instruction, theirs: &Output, ours: &mut Output) {
    let is_cmps = matches!(instruction.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    if is_cmps && theirs.fault.is_some() && ours.fault.is_some() {
        ours.fault = theirs.fault;
    }
}

fn operand_bits(instruction: &Instruction) -> u64 {
    let bytes = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    };
    8 * bytes as u64
}

/// The count of a shift as the CPU masks it.
fn count(instruction: &Instruction, registers: &Registers) -> u64 {
    const RCX: usize = 1;
    let last = instruction.op_count() - 1;
    let count = match instruction.op_kind(last) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => registers.gpr[RCX],
    };
    count & if operand_bits(instruction) == 64 { 63 } else { 31 }
}
