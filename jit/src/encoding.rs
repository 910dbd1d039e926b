//! Guest encodings taken apart and put together again with other operands.
//!
//! What is kept is prefixes that select the operation, opcode and immediate; what changes is where
//! registers and memory are. Segment overrides, address-size prefixes and displacements are gone
//! in the copy, since its memory operand is a host address.

use iced_x86::EncodingKind;

use crate::asm::{Asm, Bytes, Rm, rex_xb};
use crate::forms::Form;
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
    /// What of an immediate of one byte means something.
    immediate_mask: u8,
}

/// A cursor over the bytes; reading past the end gives zeroes, since iced has decoded them before.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
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
    /// Takes `bytes`, the whole encoding of an instruction of `form`, apart. `None` for what is
    /// never copied: XOP, 3DNow!, 16-bit addresses.
    pub(crate) fn parse(form: &Form, bytes: &'a [u8], is_64: bool) -> Option<Self> {
        let mut encoding = Self::empty(form);
        let mut cursor = Cursor { rest: bytes };
        let rex = encoding.parse_prefixes(&mut cursor, is_64)?;
        let [mut r, mut b] = match form.encoding {
            EncodingKind::Legacy => {
                encoding.parse_map(&mut cursor);
                [rex >> 2 & 1, rex & 1]
            }
            EncodingKind::VEX => encoding.parse_vex(&mut cursor),
            EncodingKind::EVEX => encoding.parse_evex(&mut cursor),
            _ => return None,
        };
        if !is_64 {
            // Bits of registers that the mode does not have are ignored.
            (r, b) = (0, 0);
            encoding.vvvv &= 7;
            encoding.immediate_mask = if form.has_is4 { 0x7f } else { 0xff };
        }
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

    fn empty(form: &Form) -> Self {
        Self {
            kind: Kind::Legacy { map: 0 },
            has_66: false,
            repeat: 0,
            has_lock: false,
            is_w: false,
            has_rex: false,
            opcode: 0,
            has_modrm: form.has_modrm,
            reg: 0,
            rm: 0,
            vvvv: 0,
            opcode_register: 0,
            immediate: &[],
            immediate_mask: 0xff,
        }
    }

    /// Takes the legacy prefixes; the REX prefix, or 0. `None` for addresses of 16 bits.
    fn parse_prefixes(&mut self, cursor: &mut Cursor<'_>, is_64: bool) -> Option<u8> {
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
    fn parse_vex(&mut self, cursor: &mut Cursor<'_>) -> [u8; 2] {
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
    fn parse_evex(&mut self, cursor: &mut Cursor<'_>) -> [u8; 2] {
        cursor.next();
        let payload = [cursor.next(), cursor.next(), cursor.next()];
        let inverted = !payload[0];
        self.vvvv = !payload[1] >> 3 & 0xf | (!payload[2] >> 3 & 1) << 4;
        self.kind = Kind::Evex(payload);
        let r = inverted >> 7 & 1 | (inverted >> 4 & 1) << 1;
        [r, inverted >> 5 & 1 | (inverted >> 6 & 1) << 1]
    }

    fn parse_map(&mut self, cursor: &mut Cursor<'_>) {
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
        let mut bytes = Bytes::default();
        if self.has_lock {
            bytes.push(0xf0);
        }
        if self.has_66 {
            bytes.push(0x66);
        }
        if self.repeat != 0 {
            bytes.push(self.repeat);
        }
        if let Rm::Mem(mem) = rm
            && mem.is_gs
        {
            bytes.push(0x65);
        }
        if needs_rex {
            bytes.push(0x40 | rex);
        }
        if map > 0 {
            bytes.push(0x0f);
        }
        if map > 1 {
            bytes.push(if map == 2 { 0x38 } else { 0x3a });
        }
        bytes.push(opcode);
        asm.put(bytes);
        if self.has_modrm {
            asm.modrm(reg, rm, false);
        }
        self.emit_immediate(asm);
        true
    }

    fn emit_vex(&self, asm: &mut Asm, [map, l, pp]: [u8; 3], is_w: bool, operands: Operands) {
        let Operands { reg, rm, vvvv, .. } = operands;
        let (x, b) = rex_xb(rm);
        let r = reg >> 3 & 1;
        let low = (!vvvv & 0xf) << 3 | l << 2 | pp;
        let mut bytes = Bytes::default();
        if map == 1 && !is_w && x == 0 && b == 0 {
            bytes.push(0xc5);
            bytes.push((r ^ 1) << 7 | low);
        } else {
            bytes.push(0xc4);
            bytes.push((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map);
            bytes.push(u8::from(is_w) << 7 | low);
        }
        bytes.push(self.opcode);
        asm.put(bytes);
        if self.has_modrm {
            asm.modrm(reg, rm, false);
        }
        self.emit_immediate(asm);
    }

    fn emit_immediate(&self, asm: &mut Asm) {
        match *self.immediate {
            [] => {}
            [byte] => asm.byte(byte & self.immediate_mask),
            _ => asm.raw(self.immediate),
        }
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
        let mut bytes = Bytes::default();
        [0x62, first, second, third, self.opcode].into_iter().for_each(|byte| bytes.push(byte));
        asm.put(bytes);
        asm.modrm(reg, rm, true);
        self.emit_immediate(asm);
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
