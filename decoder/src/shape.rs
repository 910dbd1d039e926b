//! The memory operand of a form: what iced says of its size and access, and the manuals' rules on
//! alignment and fault suppression that iced does not know.

use crate::{Code, Memory, MemoryShape};
use iced_x86::{
    EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpCodeInfo,
    OpCodeOperandKind as K, OpKind, Register,
};

/// An instruction of the form with memory where memory can be, and otherwise registers that differ
/// (XOR of a register with itself reads no flags) and a shift count of 2 (0 and 1 are special).
/// A fifth operand can only be an immediate and does not matter.
pub(crate) fn sample(info: &OpCodeInfo) -> Instruction {
    let mut sample = Instruction::default();
    sample.set_code(info.code());
    for (operand, &kind) in info.op_kinds().iter().take(4).enumerate() {
        let operand = operand as u32;
        if is_memory(kind) {
            sample.set_op_kind(operand, OpKind::Memory);
            sample.set_memory_base(Register::RBX);
        } else if kind == K::imm8 {
            sample.set_op_kind(operand, OpKind::Immediate8);
            sample.set_immediate8(2);
        } else {
            sample.set_op_register(operand, [Register::EAX, Register::ECX][operand as usize & 1]);
        }
    }
    sample
}

#[rustfmt::skip]
fn is_memory(kind: K) -> bool {
    matches!(
        kind,
        K::mem_offs | K::mem | K::mem_mpx | K::mem_mib | K::sibmem
            | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem
            | K::r32_or_mem_mpx | K::r64_or_mem_mpx | K::bnd_or_mem_mpx | K::k_or_mem
            | K::mm_or_mem | K::xmm_or_mem | K::ymm_or_mem | K::zmm_or_mem
    ) || is_vsib(kind)
}

#[rustfmt::skip]
fn is_vsib(kind: K) -> bool {
    matches!(
        kind,
        K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y | K::mem_vsib32z
            | K::mem_vsib64z
    )
}

/// The memory operand of `code`, of which `sample` is an instruction with memory.
pub(crate) fn memory(code: Code, sample: &Instruction) -> Memory {
    let size = code.op_code().memory_size();
    match shape(code, sample) {
        MemoryShape::None => Memory::NONE,
        shape => Memory {
            shape,
            size: size.size().try_into().unwrap_or(0),
            element: element(code),
            is_aligned: is_aligned(code),
        },
    }
}

/// The bytes that one mask bit covers: what a broadcast loads, if there is a broadcast. The scalar
/// complex FP16 forms have one mask bit for both halves.
fn element(code: Code) -> u8 {
    use Mnemonic as M;
    let info = code.op_code();
    let size = match code.mnemonic() {
        M::Vfmulcsh | M::Vfcmulcsh | M::Vfmaddcsh | M::Vfcmaddcsh => info.memory_size().size(),
        _ if info.can_broadcast() => info.broadcast_memory_size().size(),
        _ => info.memory_size().element_size(),
    };
    size.try_into().unwrap_or(0)
}

fn shape(code: Code, sample: &Instruction) -> MemoryShape {
    let info = code.op_code();
    let kinds = info.op_kinds();
    if let Some(shape) = special_shape(code.mnemonic()) {
        return shape;
    }
    if let Some(shape) = kinds.iter().copied().find_map(implicit_shape) {
        return shape;
    }
    let Some(operand) = kinds.iter().position(|&kind| is_memory(kind)) else {
        return MemoryShape::None;
    };
    if is_bit_string(code) {
        return MemoryShape::BitString;
    }
    let access = InstructionInfoFactory::new().info(sample).op_access(operand as u32);
    let selection = match kinds.get(operand) {
        Some(&kind) if is_vsib(kind) => Selection::Indexed,
        _ if is_masked(code) => Selection::Masked,
        _ => Selection::Whole,
    };
    access_shape(access, selection)
}

fn implicit_shape(kind: K) -> Option<MemoryShape> {
    match kind {
        K::seg_rSI | K::es_rDI => Some(MemoryShape::String),
        K::seg_rDI => Some(MemoryShape::MaskMove),
        K::seg_rBX_al => Some(MemoryShape::Table),
        _ => None,
    }
}

/// Which of the operand's bytes are accessed.
#[derive(Clone, Copy)]
enum Selection {
    Whole,
    Masked,
    Indexed,
}

fn access_shape(access: OpAccess, selection: Selection) -> MemoryShape {
    use MemoryShape as S;
    let [read, write] = match selection {
        Selection::Whole => [S::Read, S::Write],
        Selection::Masked => [S::MaskedRead, S::MaskedWrite],
        Selection::Indexed => [S::Gather, S::Scatter],
    };
    match access {
        OpAccess::Read | OpAccess::CondRead => read,
        OpAccess::Write | OpAccess::CondWrite => write,
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => S::ReadWrite,
        OpAccess::None | OpAccess::NoMemAccess => S::Address,
    }
}

/// SDM Vol. 2A, "BT-Bit Test": a register bit offset selects any bit of a string in memory.
fn is_bit_string(code: Code) -> bool {
    use Mnemonic as M;
    let offset = code.op_code().op1_kind();
    matches!(code.mnemonic(), M::Bt | M::Btc | M::Btr | M::Bts)
        && matches!(offset, K::r16_reg | K::r32_reg | K::r64_reg)
}

/// Elements that the mask leaves out do not fault: VMASKMOV, VPMASKMOV, and EVEX forms with a mask
/// but for those of exception types with the letters NF.
fn is_masked(code: Code) -> bool {
    use Mnemonic as M;
    let is_vex_masked =
        matches!(code.mnemonic(), M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq);
    is_vex_masked || code.op_code().can_use_op_mask_register() && !faults_regardless(code)
}

/// EVEX exception types E4NF, E5NF and E6NF: the whole operand is accessed whatever the mask is.
/// SDM Vol. 2A, "Exceptions Type E4NF and E4NF.nb", "E5 and E5NF", "E6 and E6NF".
#[rustfmt::skip]
fn faults_regardless(code: Code) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Valignd | M::Valignq | M::Vcvtne2ps2bf16 | M::Vdbpsadbw
        | M::Vgf2p8affineinvqb | M::Vgf2p8affineqb
        | M::Vinsertf32x4 | M::Vinsertf32x8 | M::Vinsertf64x2 | M::Vinsertf64x4
        | M::Vinserti32x4 | M::Vinserti32x8 | M::Vinserti64x2 | M::Vinserti64x4
        | M::Vmovddup | M::Vmovshdup | M::Vmovsldup
        | M::Vpackssdw | M::Vpacksswb | M::Vpackusdw | M::Vpackuswb | M::Vpalignr
        | M::Vpconflictd | M::Vpconflictq
        | M::Vpermb | M::Vpermd | M::Vpermpd | M::Vpermps | M::Vpermq | M::Vpermw
        | M::Vpermi2b | M::Vpermi2d | M::Vpermi2pd | M::Vpermi2ps | M::Vpermi2q | M::Vpermi2w
        | M::Vpermilpd | M::Vpermilps
        | M::Vpermt2b | M::Vpermt2d | M::Vpermt2pd | M::Vpermt2ps | M::Vpermt2q | M::Vpermt2w
        | M::Vpmaddubsw | M::Vpmaddwd | M::Vpmultishiftqb
        | M::Vpshufb | M::Vpshufd | M::Vpshufhw | M::Vpshuflw
        | M::Vpunpckhbw | M::Vpunpckhdq | M::Vpunpckhqdq | M::Vpunpckhwd
        | M::Vpunpcklbw | M::Vpunpckldq | M::Vpunpcklqdq | M::Vpunpcklwd
        | M::Vshuff32x4 | M::Vshuff64x2 | M::Vshufi32x4 | M::Vshufi64x2 | M::Vshufpd | M::Vshufps
        | M::Vunpckhpd | M::Vunpckhps | M::Vunpcklpd | M::Vunpcklps => true,
        // With a count in memory; with an immediate count the operand is the value to shift.
        M::Vpslld | M::Vpsllq | M::Vpsllw | M::Vpsrad | M::Vpsraq | M::Vpsraw
        | M::Vpsrld | M::Vpsrlq | M::Vpsrlw => code.op_code().op2_kind() == K::xmm_or_mem,
        _ => false,
    }
}

/// #GP(0) unless the address is a multiple of the operand's size. SDM Vol. 1, "Memory Alignment":
/// legacy 16-byte operands but for the unaligned moves and the SSE4.2 string forms, the aligned and
/// non-temporal VEX and EVEX moves, CMPXCHG16B.
fn is_aligned(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    match code.mnemonic() {
        M::Cmpxchg16b => true,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovdqa32 | M::Vmovdqa64 => true,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => true,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Maskmovdqu => false,
        M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpestri | M::Pcmpestri64 => false,
        M::Pcmpistrm | M::Pcmpistri => false,
        _ => {
            let is_xmm = |kind: &K| matches!(kind, K::xmm_reg | K::xmm_or_mem);
            let is_vector = info.op_kinds().iter().any(is_xmm);
            info.encoding() == EncodingKind::Legacy && is_vector && info.memory_size().size() == 16
        }
    }
}

/// The shapes that iced's operand kinds and accesses do not tell.
#[rustfmt::skip]
fn special_shape(mnemonic: Mnemonic) -> Option<MemoryShape> {
    use Mnemonic as M;
    use MemoryShape as S;
    Some(match mnemonic {
        M::Fldenv | M::Fnsave | M::Fnstenv | M::Frstor | M::Fxrstor | M::Fxrstor64 | M::Fxsave
        | M::Fxsave64 | M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 | M::Xsave | M::Xsave64
        | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsaves
        | M::Xsaves64 => S::StateImage,
        M::Clflush | M::Clflushopt | M::Clwb | M::Cldemote | M::Prefetch | M::Prefetchw
        | M::Prefetchwt1 | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2
        | M::Prefetchit0 | M::Prefetchit1 | M::Invlpg
        | M::Monitor | M::Monitorx => S::Address,
        M::Clzero => S::LineAtRax,
        M::Movdir64b => S::DirectMove,
        M::Vpcompressb | M::Vpcompressw | M::Vpcompressd | M::Vpcompressq | M::Vcompressps
        | M::Vcompresspd => S::CompressWrite,
        M::Vpexpandb | M::Vpexpandw | M::Vpexpandd | M::Vpexpandq | M::Vexpandps
        | M::Vexpandpd => S::ExpandRead,
        _ => return None,
    })
}
