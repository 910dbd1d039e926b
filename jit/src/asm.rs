//! Host code in a plain buffer.
//!
//! The few shapes that translated code is made of, as bytes: `dynasm!` would do the same at twice
//! the cost for operands whose registers are known only at run time. Positions are offsets from
//! the start of code memory, so that a displacement between any two of them is known at once.

use crate::registers::Number;

/// A memory operand of host code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mem {
    /// Base register.
    pub(crate) base: Option<Number>,
    /// Index register and log2 of its scale.
    pub(crate) index: Option<(Number, u8)>,
    /// Displacement.
    pub(crate) disp: i32,
    /// Relative to the context.
    pub(crate) is_gs: bool,
}

impl Mem {
    /// `[base]`.
    pub(crate) const fn at(base: Number) -> Self {
        Self { base: Some(base), index: None, disp: 0, is_gs: false }
    }
    /// A field of the context.
    pub(crate) const fn context(offset: usize) -> Self {
        Self { base: None, index: None, disp: offset as i32, is_gs: true }
    }
    /// A field of the context, indexed by a register.
    pub(crate) const fn context_at(base: Number, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp, is_gs: true }
    }
    /// The same with another displacement.
    pub(crate) const fn with_disp(self, disp: i32) -> Self {
        Self { disp, ..self }
    }
}

/// Operand of ModRM.rm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rm {
    /// A register.
    Reg(Number),
    /// Memory.
    Mem(Mem),
}

/// A jump whose target is not known yet: where its 32-bit displacement is.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Patch(pub(crate) usize);

/// The buffer.
pub(crate) struct Asm {
    /// The bytes so far.
    pub(crate) bytes: Vec<u8>,
    /// Position of the first byte.
    start: usize,
}

/// ALU operations, by their number in opcodes 80h to 83h.
#[derive(Clone, Copy)]
pub(crate) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Condition codes, as encodings have them.
pub(crate) mod cc {
    pub(crate) const E: u8 = 4;
    pub(crate) const NE: u8 = 5;
    pub(crate) const BE: u8 = 6;
    pub(crate) const A: u8 = 7;
}

impl Asm {
    /// An empty buffer whose first byte will be at `start`.
    pub(crate) fn new(start: usize) -> Self {
        Self { bytes: Vec::with_capacity(2048), start }
    }

    /// Position of the next byte.
    pub(crate) fn here(&self) -> usize {
        self.start + self.bytes.len()
    }

    /// Position of the first byte.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// ModRM with what it needs, for `reg` in its reg field.
    pub(crate) fn modrm(&mut self, reg: Number, rm: Rm) {
        self.modrm_wide(reg, rm, false);
    }

    /// As [`Asm::modrm`]; with `is_wide` a displacement always takes four bytes, as encodings that
    /// scale short ones need it.
    pub(crate) fn modrm_wide(&mut self, reg: Number, rm: Rm, is_wide: bool) {
        let reg = (reg & 7) << 3;
        let mem = match rm {
            Rm::Reg(number) => return self.byte(0xc0 | reg | number & 7),
            Rm::Mem(mem) => mem,
        };
        let Some(base) = mem.base else {
            let index =
                mem.index.map_or(0x25, |(number, scale)| scale << 6 | (number & 7) << 3 | 5);
            self.raw(&[reg | 4, index]);
            return self.imm32(mem.disp);
        };
        let is_short = !is_wide && i8::try_from(mem.disp).is_ok();
        let mode = match mem.disp {
            0 if base & 7 != 5 => 0,
            _ if is_short => 0x40,
            _ => 0x80,
        };
        match mem.index {
            Some((index, scale)) => {
                self.raw(&[mode | reg | 4, scale << 6 | (index & 7) << 3 | base & 7]);
            }
            None if base & 7 == 4 => self.raw(&[mode | reg | 4, 0x24]),
            None => self.byte(mode | reg | base & 7),
        }
        match mode {
            0x40 => self.byte(mem.disp as u8),
            0x80 => self.imm32(mem.disp),
            _ => {}
        }
    }

    /// A legacy encoding: segment prefix, REX, opcode, ModRM.
    pub(crate) fn op(&mut self, is_wide: bool, opcode: &[u8], reg: Number, rm: Rm) {
        if let Rm::Mem(Mem { is_gs: true, .. }) = rm {
            self.byte(0x65);
        }
        let rex = rex(is_wide, reg, rm);
        if rex != 0 {
            self.byte(0x40 | rex);
        }
        self.raw(opcode);
        self.modrm(reg, rm);
    }

    /// An operation on bytes, none of them a high one.
    pub(crate) fn op8(&mut self, opcode: u8, reg: Number, rm: Rm) {
        let rex = rex(false, reg, rm);
        let is_low = |number: Number| matches!(number, 4..=7);
        if rex != 0 || is_low(reg) || matches!(rm, Rm::Reg(number) if is_low(number)) {
            self.byte(0x40 | rex);
        }
        self.byte(opcode);
        self.modrm(reg, rm);
    }

    /// Replaces the bytes at position `at`.
    pub(crate) fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        let at = at - self.start;
        if let Some(old) = self.bytes.get_mut(at..at + bytes.len()) {
            old.copy_from_slice(bytes);
        }
    }

    /// `mov reg, reg` of 64 bits; nothing if they are the same.
    pub(crate) fn mov(&mut self, to: Number, from: Number) {
        if to != from {
            self.op(true, &[0x8b], to, Rm::Reg(from));
        }
    }

    /// `mov reg, reg` of 32 bits.
    pub(crate) fn mov32(&mut self, to: Number, from: Number) {
        self.op(false, &[0x8b], to, Rm::Reg(from));
    }

    /// Loads 64 bits.
    pub(crate) fn load(&mut self, to: Number, from: Mem) {
        self.op(true, &[0x8b], to, Rm::Mem(from));
    }

    /// Loads 32 bits, zero-extended.
    pub(crate) fn load32(&mut self, to: Number, from: Mem) {
        self.op(false, &[0x8b], to, Rm::Mem(from));
    }

    /// Stores 64 bits.
    pub(crate) fn store(&mut self, to: Mem, from: Number) {
        self.op(true, &[0x89], from, Rm::Mem(to));
    }

    /// Stores 32 bits.
    pub(crate) fn store32(&mut self, to: Mem, from: Number) {
        self.op(false, &[0x89], from, Rm::Mem(to));
    }

    /// Stores an immediate of 32 bits.
    pub(crate) fn store32_imm(&mut self, to: Mem, value: u32) {
        self.op(false, &[0xc7], 0, Rm::Mem(to));
        self.imm32(value as i32);
    }

    /// `lea` of 64 bits.
    pub(crate) fn lea(&mut self, to: Number, mem: Mem) {
        self.op(true, &[0x8d], to, Rm::Mem(mem));
    }

    /// `lea` of 32 bits.
    pub(crate) fn lea32(&mut self, to: Number, mem: Mem) {
        self.op(false, &[0x8d], to, Rm::Mem(mem));
    }

    /// Puts a constant into a register, flags untouched.
    pub(crate) fn constant(&mut self, to: Number, value: u64) {
        if u32::try_from(value).is_ok() {
            let rex = 0x40 | to >> 3;
            if rex != 0x40 {
                self.byte(rex);
            }
            self.byte(0xb8 | to & 7);
            self.imm32(value as i32);
        } else if i32::try_from(value as i64).is_ok() {
            self.op(true, &[0xc7], 0, Rm::Reg(to));
            self.imm32(value as i32);
        } else {
            self.raw(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `op reg, r/m` of 64 bits.
    pub(crate) fn alu(&mut self, alu: Alu, reg: Number, rm: Rm) {
        self.op(true, &[(alu as u8) << 3 | 3], reg, rm);
    }

    /// `op reg, r/m` of 32 bits.
    pub(crate) fn alu32(&mut self, alu: Alu, reg: Number, rm: Rm) {
        self.op(false, &[(alu as u8) << 3 | 3], reg, rm);
    }

    /// `op r/m, imm`.
    pub(crate) fn alu_imm(&mut self, is_wide: bool, alu: Alu, rm: Rm, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.op(is_wide, &[0x83], alu as u8, rm);
            self.byte(short as u8);
        } else {
            self.op(is_wide, &[0x81], alu as u8, rm);
            self.imm32(value);
        }
    }

    /// `shr reg32, count`.
    pub(crate) fn shr32(&mut self, reg: Number, count: u8) {
        self.op(false, &[0xc1], 5, Rm::Reg(reg));
        self.byte(count);
    }

    /// `shl reg32, count`.
    pub(crate) fn shl32(&mut self, reg: Number, count: u8) {
        self.op(false, &[0xc1], 4, Rm::Reg(reg));
        self.byte(count);
    }

    /// `imul to32, from32, imm`.
    pub(crate) fn imul32(&mut self, to: Number, from: Number, value: u32) {
        self.op(false, &[0x69], to, Rm::Reg(from));
        self.imm32(value as i32);
    }

    /// `movzx to32, r/m8`.
    pub(crate) fn movzx8(&mut self, to: Number, rm: Rm) {
        self.op(false, &[0x0f, 0xb6], to, rm);
    }

    /// `cmp byte mem, imm`.
    pub(crate) fn cmp8_imm(&mut self, mem: Mem, value: u8) {
        self.op(false, &[0x80], 7, Rm::Mem(mem));
        self.byte(value);
    }

    /// `jcc` with a 32-bit displacement.
    pub(crate) fn jcc(&mut self, condition: u8) -> Patch {
        self.raw(&[0x0f, 0x80 | condition]);
        self.rel32()
    }

    /// `jmp` with a 32-bit displacement.
    pub(crate) fn jmp(&mut self) -> Patch {
        self.byte(0xe9);
        self.rel32()
    }

    /// `call` with a 32-bit displacement.
    pub(crate) fn call(&mut self) -> Patch {
        self.byte(0xe8);
        self.rel32()
    }

    fn rel32(&mut self) -> Patch {
        let patch = Patch(self.here());
        self.imm32(0);
        patch
    }

    /// `cmp reg, [rip + disp32]`.
    pub(crate) fn cmp_relative(&mut self, reg: Number) -> Patch {
        self.raw(&[0x48 | (reg >> 3) << 2, 0x3b, (reg & 7) << 3 | 5]);
        self.rel32()
    }

    /// `jmp` to a known position.
    pub(crate) fn jmp_to(&mut self, target: usize) {
        let patch = self.jmp();
        self.patch(patch, target);
    }

    /// `call` of a known position.
    pub(crate) fn call_to(&mut self, target: usize) {
        let patch = self.call();
        self.patch(patch, target);
    }

    /// `jcc` to a known position.
    pub(crate) fn jcc_to(&mut self, condition: u8, target: usize) {
        let patch = self.jcc(condition);
        self.patch(patch, target);
    }

    /// `jmp r/m`.
    pub(crate) fn jmp_rm(&mut self, rm: Rm) {
        self.op(false, &[0xff], 4, rm);
    }

    /// `ret`.
    pub(crate) fn ret(&mut self) {
        self.byte(0xc3);
    }

    /// Lets the jump at `patch` go to `target`.
    pub(crate) fn patch(&mut self, patch: Patch, target: usize) {
        let at = patch.0 - self.start;
        let displacement = displacement(patch.0, target);
        if let Some(slot) = self.bytes.get_mut(at..at + 4) {
            slot.copy_from_slice(&displacement.to_le_bytes());
        }
    }

    /// Lets the jump at `patch` go to the next byte.
    pub(crate) fn patch_here(&mut self, patch: Patch) {
        self.patch(patch, self.here());
    }
}

/// What a 32-bit displacement at position `at` must be to reach `target`.
pub(crate) fn displacement(at: usize, target: usize) -> i32 {
    (target as i64 - (at as i64 + 4)) as i32
}

fn rex(is_wide: bool, reg: Number, rm: Rm) -> u8 {
    let (index, base) = rex_xb(rm);
    u8::from(is_wide) << 3 | (reg >> 3 & 1) << 2 | index << 1 | base
}

/// REX.X and REX.B of an operand.
pub(crate) fn rex_xb(rm: Rm) -> (u8, u8) {
    match rm {
        Rm::Reg(number) => (0, number >> 3 & 1),
        Rm::Mem(mem) => (
            mem.index.map_or(0, |(number, _)| number >> 3 & 1),
            mem.base.map_or(0, |number| number >> 3 & 1),
        ),
    }
}
