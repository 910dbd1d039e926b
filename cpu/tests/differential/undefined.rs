//! What of a result the manuals leave open, which is not compared.

use std::arch::x86_64::__cpuid;

use cpu::testing::shifts::{count, operand_bits};
use decoder::{Class, Row};
use iced_x86::{Instruction, Mnemonic as M};

use crate::state::{Output, Registers};

const CF: u64 = 1;
const OF: u64 = 1 << 11;

/// True on a host of the family whose undefined flags the interpreter has (AMD's 19h, Zen 3): a
/// guest there cannot tell the interpreter from translated code by them.
pub fn is_known_host() -> bool {
    let signature = __cpuid(1).eax;
    let (family, extended) = (signature >> 8 & 0xf, signature >> 20 & 0xff);
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD" && family + extended == 0x19
}

/// The flags that are undefined after `instruction` in this state. The row's mask is right but for
/// shifts, whose flags hang on the count (SDM Vol. 2B, "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR").
pub fn flags(row: &Row, instruction: &Instruction, registers: &Registers) -> u64 {
    let mask = u64::from(row.flags_undefined);
    if row.class != Class::Shift {
        return mask;
    }
    let bits = operand_bits(instruction);
    let is_beyond = matches!(instruction.mnemonic(), M::Shl | M::Sal | M::Shr);
    match count(instruction, &registers.gpr) {
        0 => 0,
        1 => mask & !OF,
        count if is_beyond && count >= bits => mask | CF,
        _ => mask,
    }
}

/// Where both operands of CMPS fault, either fault may be the one: the host's own choice changes
/// with REP.
pub fn equate_faults(instruction: &Instruction, theirs: &Output, ours: &mut Output) {
    let is_cmps = matches!(instruction.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    if is_cmps && theirs.fault.is_some() && ours.fault.is_some() {
        ours.fault = theirs.fault;
    }
}
