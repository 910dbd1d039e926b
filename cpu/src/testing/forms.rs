//! An instruction of any form, with what is free in it chosen by the caller.

use decoder::{Row, Vendor};
use iced_x86::{
    Encoder, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind,
    Register, RoundingControl,
};

use super::random::Random;

/// Chooses what a form leaves free.
pub trait Chooser {
    /// Where chance comes from.
    fn random(&mut self) -> &mut Random;
    /// True if an operand that may be a register or memory is to be memory.
    fn wants_memory(&mut self) -> bool;
    /// The number of a general register of `bytes` bytes; 16 to 19 are AH to BH.
    fn general(&mut self, bytes: u32, operand: u32, row: &Row) -> u32;
    /// The address of the memory operand; `vector` is the first register of the class that its
    /// index must be of, if it must be a vector.
    fn address(&mut self, row: &Row, vector: Option<Register>) -> MemoryOperand;
    /// The target of a near branch.
    fn target(&mut self) -> u64;
    /// An immediate of `bytes` bytes at most.
    fn immediate(&mut self, bytes: u32) -> u64 {
        let _ = bytes;
        self.random().operand()
    }
}

/// True if something decodes as `row` in code of `bits` bits on a processor of `vendor`. Near
/// branches by 16 bits are AMD's alone in 64-bit mode, far ones by 64 Intel's.
pub fn is_decoded(row: &Row, bits: u32, vendor: Vendor) -> bool {
    let info = row.code.op_code();
    match (bits, vendor) {
        (64, Vendor::Intel) => info.intel_decoder64(),
        (64, Vendor::Amd) => info.amd_decoder64(),
        _ => true,
    }
}

/// An instruction of the form `row` for code of `bits` bits, or the kind of operand that is not
/// supported. It may turn out not to be encodable: choices can contradict each other.
pub fn build(chooser: &mut dyn Chooser, bits: u32, row: &Row) -> Result<Instruction, K> {
    let mut instruction = Instruction::default();
    instruction.set_code(row.code);
    let mut builder = Builder { chooser, bits, row };
    for (operand, kind) in (0..).zip(row.code.op_code().op_kinds().iter().copied()) {
        builder.operand(&mut instruction, operand, kind)?;
    }
    builder.prefixes(&mut instruction);
    builder.decorations(&mut instruction);
    Ok(instruction)
}

/// The encoding of `instruction` at `ip`; `None` if there is none.
pub fn encode(instruction: &Instruction, bits: u32, ip: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(instruction, ip).ok()?;
    Some(encoder.take_buffer())
}

/// The general register with `number` (16 to 19: AH to BH) of `bytes` bytes; `None` if no such
/// register exists in code of `bits` bits.
pub fn general_register(bits: u32, bytes: u32, number: u32) -> Option<Register> {
    if bits != 64 && number & 31 > 7 && number < 16 || bytes != 1 && number > 15 {
        return None;
    }
    Some(match bytes {
        1 if number > 15 => Register::AH + (number & 3),
        1 if number < 4 => Register::AL + number,
        1 if bits != 64 => return None,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    })
}

struct Builder<'a> {
    chooser: &'a mut dyn Chooser,
    bits: u32,
    row: &'a Row,
}

impl Builder<'_> {
    fn random(&mut self) -> &mut Random {
        self.chooser.random()
    }

    fn prefixes(&mut self, to: &mut Instruction) {
        use Mnemonic as M;
        if self.row.lock && to.op0_kind() == OpKind::Memory && self.random().chance(30) {
            to.set_has_lock_prefix(true);
        }
        if !to.code().is_string_instruction() {
            return;
        }
        let compares = matches!(
            to.mnemonic(),
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
        );
        match self.random().below(4) {
            0 | 1 => to.set_has_rep_prefix(true),
            2 if compares => to.set_has_repne_prefix(true),
            _ => {}
        }
    }

    /// What EVEX has besides operands.
    fn decorations(&mut self, to: &mut Instruction) {
        let info = to.code().op_code();
        if info.encoding() != EncodingKind::EVEX {
            return;
        }
        let has_memory = (0..to.op_count()).any(|n| to.op_kind(n) == OpKind::Memory);
        if has_memory && info.can_broadcast() && self.random().chance(30) {
            to.set_is_broadcast(true);
        }
        let is_masked = info.require_op_mask_register() || self.random().chance(50);
        if info.can_use_op_mask_register() && is_masked {
            to.set_op_mask(Register::K1 + self.random().below(7) as u32);
            let is_zeroing = info.can_use_zeroing_masking() && self.random().chance(50);
            to.set_zeroing_masking(is_zeroing);
        }
        if has_memory {
            return;
        }
        if info.can_use_rounding_control() && self.random().chance(50) {
            const ROUNDINGS: [RoundingControl; 4] = [
                RoundingControl::RoundToNearest,
                RoundingControl::RoundDown,
                RoundingControl::RoundUp,
                RoundingControl::RoundTowardZero,
            ];
            to.set_rounding_control(self.random().pick(&ROUNDINGS));
        } else if info.can_suppress_all_exceptions() && self.random().chance(50) {
            to.set_suppress_all_exceptions(true);
        }
    }

    fn operand(&mut self, to: &mut Instruction, operand: u32, kind: K) -> Result<(), K> {
        if is_either(kind) && self.chooser.wants_memory() {
            self.memory(to, operand, None);
            return Ok(());
        }
        if let Some(bytes) = general_bytes(kind) {
            let number = self.chooser.general(bytes, operand, self.row);
            let register = general_register(self.bits, bytes, number);
            set_register(to, operand, register.unwrap_or(Register::None));
            return Ok(());
        }
        if let Some(register) = fixed_register(kind) {
            set_register(to, operand, register);
            return Ok(());
        }
        if let Some((first, count)) = self.other_registers(to, kind) {
            let number = self.random().below(u64::from(count)) as u32;
            set_register(to, operand, first + number);
            return Ok(());
        }
        match kind {
            K::mem | K::mem_mib | K::sibmem => self.memory(to, operand, None),
            K::mem_vsib32x | K::mem_vsib64x => self.memory(to, operand, Some(Register::XMM0)),
            K::mem_vsib32y | K::mem_vsib64y => self.memory(to, operand, Some(Register::YMM0)),
            K::mem_vsib32z | K::mem_vsib64z => self.memory(to, operand, Some(Register::ZMM0)),
            K::mem_offs => self.absolute(to, operand),
            K::seg_rSI => self.string(to, operand, SOURCE),
            K::es_rDI => self.string(to, operand, DESTINATION),
            K::seg_rDI => self.string(to, operand, MASKED),
            K::seg_rBX_al => self.table(to, operand),
            K::br16_1 | K::br16_2 | K::br32_1 | K::br32_4 | K::br64_1 | K::br64_4 => {
                self.branch(to, operand, kind);
            }
            _ => self.immediate(to, operand, kind)?,
        }
        Ok(())
    }

    /// The first register of the class of `kind`, and how many of them can be named.
    fn other_registers(&mut self, to: &Instruction, kind: K) -> Option<(Register, u32)> {
        let is_evex = to.code().op_code().encoding() == EncodingKind::EVEX;
        let vectors = match (self.bits, is_evex) {
            (64, true) => 32,
            (64, false) => 16,
            _ => 8,
        };
        Some(match kind {
            K::mm_or_mem | K::mm_reg | K::mm_rm => (Register::MM0, 8),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
                (Register::XMM0, vectors)
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                (Register::YMM0, vectors)
            }
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => (Register::ZMM0, vectors),
            K::k_or_mem | K::k_reg | K::k_rm | K::k_vvvv => (Register::K0, 8),
            K::seg_reg => (Register::ES, 6),
            K::st0 => (Register::ST0, 1),
            K::sti_opcode => (Register::ST0, 8),
            K::cr_reg => (Register::CR0, 5),
            K::dr_reg => (Register::DR0, 8),
            _ => return None,
        })
    }

    fn memory(&mut self, to: &mut Instruction, operand: u32, vector: Option<Register>) {
        let memory = self.chooser.address(self.row, vector);
        to.set_op_kind(operand, OpKind::Memory);
        to.set_memory_base(memory.base);
        to.set_memory_index(memory.index);
        to.set_memory_index_scale(memory.scale);
        to.set_memory_displacement64(memory.displacement as u64);
        to.set_memory_displ_size(memory.displ_size);
        to.set_segment_prefix(memory.segment_prefix);
    }

    /// A0 to A3: only the displacement of an address counts.
    fn absolute(&mut self, to: &mut Instruction, operand: u32) {
        let memory = self.chooser.address(self.row, None);
        to.set_op_kind(operand, OpKind::Memory);
        to.set_memory_displacement64(memory.displacement as u64);
        to.set_memory_displ_size(if self.bits == 64 { 8 } else { 4 });
        to.set_segment_prefix(memory.segment_prefix);
    }

    fn table(&mut self, to: &mut Instruction, operand: u32) {
        to.set_op_kind(operand, OpKind::Memory);
        to.set_memory_index(Register::AL);
        to.set_memory_base(if self.bits == 64 { Register::RBX } else { Register::EBX });
    }

    /// Both operands of a string instruction have one address size.
    fn string(&mut self, to: &mut Instruction, operand: u32, kinds: [OpKind; 2]) {
        let is_first_narrow = [SOURCE, DESTINATION].iter().any(|kinds| kinds[0] == to.op0_kind());
        let is_second =
            operand > 0 && [SOURCE, DESTINATION].iter().any(|kinds| kinds.contains(&to.op0_kind()));
        let is_narrow = match is_second {
            true => is_first_narrow,
            false => self.bits != 64 || self.random().chance(10),
        };
        to.set_op_kind(operand, kinds[usize::from(!is_narrow)]);
    }

    fn branch(&mut self, to: &mut Instruction, operand: u32, kind: K) {
        let target = self.chooser.target();
        match kind {
            K::br16_1 | K::br16_2 => {
                to.set_op_kind(operand, OpKind::NearBranch16);
                to.set_near_branch16(target as u16);
            }
            K::br32_1 | K::br32_4 => {
                to.set_op_kind(operand, OpKind::NearBranch32);
                to.set_near_branch32(target as u32);
            }
            _ => {
                to.set_op_kind(operand, OpKind::NearBranch64);
                to.set_near_branch64(target);
            }
        }
    }

    fn immediate(&mut self, to: &mut Instruction, operand: u32, kind: K) -> Result<(), K> {
        let is_behind_one = operand > 0
            && matches!(to.op_kind(operand - 1), OpKind::Immediate8 | OpKind::Immediate16);
        if kind == K::imm8 && is_behind_one {
            to.set_op_kind(operand, OpKind::Immediate8_2nd);
            let value = self.chooser.immediate(1) as u8;
            // ENTER's nesting level, or a bit position.
            let is_frame = to.mnemonic() == Mnemonic::Enter;
            to.set_immediate8_2nd(if is_frame { value & 3 } else { value });
            return Ok(());
        }
        let bytes = match kind {
            K::imm8 | K::imm4_m2z | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => 1,
            K::imm16 => 2,
            K::imm64 => 8,
            _ => 4,
        };
        let value = self.chooser.immediate(bytes);
        let (op_kind, value) = match kind {
            K::imm8 => (OpKind::Immediate8, u64::from(value as u8)),
            K::imm4_m2z => (OpKind::Immediate8, value & 15),
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as i16 as u16 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as i32 as u32 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 => (OpKind::Immediate16, u64::from(value as u16)),
            K::imm32 => (OpKind::Immediate32, u64::from(value as u32)),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as u64),
            K::imm64 => (OpKind::Immediate64, value),
            other => return Err(other),
        };
        to.set_op_kind(operand, op_kind);
        match op_kind {
            OpKind::Immediate64 => to.set_immediate64(value),
            OpKind::Immediate8to16 => to.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => to.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => to.set_immediate8to64(value as i64),
            OpKind::Immediate32to64 => to.set_immediate32to64(value as i64),
            OpKind::Immediate8 => to.set_immediate8(value as u8),
            OpKind::Immediate16 => to.set_immediate16(value as u16),
            _ => to.set_immediate32(value as u32),
        }
        Ok(())
    }
}

fn set_register(to: &mut Instruction, operand: u32, register: Register) {
    to.set_op_kind(operand, OpKind::Register);
    to.set_op_register(operand, register);
}

/// Kinds of string operands with addresses of 32 and 64 bits.
const SOURCE: [OpKind; 2] = [OpKind::MemorySegESI, OpKind::MemorySegRSI];
const DESTINATION: [OpKind; 2] = [OpKind::MemoryESEDI, OpKind::MemoryESRDI];
const MASKED: [OpKind; 2] = [OpKind::MemorySegEDI, OpKind::MemorySegRDI];

/// True if an operand of `kind` may be a register or memory.
pub fn is_either(kind: K) -> bool {
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
    )
}

/// The width of the general register that `kind` is (or may be).
fn general_bytes(kind: K) -> Option<u32> {
    Some(match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => 1,
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => 2,
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => 4,
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => 8,
        _ => return None,
    })
}

fn fixed_register(kind: K) -> Option<Register> {
    Some(match kind {
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::es => Register::ES,
        K::cs => Register::CS,
        K::ss => Register::SS,
        K::ds => Register::DS,
        K::fs => Register::FS,
        K::gs => Register::GS,
        _ => return None,
    })
}
