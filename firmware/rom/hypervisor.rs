//! What is forgiven a processor that is known not to be one: the guest asks CPUID whose it is, says
//! what it did not check, and fails everywhere else.

use iced_x86::code_asm::*;

use crate::rom::stage::{Emit, Stage, Step};

/// Goes to `other` unless CPUID's hypervisor signature starts with `signature`. Changes EAX to EDX.
pub fn skip_unless(s: &mut Stage, signature: &[u8; 4], other: CodeLabel) -> Emit {
    s.mov(eax, 0x4000_0000)?;
    s.cpuid()?;
    s.cmp(ebx, u32::from_le_bytes(*signature))?;
    s.jne(other)
}

/// Leaves `step` on QEMU's TCG and on a KVM, which may be on the SVM that TCG emulates; fails it
/// elsewhere.
pub fn leave_on_tcg(s: &mut Stage, step: &Step) -> Emit {
    let mut not_tcg = s.create_label();
    skip_unless(s, b"TCGT", not_tcg)?;
    step.leave(s, "not checked: this is QEMU's TCG")?;
    s.set_label(&mut not_tcg)?;
    skip_unless(s, b"KVMK", step.failed)?;
    step.leave(s, "not checked: this KVM is on QEMU's TCG")
}
