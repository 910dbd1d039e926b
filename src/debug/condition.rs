//! Conditions of the monitor's breakpoints: numbers, `$registers` and memory, compared.
//!
//! An expression is read once, into a tree, and evaluated at each hit. It is C's in small: `||`,
//! `&&`, `|`, `^`, `&`, comparisons, shifts, sums, products and `!`, on unsigned numbers of 64
//! bits; `byte[ADDRESS]`, `word[...]`, `dword[...]` and `qword[...]` are memory. Names of symbols
//! are numbers, which are looked up when the expression is read.

use std::fmt;

use cpu::Cpu;
use cpu::debugger::Condition;

use super::parse;
use super::registers::{self, Register};

/// Tokens of an expression at most: a bound on its depth too.
const TOKENS_MAX: usize = 256;

/// When a breakpoint counts.
#[derive(Debug)]
pub(crate) struct When {
    /// With this page as the root of the page tables.
    cr3: Option<u64>,
    expression: Option<Expression>,
}

impl When {
    /// The condition, if there is one at all.
    pub(crate) fn new(cr3: Option<u64>, expression: Option<Expression>) -> Option<Self> {
        (cr3.is_some() || expression.is_some()).then_some(Self { cr3, expression })
    }
}

impl fmt::Display for When {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cr3, expression } = self;
        cr3.map_or(Ok(()), |cr3| write!(out, " cr3 {cr3:#x}"))?;
        expression.as_ref().map_or(Ok(()), |expression| write!(out, " if {}", expression.text))
    }
}

impl Condition for When {
    fn holds(&self, cpu: &mut Cpu) -> bool {
        // The low bits are the PCID's, or say how the root is cached.
        let is_other = |cr3: u64| (cr3 ^ cpu.state.cr3) >> 12 != 0;
        if self.cr3.is_some_and(is_other) {
            return false;
        }
        // What has no value stops: somebody ought to look.
        let value = self.expression.as_ref().map(|expression| expression.root.value(cpu));
        value.is_none_or(|value| value != Some(0))
    }
}

/// An expression, and how it was written.
#[derive(Debug)]
pub(crate) struct Expression {
    text: String,
    root: Node,
}

#[derive(Debug)]
enum Node {
    Number(u64),
    Register(&'static Register),
    Memory { bytes: usize, address: Box<Node> },
    Not(Box<Node>),
    Binary(Binary, Box<Node>, Box<Node>),
}

type Binary = fn(u64, u64) -> u64;

/// Operators of two values: how they are written, how strongly they bind, and what they do. Those
/// that begin like others come first.
#[rustfmt::skip]
const OPERATORS: [(&str, u8, Binary); 18] = [
    ("||", 1, |a, b| u64::from(a != 0 || b != 0)),
    ("&&", 2, |a, b| u64::from(a != 0 && b != 0)),
    ("==", 6, |a, b| u64::from(a == b)),
    ("!=", 6, |a, b| u64::from(a != b)),
    ("<=", 7, |a, b| u64::from(a <= b)),
    (">=", 7, |a, b| u64::from(a >= b)),
    ("<<", 8, |a, b| a.checked_shl(u32::try_from(b).unwrap_or(u32::MAX)).unwrap_or(0)),
    (">>", 8, |a, b| a.checked_shr(u32::try_from(b).unwrap_or(u32::MAX)).unwrap_or(0)),
    ("|",  3, |a, b| a | b),
    ("^",  4, |a, b| a ^ b),
    ("&",  5, |a, b| a & b),
    ("<",  7, |a, b| u64::from(a < b)),
    (">",  7, |a, b| u64::from(a > b)),
    ("+",  9, u64::wrapping_add),
    ("-",  9, u64::wrapping_sub),
    ("*", 10, u64::wrapping_mul),
    ("/", 10, |a, b| a.checked_div(b).unwrap_or(0)),
    ("%", 10, |a, b| a.checked_rem(b).unwrap_or(0)),
];

impl Node {
    /// Its value; none if it asks for what is not there.
    fn value(&self, cpu: &mut Cpu) -> Option<u64> {
        Some(match self {
            Self::Number(value) => *value,
            Self::Register(register) => register.number(cpu)?,
            Self::Memory { bytes, address } => {
                let address = address.value(cpu)?;
                let mut value = [0; 8];
                let wanted = value.get_mut(..*bytes)?;
                if cpu.inspect_bytes(address, wanted) != *bytes {
                    return None;
                }
                u64::from_le_bytes(value)
            }
            Self::Not(node) => u64::from(node.value(cpu)? == 0),
            Self::Binary(operator, left, right) => operator(left.value(cpu)?, right.value(cpu)?),
        })
    }
}

/// Gives the address of a symbol.
pub(crate) type Names<'a> = dyn FnMut(&str) -> Option<u64> + 'a;

/// Reads an expression, in which names are those of `names`.
pub(crate) fn parse(text: &str, names: &mut Names<'_>) -> Result<Expression, String> {
    let mut parser = Parser { rest: text.trim(), tokens: 0, names };
    let root = parser.binary(0)?;
    if !parser.rest.is_empty() {
        return Err(format!("{}: expected an operator, such as ==", parser.rest));
    }
    Ok(Expression { text: text.trim().to_owned(), root })
}

struct Parser<'a, 'n> {
    rest: &'a str,
    tokens: usize,
    names: &'n mut Names<'n>,
}

impl<'a> Parser<'a, '_> {
    /// Takes `token`, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest.trim_start();
        self.tokens += 1;
        true
    }

    fn word(&mut self) -> &'a str {
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || "$_.:@".contains(letter);
        let end = self.rest.find(|letter| !is_part(letter)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        self.tokens += 1;
        word
    }

    /// Values with operators between them that bind more strongly than `strength`.
    fn binary(&mut self, strength: u8) -> Result<Node, String> {
        let mut left = self.single()?;
        loop {
            let next = OPERATORS.iter().find(|(token, ..)| self.rest.starts_with(token));
            let Some((token, binds, operator)) = next.filter(|(_, binds, _)| *binds > strength)
            else {
                return Ok(left);
            };
            self.take(token);
            let right = self.binary(*binds)?;
            left = Node::Binary(*operator, Box::new(left), Box::new(right));
        }
    }

    fn single(&mut self) -> Result<Node, String> {
        if self.tokens > TOKENS_MAX {
            return Err("the expression is too long".into());
        }
        if self.take("!") {
            return Ok(Node::Not(Box::new(self.single()?)));
        }
        if self.take("(") {
            return self.closed_by(")");
        }
        let word = self.word();
        let bytes = match word {
            "byte" => 1,
            "word" => 2,
            "dword" => 4,
            "qword" => 8,
            _ => return self.value(word),
        };
        if !self.take("[") {
            return Err(format!("{word}: say where, as in {word}[0x7c00]"));
        }
        Ok(Node::Memory { bytes, address: Box::new(self.closed_by("]")?) })
    }

    fn closed_by(&mut self, token: &str) -> Result<Node, String> {
        let inside = self.binary(0)?;
        if self.take(token) { Ok(inside) } else { Err(format!("{token} is missing")) }
    }

    fn value(&mut self, word: &str) -> Result<Node, String> {
        let Some(name) = word.strip_prefix('$') else {
            let number = parse::number(word).or_else(|| (self.names)(word));
            return number.map(Node::Number).ok_or_else(|| {
                format!("'{word}': no such symbol; give a number, a $register or a name")
            });
        };
        let register = registers::by_name(name).filter(|register| register.bytes() <= 8);
        register
            .map(Node::Register)
            .ok_or_else(|| format!("${name}: no such register, or it is no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Accel, Config};
    use crate::vm::Vm;

    #[test]
    fn operators_bind_as_in_c_and_registers_and_memory_have_values() {
        let config = Config { accel: Accel::Interp, backends: Vec::new(), ..Config::default() };
        let vm = Vm::new(&config).expect("a machine");
        let mut engine = vm.first_cpu().expect("a CPU");
        let cpu = engine.cpu_mut();
        cpu.state.gpr[cpu::state::gpr::RCX] = 5;
        assert!(cpu.patch_bytes(0x600, &[1, 2, 3, 4, 5, 6, 7, 8]));
        let rows = [
            ("1 + 2 * 3 == 7 && 10 - 3 - 2 == 5", Some(1)),
            ("$rcx == 5", Some(1)),
            ("$rcx<5||$rcx>5", Some(0)),
            ("1 | 2 ^ 2 & 3 == 3", Some(3)),
            ("1 << 4 >> 2", Some(4)),
            ("!($rcx & 4)", Some(0)),
            ("byte[0x600] + word[0x600 + 2]", Some(0x404)),
            ("dword[0x600] == 0x04030201", Some(1)),
            ("qword[0x600] % 256 / 1", Some(1)),
            ("7 / 0 + 7 % 0 + (1 << 64) + (1 >> 64)", Some(0)),
            ("byte[0xe0000000]", None),
            ("counter", Some(0x600)),
            ("dword[counter+1] == 0x05040302 && rom.elf:count.cold == 7", Some(1)),
        ];
        let mut names = |name: &str| match name {
            "counter" => Some(0x600),
            "rom.elf:count.cold" => Some(7),
            _ => None,
        };
        for (text, expected) in rows {
            let expression =
                parse(text, &mut names).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(expression.root.value(cpu), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        let deep = "(".repeat(100_000);
        let long = "1+".repeat(100_000) + "1";
        let nots = "!".repeat(100_000) + "1";
        let rows = [
            ("", "give a number"),
            ("$rcx ==", "give a number"),
            ("dword[counter] == 1", "'counter': no such symbol"),
            ("$nothing", "no such register"),
            ("$ymm0h", "no number"),
            ("(1", ") is missing"),
            ("byte[1", "] is missing"),
            ("byte 1", "say where"),
            ("1 2", "expected an operator"),
            ("1 = 2", "expected an operator"),
            ("é", "give a number"),
            (&deep, "too long"),
            (&long, "too long"),
            (&nots, "too long"),
        ];
        for (text, word) in rows {
            let error = parse(text, &mut |_| None).map(drop).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
