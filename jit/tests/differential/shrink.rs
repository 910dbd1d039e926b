//! Making a failing case small, and describing it.

use std::fmt::Write as _;

use cpu::fpu::FpuState;

use crate::case::Case;
use crate::program::disassembly;
use crate::reference;
use crate::translator::{Kind, Translator};
use crate::world::World;

/// What differs if `case` is run behind `before`, by engines made for them.
pub fn differs(before: &[Case], case: &Case, kind: Kind) -> Vec<String> {
    let mut world = World::new(case.mode);
    let mut translator = Translator::new(case.mode, &[kind]);
    for earlier in before {
        run(&mut world, &mut translator, earlier, kind);
    }
    run(&mut world, &mut translator, case, kind)
}

/// How often a case is tried again on a host whose threads may be switched at any instruction.
const TRIES: usize = 20;

/// True if a difference of `case` that was found does not come again every time, and may be of
/// pointers that the host's x87 unit has lost.
pub fn is_lost(case: &Case, kind: Kind) -> bool {
    case.stores_x87_pointers() && (0..TRIES).any(|_| differs(&[], case, kind).is_empty())
}

fn run(world: &mut World, translator: &mut Translator, case: &Case, kind: Kind) -> Vec<String> {
    let Some(ready) = case.ready(world) else { return Vec::new() };
    let Ok(runs) = reference::run(world, case, &ready) else { return Vec::new() };
    translator.run(kind, case, &ready, &runs)
}

/// The smallest case found that still differs behind `before`, and how.
pub fn shrink(before: &[Case], case: &Case, kind: Kind) -> (Case, Vec<String>) {
    let found = differs(before, case, kind);
    shrink_while(case, found, |case| differs(before, case, kind))
}

/// Those of `before` that `case` needs to differ, in parts of halves of them.
pub fn needed(before: &[Case], case: &Case, kind: Kind) -> Vec<Case> {
    let mut needed = before.to_vec();
    let mut part = needed.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < needed.len() {
            let mut fewer = needed.clone();
            fewer.drain(at..(at + part).min(needed.len()));
            if differs(&fewer, case, kind).is_empty() {
                at += part;
            } else {
                needed = fewer;
            }
        }
        part /= 2;
    }
    needed
}

/// Shrinks each of `before` for as long as `case` differs behind them.
pub fn shrink_before(before: &mut [Case], case: &Case, kind: Kind) {
    for number in 0..before.len() {
        let found = differs(before, case, kind);
        let all = before.to_vec();
        let (small, _) = shrink_while(&all[number], found, |smaller| {
            let mut all = all.clone();
            all[number] = smaller.clone();
            differs(&all, case, kind)
        });
        before[number] = small;
    }
}

fn shrink_while(
    case: &Case,
    mut found: Vec<String>,
    try_out: impl Fn(&Case) -> Vec<String>,
) -> (Case, Vec<String>) {
    let mut best = case.clone();
    if found.is_empty() {
        return (best, found);
    }
    let mut attempt = |best: &mut Case, smaller: Case| {
        let differences = try_out(&smaller);
        let is_smaller = !differences.is_empty();
        if is_smaller {
            *best = smaller;
            found = differences;
        }
        is_smaller
    };
    for runs in 1..best.start.runs {
        let mut smaller = best.clone();
        smaller.start.runs = runs;
        if attempt(&mut best, smaller) {
            break;
        }
    }
    let mut is_shrinking = true;
    while is_shrinking {
        is_shrinking = false;
        for item in (0..best.program.items.len()).rev() {
            let smaller = Case { program: best.program.without(item), ..best.clone() };
            is_shrinking |= attempt(&mut best, smaller);
        }
    }
    let mut simpler = best.clone();
    simpler.start.fpu = FpuState { fcw: 0x37f, ftw: 0, ..FpuState::default() };
    attempt(&mut best, simpler);
    for number in 0..16 {
        if best.start.gpr[number] != 0 {
            let mut simpler = best.clone();
            simpler.start.gpr[number] = 0;
            attempt(&mut best, simpler);
        }
    }
    let mut simpler = best.clone();
    simpler.start.rflags = 2;
    attempt(&mut best, simpler);
    for item in 0..best.program.items.len() {
        let mut simpler = best.clone();
        simpler.program.items[item].prefix.clear();
        simpler.program.items[item].ignored = 0;
        attempt(&mut best, simpler);
    }
    (best, found)
}

/// A case in words.
pub fn describe(case: &Case, found: &[String]) -> String {
    let mut text = String::new();
    let start = &case.start;
    let world = World::new(case.mode);
    let _ = writeln!(text, "JIT_CASE={:?}:{:#x}", case.mode, case.seed);
    if let Some(ready) = case.ready(&world) {
        let options = world.bench.cpu.decoder_options();
        let bits = case.mode.bits();
        text.push_str(&disassembly(&ready.assembled.bytes, bits, start.base, options));
    }
    let _ = write!(text, "  start: rflags={:#x}", start.rflags);
    for (number, value) in start.gpr.iter().enumerate().filter(|(_, value)| **value != 0) {
        let _ = write!(text, " r{number}={value:#x}");
    }
    let _ = writeln!(
        text,
        "\n  fs={:#x} gs={:#x} mxcsr={:#x} fcw={:#x} ftw={:#x} {:?}",
        start.bases[0], start.bases[1], start.fpu.mxcsr, start.fpu.fcw, start.fpu.ftw, start.rights
    );
    for line in found {
        let _ = writeln!(text, "  {line}");
    }
    text
}
