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

/// A few bytes, eight at most, before they are added to the buffer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bytes {
    value: u64,
    count: u32,
}

impl Bytes {
    #[inline]
    pub(crate) fn push(&mut self, byte: u8) {
        self.value |= u64::from(byte) << ((8 * self.count) & 0x38);
        self.count += 1;
    }

    /// The low `count` bytes of `value` behind those that are there.
    #[inline]
    fn push_many(&mut self, value: u32, count: u32) {
        self.value |= u64::from(value) << ((8 * self.count) & 0x38);
        self.count += count;
    }

    /// ModRM with what it needs, for `reg` in its reg field. With `is_wide` a displacement always
    /// takes four bytes, as encodings that scale short ones need it. Nothing may be pushed behind
    /// it.
    ///
    /// It has few branches, because no processor could foresee them.
    #[inline]
    fn modrm(reg: Number, rm: Rm, is_wide: bool) -> Self {
        let reg = (reg & 7) << 3;
        let mem = match rm {
            Rm::Reg(number) => {
                return Self { value: u64::from(0xc0 | reg | number & 7), count: 1 };
            }
            Rm::Mem(mem) => mem,
        };
        let has_base = mem.base.is_some();
        let base = mem.base.unwrap_or(5) & 7;
        let (index, scale) = mem.index.unwrap_or((4, 0));
        let has_sib = !has_base | mem.index.is_some() | (base == 4);
        // Without a base four bytes of displacement come with mode 0.
        let is_absent = has_base & (mem.disp == 0) & (base != 5);
        let is_short = !is_wide & (i32::from(mem.disp as i8) == mem.disp);
        let size = if is_absent { 0 } else { 2 - u8::from(is_short & has_base) };
        let mode = if has_base { size << 6 } else { 0 };
        let sib = scale << 6 | (index & 7) << 3 | base;
        let modrm = mode | reg | if has_sib { 4 } else { base };
        let sib_count = u32::from(has_sib);
        let sib = if has_sib { u64::from(sib) << 8 } else { 0 };
        let displacement = u64::from(mem.disp as u32) << (8 + 8 * sib_count);
        // Sizes 0, 1 and 2 are 0, 1 and 4 bytes.
        let bytes = u32::from(size * size);
        Self { value: u64::from(modrm) | sib | displacement, count: 1 + sib_count + bytes }
    }
}

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
    pub(crate) const B: u8 = 2;
    pub(crate) const E: u8 = 4;
    pub(crate) const NE: u8 = 5;
    pub(crate) const BE: u8 = 6;
    pub(crate) const A: u8 = 7;
}

impl Asm {
    /// The empty buffer `bytes`, whose first byte will be at `start`.
    pub(crate) fn new(start: usize, bytes: Vec<u8>) -> Self {
        Self { bytes, start }
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

    /// Adds what was put together.
    #[inline]
    pub(crate) fn put(&mut self, bytes: Bytes) {
        // As many bytes at any time, so that no loop copies them.
        let end = self.bytes.len() + bytes.count as usize;
        self.bytes.extend_from_slice(&bytes.value.to_le_bytes());
        self.bytes.truncate(end);
    }

    /// ModRM with what it needs, for `reg` in its reg field. With `is_wide` a displacement always
    /// takes four bytes, as encodings that scale short ones need it.
    #[inline]
    pub(crate) fn modrm(&mut self, reg: Number, rm: Rm, is_wide: bool) {
        self.put(Bytes::modrm(reg, rm, is_wide));
    }

    /// A legacy encoding: segment prefix, REX, opcode of one or two bytes, ModRM.
    #[inline]
    pub(crate) fn op(&mut self, is_wide: bool, opcode: &[u8], reg: Number, rm: Rm) {
        let mut bytes = Bytes::default();
        opcode.iter().for_each(|&byte| bytes.push(byte));
        self.op_of(is_wide, bytes, reg, rm);
    }

    fn op_of(&mut self, is_wide: bool, opcode: Bytes, reg: Number, rm: Rm) {
        let is_gs = matches!(rm, Rm::Mem(Mem { is_gs: true, .. }));
        let rex = rex(is_wide, reg, rm);
        let mut bytes = Bytes { value: 0x65, count: u32::from(is_gs) };
        bytes.value *= u64::from(is_gs);
        let prefix = if rex != 0 { 0x40 | rex } else { 0 };
        bytes.push_many(u32::from(prefix), u32::from(rex != 0));
        bytes.push_many(opcode.value as u32, opcode.count);
        self.put(bytes);
        self.modrm(reg, rm, false);
    }

    /// An operation on bytes, none of them a high one.
    pub(crate) fn op8(&mut self, opcode: u8, reg: Number, rm: Rm) {
        let rex = rex(false, reg, rm);
        let is_low = |number: Number| matches!(number, 4..=7);
        if rex != 0 || is_low(reg) || matches!(rm, Rm::Reg(number) if is_low(number)) {
            self.byte(0x40 | rex);
        }
        self.byte(opcode);
        self.modrm(reg, rm, false);
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
            let mut bytes = Bytes::default();
            let rex = 0x40 | to >> 3;
            if rex != 0x40 {
                bytes.push(rex);
            }
            bytes.push(0xb8 | to & 7);
            bytes.push_many(value as u32, 4);
            self.put(bytes);
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
        self.transfer(0x800f | u32::from(condition) << 8, 2, 0)
    }

    /// `jmp` with a 32-bit displacement.
    pub(crate) fn jmp(&mut self) -> Patch {
        self.transfer(0xe9, 1, 0)
    }

    /// `call` with a 32-bit displacement.
    pub(crate) fn call(&mut self) -> Patch {
        self.transfer(0xe8, 1, 0)
    }

    /// An opcode of `count` bytes with a 32-bit displacement.
    fn transfer(&mut self, opcode: u32, count: u32, displacement: i32) -> Patch {
        let patch = Patch(self.here() + count as usize);
        let value = u64::from(opcode) | u64::from(displacement as u32) << (8 * count);
        self.put(Bytes { value, count: count + 4 });
        patch
    }

    /// As [`Asm::transfer`], to a known position.
    fn transfer_to(&mut self, opcode: u32, count: u32, target: usize) {
        let displacement = displacement(self.here() + count as usize, target);
        let _ = self.transfer(opcode, count, displacement);
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
        self.transfer_to(0xe9, 1, target);
    }

    /// `call` of a known position.
    pub(crate) fn call_to(&mut self, target: usize) {
        self.transfer_to(0xe8, 1, target);
    }

    /// `jcc` to a known position.
    pub(crate) fn jcc_to(&mut self, condition: u8, target: usize) {
        self.transfer_to(0x800f | u32::from(condition) << 8, 2, target);
    }

    /// `xchg one, other`.
    pub(crate) fn exchange(&mut self, one: Number, other: Number) {
        self.op(true, &[0x87], one, Rm::Reg(other));
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
