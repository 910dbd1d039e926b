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

/// The flags of a shift's result. AF is undefined, and set on Zen 3 whatever is shifted.
#[inline]
fn shifted_status<T: Word>(result: T) -> u64 {
    AF | sign_zero_parity(result)
}

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

/// What a shift or rotate by a non-zero count gives: the result, the flags it writes, their values.
pub type Shifted<T> = (T, u64, u64);

fn flag_if(is_set: bool, flag: u64) -> u64 {
    if is_set { flag } else { 0 }
}

/// SHL by `count` from 1 to 63. Where CF or OF is undefined it is what bit-serial hardware gives:
/// CF zero for counts beyond the width, OF the exclusive or of CF and the sign.
pub fn shl<T: Word>(a: T, count: u32) -> Shifted<T> {
    let wide = u128::from(a.to_u64()) << count;
    let result = T::from_u64(wide as u64);
    let carry = wide >> T::BITS & 1 != 0;
    let sign = result.to_u64() & T::SIGN != 0;
    let status = flag_if(carry, CF) | flag_if(carry != sign, OF) | shifted_status(result);
    (result, crate::state::rflags::STATUS, status)
}

/// SHR by `count` from 1 to 63. OF is the sign of the operand for every count.
pub fn shr<T: Word>(a: T, count: u32) -> Shifted<T> {
    let value = a.to_u64();
    let result = T::from_u64(value >> count);
    let carry = value >> (count - 1) & 1 != 0;
    // OF for a count of 1 is the old sign; for more, the two highest bits of the result differ.
    let top = result.to_u64();
    let overflow = (top ^ top << 1) & T::SIGN != 0;
    let status = flag_if(carry, CF) | flag_if(overflow, OF) | shifted_status(result);
    (result, crate::state::rflags::STATUS, status)
}

/// SAR by `count` from 1 to 63.
pub fn sar<T: Word>(a: T, count: u32) -> Shifted<T> {
    let value = a.sign_extend() as i64;
    let result = T::from_u64((value >> count) as u64);
    let carry = value >> (count - 1) & 1 != 0;
    let status = flag_if(carry, CF) | shifted_status(result);
    (result, crate::state::rflags::STATUS, status)
}

/// ROL by a masked, non-zero count: CF and OF.
pub fn rol<T: Word>(a: T, count: u32) -> Shifted<T> {
    let result = rotate_left(a, count % T::BITS);
    let carry = result.to_u64() & 1 != 0;
    let sign = result.to_u64() & T::SIGN != 0;
    (result, CF | OF, flag_if(carry, CF) | flag_if(carry != sign, OF))
}

/// ROR by a masked, non-zero count: CF and OF.
pub fn ror<T: Word>(a: T, count: u32) -> Shifted<T> {
    let result = rotate_left(a, (T::BITS - count % T::BITS) % T::BITS);
    let value = result.to_u64();
    let carry = value & T::SIGN != 0;
    let overflow = (value ^ value << 1) & T::SIGN != 0;
    (result, CF | OF, flag_if(carry, CF) | flag_if(overflow, OF))
}

fn rotate_left<T: Word>(a: T, count: u32) -> T {
    let value = u128::from(a.to_u64());
    T::from_u64((value << count | value >> (T::BITS - count)) as u64)
}

/// RCL by a masked, non-zero count through CF, which is `carry`.
pub fn rcl<T: Word>(a: T, count: u32, carry: bool) -> Shifted<T> {
    let bits = T::BITS + 1;
    let count = count % bits;
    let wide = u128::from(a.to_u64()) | u128::from(carry) << T::BITS;
    let rotated = (wide << count | wide >> (bits - count)) & ((1 << bits) - 1);
    let result = T::from_u64(rotated as u64);
    let carry = rotated >> T::BITS & 1 != 0;
    let sign = result.to_u64() & T::SIGN != 0;
    (result, CF | OF, flag_if(carry, CF) | flag_if(carry != sign, OF))
}

/// RCR by a masked, non-zero count through CF, which is `carry`.
pub fn rcr<T: Word>(a: T, count: u32, carry: bool) -> Shifted<T> {
    let bits = T::BITS + 1;
    let count = count % bits;
    let wide = u128::from(a.to_u64()) | u128::from(carry) << T::BITS;
    let rotated = (wide >> count | wide << (bits - count)) & ((1 << bits) - 1);
    let result = T::from_u64(rotated as u64);
    let carry = rotated >> T::BITS & 1 != 0;
    let value = result.to_u64();
    let overflow = (value ^ value << 1) & T::SIGN != 0;
    (result, CF | OF, flag_if(carry, CF) | flag_if(overflow, OF))
}

/// SHLD: `a` shifted left, filled from the top of `fill`. A count above 16 for 16-bit operands,
/// which the manuals leave undefined, goes on with `fill` once more, as Zen 3 does (Intel's
/// processors are said to go on with `a`). CF and OF are what they are without `fill`.
pub fn shld<T: Word>(a: T, fill: T, count: u32) -> Shifted<T> {
    let shifted = u128::from(a.to_u64()) << count;
    let result = T::from_u64((shifted | twice(fill) >> (2 * T::BITS - count)) as u64);
    let carry = shifted >> T::BITS & 1 != 0;
    let overflow = (shifted ^ shifted << 1) >> T::BITS & 1 != 0;
    let status = flag_if(carry, CF) | flag_if(overflow, OF) | shifted_status(result);
    (result, crate::state::rflags::STATUS, status)
}

/// SHRD: `a` shifted right, filled from the bottom of `fill`; as [`shld`] for 16-bit operands, but
/// that OF says whether the last step changed the sign.
pub fn shrd<T: Word>(a: T, fill: T, count: u32) -> Shifted<T> {
    let low = a.to_u64();
    let rotated = (twice(fill) >> (count % T::BITS)) as u64;
    let result = T::from_u64(low >> count | rotated & !(T::MASK >> count));
    let carry = low >> (count - 1) & 1 != 0;
    let value = result.to_u64();
    let overflow = (value ^ value << 1) & T::SIGN != 0;
    let status = flag_if(carry, CF) | flag_if(overflow, OF) | shifted_status(result);
    (result, crate::state::rflags::STATUS, status)
}

/// `fill` behind itself.
fn twice<T: Word>(fill: T) -> u128 {
    let fill = u128::from(fill.to_u64());
    fill << T::BITS | fill
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::rflags::STATUS;

    /// Flags that a shift by one defines: all but AF.
    const SHIFT_BY_ONE: u64 = STATUS & !AF;
    /// Flags that a shift by more, but less than the width, defines.
    const SHIFT: u64 = SHIFT_BY_ONE & !OF;
    /// Flags that a rotate by one defines.
    const ROTATE_BY_ONE: u64 = CF | OF;

    #[track_caller]
    fn check<T: Word>(found: (T, u64), result: T, flags: u64) {
        assert_eq!(found.0, result);
        assert_eq!(found.1, flags, "{:#x} is not {flags:#x}", found.1);
    }

    #[track_caller]
    fn check_shift<T: Word>(found: Shifted<T>, defined: u64, result: T, flags: u64) {
        assert_eq!(found.0, result);
        assert_eq!(found.1 & defined, defined, "a defined flag is not written");
        assert_eq!(found.2 & defined, flags, "{:#x} is not {flags:#x}", found.2 & defined);
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

    #[test]
    fn shifts_carry_the_last_bit_out() {
        check_shift(shl::<u8>(0x81, 1), SHIFT_BY_ONE, 0x02, CF | OF);
        check_shift(shl::<u8>(0x81, 8), SHIFT & !CF, 0, PF | ZF);
        check_shift(shr::<u16>(0x8001, 1), SHIFT_BY_ONE, 0x4000, CF | PF | OF);
        check_shift(shr::<u64>(1 << 63, 63), SHIFT, 1, 0);
        check_shift(sar::<u32>(0x8000_0001, 1), SHIFT_BY_ONE, 0xc000_0000, CF | PF | SF);
        check_shift(sar::<u8>(0x80, 31), SHIFT, 0xff, CF | PF | SF);
    }

    #[test]
    fn rotates_write_carry_and_overflow_only() {
        check_shift(rol::<u8>(0x81, 1), ROTATE_BY_ONE, 0x03, CF | OF);
        check_shift(ror::<u8>(0x01, 1), ROTATE_BY_ONE, 0x80, CF | OF);
        check_shift(rol::<u16>(0x1234, 16), CF, 0x1234, 0);
        check_shift(rcl::<u8>(0x80, 1, false), ROTATE_BY_ONE, 0, CF | OF);
        check_shift(rcl::<u8>(0x80, 9, true), CF, 0x80, CF);
        check_shift(rcr::<u32>(1, 1, true), ROTATE_BY_ONE, 0x8000_0000, CF | OF);
        assert_eq!(rol::<u8>(1, 1).1, CF | OF);
    }

    #[test]
    fn double_shifts_fill_from_the_second_operand() {
        check_shift(shld::<u16>(0x8000, 0x8000, 1), SHIFT_BY_ONE, 1, CF | OF);
        check_shift(shld::<u32>(1, 0xf000_0000, 4), SHIFT, 0x1f, 0);
        check_shift(shrd::<u64>(1, 1, 1), SHIFT_BY_ONE, 1 << 63, CF | PF | SF | OF);
        check_shift(shrd::<u32>(0xf, 0xa, 4), SHIFT, 0xa000_0000, CF | PF | SF);
    }

    /// Measured on Zen 3.
    #[test]
    fn a_double_shift_of_words_by_more_than_16_fills_twice() {
        check_shift(shld::<u16>(0xffff, 0x1234, 20), SHIFT_BY_ONE, 0x2341, PF);
        check_shift(shld::<u16>(0xffff, 0x8001, 31), SHIFT_BY_ONE, 0xc000, PF | SF);
        check_shift(shrd::<u16>(0xffff, 0x1234, 20), SHIFT_BY_ONE, 0x4123, OF);
        check_shift(shrd::<u16>(0xffff, 0x8001, 31), SHIFT_BY_ONE, 0x0003, PF);
    }
}
