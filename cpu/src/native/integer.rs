//! Integer instructions that leave flags undefined, run by the host.
//!
//! Problem: which values the flags get that the manuals leave open differs between processors, and
//! translated code leaves the host's. A guest could tell the engines apart by them. Strategy: the
//! host's own instruction says what they are, and the result with it (SHLD of 16 bits by more than
//! 16 is undefined altogether). Only what user code cannot execute in 64-bit mode is not here.
//!
//! Invariants: operands are values, never addresses; no instruction here raises an exception
//! (whoever divides has looked at the quotient); only status flags go in and come out. A guest has
//! LZCNT, BMI1 and BMI2 only where the host has them.
// UNSAFETY: executes single instructions of the host by inline assembly.
#![expect(unsafe_code, reason = "unsafe island 2: one host instruction on values")]

use std::arch::asm;
use std::sync::LazyLock;

use crate::flags::Word;
use crate::state::rflags::{OF, STATUS};

/// A result, and the status flags behind it.
pub(crate) type Outcome<T> = (T, u64);

/// Runs `$template` between loading and storing the flags, with the operands that follow.
macro_rules! run {
    ($flags:ident, $template:expr, $($operand:tt)*) => {{
        let mut flags = $flags & STATUS;
        // SAFETY: the instruction works on registers that are operands of the block, exists on this
        // host (cpuid/host.rs), and raises no exception. Of the flags only status flags change: DF
        // and AC stay clear. The stack is balanced, and the compiler keeps nothing below it, for
        // `nostack` is not said.
        unsafe {
            asm!(
                "push {flags}",
                "popfq",
                $template,
                "pushfq",
                "pop {flags}",
                flags = inout(reg) flags,
                $($operand)*
            );
        }
        flags & STATUS
    }};
}

/// The instruction of the width of `T`: `$run` gets the letter of the register's name in assembly.
macro_rules! by_bytes {
    ($type:ident, $run:ident!($($argument:tt)*)) => {
        match $type::BYTES {
            1 => $run!("l", $($argument)*),
            2 => $run!("x", $($argument)*),
            4 => $run!("e", $($argument)*),
            _ => $run!("r", $($argument)*),
        }
    };
    // There is none of a byte.
    ($type:ident, from 2, $run:ident!($($argument:tt)*)) => {
        match $type::BYTES {
            1 | 2 => $run!("x", $($argument)*),
            4 => $run!("e", $($argument)*),
            _ => $run!("r", $($argument)*),
        }
    };
    ($type:ident, from 4, $run:ident!($($argument:tt)*)) => {
        match $type::BYTES {
            1..=4 => $run!("e", $($argument)*),
            _ => $run!("r", $($argument)*),
        }
    };
}

/// `op a, CL`.
macro_rules! shift {
    ($width:literal, $name:literal, $a:ident, $count:ident, $flags:ident) => {
        run!($flags, concat!($name, " {a:", $width, "}, cl"), a = inout(reg) $a, in("cl") $count)
    };
}

/// `op a, b, CL`.
macro_rules! double_shift {
    ($width:literal, $name:literal, $a:ident, $b:ident, $count:ident, $flags:ident) => {
        run!(
            $flags,
            concat!($name, " {a:", $width, "}, {b:", $width, "}, cl"),
            a = inout(reg) $a,
            b = in(reg) $b,
            in("cl") $count
        )
    };
}

/// `op a, b`.
macro_rules! two {
    ($width:literal, $name:literal, $a:ident, $b:ident, $flags:ident) => {
        run!(
            $flags,
            concat!($name, " {a:", $width, "}, {b:", $width, "}"),
            a = inout(reg) $a,
            b = in(reg) $b,
        )
    };
}

/// `op a, b, c`.
macro_rules! three {
    ($width:literal, $name:literal, $a:ident, $b:ident, $c:ident, $flags:ident) => {
        run!(
            $flags,
            concat!($name, " {a:", $width, "}, {b:", $width, "}, {c:", $width, "}"),
            a = out(reg) $a,
            b = in(reg) $b,
            c = in(reg) $c,
        )
    };
}

/// `op b`, with rDX:rAX.
macro_rules! pair {
    ($width:literal, $name:literal, $low:ident, $high:ident, $b:ident, $flags:ident) => {
        run!(
            $flags,
            concat!($name, " {b:", $width, "}"),
            b = in(reg) $b,
            inout("rax") $low,
            inout("rdx") $high,
        )
    };
}

/// Functions of a value and a masked count that is not 0.
macro_rules! shifts {
    ($($name:ident $mnemonic:literal)*) => {$(
        pub(crate) fn $name<T: Word>(a: T, count: u32, flags: u64) -> Outcome<T> {
            let (mut a, count) = (a.to_u64(), count as u8);
            let flags = by_bytes!(T, shift!($mnemonic, a, count, flags));
            (T::from_u64(a), flags)
        }
    )*};
}

shifts! {
    shl "shl"
    shr "shr"
    sar "sar"
    rol "rol"
    ror "ror"
    rcl "rcl"
    rcr "rcr"
}

/// True if the host keeps OF where it rotates a register by an immediate of more than 1, as Intel's
/// processors do: memory or by CL they do not.
static IMMEDIATES_KEEP_OVERFLOW: LazyLock<bool> = LazyLock::new(|| {
    let by_two = |flags: u64| run!(flags, "rol {a:l}, 2", a = inout(reg) 0_u64 => _);
    by_two(OF) != by_two(0)
});

/// Functions of a register and a masked immediate that is not 0.
macro_rules! rotations_by_immediate {
    ($($name:ident $by_count:ident)*) => {$(
        pub(crate) fn $name<T: Word>(a: T, count: u32, flags: u64) -> Outcome<T> {
            let (result, status) = $by_count(a, count, flags);
            if count == 1 || !*IMMEDIATES_KEEP_OVERFLOW {
                return (result, status);
            }
            (result, status & !OF | flags & OF)
        }
    )*};
}

rotations_by_immediate! {
    rol_immediate rol
    ror_immediate ror
}

/// Functions of a value, what fills it, and a masked count that is not 0.
macro_rules! double_shifts {
    ($($name:ident $mnemonic:literal)*) => {$(
        pub(crate) fn $name<T: Word>(a: T, fill: T, count: u32, flags: u64) -> Outcome<T> {
            let (mut a, fill, count) = (a.to_u64(), fill.to_u64(), count as u8);
            let flags = by_bytes!(T, from 2, double_shift!($mnemonic, a, fill, count, flags));
            (T::from_u64(a), flags)
        }
    )*};
}

double_shifts! {
    shld "shld"
    shrd "shrd"
}

/// Functions of what the destination has and a source.
macro_rules! twos {
    ($($name:ident $mnemonic:literal from $least:tt)*) => {$(
        pub(crate) fn $name<T: Word>(a: T, b: T, flags: u64) -> Outcome<T> {
            let (mut a, b) = (a.to_u64(), b.to_u64());
            let flags = by_bytes!(T, from $least, two!($mnemonic, a, b, flags));
            (T::from_u64(a), flags)
        }
    )*};
}

twos! {
    imul "imul" from 2
    bsf "bsf" from 2
    bsr "bsr" from 2
    tzcnt "tzcnt" from 2
    lzcnt "lzcnt" from 2
    blsi "blsi" from 4
    blsr "blsr" from 4
    blsmsk "blsmsk" from 4
}

/// Functions of two sources.
macro_rules! threes {
    ($($name:ident $mnemonic:literal)*) => {$(
        pub(crate) fn $name<T: Word>(b: T, c: T, flags: u64) -> Outcome<T> {
            let (mut a, b, c): (u64, u64, u64) = (0, b.to_u64(), c.to_u64());
            let flags = by_bytes!(T, from 4, three!($mnemonic, a, b, c, flags));
            (T::from_u64(a), flags)
        }
    )*};
}

threes! {
    andn "andn"
    bextr "bextr"
    bzhi "bzhi"
}

/// Functions of rDX:rAX, which are AH and AL for bytes, and an operand.
macro_rules! pairs {
    ($($name:ident $mnemonic:literal)*) => {$(
        pub(crate) fn $name<T: Word>(pair: (T, T), b: T, flags: u64) -> Outcome<(T, T)> {
            let (mut low, mut high, b) = (pair.0.to_u64(), pair.1.to_u64(), b.to_u64());
            if T::BYTES == 1 {
                low |= high << 8;
            }
            let flags = by_bytes!(T, pair!($mnemonic, low, high, b, flags));
            if T::BYTES == 1 {
                high = low >> 8;
            }
            ((T::from_u64(low), T::from_u64(high)), flags)
        }
    )*};
}

pairs! {
    mul "mul"
    imul_pair "imul"
    div "div"
    idiv "idiv"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::rflags::{AF, CF, PF, SF, ZF};

    /// Flags that a shift by one defines: all but AF.
    const SHIFT_BY_ONE: u64 = STATUS & !AF;
    /// Flags that a shift by more, but less than the width, defines.
    const SHIFT: u64 = SHIFT_BY_ONE & !OF;
    /// Flags that a rotate by one defines.
    const ROTATE_BY_ONE: u64 = CF | OF;

    #[track_caller]
    fn check<T: PartialEq + std::fmt::Debug>(
        found: Outcome<T>,
        defined: u64,
        result: T,
        flags: u64,
    ) {
        assert_eq!(found.0, result);
        assert_eq!(found.1 & defined, flags, "{:#x} is not {flags:#x}", found.1 & defined);
    }

    #[test]
    fn shifts_carry_the_last_bit_out() {
        check(shl::<u8>(0x81, 1, 0), SHIFT_BY_ONE, 0x02, CF | OF);
        check(shl::<u8>(0x81, 8, 0), SHIFT & !CF, 0, PF | ZF);
        check(shr::<u16>(0x8001, 1, 0), SHIFT_BY_ONE, 0x4000, CF | PF | OF);
        check(shr::<u64>(1 << 63, 63, 0), SHIFT, 1, 0);
        check(sar::<u32>(0x8000_0001, 1, 0), SHIFT_BY_ONE, 0xc000_0000, CF | PF | SF);
        check(sar::<u8>(0x80, 31, 0), SHIFT, 0xff, CF | PF | SF);
    }

    #[test]
    fn rotates_keep_all_but_carry_and_overflow() {
        let kept = STATUS & !ROTATE_BY_ONE;
        check(rol::<u8>(0x81, 1, kept), STATUS, 0x03, kept | CF | OF);
        check(ror::<u8>(0x01, 1, 0), STATUS, 0x80, CF | OF);
        check(rol::<u16>(0x1234, 16, kept), STATUS & !OF, 0x1234, kept);
        check(rcl::<u8>(0x80, 1, 0), STATUS, 0, CF | OF);
        check(rcl::<u8>(0x80, 9, CF), CF, 0x80, CF);
        check(rcr::<u32>(1, 1, CF), STATUS, 0x8000_0000, CF | OF);
    }

    #[test]
    fn double_shifts_fill_from_the_second_operand() {
        check(shld::<u16>(0x8000, 0x8000, 1, 0), SHIFT_BY_ONE, 1, CF | OF);
        check(shld::<u32>(1, 0xf000_0000, 4, 0), SHIFT, 0x1f, 0);
        check(shrd::<u64>(1, 1, 1, 0), SHIFT_BY_ONE, 1 << 63, CF | PF | SF | OF);
        check(shrd::<u32>(0xf, 0xa, 4, 0), SHIFT, 0xa000_0000, CF | PF | SF);
    }

    #[test]
    fn products_and_quotients_have_two_halves() {
        check(mul::<u8>((0x80, 0x55), 4, 0), CF | OF, (0, 2), CF | OF);
        check(mul::<u64>((u64::MAX, 0), 1, STATUS), CF | OF, (u64::MAX, 0), 0);
        check(imul_pair::<u16>((0xffff, 0), 2, 0), CF | OF, (0xfffe, 0xffff), 0);
        check(imul::<u32>(0x8000_0000, 2, 0), CF | OF, 0, CF | OF);
        check(div::<u8>((0x07, 0x01), 2, 0), 0, (0x83, 1), 0);
        check(idiv::<u32>((0xffff_fff9, u32::MAX), 2, 0), 0, (0xffff_fffd, u32::MAX), 0);
    }

    #[test]
    fn scans_keep_their_destination_where_there_is_no_bit() {
        check(bsf::<u16>(7, 0x20, 0), ZF, 5, 0);
        check(bsr::<u64>(7, 0x21, ZF), ZF, 5, 0);
        check(bsf::<u32>(7, 0, 0), ZF, 7, ZF);
    }
}
