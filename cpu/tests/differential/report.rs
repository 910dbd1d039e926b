//! One comparison, and what to print of one that fails.

use std::fmt::Write as _;

use decoder::Class;
use iced_x86::{Formatter, Instruction, Mnemonic as M, NasmFormatter};

use crate::encode::decode;
use crate::host::Host;
use crate::prepare;
use crate::state::{self, Input, Mode, Output, REGISTER_NAMES};

/// What executes the instruction on our side.
pub type Ours<'a> = dyn FnMut(&Input) -> Output + 'a;

/// One state of one instruction, reproducible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub mode: Mode,
    pub code: Vec<u8>,
    pub seed: u64,
}

impl Case {
    /// A line of regressions.txt: bits, code in hex, seed.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mode = match words.next()? {
            "64" => Mode::Bits64,
            "32" => Mode::Bits32,
            _ => return None,
        };
        let hex = words.next()?;
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let code = (0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<_>>>()?;
        let seed = words.next()?.parse().ok()?;
        Some(Self { mode, code, seed })
    }

    fn line(&self) -> String {
        let code: String = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {code} {}", self.mode.bits(), self.seed)
    }
}

/// What a comparison came to.
pub enum Verdict {
    Equal,
    /// The host may never come back.
    NotCompared,
    /// What differs, one line a field.
    Differs(String),
}

/// Runs `input` on both sides.
pub fn compare(host: &mut Host, ours: &mut Ours, input: &Input) -> Verdict {
    let instruction = decode(input.mode, &input.code);
    let row = decoder::row(instruction.code());
    if row.class == Class::Branch && may_jump_to_itself(input) {
        return Verdict::NotCompared;
    }
    let (theirs, mut ours) = (host.run(input), ours(input));
    equate_faults(&instruction, &theirs, &mut ours);
    let differences = state::differences(input.mode, &theirs, &ours);
    if differences.is_empty() { Verdict::Equal } else { Verdict::Differs(differences) }
}

/// Where both operands of CMPS fault, either fault may be the one: the host's own choice changes
/// with REP.
fn equate_faults(instruction: &Instruction, theirs: &Output, ours: &mut Output) {
    let is_cmps = matches!(instruction.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
    if is_cmps && theirs.fault.is_some() && ours.fault.is_some() {
        ours.fault = theirs.fault;
    }
}

/// A jump to itself would never come back from the host. Targets in memory are random or chosen.
fn may_jump_to_itself(input: &Input) -> bool {
    let start = input.registers.rip;
    input.registers.gpr.iter().any(|value| value & 0xffff_fff0 == start & 0xffff_fff0)
}

/// Runs a case that is expected to be equal; the report if it is not.
pub fn check(host: &mut Host, ours: &mut Ours, case: &Case) -> Result<Verdict, String> {
    let input = prepare::input(case.mode, &case.code, case.seed);
    match compare(host, ours, &input) {
        Verdict::Differs(_) => Err(report(host, ours, case, input)),
        verdict => Ok(verdict),
    }
}

/// Shrinks the state and describes what is left of it.
fn report(host: &mut Host, ours: &mut Ours, case: &Case, mut input: Input) -> String {
    shrink(host, ours, &mut input);
    let Verdict::Differs(differences) = compare(host, ours, &input) else {
        return format!("not reproducible: {}", case.line());
    };
    let mut assembly = String::new();
    NasmFormatter::new().format(&decode(input.mode, &input.code), &mut assembly);
    let mut text = format!("{assembly}\n  state   rflags={:#x}", input.registers.rflags);
    for (name, value) in REGISTER_NAMES.iter().zip(input.registers.gpr).filter(|(_, v)| *v != 0) {
        let _ = write!(text, " {name}={value:#x}");
    }
    let _ = write!(text, "\n{differences}  regressions.txt: {}\n", case.line());
    text
}

/// Clears registers and flags for as long as some difference stays.
fn shrink(host: &mut Host, ours: &mut Ours, input: &mut Input) {
    let mut try_smaller = |input: &mut Input, change: &dyn Fn(&mut Input)| {
        let mut smaller = input.clone();
        change(&mut smaller);
        if let Verdict::Differs(_) = compare(host, ours, &smaller) {
            *input = smaller;
        }
    };
    for register in 0..16 {
        try_smaller(input, &|input| input.registers.gpr[register] = 0);
        try_smaller(input, &|input| input.registers.gpr[register] &= 0xff_ffff);
    }
    for flag in [0, 2, 4, 6, 7, 10, 11] {
        try_smaller(input, &|input| input.registers.rflags &= !(1 << flag));
    }
}
