//! The table against the manuals' own lists.

use decoder::{
    Class, Code, Executor, Feature, FeatureSet, MemoryShape, Privilege, Unit, row, rows,
};
use iced_x86::Mnemonic;
use std::collections::BTreeSet;

/// The mnemonics, lower case, of the rows that `wanted` selects.
fn mnemonics(wanted: impl Fn(&decoder::Row) -> bool) -> BTreeSet<String> {
    let selected = rows().filter(|row| wanted(row));
    selected.map(|row| format!("{:?}", row.code.mnemonic()).to_lowercase()).collect()
}

fn words(list: &str) -> BTreeSet<String> {
    list.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_lockable_instructions_are_the_manuals() {
    // SDM Vol. 2A, "LOCK-Assert LOCK# Signal Prefix".
    let manual = "add adc and btc btr bts cmpxchg cmpxchg8b cmpxchg16b dec inc neg not or sbb sub \
                  xor xadd xchg";
    assert_eq!(mnemonics(|row| row.lock), words(manual));
    let no_memory = rows().filter(|row| row.lock && row.memory.size == 0);
    assert_eq!(no_memory.count(), 0, "LOCK needs a memory destination");
}

#[test]
fn the_privileged_instructions_are_the_manuals() {
    // SDM Vol. 3A, "Privileged Instructions", and the "Protected Mode Exceptions" of the later
    // ones.
    let manual = "lgdt lldt ltr lidt mov lmsw clts invd wbinvd wbnoinvd invlpg invpcid hlt rdmsr \
                  wrmsr xsetbv swapgs sysexit sysexitq sysret sysretq xsaves xsaves64 xrstors \
                  xrstors64";
    assert_eq!(mnemonics(|row| row.privilege == Privilege::Cpl0), words(manual));
    let moves = rows().filter(|r| r.code.mnemonic() == Mnemonic::Mov);
    let privileged: Vec<_> =
        moves.filter(|r| r.privilege == Privilege::Cpl0).map(|r| format!("{:?}", r.code)).collect();
    assert_eq!(
        privileged.join(" "),
        "Mov_r32_cr Mov_r64_cr Mov_r32_dr Mov_r64_dr Mov_cr_r32 \
                                      Mov_cr_r64 Mov_dr_r32 Mov_dr_r64"
    );
}

#[test]
fn the_conditionally_privileged_instructions_are_the_manuals() {
    // SDM Vol. 1, "I/O Privilege Level"; Vol. 3A, "Control Registers" (TSD, PCE, UMIP, VME).
    let lists = [
        (Privilege::Iopl, "cli sti"),
        (Privilege::IoPermission, "in out insb insw insd outsb outsw outsd"),
        (Privilege::V86Iopl, "int iret iretd iretq popf popfd popfq pushf pushfd pushfq"),
        (Privilege::Umip, "sgdt sidt sldt smsw str"),
        (Privilege::Tsd, "rdtsc rdtscp rdpru"),
        (Privilege::Pce, "rdpmc"),
        (Privilege::Cpl0Undefined, "clac stac monitor mwait"),
    ];
    for (privilege, manual) in lists {
        assert_eq!(mnemonics(|row| row.privilege == privilege), words(manual), "{privilege:?}");
    }
}

#[test]
fn iced_agrees_on_what_is_privileged() {
    for row in rows().filter(|row| row.executor != Executor::Undefined) {
        let info = row.code.op_code();
        let always = matches!(row.privilege, Privilege::Cpl0 | Privilege::Cpl0Undefined);
        let monitor = matches!(row.code.mnemonic(), Mnemonic::Monitor | Mnemonic::Mwait);
        // VMCALL is the exit to a hypervisor here, open to all as KVM's is; the KVM hypercall
        // itself refuses callers outside CPL 0.
        let hypercall = row.class == Class::Hypercall;
        if !monitor && !hypercall {
            assert_eq!(info.must_be_cpl0(), always, "{:?}", row.code);
        }
    }
}

#[test]
fn the_instructions_that_are_no_ops_need_nothing() {
    for row in rows().filter(|row| row.class == Class::Nop) {
        assert_eq!(row.executor, Executor::Interpreter, "{:?}", row.code);
        assert_eq!(row.unit, Unit::General, "{:?}", row.code);
        assert!(row.features.is_empty() && !row.ends_block, "{:?}", row.code);
        let shape = row.memory.shape;
        assert!(matches!(shape, MemoryShape::None | MemoryShape::Address), "{:?}", row.code);
    }
    let hints = "cldemote endbr32 endbr64 nop pause prefetch prefetchit0 prefetchit1 prefetchnta \
                 prefetcht0 prefetcht1 prefetcht2 prefetchw prefetchwt1 rdsspd rdsspq reservednop";
    assert_eq!(mnemonics(|row| row.class == Class::Nop), words(hints));
}

#[test]
fn what_nobody_offers_is_undefined() {
    #[rustfmt::skip]
    let codes = [
        Code::INVALID, Code::DeclareByte,
        Code::Xbegin_rel32, Code::Xend, Code::Xtest, Code::Xabort_imm8,
        Code::Vmlaunch, Code::Vmxon_m64, Code::Vmread_rm64_r64, Code::Vmrunq, Code::Stgi,
        Code::Getsecd, Code::Encls, Code::Enclu, Code::Rsm, Code::Tdcall, Code::Pconfig,
        Code::VEX_Tileloadd_tmm_sibmem, Code::VEX_Ldtilecfg_m512,
        Code::Wrssd_m32_r32, Code::Incsspq_r64, Code::Setssbsy, Code::Rstorssp_m64,
        Code::Senduipi_r64, Code::Loadiwkey_xmm_xmm, Code::Encodekey128_r32_r32,
        Code::Tpause_r64, Code::Umwait_r64, Code::Ptwrite_rm64, Code::Enqcmd_r64_m512,
        Code::Femms, Code::D3NOW_Pfadd_mm_mmm64, Code::XOP_Vprotb_xmm_xmmm128_imm8,
        Code::VEX_Vfmaddps_xmm_xmm_xmmm128_xmm, Code::XOP_Blcfill_r32_rm32, Code::XOP_Llwpcb_r32,
        Code::Xstore_64, Code::Montmul_64, Code::Cyrix_D9D7, Code::Loadall286, Code::Mov_tr_r32,
        Code::Ud0, Code::Ud1_r32_rm32, Code::Ud2, Code::Popw_CS, Code::Jmpe_disp32,
        Code::VEX_Cmpoxadd_m32_r32_r32, Code::Aadd_m32_r32, Code::Lkgs_rm16, Code::Eretu,
        Code::EVEX_Vexp2ps_zmm_k1z_zmmm512b32_sae, Code::MVEX_Vaddps_zmm_k1_zmm_zmmmt,
    ];
    for code in codes {
        let row = row(code);
        assert_eq!((row.executor, row.class), (Executor::Undefined, Class::Undefined), "{code:?}");
        assert!(row.ends_block && row.unit == Unit::General, "{code:?}");
    }
}

#[test]
fn every_native_form_needs_a_feature_and_passes_a_gate() {
    for row in rows().filter(|row| row.executor == Executor::Native) {
        let gated = !matches!(row.unit, Unit::General | Unit::System);
        assert!(gated, "{:?} would run on host state behind no gate", row.code);
        let legacy_x87 = row.unit == Unit::X87;
        assert!(legacy_x87 || !row.features.is_empty(), "{:?}", row.code);
    }
}

#[test]
fn no_native_form_reaches_host_system_state() {
    for row in rows().filter(|row| row.executor == Executor::Native) {
        let info = row.code.op_code();
        assert!(!info.is_privileged() && !info.may_require_cpl0(), "{:?}", row.code);
        assert!(!info.is_stack_instruction() && !row.ends_block, "{:?}", row.code);
        assert_eq!(row.code.flow_control(), iced_x86::FlowControl::Next, "{:?}", row.code);
        assert_eq!(row.privilege, Privilege::Any, "{:?}", row.code);
        assert!(row.memory.shape != MemoryShape::StateImage, "{:?}", row.code);
    }
}

#[test]
fn whatever_moves_control_ends_a_block() {
    for row in rows() {
        let continues = row.code.flow_control() == iced_x86::FlowControl::Next;
        assert!(continues || row.ends_block, "{:?}", row.code);
    }
}

#[test]
fn every_feature_gates_a_row_but_those_that_decode_gates() {
    let used = rows().fold(FeatureSet::EMPTY, |set, row| set.union(row.features));
    let unused: Vec<_> = FeatureSet::all().iter().filter(|f| !used.contains(*f)).collect();
    // LAHF and SAHF in 64-bit mode: `decoder_options`. 64-bit forms: no 64-bit mode without it.
    assert_eq!(unused, [Feature::LahfLm, Feature::Lm]);
}

#[test]
fn forms_of_two_features_need_both() {
    let needs = |code: Code| row(code).features.iter().map(Feature::name).collect::<Vec<_>>();
    assert_eq!(needs(Code::EVEX_Vaddps_xmm_k1z_xmm_xmmm128b32), ["avx512f", "avx512vl"]);
    assert_eq!(needs(Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er), ["avx512f"]);
    assert_eq!(needs(Code::VEX_Vaesenc_xmm_xmm_xmmm128), ["aes", "avx"]);
    assert_eq!(needs(Code::VEX_Vgf2p8mulb_ymm_ymm_ymmm256), ["avx", "gfni"]);
    assert_eq!(needs(Code::EVEX_Vaesenc_xmm_xmm_xmmm128), ["avx512vl", "vaes"]);
    assert_eq!(needs(Code::VEX_Vpclmulqdq_xmm_xmm_xmmm128_imm8), ["pclmulqdq", "avx"]);
    assert_eq!(needs(Code::Fisttp_m32int), ["sse3", "fpu"]);
    assert_eq!(needs(Code::Fcmovb_st0_sti), ["fpu", "cmov"]);
}

#[test]
fn shapes_follow_the_manuals() {
    use MemoryShape as S;
    #[rustfmt::skip]
    let cases = [
        (Code::Lea_r32_m, S::Address, 0), (Code::Nop_rm32, S::Address, 4),
        (Code::Add_rm32_r32, S::ReadWrite, 4), (Code::Cmp_rm32_r32, S::Read, 4),
        (Code::Mov_rm64_r64, S::Write, 8), (Code::Mov_EAX_moffs32, S::Read, 4),
        (Code::Bts_rm32_r32, S::BitString, 4), (Code::Bts_rm32_imm8, S::ReadWrite, 4),
        (Code::Movsb_m8_m8, S::String, 1), (Code::Xlat_m8, S::Table, 1),
        (Code::Call_m1616, S::Read, 4), (Code::Bound_r32_m3232, S::Read, 8),
        (Code::VEX_Vpmaskmovd_m256_ymm_ymm, S::MaskedWrite, 32),
        (Code::VEX_Vmaskmovps_xmm_xmm_m128, S::MaskedRead, 16),
        (Code::VEX_Vpgatherdd_xmm_vm32x_xmm, S::Gather, 4),
        (Code::EVEX_Vpscatterqq_vm64z_k1_zmm, S::Scatter, 8),
        (Code::EVEX_Vmovdqu8_zmm_k1z_zmmm512, S::MaskedRead, 64),
        (Code::EVEX_Vpshufb_zmm_k1z_zmm_zmmm512, S::Read, 64),
        (Code::EVEX_Vpslld_zmm_k1z_zmm_xmmm128, S::Read, 16),
        (Code::EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, S::MaskedRead, 64),
        (Code::EVEX_Vpcompressb_zmmm512_k1z_zmm, S::CompressWrite, 64),
        (Code::EVEX_Vpexpandd_zmm_k1z_zmmm512, S::ExpandRead, 64),
        (Code::Maskmovdqu_rDI_xmm_xmm, S::MaskMove, 16), (Code::Maskmovq_rDI_mm_mm, S::MaskMove, 8),
        (Code::Fnsave_m108byte, S::StateImage, 108), (Code::Xsave_mem, S::StateImage, 0),
        (Code::Movdir64b_r64_m512, S::DirectMove, 64), (Code::Clzeroq, S::LineAtRax, 0),
        (Code::Push_r64, S::None, 0), (Code::Pop_rm64, S::Write, 8),
    ];
    for (code, shape, size) in cases {
        let memory = row(code).memory;
        assert_eq!((memory.shape, memory.size), (shape, size), "{code:?}");
    }
}

#[test]
fn masked_operands_are_whole_elements() {
    let masked = |shape| {
        use MemoryShape as S;
        matches!(shape, S::MaskedRead | S::MaskedWrite | S::ExpandRead | S::CompressWrite)
    };
    for row in rows().filter(|row| masked(row.memory.shape)) {
        let (size, element) = (row.memory.size, u16::from(row.memory.element));
        assert!(element.is_power_of_two() && element <= 8, "{:?}", row.code);
        assert!(size.is_multiple_of(element) && size / element <= 64, "{:?}", row.code);
        if row.executor == Executor::Native && row.code.op_code().can_broadcast() {
            assert!(matches!(element, 2 | 4 | 8), "{:?}", row.code);
        }
    }
}

#[test]
fn alignment_is_checked_where_the_manual_says() {
    #[rustfmt::skip]
    let aligned = [
        Code::Movaps_xmm_xmmm128, Code::Addps_xmm_xmmm128, Code::Pshufb_xmm_xmmm128,
        Code::Cvtpd2pi_mm_xmmm128, Code::Movntdq_m128_xmm, Code::Aesenc_xmm_xmmm128,
        Code::VEX_Vmovaps_ymm_ymmm256, Code::EVEX_Vmovdqa64_zmm_k1z_zmmm512,
        Code::VEX_Vmovntdqa_ymm_m256, Code::Cmpxchg16b_m128,
    ];
    #[rustfmt::skip]
    let unaligned = [
        Code::Movups_xmm_xmmm128, Code::Movdqu_xmm_xmmm128, Code::Lddqu_xmm_m128,
        Code::Pcmpistri_xmm_xmmm128_imm8, Code::Pshufb_mm_mmm64, Code::Addss_xmm_xmmm32,
        Code::Cvtpi2ps_xmm_mmm64, Code::VEX_Vaddps_xmm_xmm_xmmm128, Code::Cmpxchg8b_m64,
        Code::Maskmovdqu_rDI_xmm_xmm, Code::Invpcid_r64_m128, Code::Movlps_xmm_m64,
    ];
    assert!(aligned.iter().all(|&code| row(code).memory.is_aligned));
    assert!(unaligned.iter().all(|&code| !row(code).memory.is_aligned));
}

#[test]
fn only_the_no_wait_forms_do_not_wait() {
    let silent = mnemonics(|row| {
        row.unit == Unit::X87 && !row.waits_for_x87 && row.class != Class::Undefined
    });
    let manual = "fnclex fndisi fneni fninit fnsave fnsetpm fnstcw fnstenv fnstsw";
    assert_eq!(silent, words(manual));
    assert!(row(Code::Wait).waits_for_x87 && row(Code::Emms).waits_for_x87);
    assert!(!row(Code::Fxsave_m512byte).waits_for_x87 && !row(Code::Xsave_mem).waits_for_x87);
}
