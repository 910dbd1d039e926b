//! Guest encodings taken apart and put together again with other operands.
//!
//! What is kept is prefixes that select the operation, opcode and immediate; what changes is where
//! registers and memory are. Segment overrides, address-size prefixes and displacements are gone
//! in the copy, since its memory operand is a host address.

use iced_x86::{EncodingKind, Instruction};

use crate::asm::{Asm, Rm, rex_xb};
use crate::registers::Number;

/// How the opcode is introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Opcode map 0 (one byte), 1 (0F), 2 (0F 38) or 3 (0F 3A).
    Legacy { map: u8 },
    /// VEX with its fields; `vvvv` is in [`Encoding::vvvv`].
    Vex { map: u8, is_w: bool, l: u8, pp: u8 },
    /// EVEX's three payload bytes.
    Evex([u8; 3]),
}

/// An encoding's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoding<'a> {
    kind: Kind,
    has_66: bool,
    /// F2 or F3, or 0.
    repeat: u8,
    has_lock: bool,
    /// REX.W of a legacy encoding.
    is_w: bool,
    /// Any REX: byte registers 4 to 7 are SPL to DIL.
    pub(crate) has_rex: bool,
    pub(crate) opcode: u8,
    has_modrm: bool,
    /// ModRM.reg with its extension.
    pub(crate) reg: Number,
    /// ModRM.rm with its extension, if it is a register.
    pub(crate) rm: Number,
    /// VEX.vvvv or EVEX.V'vvvv.
    pub(crate) vvvv: Number,
    /// The register in the opcode's low bits, with REX.B.
    pub(crate) opcode_register: Number,
    /// Immediate bytes.
    pub(crate) immediate: &'a [u8],
}

/// A cursor over the bytes; reading past the end gives zeroes, since iced has decoded them before.
struct Bytes<'a> {
    rest: &'a [u8],
}

impl Bytes<'_> {
    fn peek(&self) -> u8 {
        self.rest.first().copied().unwrap_or(0)
    }
    fn next(&mut self) -> u8 {
        let byte = self.peek();
        self.rest = self.rest.get(1..).unwrap_or_default();
        byte
    }
    fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
}

impl<'a> Encoding<'a> {
    /// Takes `bytes`, the whole encoding of `iced`, apart. `None` for what is never copied: XOP,
    /// 3DNow!, 16-bit addresses.
    pub(crate) fn parse(iced: &Instruction, bytes: &'a [u8], is_64: bool) -> Option<Self> {
        let mut encoding = Self::empty(iced);
        let mut cursor = Bytes { rest: bytes };
        let rex = encoding.parse_prefixes(&mut cursor, is_64)?;
        let [r, b] = match iced.code().op_code().encoding() {
            EncodingKind::Legacy => {
                encoding.parse_map(&mut cursor);
                [rex >> 2 & 1, rex & 1]
            }
            EncodingKind::VEX => encoding.parse_vex(&mut cursor),
            EncodingKind::EVEX => encoding.parse_evex(&mut cursor),
            _ => return None,
        };
        encoding.opcode = match (cursor.next(), encoding.kind) {
            // An alias that 64-bit mode does not have.
            (0x82, Kind::Legacy { map: 0 }) => 0x80,
            (opcode, _) => opcode,
        };
        encoding.opcode_register = encoding.opcode & 7 | b << 3;
        if encoding.has_modrm {
            let modrm = cursor.next();
            encoding.reg = modrm >> 3 & 7 | r << 3;
            encoding.rm = modrm & 7 | b << 3;
            cursor.skip(address_bytes(modrm, cursor.peek()));
        }
        encoding.immediate = cursor.rest;
        Some(encoding)
    }

    fn empty(iced: &Instruction) -> Self {
        let kinds = iced.code().op_code().op_kinds();
        Self {
            kind: Kind::Legacy { map: 0 },
            has_66: false,
            repeat: 0,
            has_lock: false,
            is_w: false,
            has_rex: false,
            opcode: 0,
            has_modrm: kinds.iter().any(|kind| is_in_modrm(*kind)),
            reg: 0,
            rm: 0,
            vvvv: 0,
            opcode_register: 0,
            immediate: &[],
        }
    }

    /// Takes the legacy prefixes; the REX prefix, or 0. `None` for addresses of 16 bits.
    fn parse_prefixes(&mut self, cursor: &mut Bytes<'_>, is_64: bool) -> Option<u8> {
        let mut rex = 0;
        loop {
            match cursor.peek() {
                0x66 => self.has_66 = true,
                byte @ (0xf2 | 0xf3) => self.repeat = byte,
                0xf0 => self.has_lock = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
                0x67 if is_64 => {}
                0x67 => return None,
                byte @ 0x40..=0x4f if is_64 => {
                    cursor.next();
                    // Another prefix behind it makes it void.
                    if !is_prefix(cursor.peek()) {
                        rex = byte;
                        break;
                    }
                    continue;
                }
                _ => break,
            }
            cursor.next();
        }
        self.has_rex = rex != 0;
        self.is_w = rex & 8 != 0;
        Some(rex)
    }

    /// The extensions of ModRM.reg and ModRM.rm.
    fn parse_vex(&mut self, cursor: &mut Bytes<'_>) -> [u8; 2] {
        let is_short = cursor.next() == 0xc5;
        let first = cursor.next();
        let (map, last, b) =
            if is_short { (1, first, 0) } else { (first & 0x1f, cursor.next(), !first >> 5 & 1) };
        self.vvvv = !last >> 3 & 0xf;
        let is_w = !is_short && last & 0x80 != 0;
        self.kind = Kind::Vex { map, is_w, l: last >> 2 & 1, pp: last & 3 };
        [!first >> 7 & 1, b]
    }

    /// As [`Encoding::parse_vex`]: two bits each, since X extends a register in ModRM.rm to 32.
    fn parse_evex(&mut self, cursor: &mut Bytes<'_>) -> [u8; 2] {
        cursor.next();
        let payload = [cursor.next(), cursor.next(), cursor.next()];
        let inverted = !payload[0];
        self.vvvv = !payload[1] >> 3 & 0xf | (!payload[2] >> 3 & 1) << 4;
        self.kind = Kind::Evex(payload);
        let r = inverted >> 7 & 1 | (inverted >> 4 & 1) << 1;
        [r, inverted >> 5 & 1 | (inverted >> 6 & 1) << 1]
    }

    fn parse_map(&mut self, cursor: &mut Bytes<'_>) {
        if cursor.peek() != 0x0f {
            return;
        }
        cursor.next();
        let map = match cursor.peek() {
            0x38 => 2,
            0x3a => 3,
            _ => 1,
        };
        if map > 1 {
            cursor.next();
        }
        self.kind = Kind::Legacy { map };
    }

    /// True if a register field of 8 bits with this number means AH, CH, DH or BH.
    pub(crate) fn is_high_byte(&self, number: Number) -> bool {
        !self.has_rex && matches!(self.kind, Kind::Legacy { .. }) && matches!(number, 4..=7)
    }

    /// Puts the encoding together with other operands. `is_byte` says that some register operand
    /// has 8 bits, so that numbers 4 to 7 need a REX to be SPL to DIL. False if the operands cannot
    /// be encoded (a high byte register beside a REX prefix).
    pub(crate) fn emit(&self, asm: &mut Asm, operands: Operands) -> bool {
        match self.kind {
            Kind::Legacy { map } => return self.emit_legacy(asm, map, operands),
            Kind::Vex { map, is_w, l, pp } => self.emit_vex(asm, [map, l, pp], is_w, operands),
            Kind::Evex(payload) => self.emit_evex(asm, payload, operands),
        }
        true
    }

    fn emit_legacy(&self, asm: &mut Asm, map: u8, operands: Operands) -> bool {
        let Operands { reg, rm, opcode_register, has_low_byte, has_high_byte, .. } = operands;
        let (mut x, mut b) = if self.has_modrm { rex_xb(rm) } else { (0, 0) };
        let mut opcode = self.opcode;
        if let Some(number) = opcode_register {
            opcode = opcode & !7 | number & 7;
            (x, b) = (0, number >> 3 & 1);
        }
        let r = if self.has_modrm { reg >> 3 & 1 } else { 0 };
        let rex = u8::from(self.is_w) << 3 | r << 2 | x << 1 | b;
        let needs_rex = rex != 0 || has_low_byte;
        if needs_rex && has_high_byte {
            return false;
        }
        if self.has_lock {
            asm.byte(0xf0);
        }
        if self.has_66 {
            asm.byte(0x66);
        }
        if self.repeat != 0 {
            asm.byte(self.repeat);
        }
        if let Rm::Mem(mem) = rm
            && mem.is_gs
        {
            asm.byte(0x65);
        }
        if needs_rex {
            asm.byte(0x40 | rex);
        }
        match map {
            0 => {}
            1 => asm.byte(0x0f),
            2 => asm.raw(&[0x0f, 0x38]),
            _ => asm.raw(&[0x0f, 0x3a]),
        }
        asm.byte(opcode);
        if self.has_modrm {
            asm.modrm(reg, rm);
        }
        asm.raw(self.immediate);
        true
    }

    fn emit_vex(&self, asm: &mut Asm, [map, l, pp]: [u8; 3], is_w: bool, operands: Operands) {
        let Operands { reg, rm, vvvv, .. } = operands;
        let (x, b) = rex_xb(rm);
        let r = reg >> 3 & 1;
        let low = (!vvvv & 0xf) << 3 | l << 2 | pp;
        if map == 1 && !is_w && x == 0 && b == 0 {
            asm.raw(&[0xc5, (r ^ 1) << 7 | low]);
        } else {
            let first = (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map;
            asm.raw(&[0xc4, first, u8::from(is_w) << 7 | low]);
        }
        asm.byte(self.opcode);
        if self.has_modrm {
            asm.modrm(reg, rm);
        }
        asm.raw(self.immediate);
    }

    fn emit_evex(&self, asm: &mut Asm, payload: [u8; 3], operands: Operands) {
        let Operands { reg, rm, vvvv, .. } = operands;
        let (mut x, b) = rex_xb(rm);
        if let Rm::Reg(number) = rm {
            x = number >> 4 & 1;
        }
        let extensions = (reg >> 3 & 1) << 7 | x << 6 | b << 5 | (reg >> 4 & 1) << 4;
        let first = payload[0] & 0x0f | !extensions & 0xf0;
        let second = payload[1] & !0x78 | (!vvvv & 0xf) << 3;
        let third = payload[2] & !8 | (!(vvvv >> 4) & 1) << 3;
        asm.raw(&[0x62, first, second, third, self.opcode]);
        asm.modrm_wide(reg, rm, true);
        asm.raw(self.immediate);
    }
}

/// The operands of a copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    /// ModRM.reg.
    pub(crate) reg: Number,
    /// ModRM.rm.
    pub(crate) rm: Rm,
    /// VEX.vvvv.
    pub(crate) vvvv: Number,
    /// The register in the opcode, if it has one.
    pub(crate) opcode_register: Option<Number>,
    /// One is SPL, BPL, SIL or DIL.
    pub(crate) has_low_byte: bool,
    /// One is AH, CH, DH or BH.
    pub(crate) has_high_byte: bool,
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Bytes of SIB and displacement behind `modrm`, whose next byte is `sib`.
fn address_bytes(modrm: u8, sib: u8) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let has_sib = mode != 3 && rm == 4;
    let displacement = match mode {
        0 if rm == 5 || has_sib && sib & 7 == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    usize::from(has_sib) + displacement
}

/// True for operands that ModRM encodes. Opcodes that go on in ModRM without such an operand (0F AE
/// F0, x87 on registers) need no operand changed: their last byte is copied like an immediate.
fn is_in_modrm(kind: iced_x86::OpCodeOperandKind) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    !matches!(
        kind,
        K::None
            | K::farbr2_2
            | K::farbr4_2
            | K::mem_offs
            | K::r8_opcode
            | K::r16_opcode
            | K::r32_opcode
            | K::r64_opcode
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::al
            | K::cl
            | K::ax
            | K::dx
            | K::eax
            | K::rax
            | K::st0
            | K::sti_opcode
            | K::imm4_m2z
            | K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64
            | K::seg_rSI
            | K::es_rDI
            | K::seg_rDI
            | K::seg_rBX_al
            | K::br16_1
            | K::br32_1
            | K::br64_1
            | K::br16_2
            | K::br32_4
            | K::br64_4
            | K::xbegin_2
            | K::xbegin_4
            | K::brdisp_2
            | K::brdisp_4
    )
}
