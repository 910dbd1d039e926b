//! The operand shapes by which families of instructions choose their functions.

use iced_x86::{Code, Mnemonic, OpCodeOperandKind};

use crate::interp::dispatch::Table;

/// One instruction form, as its family's registration looks at it.
pub(crate) struct Form {
    pub(crate) code: Code,
    pub(crate) mnemonic: Mnemonic,
    /// Bytes of operand 0, or 0 where it is no general register, memory or immediate.
    pub(crate) width: u64,
    /// Bytes of operand 1, likewise.
    pub(crate) source_width: u64,
    /// How many operands the form has.
    pub(crate) operand_count: u32,
    /// Operand 0 is ModRM.rm.
    pub(crate) is_rm_first: bool,
    /// Operand 1 is an immediate.
    pub(crate) has_immediate: bool,
}

/// Bytes of a general-register, memory or immediate operand kind.
fn bytes(kind: OpCodeOperandKind) -> u64 {
    use OpCodeOperandKind as K;
    match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode | K::al | K::cl | K::imm8 => 1,
        K::r16_or_mem
        | K::r16_reg
        | K::r16_rm
        | K::r16_opcode
        | K::r16_reg_mem
        | K::ax
        | K::dx
        | K::imm16
        | K::imm8sex16 => 2,
        K::r32_or_mem
        | K::r32_reg
        | K::r32_rm
        | K::r32_opcode
        | K::r32_vvvv
        | K::eax
        | K::imm32
        | K::imm8sex32
        | K::r32_or_mem_mpx
        | K::r32_reg_mem => 4,
        K::r64_or_mem
        | K::r64_reg
        | K::r64_rm
        | K::r64_opcode
        | K::r64_vvvv
        | K::rax
        | K::imm64
        | K::imm8sex64
        | K::imm32sex64
        | K::r64_or_mem_mpx
        | K::r64_reg_mem => 8,
        _ => 0,
    }
}

fn is_rm(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mem)
}

fn is_immediate(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::imm8
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64
            | K::imm8_const_1
    )
}

impl Form {
    fn of(code: Code) -> Self {
        let info = code.op_code();
        let kind = |operand: u32| {
            if operand < info.op_count() { info.op_kind(operand) } else { OpCodeOperandKind::None }
        };
        Self {
            code,
            mnemonic: code.mnemonic(),
            width: bytes(kind(0)),
            source_width: bytes(kind(1)),
            operand_count: info.op_count(),
            is_rm_first: is_rm(kind(0)),
            has_immediate: is_immediate(kind(1)),
        }
    }
}

/// Calls `register` with every form there is.
pub(crate) fn for_each_form(table: &mut Table, register: impl Fn(&mut Table, &Form)) {
    for code in Code::values() {
        register(table, &Form::of(code));
    }
}

/// The instance of a function generic over operand width that fits `$width` bytes; the width is
/// its last type parameter.
macro_rules! by_width {
    ($width:expr, $function:ident $(, $parameter:ty)*) => {
        match $width {
            1 => $function::<$($parameter,)* u8>,
            2 => $function::<$($parameter,)* u16>,
            4 => $function::<$($parameter,)* u32>,
            _ => $function::<$($parameter,)* u64>,
        }
    };
}
pub(crate) use by_width;
