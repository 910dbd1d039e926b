//! What the translator wants to know of an instruction form, found out once for every one of them.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, Mnemonic, OpCodeOperandKind as K, OpKind};

use crate::encoding::Encoding;
use crate::plan::Step;
use crate::registers::{Number, host};

/// Where an encoding names a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Reg,
    Rm,
    Vvvv,
    Opcode,
}

/// A field of an encoding that names a general register.
#[derive(Clone, Copy, Debug)]
struct FormField {
    place: Place,
    is_byte: bool,
    /// The instruction may write it.
    is_target: bool,
    /// The instruction reads it, or keeps a part of what was there.
    is_source: bool,
}

/// One instruction form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) encoding: EncodingKind,
    /// Some operand is in ModRM.
    pub(crate) has_modrm: bool,
    /// Some operand is a register that the immediate's upper bits name.
    pub(crate) has_is4: bool,
    /// The operand that may be memory by ModRM or an absolute address.
    memory: Option<u8>,
    /// Operands that are written, should they be general registers; one bit each.
    pub(crate) targets: u8,
    fields: [Option<FormField>; 3],
}

static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| Code::values().map(Form::new).collect());

/// A form that names nothing, for codes that do not exist.
static NO_FORM: Form = Form {
    encoding: EncodingKind::D3NOW,
    has_modrm: false,
    has_is4: false,
    memory: None,
    targets: 0,
    fields: [None; 3],
};

/// The form of `code`.
pub(crate) fn form(code: Code) -> &'static Form {
    FORMS.get(code as usize).unwrap_or(&NO_FORM)
}

impl Form {
    fn new(code: Code) -> Self {
        let info = code.op_code();
        let kinds = info.op_kinds();
        let mut fields = [None; 3];
        let found = kinds.iter().enumerate().filter_map(|(n, kind)| field(code, *kind, n));
        for (slot, field) in fields.iter_mut().zip(found) {
            *slot = Some(field);
        }
        Self {
            encoding: info.encoding(),
            has_modrm: kinds.iter().any(|kind| is_in_modrm(*kind)),
            has_is4: kinds.iter().any(|kind| is_in_immediate(*kind)),
            memory: kinds.iter().position(|kind| may_be_memory(*kind)).map(|n| n as u8),
            targets: (0..kinds.len().min(8))
                .filter(|&operand| may_write(code.mnemonic(), operand))
                .fold(0, |targets, operand| targets | 1 << operand),
            fields,
        }
    }

    /// True if `iced`, which is of this form, has a memory operand.
    pub(crate) fn has_memory(&self, iced: &iced_x86::Instruction) -> bool {
        self.memory.is_some_and(|operand| iced.op_kind(u32::from(operand)) == OpKind::Memory)
    }
}

fn field(code: Code, kind: K, operand: usize) -> Option<FormField> {
    let (place, size) = place_of(kind)?;
    let is_target = is_target(code.mnemonic(), operand);
    let is_source = !is_target || !is_pure_target(code.mnemonic(), size, operand);
    Some(FormField { place, is_byte: size == 1, is_target, is_source })
}

/// Where an operand is that is a general register, or may be one, and the bytes of that register.
fn place_of(kind: K) -> Option<(Place, usize)> {
    Some(match kind {
        K::r8_reg => (Place::Reg, 1),
        K::r16_reg | K::r16_reg_mem => (Place::Reg, 2),
        K::r32_reg | K::r32_reg_mem => (Place::Reg, 4),
        K::r64_reg | K::r64_reg_mem => (Place::Reg, 8),
        K::r8_or_mem => (Place::Rm, 1),
        K::r16_or_mem | K::r16_rm => (Place::Rm, 2),
        K::r32_or_mem | K::r32_rm => (Place::Rm, 4),
        K::r64_or_mem | K::r64_rm => (Place::Rm, 8),
        K::r32_vvvv => (Place::Vvvv, 4),
        K::r64_vvvv => (Place::Vvvv, 8),
        K::r8_opcode => (Place::Opcode, 1),
        K::r16_opcode => (Place::Opcode, 2),
        K::r32_opcode => (Place::Opcode, 4),
        K::r64_opcode => (Place::Opcode, 8),
        _ => return None,
    })
}

/// True if an operand may have [`OpKind::Memory`].
fn may_be_memory(kind: K) -> bool {
    matches!(
        kind,
        K::mem
            | K::mem_offs
            | K::seg_rBX_al
            | K::mem_mpx
            | K::mem_mib
            | K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem
            | K::r64_or_mem_mpx
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::bnd_or_mem_mpx
            | K::k_or_mem
            | K::sibmem
    )
}

/// True if the instruction may write its operand `operand`, as far as it is a general register.
fn may_write(mnemonic: Mnemonic, operand: usize) -> bool {
    use Mnemonic as M;
    match mnemonic {
        M::Cmp | M::Test => false,
        M::Xchg | M::Xadd | M::Mulx => true,
        _ => operand == 0,
    }
}

/// True if the instruction may write its register operand `operand`.
fn is_target(mnemonic: Mnemonic, operand: usize) -> bool {
    use Mnemonic as M;
    match operand {
        0 => !matches!(mnemonic, M::Cmp | M::Test | M::Bt),
        1 => matches!(mnemonic, M::Xchg | M::Xadd | M::Mulx),
        _ => false,
    }
}

/// True if nothing of the old value of a register of `size` bytes shows in its new one.
fn is_pure_target(mnemonic: Mnemonic, size: usize, operand: usize) -> bool {
    use Mnemonic as M;
    if size < 4 || operand != 0 && mnemonic != M::Mulx {
        return false;
    }
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movbe
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsr
            | M::Blsmsk
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
    )
}

/// A general register that an encoding names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) place: Place,
    pub(crate) guest: Number,
    pub(crate) is_high_byte: bool,
    pub(crate) is_source: bool,
    pub(crate) is_target: bool,
}

/// The general registers that an encoding names.
pub(crate) struct Fields {
    fields: [Option<Field>; 3],
    pub(crate) has_low_byte: bool,
    pub(crate) has_high_byte: bool,
}

impl Fields {
    pub(crate) fn of(step: &Step, encoding: &Encoding<'_>) -> Self {
        let mut found = Self { fields: [None; 3], has_low_byte: false, has_high_byte: false };
        let named = step.form.fields.iter().flatten();
        // What ModRM.rm may name is a register, unless it is the memory operand.
        let named = named.filter(|field| field.place != Place::Rm || !step.has_memory);
        for (slot, field) in found.fields.iter_mut().zip(named) {
            let number = match field.place {
                Place::Reg => encoding.reg,
                Place::Rm => encoding.rm,
                Place::Vvvv => encoding.vvvv,
                Place::Opcode => encoding.opcode_register,
            };
            let is_high_byte = field.is_byte && encoding.is_high_byte(number);
            found.has_high_byte |= is_high_byte;
            found.has_low_byte |= field.is_byte && !is_high_byte && matches!(number, 4..=7);
            *slot = Some(Field {
                place: field.place,
                guest: number & 15,
                is_high_byte,
                is_source: field.is_source,
                is_target: field.is_target,
            });
        }
        // SPL is in R13's low byte, which needs no help to be named.
        found
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().flatten()
    }

    /// True if a high byte register meets a register that only a REX prefix can name.
    pub(crate) fn has_unencodable_byte(&self) -> bool {
        self.has_high_byte
            && self.iter().any(|field| {
                !field.is_high_byte && host(field.guest).is_none_or(|number| number > 7)
            })
    }
}

/// True for operands that ModRM encodes. Opcodes that go on in ModRM without such an operand (0F AE
/// F0, x87 on registers) need no operand changed: their last byte is copied like an immediate.
fn is_in_immediate(kind: K) -> bool {
    matches!(kind, K::xmm_is4 | K::xmm_is5 | K::ymm_is4 | K::ymm_is5)
}

fn is_in_modrm(kind: K) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_memory_operands_are_known() {
        for kind in K::values() {
            let name = format!("{kind:?}");
            let is_named =
                name.contains("mem") && !name.contains("reg_mem") || name == "seg_rBX_al";
            assert_eq!(may_be_memory(kind), is_named, "{name}");
        }
    }

    #[test]
    fn no_form_names_more_registers_than_there_are_fields() {
        for code in Code::values() {
            let kinds = code.op_code().op_kinds();
            assert!(
                kinds.iter().filter(|kind| place_of(**kind).is_some()).count() <= 3,
                "{code:?}"
            );
        }
    }
}
