//! Bits of register numbers that say nothing outside 64-bit mode: VEX.vvvv[3], VEX.B, and the top
//! bit of a register in an immediate.
//!
//! The manual's place is SDM Vol. 2A, "The VEX Prefix".

use iced_x86::{Decoder, Instruction, OpCodeOperandKind as K};

/// VEX.B, in the second byte.
const B: u8 = 1 << 5;
/// VEX.vvvv[3], in the third.
const VVVV_TOP: u8 = 1 << 6;
/// The top bit of an immediate's register.
const IMMEDIATE_TOP: u8 = 1 << 7;

/// Flips those of `bits` that `code` has and ignores: the bytes of `instruction` outside 64-bit
/// mode. A VEX prefix of two bytes, which leaves no choice of them, becomes one of three.
pub fn flip(code: &mut Vec<u8>, instruction: &Instruction, bits: u8) {
    let is_prefix = |byte: &&u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let vex = code.iter().take_while(is_prefix).count();
    let encoding = instruction.code().op_code();
    if encoding.encoding() != iced_x86::EncodingKind::VEX {
        return;
    }
    if code[vex] == 0xc5 {
        let payload = code[vex + 1] & 0x7f;
        code.splice(vex..vex + 2, [0xc4, 0xe1, payload]);
    }
    let mut places = vec![(vex + 1, B), (vex + 2, VVVV_TOP)];
    let is_in_immediate = |kind: &K| matches!(kind, K::xmm_is4 | K::ymm_is4);
    if encoding.op_kinds().iter().any(is_in_immediate) {
        places.push((code.len() - 1, IMMEDIATE_TOP));
    }
    for (at, bit) in places {
        code[at] ^= bits & bit;
        // VEX.vvvv that names no register must be all ones.
        if Decoder::new(32, code, 0).decode().code() != instruction.code() {
            code[at] ^= bits & bit;
        }
    }
}
