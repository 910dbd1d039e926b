//! One row from iced's description of a form and the explicit tables.

use crate::general::{End, General, general};
use crate::map::{Need, VECTOR, need};
use crate::shape::{memory, sample};
use crate::{Class, Code, Executor, FeatureSet, Modes, Privilege, Row, Unit};
use iced_x86::{
    CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeInfo, OpCodeOperandKind as K,
    RflagsBits,
};

/// The row of `code`.
pub(crate) fn derive(code: Code) -> Row {
    let info = code.op_code();
    let line = general(code);
    let executor = executor(code, line);
    let sample = sample(info);
    let unit = unit(code, line, executor);
    Row {
        code,
        class: class(code, line, executor),
        executor,
        unit,
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
        waits_for_x87: waits_for_x87(code, unit),
        loads_past_x87: matches!(code.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd),
        stack: code.is_stack_instruction(),
        ends_block: ends_block(code, line, executor),
    }
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

fn unit(code: Code, line: Option<General>, executor: Executor) -> Unit {
    match line.map(|line| line.class) {
        _ if executor == Executor::Undefined => Unit::General,
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
        None => vector_unit(code.op_code()),
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
    let opmask =
        |kind: &K| matches!(kind, K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv | K::k_or_mem);
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

/// iced has no such fact for register-only forms; the manuals' naming has: packed and scalar
/// floating-point mnemonics end in PS, PD, SS, SD, PH or SH or are conversions or name
/// floating-point lanes (F128, F32X4), and packed-integer ones (PABSD, PMAXSD) begin with P, but
/// for VPERMxPS.
fn is_float(info: &OpCodeInfo) -> bool {
    const ENDINGS: [&str; 6] = ["ps", "pd", "ss", "sd", "ph", "sh"];
    let name = format!("{:?}", info.mnemonic()).to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let ends_float = ENDINGS.iter().any(|ending| name.ends_with(ending));
    let is_packed_integer = name.starts_with('p') && !name.starts_with("perm");
    let has_float_lanes = ["f128", "f32x", "f64x"].iter().any(|lanes| name.contains(lanes));
    let is_duplication = name.starts_with("mov") && name.ends_with("dup");
    name.starts_with("cvt") || has_float_lanes || is_duplication || ends_float && !is_packed_integer
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
    const POSITIONS: [(u32, u32); 9] = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::IF, 9),
        (RflagsBits::DF, 10),
        (RflagsBits::OF, 11),
        (RflagsBits::AC, 18),
    ];
    POSITIONS.iter().filter(|(flag, _)| bits & flag != 0).map(|(_, position)| 1 << position).sum()
}

/// SDM Vol. 1, "x87 FPU Exception Synchronization": all but the no-wait forms, MMX included.
/// FLDENV, FRSTOR and WAIT are waiting forms; the FXSAVE and XSAVE families are not.
fn waits_for_x87(code: Code, unit: Unit) -> bool {
    let is_waiting_unit = matches!(unit, Unit::X87 | Unit::Mmx | Unit::SseMmx);
    let is_wait = code.mnemonic() == Mnemonic::Wait;
    is_wait || is_waiting_unit && !code.op_code().is_fpu_no_wait()
}

fn ends_block(code: Code, line: Option<General>, executor: Executor) -> bool {
    executor == Executor::Undefined
        || line.is_some_and(|line| line.end == End::Ends)
        || code.flow_control() == FlowControl::Exception
}
