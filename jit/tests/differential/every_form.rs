//! Every form of instruction that user code can execute, once in each mode.

use decoder::{Privilege, Row};
use iced_x86::Mnemonic as M;

use crate::pool::{Pool, exists};
use crate::translator::{Kind, Translator};
use crate::world::{Mode, World};
use crate::{generate, reference, shrink};

/// States of each form with its operand in a register, and in memory.
const STATES: u64 = 2;
/// More tries for a form of which no state could be compared.
const RETRIES: u64 = 20;
/// Forms that share engines.
const BATCH: usize = 64;

/// Forms of which some host or mode has nothing that can be compared.
const INCOMPARABLE: &[(M, &str)] = &[
    (M::Monitor, "its address is watched, which nothing shows"),
    (M::Monitorx, "as MONITOR"),
    (M::Mwait, "waits"),
    (M::Mwaitx, "waits"),
    (M::Tpause, "waits"),
    (M::Umwait, "waits"),
    (M::Umonitor, "as MONITOR"),
];

/// Parts of names of forms that the test makes no instruction of: branches by 16 bits, which lead
/// out of the code, far branches by immediates, and forms that one vendor alone decodes.
const NOT_MADE: &[&str] = &["rel8_16", "_ptr16", "m1664"];

fn is_user(row: &Row) -> bool {
    let is_open = matches!(row.privilege, Privilege::Any | Privilege::V86Iopl | Privilege::Umip);
    is_open && !INCOMPARABLE.iter().any(|(mnemonic, _)| *mnemonic == row.code.mnemonic())
}

/// Compares every form; the reports of those that differ, and the forms never compared.
fn run(mode: Mode) -> (usize, Vec<String>, Vec<String>) {
    let mut world = World::new(mode);
    let pool = Pool::new(&world.bench.cpu, mode);
    let (mut failures, mut missing, mut forms) = (Vec::new(), Vec::new(), 0);
    let rows: Vec<_> =
        decoder::rows().filter(|row| exists(row, &world.bench.cpu, mode) && is_user(row)).collect();
    for rows in rows.chunks(BATCH) {
        let mut translator = Translator::new(mode, &[Kind::Plain]);
        for row in rows {
            match compare_form(&mut world, &mut translator, &pool, mode, row) {
                Ok(0) => missing.push(format!("{:?}", row.code)),
                Ok(_) => forms += 1,
                Err(report) => failures.push(report),
            }
        }
    }
    (forms, failures, missing)
}

/// Compares one form; how many states were.
fn compare_form(
    world: &mut World,
    translator: &mut Translator,
    pool: &Pool,
    mode: Mode,
    row: &Row,
) -> Result<u32, String> {
    let mut compared = 0;
    for seed in 0..2 * STATES + RETRIES {
        if seed >= 2 * STATES && compared > 0 {
            break;
        }
        let wants = (seed % 2 == 1, seed);
        let Some(case) = generate::case_of_form(pool, world, mode, row, wants) else { continue };
        let Some(ready) = case.ready(world) else { continue };
        let Ok(runs) = reference::run(world, &case, &ready) else { continue };
        let found = translator.run(Kind::Plain, &case, &ready, &runs);
        if !found.is_empty() && !shrink::is_lost(&case, Kind::Plain) {
            let (small, alone) = shrink::shrink(&[], &case, Kind::Plain);
            let (case, found) = if alone.is_empty() { (case, found) } else { (small, alone) };
            return Err(format!("{:?}: {}", row.code, shrink::describe(&case, &found)));
        }
        compared += 1;
    }
    Ok(compared)
}

fn check(mode: Mode, least: usize) {
    if std::env::var_os("JIT_CASE").is_some() {
        return;
    }
    let (forms, failures, missing) = run(mode);
    println!("{mode:?}: {forms} forms compared, not compared: {missing:?}");
    let is_expected = |name: &String| NOT_MADE.iter().any(|part| name.contains(part));
    assert!(missing.iter().all(is_expected), "not compared: {missing:?}");
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
    assert!(forms >= least, "only {forms} forms");
}

#[test]
fn every_form_of_64_bit_mode() {
    check(Mode::User64, 1000);
}

#[test]
fn every_form_of_64_bit_supervisors() {
    check(Mode::Kernel64, 1000);
}

#[test]
fn every_form_of_32_bit_code() {
    check(Mode::User32, 1000);
}
