//! Integer arithmetic with its flags, as pure functions generic over width.
//!
//! Each function gives a result and the status flags it defines ([`crate::state::rflags::STATUS`]
//! bits). What the manuals leave undefined is what the host CPU does where that is known, and
//! named here where it is chosen.

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
