//! A random state for one instruction, in which its addresses mean something: mostly the data
//! pages, often their edges, sometimes a page that is read-only, absent or not canonical.

use cpu::testing::{CODE, DATA};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use crate::encode::decode;
use crate::state::{
    CODE_BYTES, CODE_START, GS_BASE, Input, LOW, Memory, Mode, PAGE, READ_ONLY, Registers,
};
use cpu::testing::random::Random;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;
/// FIXED and IF, which a user program always has.
const FIXED_FLAGS: u64 = 0x202;
const DIRECTION: u64 = 1 << 10;
const STATUS: u64 = 0x8d5;

/// The state that `seed` gives `code`. Nothing else decides it, so a line of regressions.txt can.
pub fn input(mode: Mode, code: &[u8], seed: u64) -> Input {
    let instruction = decode(mode, code);
    let mut random = Random::new(seed);
    let gpr = std::array::from_fn(|_| random.operand());
    let rflags = FIXED_FLAGS | random.bits() & (STATUS | DIRECTION);
    let memory = Memory::random(&mut random);
    let registers = Registers { gpr, rip: CODE, rflags };
    let input = Input { mode, code: code.to_vec(), registers, memory };
    let mut preparation = Preparation { random, instruction, input };
    preparation.aim_implicit();
    preparation.aim_memory();
    preparation.arrange();
    preparation.input
}

struct Preparation {
    random: Random,
    instruction: Instruction,
    input: Input,
}

impl Preparation {
    /// An address.
    fn target(&mut self, address_bytes: u32) -> u64 {
        let random = &mut self.random;
        if address_bytes == 2 {
            return LOW + random.pick(&[0, 0x800, 0xff0]) + random.below(24);
        }
        let near = |random: &mut Random, edge: u64| edge.wrapping_sub(24) + random.below(32);
        let target = match random.below(100) {
            0..=59 => DATA + random.below(2 * PAGE - 64),
            60..=74 => near(random, DATA + PAGE),
            75..=84 => near(random, DATA + 2 * PAGE),
            85..=88 => near(random, DATA),
            89..=93 => READ_ONLY + random.below(PAGE),
            94..=95 => DATA + 2 * PAGE + random.below(PAGE),
            96..=97 if address_bytes == 8 => near(random, 0x8000_0000_0000),
            98 if address_bytes == 8 => random.bits() & 0x7fff_ffff_ffff_ffff | 1 << 62,
            _ => DATA + random.below(PAGE),
        };
        if random.chance(40) { target & !15 } else { target }
    }

    fn address_bytes(&self) -> u32 {
        if self.input.mode == Mode::Bits64 { 8 } else { 4 }
    }

    /// Writes a register in the address size; what it leaves of the rest stays random.
    fn set(&mut self, register: usize, value: u64, bytes: u32) {
        let mask = u64::MAX >> (64 - 8 * bytes);
        let slot = &mut self.input.registers.gpr[register];
        *slot = *slot & !mask | value & mask;
    }

    /// Registers that address memory without being named.
    fn aim_implicit(&mut self) {
        let instruction = self.instruction;
        let full = self.address_bytes();
        if instruction.is_stack_instruction() || is_near_return(&instruction) {
            let stack = self.target(full);
            self.set(RSP, stack, full);
        }
        if matches!(instruction.mnemonic(), M::Enter | M::Leave) {
            let frame = self.target(full);
            self.set(RBP, frame, full);
        }
        let string = (0..instruction.op_count())
            .find_map(|operand| string_address_bytes(instruction.op_kind(operand)));
        if let Some(bytes) = string {
            self.aim_string(bytes);
        }
        if instruction.mnemonic() == M::Clzero {
            let bytes = instruction.code().op_code().address_size() / 8;
            let line = self.target(bytes);
            self.set(RAX, line, bytes);
        }
        let counts = matches!(
            instruction.mnemonic(),
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz
        );
        if counts && self.random.chance(60) {
            let (value, bytes) = (self.random.below(3), self.random.pick(&[2, 4, 8]));
            self.set(RCX, value, bytes);
        }
    }

    fn aim_string(&mut self, bytes: u32) {
        let base = self.segment_base();
        let source = self.target(bytes).wrapping_sub(base);
        self.set(RSI, source, bytes);
        let destination = self.target(bytes);
        self.set(RDI, destination, bytes);
        if self.random.chance(25) {
            // Overlap.
            let distance = self.random.below(33).wrapping_sub(16);
            self.set(RDI, source.wrapping_add(base).wrapping_add(distance), bytes);
        }
        let count = self.random.below(41);
        self.set(RCX, count, bytes);
        if self.random.chance(50) {
            // So that comparisons go on for a while.
            let value = self.random.pick(&[0, u64::MAX]);
            let (low, length) = (DATA + self.random.below(64), PAGE as usize);
            self.input.memory.put(low, &vec![value as u8; length]);
            self.input.memory.put(LOW, &vec![value as u8; length]);
            self.input.registers.gpr[RAX] = value;
        }
    }

    fn segment_base(&self) -> u64 {
        let is_gs = self.instruction.segment_prefix() == Register::GS;
        if is_gs && self.input.mode == Mode::Bits64 { GS_BASE } else { 0 }
    }

    /// Gives the registers of the ModRM operand values that make it a [`Preparation::target`], and
    /// its memory a value worth computing with.
    fn aim_memory(&mut self) {
        let instruction = self.instruction;
        let has_memory = (0..instruction.op_count())
            .any(|operand| instruction.op_kind(operand) == OpKind::Memory);
        if !has_memory || instruction.mnemonic() == M::Lea && self.random.chance(50) {
            return;
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let register = if base == Register::None { index } else { base };
        if base.is_gpr() || index.is_gpr() {
            let target = self.target(register.size() as u32);
            self.aim_registers(target.wrapping_sub(self.segment_base()), base, index);
        }
        let length = self.random.pick(&[8, 8, 16]);
        for offset in (0..length).step_by(8) {
            if self.random.chance(50) {
                let value = self.random.operand().to_le_bytes();
                let address = self.effective_address().wrapping_add(offset);
                self.input.memory.put(address, &value);
            }
        }
    }

    fn aim_registers(&mut self, target: u64, base: Register, index: Register) {
        let scale = u64::from(self.instruction.memory_index_scale());
        let rest = target.wrapping_sub(self.instruction.memory_displacement64());
        let number = |register: Register| register.full_register().number();
        if self.instruction.mnemonic() == M::Xlatb {
            let al = self.input.registers.gpr[RAX] & 0xff;
            return self.set(number(base), rest.wrapping_sub(al), base.size() as u32);
        }
        if base == Register::None {
            return self.set(number(index), rest / scale, index.size() as u32);
        }
        if base == index {
            return self.set(number(base), rest / (scale + 1), base.size() as u32);
        }
        if index == Register::None {
            return self.set(number(base), rest, base.size() as u32);
        }
        let value = if self.random.chance(50) { self.random.bits() } else { self.random.below(64) };
        self.set(number(index), value, index.size() as u32);
        let rest = rest.wrapping_sub(value.wrapping_mul(scale));
        self.set(number(base), rest, base.size() as u32);
    }

    /// The linear address of the ModRM operand.
    fn effective_address(&self) -> u64 {
        let gpr = &self.input.registers.gpr;
        let value = |register: Register, _, _| {
            if register.is_segment_register() {
                return Some(0);
            }
            let mask = u64::MAX >> (64 - 8 * register.size());
            Some(gpr[register.full_register().number()] & mask)
        };
        (0..self.instruction.op_count())
            .find(|operand| self.instruction.op_kind(*operand) == OpKind::Memory)
            .and_then(|operand| self.instruction.virtual_address(operand, 0, value))
            .unwrap_or(0)
            .wrapping_add(self.segment_base())
    }

    /// What random values seldom are: equal comparands, dividends whose quotient fits, bit offsets
    /// that stay near, branch targets that exist, counts below the width, aligned lines.
    fn arrange(&mut self) {
        match self.instruction.mnemonic() {
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => self.arrange_comparand(),
            M::Div | M::Idiv => self.arrange_dividend(),
            M::Bt | M::Bts | M::Btr | M::Btc => self.arrange_bit_offset(),
            M::Call | M::Jmp | M::Ret => self.arrange_branch_target(),
            M::Shld | M::Shrd => self.arrange_double_shift(),
            M::Bound => self.arrange_bounds(),
            M::Movdir64b => self.arrange_line(),
            _ => {}
        }
    }

    fn addresses_with(&self, register: usize) -> bool {
        let named = [self.instruction.memory_base(), self.instruction.memory_index()];
        named.iter().any(|r| r.is_gpr() && r.full_register().number() == register)
    }

    fn arrange_comparand(&mut self) {
        if self.random.chance(50) || self.addresses_with(RAX) || self.addresses_with(RDX) {
            return;
        }
        let gpr = &mut self.input.registers.gpr;
        if self.instruction.op0_kind() == OpKind::Register {
            let register = self.instruction.op0_register();
            let value = gpr[register.full_register().number()];
            gpr[RAX] = if is_high_byte(register) { value >> 8 } else { value };
            return;
        }
        let address = self.effective_address();
        let low = self.input.memory.get(address);
        self.input.registers.gpr[RAX] = low;
        self.input.registers.gpr[RDX] = match self.instruction.mnemonic() {
            M::Cmpxchg16b => self.input.memory.get(address.wrapping_add(8)),
            _ => low >> 32,
        };
    }

    fn arrange_dividend(&mut self) {
        if self.addresses_with(RAX) || self.addresses_with(RDX) {
            return;
        }
        let is_signed = self.instruction.mnemonic() == M::Idiv && self.random.chance(60);
        let gpr = &mut self.input.registers.gpr;
        let high = match (self.random.below(4), is_signed) {
            (0, _) => return,
            (_, true) => ((gpr[RAX] as i64) >> 63) as u64,
            (1, false) => self.random.below(8),
            (_, false) => 0,
        };
        gpr[RDX] = high;
        // The byte form's dividend is AX.
        gpr[RAX] = gpr[RAX] & !0xff00 | (high & 0xff) << 8;
    }

    fn arrange_bit_offset(&mut self) {
        let register = self.instruction.op1_register();
        let is_string = self.instruction.op0_kind() == OpKind::Memory && register.is_gpr();
        let number = register.full_register().number();
        if !is_string || self.addresses_with(number) {
            return;
        }
        let reach = self.random.pick(&[64, 512, 8 * PAGE]);
        let offset = self.random.below(2 * reach).wrapping_sub(reach);
        self.set(number, offset, register.size() as u32);
    }

    fn arrange_branch_target(&mut self) {
        let target = match self.random.below(10) {
            0 => self.random.bits() | 1 << 62,
            1 => self.random.bits() & 0x7fff_ffff,
            _ => CODE_START + self.random.below(CODE_BYTES),
        };
        let target =
            if target & !0xf == CODE || self.input.mode == Mode::Bits32 && target >> 32 != 0 {
                CODE_START + 0x100
            } else {
                target
            };
        let bytes = target.to_le_bytes();
        if is_near_return(&self.instruction) {
            let stack = self.input.registers.gpr[RSP];
            let mask = if self.input.mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
            self.input.memory.put(stack & mask, &bytes);
        } else if self.instruction.op0_kind() == OpKind::Memory {
            let address = self.effective_address();
            self.input.memory.put(address, &bytes);
        } else if self.instruction.op0_kind() == OpKind::Register {
            let number = self.instruction.op0_register().full_register().number();
            if number != RSP {
                self.input.registers.gpr[number] = target;
            }
        }
    }

    /// Counts on both sides of 16, above which a 16-bit operand is a case of its own.
    fn arrange_double_shift(&mut self) {
        if !self.addresses_with(RCX) && self.random.chance(50) {
            let count = self.random.below(20);
            self.set(RCX, count, 1);
        }
    }

    /// Where 64 bytes go, whole lines most of the time.
    fn arrange_line(&mut self) {
        let register = self.instruction.op0_register();
        let number = register.full_register().number();
        let target = self.target(register.size() as u32);
        let line = if self.random.chance(80) { target & !63 } else { target };
        if !self.addresses_with(number) {
            self.set(number, line, register.size() as u32);
        }
    }

    fn arrange_bounds(&mut self) {
        if self.random.chance(70) {
            let address = self.effective_address();
            let number = self.instruction.op0_register().full_register().number();
            let (low, high) = (self.random.below(8), self.random.below(0x100));
            let bytes = if self.instruction.op0_register().size() == 2 {
                (low | high << 16).to_le_bytes()
            } else {
                (low | high << 32).to_le_bytes()
            };
            self.input.memory.put(address, &bytes);
            if !self.addresses_with(number) {
                let index = self.random.below(12);
                self.set(number, index, 8);
            }
        }
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

fn is_near_return(instruction: &Instruction) -> bool {
    instruction.mnemonic() == M::Ret
}

fn string_address_bytes(kind: OpKind) -> Option<u32> {
    Some(match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
        OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => 8,
        _ => return None,
    })
}
