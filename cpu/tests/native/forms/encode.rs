//! Building an instruction of a form, and its bytes.

use super::Place;
use crate::random::Random;
use decoder::Row;
use iced_x86::{
    Decoder, DecoderOptions, Encoder, Instruction, OpCodeOperandKind as K, OpKind, Register,
    RoundingControl,
};

/// Numbers of general registers that neither the reference nor the ABI claims.
const GPRS: [u32; 14] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];

/// An instruction of the form `row` with random registers and immediate; `None` if there is none
/// with its r/m operand at `place`.
pub fn random_form(row: &Row, place: Place, random: &mut Random) -> Option<Instruction> {
    // Register choices may be illegal together (same register twice): try again.
    (0..8).find_map(|_| try_form(row, place, random))
}

fn try_form(row: &Row, place: Place, random: &mut Random) -> Option<Instruction> {
    let info = row.code.op_code();
    if !info.mode64() || place == Place::Broadcast && !info.can_broadcast() {
        return None;
    }
    let mut instruction = Instruction::default();
    instruction.set_code(row.code);
    let mut has_memory = false;
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        has_memory |= set_operand(&mut instruction, operand as u32, kind, place, random)?;
    }
    if has_memory == (place == Place::Register) {
        return None;
    }
    instruction.set_is_broadcast(place == Place::Broadcast);
    if info.can_use_op_mask_register() && (random.below(2) == 0 || info.require_op_mask_register())
    {
        instruction.set_op_mask(Register::K1 + random.below(7) as u32);
        instruction.set_zeroing_masking(info.can_use_zeroing_masking() && random.below(2) == 0);
    }
    if !has_memory && info.can_use_rounding_control() && random.below(2) == 0 {
        instruction.set_rounding_control(ROUNDINGS[random.below(4) as usize]);
    } else if !has_memory && info.can_suppress_all_exceptions() && random.below(2) == 0 {
        instruction.set_suppress_all_exceptions(true);
    }
    // What decodes to something else (or to nothing) is no instruction of this form.
    let bytes = bytes(&instruction)?;
    let decoded = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
    (decoded.code() == row.code).then_some(decoded)
}

const ROUNDINGS: [RoundingControl; 4] = [
    RoundingControl::RoundToNearest,
    RoundingControl::RoundDown,
    RoundingControl::RoundUp,
    RoundingControl::RoundTowardZero,
];

/// Sets one operand. True if it is memory; `None` if the kind is not one of these forms.
fn set_operand(
    instruction: &mut Instruction,
    operand: u32,
    kind: K,
    place: Place,
    random: &mut Random,
) -> Option<bool> {
    let is_evex = instruction.code().op_code().encoding() == iced_x86::EncodingKind::EVEX;
    let count = if is_evex { 32 } else { 16 };
    let register = match kind {
        K::mem => return Some(set_memory(instruction, operand)),
        K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem
        | K::zmm_or_mem
        | K::k_or_mem
        | K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
            if place != Place::Register =>
        {
            return Some(set_memory(instruction, operand));
        }
        K::imm8 | K::imm4_m2z => {
            instruction.set_op_kind(operand, OpKind::Immediate8);
            let limit = if kind == K::imm8 { 256 } else { 16 };
            // EXTRQ and INSERTQ have two immediates.
            if operand > 0 && instruction.op_kind(operand - 1) == OpKind::Immediate8 {
                instruction.set_op_kind(operand, OpKind::Immediate8_2nd);
                instruction.set_immediate8_2nd(random.below(limit) as u8);
            } else {
                instruction.set_immediate8(random.below(limit) as u8);
            }
            return Some(false);
        }
        K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + random.below(8) as u32,
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
            Register::XMM0 + random.below(count) as u32
        }
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
            Register::YMM0 + random.below(count) as u32
        }
        K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => {
            Register::ZMM0 + random.below(32) as u32
        }
        K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => Register::K0 + random.below(8) as u32,
        K::kp1_reg => Register::K0 + 2 * random.below(4) as u32,
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_vvvv => Register::EAX + gpr(random),
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_vvvv => Register::RAX + gpr(random),
        K::r16_or_mem | K::r16_reg | K::r16_rm => Register::AX + gpr(random),
        K::st0 => Register::ST0,
        K::sti_opcode => Register::ST0 + random.below(8) as u32,
        K::ax => Register::AX,
        _ => return None,
    };
    instruction.set_op_kind(operand, OpKind::Register);
    instruction.set_op_register(operand, register);
    Some(false)
}

fn gpr(random: &mut Random) -> u32 {
    GPRS[random.below(GPRS.len() as u64) as usize]
}

fn set_memory(instruction: &mut Instruction, operand: u32) -> bool {
    instruction.set_op_kind(operand, OpKind::Memory);
    instruction.set_memory_base(Register::R15);
    true
}

/// The encoding of `instruction`.
pub fn bytes(instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0).ok()?;
    Some(encoder.take_buffer())
}

/// True if the indices of a gather or scatter are doublewords.
pub fn has_dword_index(row: &Row) -> bool {
    let kinds = row.code.op_code().op_kinds();
    kinds.iter().any(|kind| matches!(kind, K::mem_vsib32x | K::mem_vsib32y | K::mem_vsib32z))
}

/// A gather or scatter with random registers and scale 1.
pub fn random_indexed(row: &Row, random: &mut Random) -> Option<Instruction> {
    (0..64).find_map(|_| {
        let info = row.code.op_code();
        let mut instruction = Instruction::default();
        instruction.set_code(row.code);
        for (operand, &kind) in info.op_kinds().iter().enumerate() {
            let index = match kind {
                K::mem_vsib32x | K::mem_vsib64x => Register::XMM0,
                K::mem_vsib32y | K::mem_vsib64y => Register::YMM0,
                K::mem_vsib32z | K::mem_vsib64z => Register::ZMM0,
                _ => {
                    set_operand(&mut instruction, operand as u32, kind, Place::Memory, random)?;
                    continue;
                }
            };
            set_memory(&mut instruction, operand as u32);
            instruction.set_memory_index(index + random.below(16) as u32);
        }
        if info.can_use_op_mask_register() {
            instruction.set_op_mask(Register::K1 + random.below(7) as u32);
        }
        let bytes = bytes(&instruction)?;
        let decoded = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        (decoded.code() == row.code).then_some(decoded)
    })
}
