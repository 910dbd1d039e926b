//! One row from iced's description of a form and the explicit tables.

use crate::general::{End, General, general};
use crate::map::{Need, VECTOR, need};
use crate::{Class, Code, Executor, FeatureSet, Memory, MemoryShape, Modes, Privilege, Row, Unit};
use iced_x86::{
    CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize,
    Mnemonic, OpAccess, OpCodeInfo, OpCodeOperandKind as K, OpKind, Register, RflagsBits,
};

/// The row of `code`.
pub(crate) fn derive(code: Code) -> Row {
    let info = code.op_code();
    let line = general(code);
    let executor = executor(code, line);
    let sample = sample(info);
    Row {
        code,
        class: class(code, line, executor),
        executor,
        unit: unit(code, line),
        features: features(code, line),
        privilege: line.map_or(Privilege::Any, |line| line.privilege),
        modes: modes(info),
        lock: info.can_use_lock_prefix(),
        flags_read: rflags(sample.rflags_read()),
        flags_written: rflags(
            sample.rflags_written() | sample.rflags_cleared() | sample.rflags_set(),
        ),
        flags_undefined: rflags(sample.rflags_undefined()),
        memory: memory(code, &sample),
        stack: code.is_stack_instruction(),
        ends_block: ends_block(code, line, executor),
    }
}

/// An instruction of the form with memory where memory can be, and otherwise registers that differ
/// (XOR of a register with itself reads no flags) and a shift count of 2 (0 and 1 are special).
/// A fifth operand can only be an immediate and does not matter.
fn sample(info: &OpCodeInfo) -> Instruction {
    let mut sample = Instruction::default();
    sample.set_code(info.code());
    for (operand, &kind) in info.op_kinds().iter().take(4).enumerate() {
        let operand = operand as u32;
        if is_memory(kind) {
            sample.set_op_kind(operand, OpKind::Memory);
            sample.set_memory_base(Register::RBX);
        } else if matches!(kind, K::imm8) {
            sample.set_op_kind(operand, OpKind::Immediate8);
            sample.set_immediate8(2);
        } else {
            sample.set_op_register(operand, [Register::EAX, Register::ECX][operand as usize & 1]);
        }
    }
    sample
}

fn is_memory(kind: K) -> bool {
    matches!(
        kind,
        K::mem_offs
            | K::mem
            | K::mem_mpx
            | K::mem_mib
            | K::sibmem
            | K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem_mpx
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::bnd_or_mem_mpx
            | K::k_or_mem
    )
}

fn executor(code: Code, line: Option<General>) -> Executor {
    let refused = features_of(code).any(|need| need == Need::Refused);
    match line {
        Some(line) if ignores_features(line) || !refused => Executor::Interpreter,
        Some(_) => Executor::Undefined,
        None if refused || !is_native(code) => Executor::Undefined,
        None => Executor::Native,
    }
}

/// Hints and hypercalls exist on every processor that we model: without the feature they are
/// no-operations, or (WBNOINVD) the instruction without the prefix.
fn ignores_features(line: General) -> bool {
    matches!(line.class, Class::Nop | Class::Hypercall) || line.mnemonic == Mnemonic::Wbnoinvd
}

/// x87 and vector forms: what carries one of their features.
fn is_native(code: Code) -> bool {
    let info = code.op_code();
    let is_vector = |need| matches!(need, Need::Offered(feature) if VECTOR.contains(feature));
    info.is_instruction()
        && !info.fwait()
        && (code.cpuid_features().iter().any(|f| is_x87(*f)) || features_of(code).any(is_vector))
}

fn features_of(code: Code) -> impl Iterator<Item = Need> {
    code.cpuid_features().iter().map(|&feature| need(feature))
}

fn features(code: Code, line: Option<General>) -> FeatureSet {
    if line.is_some_and(ignores_features) {
        return FeatureSet::EMPTY;
    }
    let offered = features_of(code).filter_map(|need| match need {
        Need::Offered(feature) => Some(feature),
        Need::Base | Need::Refused => None,
    });
    offered.collect()
}

fn unit(code: Code, line: Option<General>) -> Unit {
    let info = code.op_code();
    match line.map(|line| line.class) {
        Some(Class::StateImage) => image_unit(line.map(|line| line.mnemonic)),
        Some(
            Class::ControlRegister
            | Class::Descriptor
            | Class::FarTransfer
            | Class::Hypercall
            | Class::Msr
            | Class::System,
        ) => Unit::System,
        Some(_) => Unit::General,
        None => vector_unit(info),
    }
}

fn image_unit(mnemonic: Option<Mnemonic>) -> Unit {
    use Mnemonic as M;
    match mnemonic {
        Some(M::Fldenv | M::Fnsave | M::Fnstenv | M::Frstor) => Unit::X87,
        Some(M::Ldmxcsr | M::Stmxcsr) => Unit::Sse,
        Some(M::Vldmxcsr | M::Vstmxcsr) => Unit::Avx,
        _ => Unit::System,
    }
}

fn vector_unit(info: &OpCodeInfo) -> Unit {
    let has = |kinds: &[K]| info.op_kinds().iter().any(|kind| kinds.contains(kind));
    let is_opmask = has(&[K::k_reg, K::k_rm, K::k_vvvv, K::kp1_reg, K::k_or_mem]);
    let has_mmx = has(&[K::mm_reg, K::mm_rm, K::mm_or_mem])
        || matches!(info.code(), Code::Emms | Code::Maskmovq_rDI_mm_mm);
    let has_xmm = has(&[K::xmm_reg, K::xmm_rm, K::xmm_or_mem]);
    match info.encoding() {
        EncodingKind::EVEX => Unit::Avx512,
        EncodingKind::VEX if is_opmask => Unit::Avx512,
        EncodingKind::VEX => Unit::Avx,
        _ if info.code().cpuid_features().iter().any(|f| is_x87(*f)) => Unit::X87,
        _ if has_mmx && has_xmm => Unit::SseMmx,
        _ if has_mmx => Unit::Mmx,
        _ => Unit::Sse,
    }
}

fn is_x87(feature: CpuidFeature) -> bool {
    use CpuidFeature as C;
    matches!(feature, C::FPU | C::FPU287 | C::FPU387)
}

fn class(code: Code, line: Option<General>, executor: Executor) -> Class {
    match (executor, line) {
        (Executor::Undefined, _) => Class::Undefined,
        (_, Some(line)) => line.class,
        (_, None) => native_class(code),
    }
}

fn native_class(code: Code) -> Class {
    use CpuidFeature as C;
    let info = code.op_code();
    let needs = |features: &[C]| code.cpuid_features().iter().any(|f| features.contains(f));
    let crypto =
        [C::AES, C::VAES, C::SHA, C::SHA512, C::SM3, C::SM4, C::GFNI, C::PCLMULQDQ, C::VPCLMULQDQ];
    let opmask = |kind: &K| matches!(kind, K::k_rm | K::k_vvvv | K::k_or_mem);
    match vector_unit(info) {
        Unit::X87 => Class::X87,
        _ if needs(&crypto) => Class::Crypto,
        _ if info.encoding() == EncodingKind::VEX && info.op_kinds().iter().any(opmask) => {
            Class::Opmask
        }
        _ if is_float(info) => Class::SimdFloat,
        _ => Class::SimdInteger,
    }
}

/// iced has no such fact for register-only forms, but mnemonics of packed and scalar floating
/// point end in PS, PD, SS, SD, PH, SH or carry such a part (CVTPS2DQ).
fn is_float(info: &OpCodeInfo) -> bool {
    let name = format!("{:?}", info.mnemonic()).to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let is_integer = name.starts_with('p') || name.starts_with("mov") && name.contains("dq");
    !is_integer && ["ps", "pd", "ss", "sd", "ph", "sh", "bf16"].iter().any(|t| name.contains(t))
}

fn modes(info: &OpCodeInfo) -> Modes {
    Modes::none()
        .with_if(Modes::BITS16, info.mode16())
        .with_if(Modes::BITS32, info.mode32())
        .with_if(Modes::BITS64, info.mode64())
        .with_if(Modes::REAL_V86, info.real_mode())
}

/// RFLAGS bits of iced's own flag numbering.
fn rflags(bits: u32) -> u32 {
    const POSITIONS: [(u32, u32); 10] = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::IF, 9),
        (RflagsBits::DF, 10),
        (RflagsBits::OF, 11),
        (RflagsBits::AC, 18),
        (RflagsBits::UIF, 32),
    ];
    let set = POSITIONS.iter().filter(|(flag, position)| bits & flag != 0 && *position < 32);
    set.map(|(_, position)| 1 << position).sum()
}

fn ends_block(code: Code, line: Option<General>, executor: Executor) -> bool {
    executor == Executor::Undefined
        || line.is_some_and(|line| line.end == End::Ends)
        || code.flow_control() == FlowControl::Exception
}

fn memory(code: Code, sample: &Instruction) -> Memory {
    let info = code.op_code();
    let size = info.memory_size();
    let shape = shape(code, sample);
    let bytes = if shape == MemoryShape::None { 0 } else { size.size() as u16 };
    Memory { shape, size: bytes, element: element(size) }
}

fn element(size: MemorySize) -> u8 {
    size.element_size().try_into().unwrap_or(0)
}

fn shape(code: Code, sample: &Instruction) -> MemoryShape {
    let info = code.op_code();
    let kinds = info.op_kinds();
    let has = |wanted: &[K]| kinds.iter().any(|kind| wanted.contains(kind));
    if let Some(shape) = special_shape(code.mnemonic()) {
        return shape;
    }
    if has(&[K::seg_rSI, K::es_rDI]) {
        return MemoryShape::String;
    }
    if has(&[K::seg_rDI]) {
        return MemoryShape::MaskMove;
    }
    if has(&[K::seg_rBX_al]) {
        return MemoryShape::Table;
    }
    let Some(operand) = kinds.iter().position(|&kind| is_memory(kind)) else {
        return MemoryShape::None;
    };
    if is_bit_string(code) {
        return MemoryShape::BitString;
    }
    let access = InstructionInfoFactory::new().info(sample).op_access(operand as u32);
    let is_masked = info.can_use_op_mask_register();
    let is_vsib = has(&[
        K::mem_vsib32x,
        K::mem_vsib64x,
        K::mem_vsib32y,
        K::mem_vsib64y,
        K::mem_vsib32z,
        K::mem_vsib64z,
    ]);
    access_shape(access, is_masked, is_vsib)
}

fn access_shape(access: OpAccess, is_masked: bool, is_vsib: bool) -> MemoryShape {
    match access {
        OpAccess::Read | OpAccess::CondRead if is_vsib => MemoryShape::Gather,
        OpAccess::Write | OpAccess::CondWrite if is_vsib => MemoryShape::Scatter,
        OpAccess::Read | OpAccess::CondRead if is_masked => MemoryShape::MaskedRead,
        OpAccess::Write | OpAccess::CondWrite if is_masked => MemoryShape::MaskedWrite,
        OpAccess::Read | OpAccess::CondRead => MemoryShape::Read,
        OpAccess::Write | OpAccess::CondWrite => MemoryShape::Write,
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => MemoryShape::ReadWrite,
        OpAccess::None | OpAccess::NoMemAccess => MemoryShape::Address,
    }
}

fn is_bit_string(code: Code) -> bool {
    use Mnemonic as M;
    let has_register_offset =
        matches!(code.op_code().op1_kind(), K::r16_reg | K::r32_reg | K::r64_reg);
    matches!(code.mnemonic(), M::Bt | M::Btc | M::Btr | M::Bts) && has_register_offset
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
        | M::Prefetchit0 | M::Prefetchit1 | M::Nop | M::Reservednop | M::Invlpg
        | M::Monitor | M::Monitorx => S::Address,
        M::Clzero => S::LineAtRax,
        M::Movdir64b => S::DirectMove,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => return None,
        M::Vpcompressb | M::Vpcompressw | M::Vpcompressd | M::Vpcompressq | M::Vcompressps
        | M::Vcompresspd => S::CompressWrite,
        M::Vpexpandb | M::Vpexpandw | M::Vpexpandd | M::Vpexpandq | M::Vexpandps
        | M::Vexpandpd => S::ExpandRead,
        _ => return None,
    })
}
