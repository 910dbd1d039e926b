//! Which host register holds which guest register.
//!
//! Twelve guest registers are in the host register of the same number, so that instructions with
//! implicit operands need no moves. Guest RSP is in R13, because the host's RSP is the stack of
//! return predictions. R13 to R15 of the guest are in the context; R14 and R15 are scratch.

/// Number of a register in its file, as encodings have it.
pub(crate) type Number = u8;

pub(crate) const RAX: Number = 0;
pub(crate) const RCX: Number = 1;
pub(crate) const RDX: Number = 2;
pub(crate) const RBX: Number = 3;
pub(crate) const RSP: Number = 4;
pub(crate) const RBP: Number = 5;
pub(crate) const RSI: Number = 6;
pub(crate) const RDI: Number = 7;
pub(crate) const R11: Number = 11;

/// RSP of the host: the stack of return predictions.
pub(crate) const HOST_RSP: Number = 4;

/// Host register of the guest's RSP.
pub(crate) const GUEST_RSP: Number = 13;
/// First scratch register: addresses. As a base it needs neither SIB byte nor displacement.
pub(crate) const S0: Number = 14;
/// Second scratch register: values, TLB offsets.
pub(crate) const S1: Number = 15;

/// The host register that guest register `guest` (0 to 15) always is in.
pub(crate) const fn host(guest: Number) -> Option<Number> {
    match guest {
        RSP => Some(GUEST_RSP),
        0..=12 => Some(guest),
        _ => None,
    }
}

/// True if guest register `guest` has a host register.
pub(crate) const fn is_pinned(guest: Number) -> bool {
    host(guest).is_some()
}
