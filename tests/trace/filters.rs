//! Each filter leaves exactly those instructions of the whole trace that it says.

use std::collections::HashMap;
use std::fmt;

use trace::{Event, Item, Reader, Record, Register};

use crate::{COUNTED, temporary, volvelle};

/// An instruction that was executed, and where the CPU was then.
#[derive(Clone, PartialEq, Eq)]
struct Insn {
    cpu: u16,
    linear: u64,
    bytes: Vec<u8>,
    cpl: u8,
    cr3: u64,
    /// Instructions that its CPU had retired before.
    count: u64,
}

impl fmt::Debug for Insn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, linear, bytes, cpl, cr3, count } = self;
        write!(out, "CPU {cpu} {count}: {linear:#x} {bytes:02x?} CPL {cpl} CR3 {cr3:#x}")
    }
}

/// The instructions of the built-in guest, which goes through the processor's modes on two CPUs,
/// and where among those of their CPU interrupts and exceptions were delivered.
struct Run {
    insns: Vec<Insn>,
    /// CPU, vector and how many instructions the CPU had retired.
    deliveries: Vec<(u16, u8, u64)>,
}

fn run(accel: &str, keys: &str) -> Run {
    let file = temporary(&format!("filter-{accel}.trace"));
    let value = format!("{}{keys}", file.display());
    let words = ["--accel", accel, "--cpus", "2", "--trace", &value];
    let output = volvelle(&[&words[..], &COUNTED].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reader = Reader::open(&file).unwrap();
    let mut run = Run { insns: Vec::new(), deliveries: Vec::new() };
    // CR3 of each CPU, and what the instruction makes of it that is on its way.
    let (mut roots, mut next_roots) = (HashMap::new(), HashMap::new());
    for record in reader.merged() {
        let Record { cpu, count, item, .. } = record.unwrap();
        match item {
            Item::Block(block) => {
                for (count, insn) in (count..).zip(block.insns()) {
                    let cr3 = roots.get(&cpu).copied().unwrap_or(0);
                    run.insns.push(Insn {
                        cpu,
                        linear: block.linear(insn.rip),
                        bytes: insn.bytes.to_vec(),
                        cpl: block.mode().cpl,
                        cr3,
                        count,
                    });
                    roots.extend(next_roots.remove(&cpu).map(|cr3| (cpu, cr3)));
                }
            }
            Item::Event(Event::Register { register: Register::CR3, value }) => {
                roots.insert(cpu, value.number());
            }
            Item::Event(Event::ControlRegister { number: 3, value }) => {
                next_roots.insert(cpu, value);
            }
            Item::Event(Event::Reset) => {
                roots.insert(cpu, 0);
            }
            Item::Event(Event::Interrupt { vector, .. } | Event::Exception { vector, .. }) => {
                run.deliveries.push((cpu, vector, count))
            }
            Item::Event(_) => {}
        }
    }
    run
}

/// The filters leave what `is_left` says of the whole run.
fn check(accel: &str, whole: &Run, keys: &str, is_left: impl Fn(&Insn) -> bool) {
    let left = run(accel, &format!(",what=insn+int,{keys}")).insns;
    let expected: Vec<&Insn> = whole.insns.iter().filter(|insn| is_left(insn)).collect();
    let same = |(ours, theirs): (&Insn, &&Insn)| {
        // Counts are those of the whole run where nothing was left out before, and a CPU that is
        // in another address space tells nobody when it comes back.
        (ours.cpu, ours.linear, &ours.bytes, ours.cpl)
            == (theirs.cpu, theirs.linear, &theirs.bytes, theirs.cpl)
    };
    let first = left.iter().zip(&expected).position(|pair| !same(pair));
    if let Some(first) = first {
        panic!("{accel} {keys}, {first}: {:?} and not {:?}", left[first], expected[first]);
    }
    assert_eq!(left.len(), expected.len(), "{accel} {keys}");
    assert!(!expected.is_empty() && expected.len() < whole.insns.len(), "{accel} {keys}");
}

#[test]
fn what_is_left_is_what_the_whole_trace_has_of_it() {
    for accel in ["interp", "jit"] {
        let whole = run(accel, ",what=insn+int");
        let last = whole.insns.last().unwrap().clone();
        let root = whole.insns.iter().map(|insn| insn.cr3).find(|cr3| *cr3 != 0).unwrap();
        check(accel, &whole, "cpu=1", |insn| insn.cpu == 1);
        check(accel, &whole, "cpl=3", |insn| insn.cpl == 3);
        check(accel, &whole, &format!("cr3={root:#x}"), |insn| insn.cr3 == root);
        let page = last.linear & !0xff..=last.linear | 0xff;
        let keys = format!("range={:#x}-{:#x}", page.start(), page.end());
        check(accel, &whole, &keys, |insn| page.contains(&insn.linear));
        check(accel, &whole, "from=1000", |insn| insn.count >= 1000);
        check(accel, &whole, "from=777,to=2001", |insn| (777..2001).contains(&insn.count));
        check(accel, &whole, "cpu=0,cpl=0,to=5000", |insn| {
            insn.cpu == 0 && insn.cpl == 0 && insn.count < 5000
        });
        // From the first general protection exception of a CPU on, which not all of them have.
        let begins = |cpu: u16| {
            let first = whole.deliveries.iter().find(|(on, vector, _)| (*on, *vector) == (cpu, 13));
            first.map(|(_, _, count)| *count)
        };
        check(accel, &whole, "from=int:13", |insn| {
            begins(insn.cpu).is_some_and(|count| insn.count >= count)
        });
        // Up to before the first instruction at an address.
        let place = whole.insns[whole.insns.len() / 2].linear;
        let ends = [0, 1].map(|cpu| {
            let first = whole.insns.iter().find(|insn| (insn.cpu, insn.linear) == (cpu, place));
            first.map_or(u64::MAX, |insn| insn.count)
        });
        check(accel, &whole, &format!("to=at:{place:#x}"), |insn| {
            insn.count < ends[usize::from(insn.cpu)]
        });
    }
}
