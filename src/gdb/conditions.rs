//! Conditions of breakpoints that gdb has the machine evaluate.
//!
//! The `gdbstub` crate takes breakpoint packets and leaves out what stands behind the address, so
//! the options are read here, by [`super::guard`], before it sees the packet's end.

use std::fmt;
use std::sync::Arc;

use cpu::Cpu;
use cpu::debugger::Condition;

use super::agent::{AgentExpression, Invalid, World};
use crate::debug::registers::REGISTERS;

/// Expressions of a breakpoint at most.
const EXPRESSIONS_MAX: usize = 64;

/// Expressions, one of which must be other than zero.
#[derive(Debug)]
struct AnyOf(Vec<AgentExpression>);

impl fmt::Display for AnyOf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(" if gdb's condition holds")
    }
}

impl Condition for AnyOf {
    fn holds(&self, cpu: &mut Cpu) -> bool {
        // What cannot be evaluated stops: gdb's user then sees why.
        self.0.iter().any(|expression| match expression.evaluate(&mut Registers(cpu)) {
            Ok(value) => value != 0,
            Err(failure) => {
                log::warn!(target: "gdb", "a condition cannot be evaluated: {failure}");
                true
            }
        })
    }
}

/// The CPU as expressions see it.
struct Registers<'a>(&'a mut Cpu);

impl World for Registers<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        REGISTERS.get(usize::from(number))?.number(self.0)
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        self.0.inspect_bytes(address, bytes) == bytes.len()
    }
}

/// Why the options of a breakpoint are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// They are no list of conditions.
    Malformed,
    /// There are too many.
    Many,
    /// There are commands among them.
    Commands,
    /// One is no expression.
    Expression(Invalid),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => out.write_str("a breakpoint's options are no list of conditions"),
            Self::Many => {
                write!(out, "a breakpoint has more than {EXPRESSIONS_MAX} conditions")
            }
            Self::Commands => out.write_str("a breakpoint's commands are gdb's to run"),
            Self::Expression(why) => write!(out, "a breakpoint's condition is refused: {why}"),
        }
    }
}

/// What a breakpoint packet's options ask for; none without options.
pub(super) fn read(options: &[u8]) -> Result<Option<Arc<dyn Condition>>, Refusal> {
    let mut expressions = Vec::new();
    let mut rest = options;
    while let Some((&first, behind)) = rest.split_first() {
        match first {
            b';' => rest = behind,
            b'X' if expressions.len() == EXPRESSIONS_MAX => return Err(Refusal::Many),
            b'X' => {
                let (code, behind) = expression(behind).ok_or(Refusal::Malformed)?;
                let checked = AgentExpression::check(&code, is_register);
                expressions.push(checked.map_err(Refusal::Expression)?);
                rest = behind;
            }
            _ if rest.starts_with(b"cmds:") => return Err(Refusal::Commands),
            _ => return Err(Refusal::Malformed),
        }
    }
    Ok((!expressions.is_empty()).then(|| Arc::new(AnyOf(expressions)) as Arc<dyn Condition>))
}

fn is_register(number: u16) -> bool {
    REGISTERS.get(usize::from(number)).is_some_and(|register| register.bytes() <= 8)
}

/// The bytes of an expression, written as a length, a comma and digits; and what stands behind.
fn expression(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let comma = text.iter().position(|&byte| byte == b',')?;
    let (length, digits) = text.split_at(comma);
    let length = usize::from_str_radix(std::str::from_utf8(length).ok()?, 16).ok()?;
    let (digits, behind) = digits.get(1..)?.split_at_checked(length.checked_mul(2)?)?;
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    Some((digits.chunks_exact(2).map(byte).collect::<Option<_>>()?, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_conditions_are_read_whole_or_refused() {
        assert!(read(b"").is_ok_and(|condition| condition.is_none()));
        for options in [&b";X3,220127"[..], b";X3,220127X3,220027", b"X3,220127;X3,220027;"] {
            assert!(read(options).is_ok_and(|condition| condition.is_some()), "{options:?}");
        }
        let refusal = |options: &[u8]| read(options).map(drop).unwrap_err();
        #[rustfmt::skip]
        let malformed = [
            &b";X"[..], b";X3", b";X3,2201", b";X3,22012", b";X3,22012g", b";Y", b";X-1,",
            b";Xffffffffffffffff,22", b";X8000000000000000,22", b"22", b";X3,2201271",
        ];
        for options in malformed {
            assert_eq!(refusal(options), Refusal::Malformed, "{options:?}");
        }
        assert_eq!(refusal(b";X3,220127;cmds:0,X3,220127"), Refusal::Commands);
        assert!(matches!(refusal(b";X0,"), Refusal::Expression(Invalid::Cut(0))));
        assert!(matches!(refusal(b";X4,26ffff27"), Refusal::Expression(Invalid::Register(0xffff))));
        assert_eq!(refusal(&b";X3,220127".repeat(65)), Refusal::Many);
    }
}
