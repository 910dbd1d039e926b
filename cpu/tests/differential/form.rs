//! Which instruction forms are compared: the decoder's general-purpose rows that CPL 3 may execute,
//! but for the exclusions, each of which has its reason.

use std::arch::x86_64::__cpuid_count;

use decoder::{Class, Executor, Feature, Modes, Privilege, Register, Row, Unit};
use iced_x86::{Mnemonic, OpCodeOperandKind as K};

use crate::encode::is_decoded;
use crate::state::Mode;

/// Mnemonics that are left out, and why.
const EXCLUDED: &[(Mnemonic, &str)] = &[
    (Mnemonic::Rdrand, "random by definition"),
    (Mnemonic::Rdseed, "random by definition"),
    (Mnemonic::Int, "delivered through the IDT; cpu/tests of transfers have it"),
    (Mnemonic::Int1, "delivered through the IDT"),
    (Mnemonic::Int3, "delivered through the IDT; it is what ends every state here"),
    (Mnemonic::Into, "delivered through the IDT"),
    (Mnemonic::Lds, "loads a segment register from the host's descriptor tables"),
    (Mnemonic::Les, "loads a segment register from the host's descriptor tables"),
    (Mnemonic::Lfs, "loads a segment register from the host's descriptor tables"),
    (Mnemonic::Lgs, "loads a segment register from the host's descriptor tables"),
    (Mnemonic::Lss, "loads a segment register from the host's descriptor tables"),
    (Mnemonic::Rdfsbase, "the host's FS base is its thread pointer"),
    (Mnemonic::Wrfsbase, "the host's FS base is its thread pointer"),
    (Mnemonic::Rdgsbase, "segment state, which the comparison does not carry"),
    (Mnemonic::Wrgsbase, "segment state, which the comparison does not carry"),
    (Mnemonic::Popf, "TF, AC and NT out of random memory would trap inside the host's kernel"),
    (Mnemonic::Popfd, "as POPF"),
    (Mnemonic::Popfq, "as POPF"),
    (Mnemonic::Wait, "x87: with the thunks"),
];

/// Why `row` is left out of the general-purpose forms, if it is.
pub fn exclusion(row: &Row) -> Option<&'static str> {
    let info = row.code.op_code();
    let has_segment = info
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs));
    if has_segment {
        return Some("selectors and their descriptors are the host kernel's");
    }
    EXCLUDED.iter().find(|(mnemonic, _)| *mnemonic == row.code.mnemonic()).map(|(_, why)| *why)
}

/// True for general-purpose rows that CPL 3 may execute.
pub fn is_general(row: &Row) -> bool {
    let is_user = matches!(row.privilege, Privilege::Any | Privilege::V86Iopl);
    row.executor == Executor::Interpreter
        && row.unit == Unit::General
        && is_user
        && !matches!(row.class, Class::Random | Class::FarTransfer)
}

/// True if the host has the features of `row`, and its vendor decodes it in `mode`.
pub fn is_on_host(row: &Row, mode: Mode) -> bool {
    is_decoded(mode, row) && row.features.iter().all(host_has)
}

fn host_has(feature: Feature) -> bool {
    let (leaf, subleaf, register, bit) = feature.cpuid();
    let highest = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > highest {
        return false;
    }
    let result = __cpuid_count(leaf, subleaf);
    let value = match register {
        Register::Eax => result.eax,
        Register::Ebx => result.ebx,
        Register::Ecx => result.ecx,
        Register::Edx => result.edx,
    };
    value >> bit & 1 != 0
}

/// The modes in which `row` is compared.
pub fn modes(row: &Row) -> Vec<Mode> {
    let both = [(Mode::Bits64, Modes::BITS64), (Mode::Bits32, Modes::BITS32)];
    both.iter().filter(|(_, modes)| row.modes.contains(*modes)).map(|(mode, _)| *mode).collect()
}

/// Fails if an exclusion excludes nothing.
pub fn assert_exclusions_are_used() {
    for (mnemonic, why) in EXCLUDED {
        let is_used = decoder::rows().any(|row| row.code.mnemonic() == *mnemonic);
        assert!(is_used, "{mnemonic:?} ({why}) is no instruction");
    }
}
