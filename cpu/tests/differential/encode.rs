//! Random encodings of one form.

use std::sync::LazyLock;

use cpu::testing::{Bench, CODE, forms};
use decoder::{Row, Vendor};
use iced_x86::{
    Code, Decoder, Encoder, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

use crate::state::{LOW, Mode, READ_ONLY};
use cpu::testing::random::Random;

/// Attempts before a form counts as one that cannot be encoded: most attempts that fail ask for AH
/// beside a REX prefix.
const ATTEMPTS: u32 = 200;

/// What encodings there may be.
#[derive(Clone, Copy)]
pub struct Encoding {
    pub mode: Mode,
    /// 16-bit addresses have memory to point to.
    pub with_low_page: bool,
}

/// The bytes of some instruction of `code`, or why there is none.
pub fn encode(
    random: &mut Random,
    encoding: Encoding,
    code: Code,
    lock: bool,
) -> Result<Vec<u8>, String> {
    let mode = encoding.mode;
    let mut why = String::from("every encoding decodes as another form");
    for _ in 0..ATTEMPTS {
        let instruction = match (Builder { random, encoding, mode }).instruction(code, lock) {
            Ok(instruction) => instruction,
            Err(kind) => return Err(format!("no operand of kind {kind:?}")),
        };
        let mut encoder = Encoder::new(mode.bits());
        match encoder.encode(&instruction, CODE) {
            Ok(_) => {
                let bytes = encoder.take_buffer();
                if decode(mode, &bytes).code() == code {
                    return Ok(bytes);
                }
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// The bench's vendor, which is the host's, and how it decodes.
static DECODER: LazyLock<(Vendor, u32)> = LazyLock::new(|| {
    let policy = &Bench::new().cpu.env.cpuid;
    let vendor = policy.vendor();
    (vendor, decoder::decoder_options(vendor, policy.features()))
});

/// True if something decodes as `row` in `mode`.
pub fn is_decoded(mode: Mode, row: &Row) -> bool {
    forms::is_decoded(row, mode.bits(), DECODER.0)
}

/// Decodes as the bench does.
pub fn decode(mode: Mode, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(mode.bits(), bytes, CODE, DECODER.1).decode()
}

/// The sixteen registers of a width, in the encoding's order, then AH to BH for bytes.
fn registers(bytes: u32) -> Vec<Register> {
    let all = Register::values();
    let of_width = |register: &Register| register.is_gpr() && register.size() == bytes as usize;
    all.filter(of_width).collect()
}

struct Builder<'a> {
    random: &'a mut Random,
    encoding: Encoding,
    mode: Mode,
}

impl Builder<'_> {
    fn instruction(&mut self, code: Code, lock: bool) -> Result<Instruction, K> {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for (operand, kind) in (0..).zip(code.op_code().op_kinds().iter().copied()) {
            self.operand(&mut instruction, operand, kind)?;
        }
        let has_memory = has_memory(&instruction);
        if lock && instruction.op0_kind() == OpKind::Memory && self.random.chance(30) {
            instruction.set_has_lock_prefix(true);
        }
        if code.is_string_instruction() {
            instruction.set_has_rep_prefix(self.random.chance(50));
            let can_repne = matches!(
                instruction.mnemonic(),
                Mnemonic::Cmpsb
                    | Mnemonic::Cmpsw
                    | Mnemonic::Cmpsd
                    | Mnemonic::Cmpsq
                    | Mnemonic::Scasb
                    | Mnemonic::Scasw
                    | Mnemonic::Scasd
                    | Mnemonic::Scasq
            );
            let is_repne = can_repne && !instruction.has_rep_prefix() && self.random.chance(50);
            instruction.set_has_repne_prefix(is_repne);
        }
        if has_memory && self.random.chance(15) {
            instruction.set_segment_prefix(self.segment());
        }
        Ok(instruction)
    }

    /// GS only where its base is ours; FS is the host's own.
    fn segment(&mut self) -> Register {
        const LEGACY: [Register; 5] =
            [Register::ES, Register::SS, Register::DS, Register::DS, Register::GS];
        let count = if self.mode == Mode::Bits64 { 5 } else { 4 };
        self.random.pick(&LEGACY[..count])
    }

    fn operand(&mut self, to: &mut Instruction, operand: u32, kind: K) -> Result<(), K> {
        let bytes = register_or_memory(kind);
        if bytes.is_some() && self.random.chance(50) {
            self.memory(to, operand);
            return Ok(());
        }
        if let Some(bytes) = bytes.or_else(|| register_only(kind)) {
            self.register(to, operand, bytes);
            return Ok(());
        }
        if let Some(register) = fixed_register(kind) {
            to.set_op_kind(operand, OpKind::Register);
            to.set_op_register(operand, register);
            return Ok(());
        }
        match kind {
            K::mem => self.memory(to, operand),
            K::mem_offs => self.absolute(to, operand),
            K::seg_rSI => to.set_op_kind(operand, self.string_kind(to, SOURCE)),
            K::es_rDI => to.set_op_kind(operand, self.string_kind(to, DESTINATION)),
            K::seg_rBX_al => self.table(to, operand),
            K::br16_1 | K::br16_2 | K::br32_1 | K::br32_4 | K::br64_1 | K::br64_4 => {
                self.branch(to, operand, kind);
            }
            _ => self.immediate(to, operand, kind)?,
        }
        Ok(())
    }

    /// True now and then: an address-size prefix.
    fn is_short(&mut self) -> bool {
        let can_be = self.mode == Mode::Bits64 || self.encoding.with_low_page;
        can_be && self.random.chance(20)
    }

    fn register(&mut self, to: &mut Instruction, operand: u32, bytes: u32) {
        let registers = registers(bytes);
        let is_usable = |register: &Register| match self.mode {
            Mode::Bits64 => true,
            // The eight low ones; of bytes those without REX.
            Mode::Bits32 if bytes == 1 => (*register as u32) < Register::SPL as u32,
            Mode::Bits32 => register.number() < 8,
        };
        let usable: Vec<_> = registers.into_iter().filter(is_usable).collect();
        to.set_op_kind(operand, OpKind::Register);
        to.set_op_register(operand, self.random.pick(&usable));
    }

    /// A ModRM memory operand of any shape. Displacements are small beside a register and near the
    /// data without one; [`crate::prepare`] gives the registers their values.
    fn memory(&mut self, to: &mut Instruction, operand: u32) {
        to.set_op_kind(operand, OpKind::Memory);
        let is_short = self.is_short();
        match (self.mode, is_short) {
            (Mode::Bits32, true) => return self.memory16(to),
            (Mode::Bits64, false) if self.random.chance(15) => return self.relative(to),
            _ => {}
        }
        let bytes = if self.mode == Mode::Bits64 && !is_short { 8 } else { 4 };
        let count = if self.mode == Mode::Bits64 { 16 } else { 8 };
        let registers = &registers(bytes)[..count];
        let (with_base, with_index) = (self.random.chance(85), self.random.chance(45));
        if with_base {
            to.set_memory_base(self.random.pick(registers));
        }
        if with_index {
            let index = self.random.pick(registers);
            // The encoding of rSP as an index means none.
            if index.number() != 4 {
                to.set_memory_index(index);
                to.set_memory_index_scale(self.random.pick(&[1, 2, 4, 8]));
            }
        }
        let has_register =
            to.memory_base() != Register::None || to.memory_index() != Register::None;
        let displacement = if !has_register {
            self.target()
        } else if self.random.chance(40) {
            0
        } else {
            (self.random.pick(&[0x100, 0x1_0000, 0x4000_0000]) as i64 / 2
                - self.random.below(0x100) as i64) as u64
        };
        self.set_displacement(to, displacement, bytes, has_register);
    }

    fn set_displacement(&mut self, to: &mut Instruction, value: u64, bytes: u32, maybe_none: bool) {
        let value = if bytes == 4 { value as u32 as u64 } else { value };
        let is_byte = maybe_none && (value as i32 as i8) as i32 == value as i32;
        let size = if maybe_none && value == 0 {
            0
        } else if is_byte {
            1
        } else {
            bytes
        };
        to.set_memory_displacement64(value);
        to.set_memory_displ_size(size);
    }

    fn memory16(&mut self, to: &mut Instruction) {
        const SHAPES: [(Register, Register); 9] = [
            (Register::BX, Register::SI),
            (Register::BX, Register::DI),
            (Register::BP, Register::SI),
            (Register::BP, Register::DI),
            (Register::SI, Register::None),
            (Register::DI, Register::None),
            (Register::BP, Register::None),
            (Register::BX, Register::None),
            (Register::None, Register::None),
        ];
        let (base, index) = self.random.pick(&SHAPES);
        to.set_memory_base(base);
        to.set_memory_index(index);
        let displacement = match base {
            Register::None => LOW + self.random.below(0x1008),
            _ => self.random.pick(&[0, 0x7f, 0x1234, 0xff80, 0xfff0]),
        };
        to.set_memory_displacement64(displacement);
        let is_none = displacement == 0 && base != Register::None;
        to.set_memory_displ_size(if is_none { 0 } else { 2 });
    }

    /// RIP-relative: iced's displacement is the address itself.
    fn relative(&mut self, to: &mut Instruction) {
        let is_short = self.is_short();
        to.set_memory_base(if is_short { Register::EIP } else { Register::RIP });
        to.set_memory_displacement64(self.target());
        to.set_memory_displ_size(if is_short { 4 } else { 8 });
    }

    /// A0 to A3.
    fn absolute(&mut self, to: &mut Instruction, operand: u32) {
        to.set_op_kind(operand, OpKind::Memory);
        let is_short = self.is_short();
        let (target, size) = match (self.mode, is_short) {
            (Mode::Bits64, false) => (self.target(), 8),
            (Mode::Bits32, true) => (LOW + self.random.below(0x1008), 2),
            _ => (self.target(), 4),
        };
        to.set_memory_displacement64(target);
        to.set_memory_displ_size(size);
    }

    /// An address that must be in the encoding: mostly in the data pages.
    fn target(&mut self) -> u64 {
        let start = self.random.pick(&[cpu::testing::DATA, cpu::testing::DATA, READ_ONLY]);
        start.wrapping_add(self.random.below(0x2010)).wrapping_sub(8)
    }

    /// XLAT.
    fn table(&mut self, to: &mut Instruction, operand: u32) {
        let is_short = self.is_short();
        to.set_op_kind(operand, OpKind::Memory);
        to.set_memory_index(Register::AL);
        to.set_memory_base(match (self.mode, is_short) {
            (Mode::Bits64, false) => Register::RBX,
            (Mode::Bits32, true) => Register::BX,
            _ => Register::EBX,
        });
    }

    /// String operands: both of an instruction have one address size.
    fn string_kind(&mut self, so_far: &Instruction, kinds: [OpKind; 3]) -> OpKind {
        let first = so_far.op0_kind();
        for (n, kind) in kinds.iter().enumerate() {
            if so_far.op_count() > 1 && (SOURCE[n] == first || DESTINATION[n] == first) {
                return *kind;
            }
        }
        let is_short = self.is_short();
        match (self.mode, is_short) {
            (Mode::Bits64, false) => kinds[2],
            (Mode::Bits32, true) => kinds[0],
            _ => kinds[1],
        }
    }

    fn branch(&mut self, to: &mut Instruction, operand: u32, kind: K) {
        let reach = if matches!(kind, K::br16_1 | K::br32_1 | K::br64_1) { 100 } else { 0x8000 };
        let target = CODE.wrapping_add(self.random.below(2 * reach)).wrapping_sub(reach);
        // A jump to itself would never come back.
        let target = if target & !0xf == CODE { CODE + 0x40 } else { target };
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
        let value = self.random.operand();
        let is_second = operand == 1 && to.op_kind(0) == OpKind::Immediate16;
        if kind == K::imm8 && is_second {
            // ENTER's nesting level: mostly what compilers use.
            to.set_op_kind(operand, OpKind::Immediate8_2nd);
            to.set_immediate8_2nd(if self.random.chance(70) {
                value as u8 & 3
            } else {
                value as u8
            });
            return Ok(());
        }
        let (op_kind, value) = match kind {
            K::imm8 => (OpKind::Immediate8, value as u8 as u64),
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as i16 as u16 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as i32 as u32 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 if is_frame(to) => (OpKind::Immediate16, value & 0x3f8),
            K::imm16 => (OpKind::Immediate16, value as u16 as u64),
            K::imm32 => (OpKind::Immediate32, value as u32 as u64),
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

/// ENTER's immediate is bytes of stack: mostly few.
fn is_frame(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Enter
}

const SOURCE: [OpKind; 3] = [OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI];
const DESTINATION: [OpKind; 3] = [OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI];

/// True if a segment prefix would mean something.
fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        let kind = instruction.op_kind(operand);
        kind == OpKind::Memory || SOURCE.contains(&kind)
    })
}

fn register_or_memory(kind: K) -> Option<u32> {
    Some(match kind {
        K::r8_or_mem => 1,
        K::r16_or_mem => 2,
        K::r32_or_mem | K::r32_or_mem_mpx => 4,
        K::r64_or_mem | K::r64_or_mem_mpx => 8,
        _ => return None,
    })
}

fn register_only(kind: K) -> Option<u32> {
    Some(match kind {
        K::r8_reg | K::r8_opcode => 1,
        K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => 2,
        K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => 4,
        K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => 8,
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
        _ => return None,
    })
}
