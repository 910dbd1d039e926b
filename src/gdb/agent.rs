//! gdb's agent expressions: the bytecode of a breakpoint's condition, checked and evaluated.
//!
//! gdb sends the condition of a breakpoint as bytecode for a stack machine (gdb's manual, "The GDB
//! Agent Expression Mechanism"). [`AgentExpression::check`] follows every path through it before
//! it is taken: operators are known and whole, jumps lead to operators, the stack has on each path
//! the same height, neither too little nor too much. So an evaluation can fail in three ways only,
//! by memory that is not there, a division by zero, and too many steps.
//!
//! Known departures: floating point, trace state variables, tracing and printing are refused;
//! memory that a `trace` operator names is not collected, for nobody asks for it.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes of an expression at most.
const BYTES_MAX: usize = 4096;
/// Values on the stack at most.
const HEIGHT_MAX: usize = 64;
/// Operators executed in one evaluation at most: jumps may go back.
const STEPS_MAX: u32 = 1 << 14;

/// What an expression looks at.
pub(super) trait World {
    /// The value of register `number`, as the client counts them.
    fn register(&mut self, number: u16) -> Option<u64>;
    /// Reads memory; false if some of it is not there.
    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool;
}

/// Why an expression has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Memory here cannot be read.
    Memory(u64),
    /// This register has none.
    Register(u16),
    /// A division by zero.
    Division,
    /// It goes on for too long.
    Endless,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(address) => write!(out, "memory at {address:#x} cannot be read"),
            Self::Register(number) => write!(out, "register {number} has no value"),
            Self::Division => out.write_str("a division by zero"),
            Self::Endless => out.write_str("it goes on for too long"),
        }
    }
}

/// Why bytes are no expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    /// There are too many.
    Long,
    /// An operator is unknown, or not served.
    Operator {
        /// Where it is.
        at: usize,
        /// Its byte.
        operator: u8,
    },
    /// They end here, inside of an operator or without `end`.
    Cut(usize),
    /// The operator here finds too few values, or leaves too many.
    Height(usize),
    /// This byte is reached with different numbers of values, or inside of an operator.
    Paths(usize),
    /// This register does not exist, or is no number.
    Register(u16),
}

impl fmt::Display for Invalid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long => write!(out, "it is longer than {BYTES_MAX} bytes"),
            Self::Operator { at, operator } => {
                write!(out, "operator {operator:#04x} at byte {at} is unknown or not served")
            }
            Self::Cut(at) => {
                write!(out, "it ends at byte {at}, inside of an operator or without `end`")
            }
            Self::Height(at) => {
                write!(out, "the operator at byte {at} finds too few values, or leaves too many")
            }
            Self::Paths(at) => write!(
                out,
                "byte {at} is reached with different numbers of values, or inside of an operator"
            ),
            Self::Register(number) => {
                write!(out, "register {number} does not exist or is no number")
            }
        }
    }
}

/// Operators of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Sub,
    Mul,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    ShiftLeft,
    ShiftRightSigned,
    ShiftRightUnsigned,
    And,
    Or,
    Xor,
    Equal,
    LessSigned,
    LessUnsigned,
}

/// An operator with its operands; where a jump leads is a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Binary(Binary),
    LogNot,
    BitNot,
    SignExtend(u8),
    ZeroExtend(u8),
    /// Replaces an address by so many bytes of memory there.
    Load(u8),
    JumpIf(u16),
    Jump(u16),
    Constant(u64),
    Register(u16),
    End,
    Duplicate,
    Pop,
    Swap,
    Rotate,
    Pick(u8),
    /// Nothing but values dropped, and one looked at.
    Trace {
        drops: usize,
    },
}

/// Operators of two values, by their bytes.
#[rustfmt::skip]
const BINARY: [(u8, Binary); 16] = [
    (0x02, Binary::Add), (0x03, Binary::Sub), (0x04, Binary::Mul), (0x05, Binary::DivSigned),
    (0x06, Binary::DivUnsigned), (0x07, Binary::RemSigned), (0x08, Binary::RemUnsigned),
    (0x09, Binary::ShiftLeft), (0x0a, Binary::ShiftRightSigned),
    (0x0b, Binary::ShiftRightUnsigned), (0x0f, Binary::And), (0x10, Binary::Or),
    (0x11, Binary::Xor), (0x13, Binary::Equal), (0x14, Binary::LessSigned),
    (0x15, Binary::LessUnsigned),
];

impl Operator {
    /// The operator at byte `at`, and how long it is.
    fn decode(code: &[u8], at: usize) -> Result<(Self, usize), Invalid> {
        let operator = *code.get(at).ok_or(Invalid::Cut(at))?;
        let operand = |bytes: usize| {
            let operand = code.get(at + 1..at + 1 + bytes).ok_or(Invalid::Cut(at))?;
            Ok(operand.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte)))
        };
        let byte = || operand(1).map(|value| value as u8);
        let word = || operand(2).map(|value| value as u16);
        if let Some((_, binary)) = BINARY.iter().find(|(byte, _)| *byte == operator) {
            return Ok((Self::Binary(*binary), 1));
        }
        Ok(match operator {
            0x0c => (Self::Trace { drops: 2 }, 1),
            0x0d => (byte().map(|_| Self::Trace { drops: 0 })?, 2),
            0x0e => (Self::LogNot, 1),
            0x12 => (Self::BitNot, 1),
            0x16 => (Self::SignExtend(byte()?), 2),
            0x17 => (Self::Load(1), 1),
            0x18 => (Self::Load(2), 1),
            0x19 => (Self::Load(4), 1),
            0x1a => (Self::Load(8), 1),
            0x20 => (Self::JumpIf(word()?), 3),
            0x21 => (Self::Jump(word()?), 3),
            0x22 => (Self::Constant(operand(1)?), 2),
            0x23 => (Self::Constant(operand(2)?), 3),
            0x24 => (Self::Constant(operand(4)?), 5),
            0x25 => (Self::Constant(operand(8)?), 9),
            0x26 => (Self::Register(word()?), 3),
            0x27 => (Self::End, 1),
            0x28 => (Self::Duplicate, 1),
            0x29 => (Self::Pop, 1),
            0x2a => (Self::ZeroExtend(byte()?), 2),
            0x2b => (Self::Swap, 1),
            0x30 => (word().map(|_| Self::Trace { drops: 0 })?, 3),
            0x32 => (Self::Pick(byte()?), 2),
            0x33 => (Self::Rotate, 1),
            operator => return Err(Invalid::Operator { at, operator }),
        })
    }

    /// How many values it wants on the stack, and how many are there instead of them behind it.
    fn heights(self) -> (usize, usize) {
        match self {
            Self::Binary(_) => (2, 1),
            Self::LogNot | Self::BitNot | Self::SignExtend(_) | Self::ZeroExtend(_) => (1, 1),
            Self::Load(_) | Self::End => (1, 1),
            Self::JumpIf(_) | Self::Pop => (1, 0),
            Self::Jump(_) => (0, 0),
            Self::Constant(_) | Self::Register(_) => (0, 1),
            Self::Duplicate => (1, 2),
            Self::Swap => (2, 2),
            Self::Rotate => (3, 3),
            Self::Pick(depth) => (usize::from(depth) + 1, usize::from(depth) + 2),
            Self::Trace { drops: 0 } => (1, 1),
            Self::Trace { drops } => (drops, 0),
        }
    }
}

/// An expression that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentExpression {
    /// By the byte it begins at: each operator that can be reached, and where the next one is.
    operators: BTreeMap<usize, (Operator, usize)>,
}

impl AgentExpression {
    /// Takes `code`, in which registers are numbers that `has_register` knows.
    pub(super) fn check(code: &[u8], has_register: impl Fn(u16) -> bool) -> Result<Self, Invalid> {
        if code.len() > BYTES_MAX {
            return Err(Invalid::Long);
        }
        let mut operators = BTreeMap::new();
        let mut heights = BTreeMap::new();
        let mut to_do = vec![(0usize, 0usize)];
        while let Some((at, height)) = to_do.pop() {
            if let Some(known) = heights.insert(at, height) {
                if known != height {
                    return Err(Invalid::Paths(at));
                }
                continue;
            }
            let (operator, bytes) = Operator::decode(code, at)?;
            if let Operator::Register(number) = operator
                && !has_register(number)
            {
                return Err(Invalid::Register(number));
            }
            let next = at + bytes;
            operators.insert(at, (operator, next));
            let (takes, gives) = operator.heights();
            let height = height.checked_sub(takes).ok_or(Invalid::Height(at))? + gives;
            if height > HEIGHT_MAX {
                return Err(Invalid::Height(at));
            }
            let (branch, goes_on) = match operator {
                Operator::JumpIf(target) => (Some(target), true),
                Operator::Jump(target) => (Some(target), false),
                Operator::End => (None, false),
                _ => (None, true),
            };
            to_do.extend(branch.map(|target| (usize::from(target), height)));
            to_do.extend(goes_on.then_some((next, height)));
        }
        // An operator that begins inside of another one makes sense to nobody.
        let ends = operators.values().map(|&(_, next)| next);
        match operators.keys().skip(1).zip(ends).find(|&(&at, end)| at < end) {
            Some((&at, _)) => Err(Invalid::Paths(at)),
            None => Ok(Self { operators }),
        }
    }

    /// Its value in `world`.
    pub(super) fn evaluate(&self, world: &mut dyn World) -> Result<u64, Failure> {
        let mut stack = Vec::with_capacity(HEIGHT_MAX);
        let mut at = 0;
        for _ in 0..STEPS_MAX {
            // The check has followed every path: the operator is there, and its values are.
            let Some(&(operator, next)) = self.operators.get(&at) else { break };
            at = next;
            match operator {
                Operator::End => return Ok(stack.pop().unwrap_or_default()),
                Operator::Jump(target) => at = usize::from(target),
                Operator::JumpIf(target) => {
                    if stack.pop().unwrap_or_default() != 0 {
                        at = usize::from(target);
                    }
                }
                operator => execute(operator, &mut stack, world)?,
            }
        }
        Err(Failure::Endless)
    }
}

fn execute(operator: Operator, stack: &mut Vec<u64>, world: &mut dyn World) -> Result<(), Failure> {
    let mut pop = || stack.pop().unwrap_or_default();
    let value = match operator {
        Operator::Binary(binary) => {
            let right = pop();
            binary.apply(pop(), right)?
        }
        Operator::LogNot => u64::from(pop() == 0),
        Operator::BitNot => !pop(),
        Operator::SignExtend(bits) => sign_extend(pop(), bits),
        Operator::ZeroExtend(bits) => zero_extend(pop(), bits),
        Operator::Load(bytes) => load(pop(), bytes, world)?,
        Operator::Constant(value) => value,
        Operator::Register(number) => world.register(number).ok_or(Failure::Register(number))?,
        Operator::Duplicate => stack.last().copied().unwrap_or_default(),
        Operator::Pick(depth) => stack.iter().rev().nth(depth.into()).copied().unwrap_or_default(),
        Operator::Pop => {
            pop();
            return Ok(());
        }
        Operator::Trace { drops } => {
            stack.truncate(stack.len().saturating_sub(drops));
            return Ok(());
        }
        Operator::Swap => {
            let height = stack.len();
            stack.swap(height - 1, height - 2);
            return Ok(());
        }
        Operator::Rotate => {
            // The topmost goes below the two under it.
            let height = stack.len();
            stack[height - 3..].rotate_right(1);
            return Ok(());
        }
        Operator::Jump(_) | Operator::JumpIf(_) | Operator::End => return Ok(()),
    };
    stack.push(value);
    Ok(())
}

impl Binary {
    fn apply(self, left: u64, right: u64) -> Result<u64, Failure> {
        let (left_signed, right_signed) = (left as i64, right as i64);
        let divides = matches!(
            self,
            Self::DivSigned | Self::DivUnsigned | Self::RemSigned | Self::RemUnsigned
        );
        if divides && right == 0 {
            return Err(Failure::Division);
        }
        // A shift by more bits than there are leaves none.
        let bits = u32::try_from(right).unwrap_or(u32::MAX);
        Ok(match self {
            Self::Add => left.wrapping_add(right),
            Self::Sub => left.wrapping_sub(right),
            Self::Mul => left.wrapping_mul(right),
            Self::DivSigned => left_signed.wrapping_div(right_signed) as u64,
            Self::DivUnsigned => left / right,
            Self::RemSigned => left_signed.wrapping_rem(right_signed) as u64,
            Self::RemUnsigned => left % right,
            Self::ShiftLeft => left.checked_shl(bits).unwrap_or(0),
            Self::ShiftRightSigned => (left_signed >> bits.min(63)) as u64,
            Self::ShiftRightUnsigned => left.checked_shr(bits).unwrap_or(0),
            Self::And => left & right,
            Self::Or => left | right,
            Self::Xor => left ^ right,
            Self::Equal => u64::from(left == right),
            Self::LessSigned => u64::from(left_signed < right_signed),
            Self::LessUnsigned => u64::from(left < right),
        })
    }
}

fn zero_extend(value: u64, bits: u8) -> u64 {
    match bits {
        0 => 0,
        64.. => value,
        _ => value & ((1 << bits) - 1),
    }
}

fn sign_extend(value: u64, bits: u8) -> u64 {
    match bits {
        0 => 0,
        64.. => value,
        _ => ((value << (64 - bits)) as i64 >> (64 - bits)) as u64,
    }
}

/// Reads memory as the guest, whose lowest byte comes first, does.
fn load(address: u64, bytes: u8, world: &mut dyn World) -> Result<u64, Failure> {
    let mut value = [0; 8];
    let (wanted, _) = value.split_at_mut(usize::from(bytes).min(8));
    if !world.memory(address, wanted) {
        return Err(Failure::Memory(address));
    }
    Ok(u64::from_le_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Register 1 is 5, register 2 is none; memory at 0x1000 counts up.
    struct Fake;

    impl World for Fake {
        fn register(&mut self, number: u16) -> Option<u64> {
            (number == 1).then_some(5)
        }

        fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
            (0x81u8..).zip(bytes).for_each(|(value, byte)| *byte = value);
            address == 0x1000
        }
    }

    fn value(code: &[u8]) -> Result<u64, String> {
        let checked = AgentExpression::check(code, |number| number < 3);
        let expression = checked.map_err(|invalid| invalid.to_string())?;
        expression.evaluate(&mut Fake).map_err(|failure| failure.to_string())
    }

    #[test]
    fn operators_do_what_the_manual_says() {
        const M7: [u8; 4] = [0x22, 7, 0x16, 0]; // const8 7, ext 0: replaced below
        let minus = |n: u8| [0x22, n, 0x16, 8]; // a constant of one byte, sign-extended
        let both = |a: [u8; 4], b: [u8; 4], op: u8| [&a[..], &b, &[op, 0x27]].concat();
        assert_eq!(value(&[&M7[..], &[0x27]].concat()), Ok(0));
        #[rustfmt::skip]
        let binaries: [(u8, u8, u8, u64); 18] = [
            (0x02, 7, 0xfe, 5), (0x03, 7, 9, -2i64 as u64), (0x04, 7, 0xfe, -14i64 as u64),
            (0x05, 0xf9, 2, -3i64 as u64), (0x06, 0xf9, 2, (-7i64 as u64) / 2),
            (0x07, 0xf9, 2, -1i64 as u64), (0x08, 9, 5, 4), (0x09, 3, 4, 48),
            (0x0a, 0xf0, 2, -4i64 as u64), (0x0b, 0x70, 2, 0x1c), (0x0f, 6, 3, 2),
            (0x10, 6, 3, 7), (0x11, 6, 3, 5), (0x13, 6, 6, 1), (0x14, 0xff, 1, 1),
            (0x15, 0xff, 1, 0), (0x09, 3, 64, 0), (0x0a, 0x80, 0x7f, u64::MAX),
        ];
        for (operator, left, right, expected) in binaries {
            let code = both(minus(left), minus(right), operator);
            assert_eq!(value(&code), Ok(expected), "{operator:#x} {left:#x} {right:#x}");
        }
        #[rustfmt::skip]
        let rows: [(&[u8], u64); 15] = [
            (&[0x22, 0, 0x0e, 0x27], 1),
            (&[0x22, 0, 0x12, 0x27], u64::MAX),
            (&[0x22, 0x85, 0x16, 8, 0x27], 0xffff_ffff_ffff_ff85),
            (&[0x22, 0x85, 0x16, 64, 0x27], 0x85),
            (&[0x22, 0x85, 0x2a, 4, 0x27], 5),
            (&[0x23, 0x10, 0, 0x17, 0x27], 0x81),
            (&[0x23, 0x10, 0, 0x18, 0x27], 0x8281),
            (&[0x23, 0x10, 0, 0x19, 0x27], 0x8483_8281),
            (&[0x23, 0x10, 0, 0x1a, 0x27], 0x8887_8685_8483_8281),
            (&[0x24, 1, 2, 3, 4, 0x27], 0x0102_0304),
            (&[0x25, 1, 2, 3, 4, 5, 6, 7, 8, 0x27], 0x0102_0304_0506_0708),
            (&[0x26, 0, 1, 0x27], 5),
            // 1 2 3 rotated is 3 1 2; the one in the middle, then.
            (&[0x22, 1, 0x22, 2, 0x22, 3, 0x33, 0x29, 0x27], 1),
            (&[0x22, 1, 0x22, 2, 0x2b, 0x03, 0x27], 1),
            (&[0x22, 7, 0x22, 9, 0x32, 1, 0x28, 0x02, 0x27], 14),
        ];
        for (code, expected) in rows {
            assert_eq!(value(code), Ok(expected), "{code:x?}");
        }
    }

    #[test]
    fn jumps_are_taken_and_loops_end() {
        // register 1 == 5 ? 11 : 22
        let code = [0x26, 0, 1, 0x22, 5, 0x13, 0x20, 0, 14, 0x22, 22, 0x21, 0, 16, 0x22, 11, 0x27];
        assert_eq!(value(&code), Ok(11));
        // Ten, down to zero.
        let count = [0x22, 10, 0x22, 1, 0x03, 0x28, 0x20, 0, 2, 0x27];
        assert_eq!(value(&count), Ok(0));
        assert!(value(&[0x21, 0, 0]).unwrap_err().contains("too long"));
    }

    #[test]
    fn what_cannot_be_read_or_divided_has_no_value() {
        for (code, word) in [
            (&[0x22, 1, 0x17, 0x27][..], "memory at 0x1"),
            (&[0x26, 0, 2, 0x27], "register 2"),
            (&[0x22, 1, 0x22, 0, 0x05, 0x27], "zero"),
            (&[0x22, 1, 0x22, 0, 0x08, 0x27], "zero"),
        ] {
            assert!(value(code).unwrap_err().contains(word), "{code:x?}");
        }
        // The smallest number by minus one overflows nothing.
        let code = [0x22, 1, 0x22, 63, 0x09, 0x22, 0xff, 0x16, 8, 0x05, 0x27];
        assert_eq!(value(&code), Ok(1 << 63));
    }

    #[test]
    fn what_is_no_expression_is_refused_before_it_is_taken() {
        #[rustfmt::skip]
        let rows: [(&[u8], &str); 17] = [
            (&[], "ends at byte 0"),
            (&[0x22], "ends at byte 0"),
            (&[0x22, 1], "ends at byte 2"),
            (&[0x25, 1, 2, 3], "ends at byte 0"),
            (&[0x27], "too few"),
            (&[0x22, 1, 0x02, 0x27], "too few"),
            (&[0x22, 1, 0x32, 1, 0x27], "too few"),
            (&[0x26, 0, 3, 0x27], "register 3"),
            (&[0x21, 0xff, 0xff], "ends at byte 65535"),
            // A stack that grows with each round, and paths of different heights.
            (&[0x22, 1, 0x21, 0, 0], "byte 0 is reached with"),
            (&[0x22, 1, 0x20, 0, 0, 0x27], "too few"),
            // Into the middle of a constant.
            (&[0x22, 0x27, 0x28, 0x20, 0, 1, 0x27], "byte 1 is reached"),
            (&[0x01, 0x27], "operator 0x01"),
            (&[0x22, 1, 0x2d, 0, 1, 0x27], "operator 0x2d"),
            (&[0x2e, 0, 1, 0x27], "operator 0x2e"),
            (&[0x34, 0x27], "operator 0x34"),
            (&[0x00], "operator 0x00"),
        ];
        for (code, word) in rows {
            let refusal = value(code).unwrap_err();
            assert!(refusal.contains(word), "{code:x?}: {refusal}");
        }
        let deep = [[0x22, 1].repeat(HEIGHT_MAX + 1), vec![0x27]].concat();
        assert!(value(&deep).unwrap_err().contains("too many"));
        assert!(value(&[0x27; BYTES_MAX + 1]).unwrap_err().contains("longer"));
    }

    #[test]
    fn random_bytes_are_refused_or_evaluated() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut number = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..200_000 {
            let count = 1 + number() % 12;
            let mut code: Vec<u8> = Vec::new();
            for _ in 0..count {
                let byte = number() as u8;
                code.push(if byte < 200 { byte % 0x35 } else { byte });
            }
            code.push(0x27);
            match AgentExpression::check(&code, |number| number < 3) {
                Ok(expression) => {
                    let _ = expression.evaluate(&mut Fake);
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(taken > 1000 && refused > 1000, "{taken} {refused}");
    }
}
