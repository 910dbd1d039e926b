//! Traces of the built-in guests: what they say, and that the engines say the same.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot start is a failed test")]

mod failures;
mod filters;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use firmware::guests::clocks;
use trace::{Ending, Event, Item, Kinds, Reader, Record, Register, Value};

fn temporary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn volvelle(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volvelle"))
        .args(["run", "--no-reboot", "--debug-exit", "--serial", "none"])
        .args(words)
        .output()
        .unwrap()
}

/// Runs a guest of several CPUs that looks at its clocks, with the trace that `keys` ask for.
fn record(name: &str, accel: &str, keys: &str, words: &[&str]) -> Reader {
    let (file, rom) = (temporary(&format!("{name}.trace")), temporary(&format!("{name}.rom")));
    fs::write(&rom, clocks(20)).unwrap();
    let value = format!("{}{keys}", file.display());
    let fixed = ["--accel", accel, "--trace", &value, "--bios", rom.to_str().unwrap()];
    let output = volvelle(&[&fixed, words].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    Reader::open(&file).unwrap()
}

/// An instruction or an event, whose CPU and count are known.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Insn { rip: u64, bytes: Vec<u8>, cpl: u8 },
    Event(Event),
}

fn steps(records: impl Iterator<Item = Result<Record, trace::TraceError>>) -> Vec<(u16, Step)> {
    let mut steps = Vec::new();
    for record in records {
        let Record { cpu, item, .. } = record.unwrap();
        match item {
            Item::Block(block) => steps.extend(block.insns().map(|insn| {
                let (rip, bytes, cpl) = (insn.rip, insn.bytes.to_vec(), block.mode().cpl);
                (cpu, Step::Insn { rip, bytes, cpl })
            })),
            // When a CPU begins to run is the scheduler's affair.
            Item::Event(Event::Time { .. }) => {}
            Item::Event(event) => steps.push((cpu, Step::Event(event))),
        }
    }
    steps
}

fn first_difference(ours: &[(u16, Step)], theirs: &[(u16, Step)]) {
    for (index, pair) in ours.iter().zip(theirs).enumerate() {
        if pair.0 != pair.1 {
            let from = index.saturating_sub(5);
            panic!(
                "step {index} differs:\n{:x?}\n{:x?}",
                &ours[from..=index],
                &theirs[from..=index]
            );
        }
    }
    assert_eq!(ours.len(), theirs.len());
}

const COUNTED: [&str; 4] = ["--clock", "icount", "--sched", "serial"];

#[test]
fn interpreter_and_translator_trace_the_same_run() {
    let words = [&COUNTED[..], &["--cpus", "2"]].concat();
    let keys = ",what=insn+int+io+cr+msr";
    let [ours, theirs] = ["jit", "interp"].map(|accel| {
        let reader = record(&format!("same-{accel}"), accel, keys, &words);
        assert_eq!(reader.ending().unwrap(), Ending::Closed);
        assert_eq!((reader.header().cpus, &*reader.header().engine), (2, accel));
        steps(reader.merged())
    });
    assert!(ours.len() > 100_000, "{}", ours.len());
    assert!(ours.iter().any(|(cpu, _)| *cpu == 1));
    first_difference(&ours, &theirs);
}

#[test]
fn the_trace_says_how_many_instructions_were_retired() {
    for accel in ["jit", "interp"] {
        let reader = record(&format!("count-{accel}"), accel, "", &COUNTED);
        let mut count = 0;
        for record in reader.cpu(0) {
            let record = record.unwrap();
            assert_eq!(record.count, count, "{record:?}");
            match record.item {
                Item::Block(block) => count += block.len() as u64,
                Item::Event(event) => assert!(!matches!(event, Event::Skipped { .. })),
            }
        }
        assert!(count > 10_000);
    }
}

#[test]
fn without_counts_the_translator_tells_each_instruction_too() {
    let reader = record("parallel", "jit", ",what=insn", &["--jit-superblock-after", "50"]);
    let mut next = None;
    for (_, step) in steps(reader.cpu(0)) {
        let Step::Insn { rip, bytes, .. } = step else { continue };
        let is_transfer = |bytes: &[u8]| {
            // Jumps, calls, returns, loops, far transfers and REP.
            let is_prefix = matches!(bytes[0], 0x40..=0x4f | 0x66 | 0x67 | 0xf2 | 0xf3);
            let is_return = matches!(bytes[0], 0xc2 | 0xc3 | 0xca | 0xcb | 0xcf);
            let is_near = matches!(bytes[0], 0x70..=0x7f | 0xe0..=0xe3 | 0xe8..=0xeb);
            is_prefix || is_return || is_near || matches!(bytes[0], 0x0f | 0x9a | 0xff)
        };
        if let Some((expected, last)) = next.replace((rip.wrapping_add(bytes.len() as u64), bytes))
            && rip != expected
        {
            assert!(is_transfer(&last), "{last:x?} leads from {expected:#x} to {rip:#x}");
        }
    }
    assert!(next.is_some());
}

#[test]
fn filters_leave_out_what_they_say() {
    for accel in ["jit", "interp"] {
        let all = steps(record(&format!("all-{accel}"), accel, ",what=insn", &COUNTED).cpu(0));
        let rips = |steps: &[(u16, Step)]| -> Vec<u64> {
            let rip = |(_, step): &(u16, Step)| match step {
                Step::Insn { rip, .. } => Some(*rip),
                Step::Event(_) => None,
            };
            steps.iter().filter_map(rip).collect()
        };
        // In 64-bit code RIP is linear; the most frequent page is in it.
        let all = rips(&all);
        let page = all[all.len() - 1] & !0xf;
        let keys = format!(",what=insn,range={:#x}-{:#x}", page, page + 0xf);
        let some = record(&format!("range-{accel}"), accel, &keys, &COUNTED);
        let some = rips(&steps(some.cpu(0)));
        let expected: Vec<u64> =
            all.iter().copied().filter(|rip| (page..=page + 0xf).contains(rip)).collect();
        assert_eq!(some.len(), expected.len());
        assert_eq!(some, expected);
        let part =
            record(&format!("part-{accel}"), accel, ",what=insn,from=5000,to=6000", &COUNTED);
        assert_eq!(rips(&steps(part.cpu(0))), all[5000..6000]);
    }
}

#[test]
fn memory_and_registers_are_told_on_request() {
    let reader = record("details", "jit", ",what=mem+regs,to=20000", &COUNTED);
    let (mut registers, mut accesses) = (0, 0);
    for (_, step) in steps(reader.cpu(0)) {
        match step {
            Step::Event(Event::Register { .. }) => registers += 1,
            Step::Event(Event::Memory { .. }) => accesses += 1,
            _ => {}
        }
    }
    assert!(reader.header().what.has(Kinds::MEMORY));
    assert!(registers > 1000 && accesses > 100, "{registers} registers, {accesses} accesses");
}

/// Each instruction's address with the registers before it, as told.
fn registers_before(steps: &[(u16, Step)]) -> Vec<(u64, BTreeMap<Register, Value>)> {
    let mut registers = BTreeMap::new();
    let mut before = Vec::new();
    for (_, step) in steps {
        match step {
            Step::Event(Event::Register { register: Register::RIP, .. }) => {}
            Step::Event(Event::Register { register, value }) => {
                registers.insert(*register, *value);
            }
            Step::Insn { rip, .. } => before.push((*rip, registers.clone())),
            Step::Event(_) => {}
        }
    }
    before
}

#[test]
fn what_instructions_outside_of_a_range_do_is_not_told() {
    let all = steps(record("details-all", "jit", ",what=insn+regs,to=30000", &COUNTED).cpu(0));
    let all = registers_before(&all);
    let page = all[all.len() - 1].0 & !0xf;
    let range = page..=page + 0xf;
    let keys = format!(",what=insn+mem+regs,to=30000,range={page:#x}-{:#x}", page + 0xf);
    let some = steps(record("details-some", "jit", &keys, &COUNTED).cpu(0));
    let expected: Vec<_> = all.iter().filter(|(rip, _)| range.contains(rip)).cloned().collect();
    assert!((10..all.len() / 2).contains(&expected.len()), "{} told", expected.len());
    assert!(registers_before(&some) == expected);
    // What is between is told by the registers that are others behind it, at most all of them.
    let (told, out_of) = (some.len(), expected.len());
    assert!(told < 6 * out_of, "{told} records for {out_of} instructions");
    let is_access = |(_, step): &&(u16, Step)| matches!(step, Step::Event(Event::Memory { .. }));
    let accesses = some.iter().filter(is_access).count();
    assert!(accesses <= 16 * out_of, "{accesses} accesses by {out_of} instructions");
}

#[test]
fn what_cannot_be_traced_is_refused_by_name() {
    for (words, named) in [
        (&["--accel", "interp", "--trace", "/no/such/folder/t"][..], "/no/such/folder"),
        (&["--accel", "interp", "--trace", "/dev/full"], "No space left"),
        (&["--accel", "jit", "--trace", "t,from=100"], "--sched serial"),
        (&["--accel", "interp", "--trace", "t,cpu=1"], "processor 1"),
        (&["--accel", "jit", "--jit-cross-check", "--trace", "t"], "--jit-cross-check"),
    ] {
        let output = volvelle(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(named), "{words:?}: {error}");
    }
}
