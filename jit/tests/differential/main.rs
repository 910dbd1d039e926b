//! The translator against the interpreter: random programs, and every form of instruction once.
//!
//! A failure names its case; `JIT_CASE=Mode:seed` runs that one alone, `JIT_KIND=Plain` in one way
//! alone, `JIT_FIRST=seed` begins elsewhere. `JIT_SOAK_SECONDS` goes on with new seeds for that
//! long altogether.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

mod address;
mod case;
mod compare;
mod every_form;
mod generate;
mod ignored;
mod pool;
mod program;
mod quirk;
mod reference;
mod shrink;
mod translator;
mod world;
mod x87_page;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::pool::Pool;
use crate::translator::{KINDS, Kind, Translator};
use crate::world::{Mode, World};

/// Cases that share engines.
const BATCH: u64 = 64;
/// Kinds of programs.
const CAMPAIGNS: u64 = 6;
/// Failures that are shrunk and shown.
const SHOWN: usize = 3;

/// The ways that are tried: all, or the one that `JIT_KIND` names.
fn kinds() -> Vec<Kind> {
    let name = std::env::var("JIT_KIND").unwrap_or_default();
    let is_meant = |kind: &Kind| name.is_empty() || name.contains(&format!("{kind:?}"));
    KINDS.into_iter().filter(is_meant).collect()
}

/// Both engines, and what programs are made of.
struct Bench {
    mode: Mode,
    pool: Pool,
    world: World,
    translator: Translator,
    discarded: BTreeMap<String, u64>,
    done: u64,
}

impl Bench {
    fn new(mode: Mode) -> Self {
        let world = World::new(mode);
        let pool = Pool::new(&world.bench.cpu, mode);
        let translator = Translator::new(mode, &KINDS);
        Self { mode, pool, world, translator, discarded: BTreeMap::new(), done: 0 }
    }

    /// What no program should reach must be the same too.
    fn check_all_memory(&mut self, seed: u64) -> Option<String> {
        let blank = vec![0; world::PAGES.len() * world::PAGE as usize];
        self.world.restore(&blank, world::Rights::default());
        self.translator.restore(&blank);
        let at = self.translator.world().first_difference(&self.world)?;
        Some(format!("{:?}: memory near {at:#x} differs before case {seed:#x}", self.mode))
    }

    /// Runs the case of `seed`; the report if the engines differ.
    fn check(&mut self, seed: u64) -> Option<String> {
        let case = generate::case(&self.pool, &self.world, self.mode, seed);
        let Some(ready) = case.ready(&self.world) else {
            *self.discarded.entry("cannot be encoded".into()).or_default() += 1;
            return None;
        };
        let runs = match reference::run(&mut self.world, &case, &ready) {
            Ok(runs) => runs,
            Err(why) => {
                *self.discarded.entry(format!("{why:?}")).or_default() += 1;
                return None;
            }
        };
        self.done += 1;
        for kind in kinds() {
            let found = self.translator.run(kind, &case, &ready, &runs);
            if !found.is_empty() && !shrink::is_lost(&case, kind) {
                return Some(self.report(&case, kind, &found));
            }
        }
        None
    }
}

impl Bench {
    /// The smallest case found that fails as `case` does, with the one before it that it needs.
    fn report(&self, case: &Case, kind: Kind, found: &[String]) -> String {
        let (small, differences) = shrink::shrink(&[], case, kind);
        if !differences.is_empty() {
            return shrink::describe(&small, &differences);
        }
        let before: Vec<Case> = (case.seed - case.seed % BATCH..case.seed)
            .map(|seed| generate::case(&self.pool, &self.world, self.mode, seed))
            .collect();
        if shrink::differs(&before, case, kind).is_empty() {
            return format!("only behind others: {}", shrink::describe(case, found));
        }
        let mut before = shrink::needed(&before, case, kind);
        let (small, differences) = shrink::shrink(&before, case, kind);
        shrink::shrink_before(&mut before, &small, kind);
        let before: String = before.iter().map(|case| shrink::describe(case, &[])).collect();
        format!("behind\n{before}this:\n{}", shrink::describe(&small, &differences))
    }
}

/// Runs cases of `mode`: `count` of them, or for as long as a soak takes.
fn campaign(mode: Mode, count: u64) {
    if let Ok(text) = std::env::var("JIT_CASE") {
        return one(mode, &text);
    }
    let soak = std::env::var("JIT_SOAK_SECONDS").ok().and_then(|text| text.parse::<u64>().ok());
    // The campaigns share the time, two at once.
    let limit = soak.map(|seconds| Duration::from_secs(seconds / (CAMPAIGNS / 2)));
    let started = Instant::now();
    let mut bench = Bench::new(mode);
    let mut failures = Vec::new();
    let first = std::env::var("JIT_FIRST").ok().and_then(|text| text.parse().ok());
    // A soak begins where the test ends.
    let mut seed: u64 = first.unwrap_or(if soak.is_some() { count } else { 0 });
    let count = seed + count;
    while limit.map_or(seed < count, |limit| started.elapsed() < limit) && failures.len() < SHOWN {
        if seed.is_multiple_of(BATCH) {
            bench.translator = Translator::new(mode, &KINDS);
        }
        failures.extend(bench.check(seed));
        seed += 1;
        if seed.is_multiple_of(BATCH) && failures.is_empty() {
            failures.extend(bench.check_all_memory(seed));
        }
    }
    println!("{mode:?}: {} cases of {seed}, discarded {:?}", bench.done, bench.discarded);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Runs the case that `text` names, if it is one of `mode`.
fn one(mode: Mode, text: &str) {
    let (name, number) = text.split_once(':').expect("mode:seed");
    if name != format!("{mode:?}") {
        return;
    }
    let seed = u64::from_str_radix(number.trim_start_matches("0x"), 16).expect("a seed");
    let failure = Bench::new(mode).check(seed);
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

#[test]
fn programs_of_64_bit_supervisors() {
    campaign(Mode::Kernel64, 1000);
}

#[test]
fn programs_of_64_bit_users() {
    campaign(Mode::User64, 1000);
}

#[test]
fn programs_of_32_bit_supervisors() {
    campaign(Mode::Kernel32, 500);
}

#[test]
fn programs_of_32_bit_users() {
    campaign(Mode::User32, 500);
}

#[test]
fn programs_without_paging() {
    campaign(Mode::Flat32, 500);
}

#[test]
fn programs_of_users_without_paging() {
    campaign(Mode::FlatUser32, 500);
}
