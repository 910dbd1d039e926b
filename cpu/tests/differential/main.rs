//! Each general-purpose instruction form that user code can execute, on the host's CPU and in the
//! interpreter: random encodings, operands, flags and memory, every bit of the outcome compared,
//! what the manuals leave undefined and exceptions included.
//!
//! `VOLVELLE_DIFFERENTIAL_STATES` sets the states per form (1,000 unless told). SIMD and x87 forms
//! run on the host's own instructions; their test is that of the thunks.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod encode;
mod form;
mod guest;
mod host;
mod prepare;
mod report;
mod state;

use decoder::Row;
use iced_x86::Mnemonic;

use crate::encode::{Encoding, encode};
use crate::guest::Guest;
use crate::host::Host;
use crate::report::{Case, Ours, Verdict, check};
use crate::state::{Input, Mode, Output};
use cpu::testing::random::Random;

const DEFAULT_STATES: u64 = 1000;
/// States that share an encoding.
const STATES_PER_ENCODING: u64 = 10;

fn states_per_form() -> u64 {
    match std::env::var("VOLVELLE_DIFFERENTIAL_STATES") {
        Ok(text) => text.parse().expect("VOLVELLE_DIFFERENTIAL_STATES is a number"),
        Err(_) => DEFAULT_STATES,
    }
}

/// The rows that are compared in `mode`.
fn compared(mode: Mode) -> impl Iterator<Item = &'static Row> {
    decoder::rows()
        .filter(|row| form::is_general(row) && form::exclusion(row).is_none())
        .filter(move |row| form::is_on_host(row, mode) && form::modes(row).contains(&mode))
}

/// What became of one form.
#[derive(Default)]
struct Tally {
    states: u64,
    /// The first failure's report.
    failure: Option<String>,
}

/// Compares `states` states of one form, up to the first failure.
fn run_form(host: &mut Host, ours: &mut Ours, mode: Mode, row: &Row, states: u64) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::new((row.code as u64) << 8 | u64::from(mode.bits()));
    let encoding = Encoding { mode, with_low_page: host.has_low_page() };
    let mut code = Vec::new();
    let mut until_next = 0;
    while tally.states < states && tally.failure.is_none() {
        if until_next == 0 {
            match encode(&mut random, encoding, row.code, row.lock) {
                Ok(bytes) => code = bytes,
                Err(why) => {
                    tally.failure = Some(format!("cannot be encoded: {why}"));
                    break;
                }
            }
            until_next = STATES_PER_ENCODING;
        }
        until_next -= 1;
        let case = Case { mode, code: code.clone(), seed: random.bits() };
        match check(host, ours, &case) {
            Ok(Verdict::NotCompared) => continue,
            Ok(_) => {}
            Err(report) => tally.failure = Some(report),
        }
        tally.states += 1;
    }
    tally
}

/// Compares every form of `mode`; the reports of those that fail.
fn run_mode(mode: Mode) -> Vec<String> {
    let mut host = Host::new().expect("the host lets tests map low memory");
    let mut guest = Guest::new();
    let states = states_per_form();
    let (mut forms, mut failures) = (0, Vec::new());
    for row in compared(mode) {
        let tally = run_form(&mut host, &mut |input| guest.run(input), mode, row, states);
        forms += 1;
        failures.extend(tally.failure.map(|report| format!("{:?}: {report}", row.code)));
    }
    println!("{mode:?}: {forms} forms, {states} states each");
    failures
}

fn assert_none(failures: &[String]) {
    let count = failures.len();
    assert!(failures.is_empty(), "{count} forms differ from the host:\n{}", failures.join("\n"));
}

#[test]
fn what_failed_once_is_right_now() {
    let mut host = Host::new().expect("the host lets tests map low memory");
    let mut guest = Guest::new();
    let lines = include_str!("regressions.txt").lines();
    let mut failures = Vec::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let case = Case::parse(line).unwrap_or_else(|| panic!("not a case: {line}"));
        failures.extend(check(&mut host, &mut |input| guest.run(input), &case).err());
    }
    assert_none(&failures);
}

#[test]
fn every_form_of_64_bit_mode_does_what_the_host_does() {
    assert_none(&run_mode(Mode::Bits64));
}

#[test]
fn every_form_of_compatibility_mode_does_what_the_host_does() {
    assert_none(&run_mode(Mode::Bits32));
}

#[test]
fn every_exclusion_has_a_row_and_the_rest_is_a_lot() {
    for row in decoder::rows().filter(|row| form::is_general(row)) {
        if let Some(why) = form::exclusion(row) {
            println!("{:?}: left out: {why}", row.code);
        } else if !form::modes(row).into_iter().any(|mode| form::is_on_host(row, mode)) {
            println!("SKIPPED {:?}: this host does not have it", row.code);
        }
    }
    form::assert_exclusions_are_used();
    assert!(compared(Mode::Bits64).count() > 500);
    assert!(compared(Mode::Bits32).count() > 400);
}

/// The mutation checks: an interpreter with one fault must be told apart from the host.
fn assert_caught(mnemonic: Mnemonic, mutate: impl Fn(&mut Guest, &Input) -> Output) {
    let mut host = Host::new().expect("the host lets tests map low memory");
    let mut guest = Guest::new();
    for row in compared(Mode::Bits64).filter(|row| row.code.mnemonic() == mnemonic) {
        let ours = &mut |input: &Input| mutate(&mut guest, input);
        let tally = run_form(&mut host, ours, Mode::Bits64, row, DEFAULT_STATES);
        assert!(tally.failure.is_some(), "{:?}: the fault was not seen", row.code);
    }
}

#[test]
fn a_broken_flag_rule_is_caught() {
    const AF: u64 = 1 << 4;
    assert_caught(Mnemonic::Add, |guest, input| {
        let mut output = guest.run(input);
        // ADD forgets AF.
        output.registers.rflags &= !AF;
        output
    });
}

#[test]
fn a_broken_table_row_is_caught() {
    assert_caught(Mnemonic::Adc, |guest, input| {
        // As if ADC's rows named ADD's functions: no carry comes in.
        let mut without_carry = input.clone();
        without_carry.registers.rflags &= !1;
        let mut output = guest.run(&without_carry);
        if output.fault.is_some() {
            output.registers.rflags = input.registers.rflags;
        }
        output
    });
}

#[test]
fn a_lost_write_is_caught() {
    assert_caught(Mnemonic::Stosb, |guest, input| {
        let mut output = guest.run(input);
        output.memory = input.memory.clone();
        output
    });
}
