//! What is recorded comes back: all of it from a linear file, the newest part from a ring, and
//! what was written before the cut from a file that was cut off.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use trace::{
    Access, Block, Clock, Ending, Event, Filters, Header, InterruptSource, Item, Kinds, Mode,
    Reader, Record, Recorder, Recording, Register, Target, TraceError, Value, Width, Writer,
};

/// What a CPU does: a block, as far as it gets, and events within it.
#[derive(Clone, Debug)]
struct Turn {
    block: usize,
    /// How many of its instructions are executed, of 64.
    executed: usize,
    event: Option<(usize, Event)>,
}

/// An instruction or an event, as a reader sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Insn { rip: u64, bytes: Vec<u8>, mode: Mode },
    Event(Event),
}

fn header(cpus: u16) -> Header {
    Header {
        machine: "q35".into(),
        engine: "interp".into(),
        cpus,
        clock: Clock::Counted { ns_per_instruction: 10 },
        what: Kinds::INSNS.with(Kinds::INTERRUPTS),
        filters: Filters { range: Some(1..=u64::MAX), cpl: Some(3), ..Filters::default() },
        slot_bytes: None,
    }
}

fn temporary(name: &str) -> PathBuf {
    let number = std::thread::current().id();
    std::env::temp_dir().join(format!("volvelle-{}-{number:?}-{name}", std::process::id()))
}

/// Runs `body` with a file that is gone afterwards.
fn with_file<T>(name: &str, body: impl FnOnce(&PathBuf) -> T) -> T {
    let path = temporary(name);
    let result = body(&path);
    let _ = std::fs::remove_file(&path);
    result
}

fn record(path: &Path, cpus: u16, ring: Option<u64>, body: impl FnOnce(&mut [Recorder])) {
    let writer = Writer::create(path, &header(cpus), ring).expect("the file is made");
    let mut recording = Recording::start(writer, |error| panic!("{error}")).expect("a thread");
    let mut recorders: Vec<Recorder> = (0..cpus).map(|cpu| recording.recorder(cpu)).collect();
    body(&mut recorders);
    recorders.iter_mut().for_each(Recorder::send);
    recording.finish();
}

fn steps(records: impl Iterator<Item = Result<Record, TraceError>>) -> Vec<Step> {
    let mut steps = Vec::new();
    for record in records {
        match record.expect("the trace is whole").item {
            Item::Block(block) => steps.extend(block.insns().map(|insn| Step::Insn {
                rip: insn.rip,
                bytes: insn.bytes.to_vec(),
                mode: block.mode(),
            })),
            Item::Event(Event::End | Event::Skipped { .. }) => {}
            Item::Event(event) => steps.push(Step::Event(event)),
        }
    }
    steps
}

/// Records the turns and says what a reader must see of them.
fn play(recorder: &mut Recorder, blocks: &[Block], turns: &[Turn]) -> Vec<Step> {
    let numbers: Vec<u32> =
        blocks.iter().map(|block| recorder.define(block.clone()).expect("a number")).collect();
    let mut expected = Vec::new();
    for turn in turns {
        let index = turn.block % blocks.len();
        let block = &blocks[index];
        let length = block.len();
        let executed = turn.executed.min(length);
        recorder.word(Recorder::block_word(numbers[index]));
        let insns: Vec<Step> = block
            .insns()
            .map(|insn| Step::Insn {
                rip: insn.rip,
                bytes: insn.bytes.to_vec(),
                mode: block.mode(),
            })
            .collect();
        let mut done = 0;
        if let Some((at, event)) = turn.event {
            let at = at.min(executed);
            recorder.event(event, (length - at) as u32, None);
            expected.extend_from_slice(&insns[..at]);
            expected.push(Step::Event(event));
            done = at;
        }
        if executed < length {
            recorder.word(Recorder::cut_word((length - executed) as u32));
        }
        expected.extend_from_slice(&insns[done..executed]);
    }
    expected
}

fn mode() -> impl Strategy<Value = Mode> {
    let width = prop_oneof![Just(Width::W16), Just(Width::W32), Just(Width::W64)];
    (width, 0u8..4, any::<bool>(), any::<bool>()).prop_map(|(width, cpl, is_real, is_v86)| Mode {
        width,
        cpl,
        is_real,
        is_v86,
    })
}

fn block() -> impl Strategy<Value = Block> {
    let insn = (any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 1..=15));
    (mode(), any::<u64>(), any::<u64>(), prop::collection::vec(insn, 1..=64)).prop_map(
        |(mode, base, start, insns)| {
            let mut block = Block::new(mode, base);
            let mut rip = start;
            for (has_jumped, target, bytes) in insns {
                if has_jumped {
                    rip = target;
                }
                assert!(block.push(rip, &bytes));
                rip = rip.wrapping_add(bytes.len() as u64);
            }
            block
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let value = prop::collection::vec(any::<u8>(), 0..=64).prop_map(|bytes| Value::of(&bytes));
    prop_oneof![
        any::<u8>()
            .prop_map(|vector| Event::Interrupt { vector, source: InterruptSource::External }),
        (any::<u8>(), any::<Option<u32>>(), any::<u64>()).prop_map(
            |(vector, error_code, address)| Event::Exception { vector, error_code, address }
        ),
        (any::<u8>(), any::<u64>())
            .prop_map(|(number, value)| Event::ControlRegister { number, value }),
        (access.clone(), any::<u32>(), any::<u64>())
            .prop_map(|(access, number, value)| Event::Msr { access, number, value }),
        (access.clone(), any::<u16>(), value.clone())
            .prop_map(|(access, port, value)| Event::Port { access, port, value }),
        (access.clone(), any::<u64>(), value.clone())
            .prop_map(|(access, address, value)| Event::Mmio { access, address, value }),
        (access, any::<u64>(), value.clone()).prop_map(|(access, address, value)| Event::Memory {
            access,
            address,
            value
        }),
        (0..Register::ALL.len(), value)
            .prop_map(|(index, value)| Event::Register { register: Register::ALL[index], value }),
        (1..u64::MAX).prop_map(|ns| Event::Time { ns }),
        prop_oneof![Just(Event::Begin), Just(Event::Reset)],
    ]
}

fn turns(count: usize) -> impl Strategy<Value = Vec<Turn>> {
    let turn = (
        0usize..8,
        prop_oneof![4 => Just(64), 1 => 0usize..64],
        prop::option::weighted(0.2, (0usize..64, event())),
    );
    let turn = turn.prop_map(|(block, executed, event)| Turn { block, executed, event });
    prop::collection::vec(turn, 0..count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_linear_trace_comes_back(
        blocks in prop::collection::vec(block(), 1..8),
        turns in prop::collection::vec(turns(300), 2),
    ) {
        // Two equal times in a row are one, whoever tells them.
        let (read, expected) = with_file("linear", |path| {
            let mut expected = Vec::new();
            record(path, 2, None, |recorders| {
                for (recorder, turns) in recorders.iter_mut().zip(&turns) {
                    expected.push(play(recorder, &blocks, turns));
                }
            });
            let reader = Reader::open(path).expect("a trace");
            assert_eq!(reader.ending().expect("whole"), Ending::Closed);
            ((0..2).map(|cpu| steps(reader.cpu(cpu))).collect::<Vec<_>>(), expected)
        });
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn a_cut_file_is_read_up_to_the_cut(
        blocks in prop::collection::vec(block(), 1..8),
        turns in turns(200),
        cut in 0usize..4096,
    ) {
        with_file("cut", |path| {
            let mut expected = Vec::new();
            record(path, 1, None, |recorders| expected = play(&mut recorders[0], &blocks, &turns));
            let whole = std::fs::read(path).expect("the file");
            let bytes = whole[..whole.len().saturating_sub(cut)].to_vec();
            let Ok(reader) = Reader::new(std::sync::Arc::new(bytes)) else { return };
            let read = steps(reader.cpu(0));
            assert_eq!(read[..], expected[..read.len()]);
        });
    }

    #[test]
    fn damage_is_found_or_harmless(
        blocks in prop::collection::vec(block(), 1..4),
        turns in turns(50),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        with_file("damaged", |path| {
            record(path, 1, None, |recorders| drop(play(&mut recorders[0], &blocks, &turns)));
            let mut bytes = std::fs::read(path).expect("the file");
            for (index, value) in &damage {
                let at = index.index(bytes.len());
                bytes[at] = *value;
            }
            if let Ok(reader) = Reader::new(std::sync::Arc::new(bytes)) {
                assert!(reader.merged().count() < 1_000_000);
            }
        });
    }
}

/// A loop of two blocks, one of which is left early every third time.
fn loop_blocks() -> Vec<Block> {
    let mode = Mode { width: Width::W64, cpl: 0, is_real: false, is_v86: false };
    let mut first = Block::new(mode, 0);
    let mut second = Block::new(mode, 0);
    for number in 0..4u64 {
        assert!(
            first.push(0x1000 + number, &[0x90]) && second.push(0x2000 + 2 * number, &[0x66, 0x90])
        );
    }
    vec![first, second]
}

/// An event with a number in it.
fn tick(number: u64) -> Event {
    Event::ControlRegister { number: 3, value: number }
}

#[test]
fn a_ring_keeps_the_newest_part() {
    let blocks = loop_blocks();
    let turns: Vec<Turn> = (0..400_000u64)
        .map(|turn| Turn {
            block: (turn % 2) as usize,
            executed: if turn % 3 == 0 { 2 } else { 64 },
            event: Some((64, tick(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15)))),
        })
        .collect();
    with_file("ring", |path| {
        let mut expected = Vec::new();
        record(path, 1, Some(1 << 20), |recorders| {
            expected = play(&mut recorders[0], &blocks, &turns);
        });
        let size = std::fs::metadata(path).expect("the file").len();
        assert!(size <= (1 << 20) + 4096, "{size} bytes");
        let reader = Reader::open(path).expect("a trace");
        assert_eq!(reader.ending().expect("whole"), Ending::Closed);
        let read = steps(reader.cpu(0));
        assert!(read.len() > 50_000 && read.len() < expected.len(), "{} steps", read.len());
        assert!(expected.ends_with(&read));
    });
}

#[test]
fn a_loop_takes_hardly_any_room() {
    let turns: Vec<Turn> = (0..1_000_000usize)
        .map(|turn| Turn {
            block: turn % 2,
            executed: if turn % 3 == 0 { 2 } else { 64 },
            event: None,
        })
        .collect();
    with_file("loop", |path| {
        record(path, 1, None, |recorders| drop(play(&mut recorders[0], &loop_blocks(), &turns)));
        let size = std::fs::metadata(path).expect("the file").len();
        assert!(size < 2000, "{size} bytes");
        let count: usize = Reader::open(path)
            .expect("a trace")
            .merged()
            .map(|record| match record.expect("whole").item {
                Item::Block(block) => block.len(),
                Item::Event(_) => 0,
            })
            .sum();
        assert_eq!(count, 333_334 * 2 + 666_666 * 4);
    });
}

#[test]
fn streams_are_merged_by_time() {
    let blocks = loop_blocks();
    with_file("merged", |path| {
        record(path, 2, None, |recorders| {
            let ids: Vec<u32> = recorders
                .iter_mut()
                .zip(&blocks)
                .map(|(recorder, block)| recorder.define(block.clone()).expect("a number"))
                .collect();
            for turn in 0..10u64 {
                let cpu = (turn % 2) as usize;
                recorders[cpu].event(Event::Time { ns: 100 + turn }, 0, None);
                (0..=turn).for_each(|_| recorders[cpu].word(Recorder::block_word(ids[cpu])));
            }
        });
        let reader = Reader::open(path).expect("a trace");
        let order: Vec<(u64, u16)> = reader
            .merged()
            .map(|record| record.expect("whole"))
            .filter(|record| matches!(record.item, Item::Block(_)))
            .map(|record| (record.time_ns, record.cpu))
            .collect();
        let expected: Vec<(u64, u16)> = (0..10u64)
            .flat_map(|turn| (0..=turn).map(move |_| (100 + turn, (turn % 2) as u16)))
            .collect();
        assert_eq!(order, expected);
    });
}

/// A disk with room for so many bytes.
struct SmallDisk(u64);

impl Target for SmallDisk {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let fits = offset + bytes.len() as u64 <= self.0;
        if fits { Ok(()) } else { Err(std::io::ErrorKind::StorageFull.into()) }
    }
}

#[test]
fn a_full_disk_ends_the_trace_and_nothing_else() {
    let writer = Writer::new(Box::new(SmallDisk(1000)), &header(1), None).expect("room for that");
    let (told, hears) = std::sync::mpsc::channel();
    let mut recording =
        Recording::start(writer, move |error| told.send(error).expect("heard")).expect("a thread");
    let mut recorder = recording.recorder(0);
    let id = recorder.define(loop_blocks().remove(0)).expect("a number");
    for number in 0..1_000_000 {
        recorder.word(Recorder::block_word(id));
        recorder.event(tick(number), 0, None);
    }
    recording.finish();
    assert!(recorder.is_closed());
    let errors: Vec<_> = hears.iter().map(|error| error.kind()).collect();
    assert_eq!(errors, [std::io::ErrorKind::StorageFull]);
}

#[test]
fn what_is_no_trace_is_refused_by_name() {
    let error = |bytes: &[u8]| {
        Reader::new(std::sync::Arc::new(bytes.to_vec()))
            .map(drop)
            .expect_err("no trace")
            .to_string()
    };
    assert!(error(b"").contains("no trace"));
    assert!(error(b"\x7fELF and so on and on and on").contains("no trace"));
    assert!(error(b"VVTRACE\n\xff\xff\0\0\0\0").contains("65535"));
    let mut long = b"VVTRACE\n".to_vec();
    long.extend(trace::VERSION.to_le_bytes());
    long.extend([0, 0, 0, 0x10]);
    assert!(error(&long).contains("too long"));
}
