//! Integer arithmetic with its flags, as pure functions generic over width.
//!
//! Each function gives a result and the status flags it defines ([`crate::state::rflags::STATUS`]
//! bits). Operations that leave flags undefined are the host's own (`native/integer.rs`).

use memory::Scalar;

use crate::state::rflags::{AF, CF, OF, PF, SF, ZF};

/// An operand width of the integer instructions.
pub trait Word: Scalar + std::fmt::Debug + std::fmt::LowerHex + Ord {
    /// Bits in the operand.
    const BITS: u32 = Self::BYTES as u32 * 8;
    /// The sign bit, as 64 bits.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// All bits of the width, as 64 bits.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    /// Sign-extends to 64 bits.
    #[inline]
    fn sign_extend(self) -> u64 {
        let shift = 64 - Self::BITS;
        ((self.to_u64() << shift) as i64 >> shift) as u64
    }
}
impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// SF, ZF and PF of a result.
#[inline]
pub fn sign_zero_parity<T: Word>(result: T) -> u64 {
    let value = result.to_u64();
    let parity = if (value as u8).count_ones() & 1 == 0 { PF } else { 0 };
    let zero = if value == 0 { ZF } else { 0 };
    let sign = if value & T::SIGN != 0 { SF } else { 0 };
    parity | zero | sign
}

/// `a + b + carry` (ADD, ADC, INC, XADD).
#[inline]
pub fn add<T: Word>(a: T, b: T, carry: u64) -> (T, u64) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let sum = x.wrapping_add(y).wrapping_add(carry);
    let result = T::from_u64(sum);
    let value = result.to_u64();
    // The carry out of every bit: where both are set, or one is and the sum bit is not.
    let carries = (x & y) | ((x | y) & !value);
    let cf = if carries & T::SIGN != 0 { CF } else { 0 };
    let af = (x ^ y ^ value) & AF;
    let of = if (x ^ value) & (y ^ value) & T::SIGN != 0 { OF } else { 0 };
    (result, cf | af | of | sign_zero_parity(result))
}

/// `a - b - borrow` (SUB, SBB, CMP, DEC, NEG, CMPXCHG, SCAS, CMPS).
#[inline]
pub fn sub<T: Word>(a: T, b: T, borrow: u64) -> (T, u64) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let result = T::from_u64(x.wrapping_sub(y).wrapping_sub(borrow));
    let value = result.to_u64();
    let borrows = (!x & y) | ((!x | y) & value);
    let cf = if borrows & T::SIGN != 0 { CF } else { 0 };
    let af = (x ^ y ^ value) & AF;
    let of = if (x ^ y) & (x ^ value) & T::SIGN != 0 { OF } else { 0 };
    (result, cf | af | of | sign_zero_parity(result))
}

/// The flags of AND, OR, XOR and TEST: CF and OF clear, AF (undefined) clear as on real CPUs.
#[inline]
pub fn logic<T: Word>(result: T) -> u64 {
    sign_zero_parity(result)
}

/// The count of a shift or rotate: masked to 5 bits, 6 for 64-bit operands.
#[inline]
pub fn masked_count<T: Word>(count: u8) -> u32 {
    u32::from(count) & if T::BITS == 64 { 63 } else { 31 }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[track_caller]
    fn check<T: Word>(found: (T, u64), result: T, flags: u64) {
        assert_eq!(found.0, result);
        assert_eq!(found.1, flags, "{:#x} is not {flags:#x}", found.1);
    }

    #[test]
    fn addition_sets_carry_overflow_and_adjust() {
        check(add::<u8>(0xff, 1, 0), 0, CF | PF | AF | ZF);
        check(add::<u8>(0x7f, 1, 0), 0x80, AF | SF | OF);
        check(add::<u8>(0x80, 0x80, 0), 0, CF | PF | ZF | OF);
        check(add::<u16>(0xffff, 0xffff, 1), 0xffff, CF | PF | AF | SF);
        check(add::<u32>(0x7fff_ffff, 0, 1), 0x8000_0000, PF | AF | SF | OF);
        check(add::<u64>(u64::MAX, 0, 1), 0, CF | PF | AF | ZF);
        check(add::<u64>(1, 2, 0), 3, PF);
    }

    #[test]
    fn subtraction_sets_borrow_overflow_and_adjust() {
        check(sub::<u8>(0, 1, 0), 0xff, CF | PF | AF | SF);
        check(sub::<u8>(0x80, 1, 0), 0x7f, AF | OF);
        check(sub::<u16>(0, 0xffff, 1), 0, CF | PF | AF | ZF);
        check(sub::<u32>(0x7fff_ffff, 0xffff_ffff, 0), 0x8000_0000, CF | PF | SF | OF);
        check(sub::<u64>(5, 5, 0), 0, PF | ZF);
    }
}
