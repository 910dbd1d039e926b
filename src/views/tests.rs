//! A small program's trace in every form.
//!
//! `main` calls `work`, which is interrupted, and jumps to `tail`, which returns to `main`.

use std::cell::RefCell;
use std::rc::Rc;

use symbols::Builder;
use trace::{
    Clock, Filters, Header, InterruptSource, Kinds, Mode, Recorder, Recording, Value, Width, Writer,
};

use super::*;

const MAIN: u64 = 0x1000;
const WORK: u64 = 0x1100;
const TAIL: u64 = 0x1200;
const HANDLER: u64 = 0x1300;

/// What a view writes, for the test to see.
#[derive(Clone, Default)]
struct Output(Rc<RefCell<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn bytes(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes()).expect("it is text")
    }
}

fn symbols() -> Arc<Symbols> {
    let mut builder = Builder::new("program");
    for (address, name) in [(MAIN, "main"), (WORK, "work"), (TAIL, "tail"), (HANDLER, "handler")] {
        builder.push(address, 0x100, 'T', name).expect("there is room");
    }
    let mut symbols = Symbols::default();
    symbols.add(builder.finish());
    Arc::new(symbols)
}

fn block(rip: u64, insns: &[&[u8]]) -> Block {
    let mode = Mode { width: Width::W64, cpl: 0, is_real: false, is_v86: false };
    let mut block = Block::new(mode, 0);
    let mut at = rip;
    for bytes in insns {
        assert!(block.push(at, bytes));
        at += bytes.len() as u64;
    }
    block
}

/// Blocks and events in the order in which they happen.
fn happenings() -> Vec<Item> {
    let code = |block: Block| Item::Block(Arc::new(block));
    let nop: &[u8] = &[0x90];
    vec![
        Item::Event(Event::Begin),
        // nop; call 0x1100
        code(block(MAIN, &[nop, &[0xe8, 0xfa, 0, 0, 0]])),
        code(block(WORK, &[nop, nop, nop])),
        Item::Event(Event::Interrupt { vector: 0xec, source: InterruptSource::External }),
        // iretq
        code(block(HANDLER, &[nop, &[0x48, 0xcf]])),
        // jmp 0x1200
        code(block(WORK + 3, &[&[0xe9, 0xf8, 0, 0, 0]])),
        // ret
        code(block(TAIL, &[nop, nop, &[0xc3]])),
        code(block(MAIN + 6, &[nop])),
        Item::Event(Event::Port {
            access: trace::Access::Write,
            port: 0xf4,
            value: Value::of_number(1, 1),
        }),
    ]
}

/// Shows what happens, all of it on CPU 0.
fn show(view: &mut dyn View) {
    let mut count = 0;
    for (number, item) in happenings().into_iter().enumerate() {
        let at = Moment { cpu: 0, count, time_ns: 1000 * number as u64 };
        match item {
            Item::Block(block) => {
                view.block(&at, &block).expect("a Vec takes all");
                count += block.len() as u64;
            }
            Item::Event(event) => view.event(&at, &event).expect("a Vec takes all"),
        }
    }
    view.finish().expect("a Vec takes all");
}

#[test]
fn text_has_every_instruction_with_its_names() {
    let out = Output::default();
    show(&mut text::Text::new(out.clone(), symbols()));
    let text = out.text();
    assert_eq!(text.lines().count(), 15, "{text}");
    for part in [
        "1 0x1001 <main+0x1>: e8fa000000           call 0x1100 <work>\n",
        "-- interrupt 0xec\n",
        "<handler+0x1>: 48cf                 iretq\n",
        "-- write port 0xf4: 0x01\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn every_line_of_json_is_an_object() {
    let out = Output::default();
    show(&mut json::Json::new(out.clone(), symbols()));
    let text = out.text();
    let objects: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(objects.len(), 15);
    assert_eq!(objects[2]["about"], "work");
    assert_eq!((&objects[2]["count"], &objects[2]["linear"]), (&1.into(), &"0x1001".into()));
    assert_eq!(objects[6]["kind"], "interrupt");
}

#[test]
fn stacks_follow_calls_interrupts_and_jumps() {
    let out = Output::default();
    show(&mut stacks::Stacks::new(out.clone(), symbols(), stacks::Form::Folded));
    let expected = "main 3\nmain;tail 3\nmain;work 4\nmain;work;[interrupt 0xec];handler 2\n";
    assert_eq!(out.text(), expected);
    let out = Output::default();
    show(&mut stacks::Stacks::new(out.clone(), symbols(), stacks::Form::Picture));
    assert!(out.text().contains("<title>tail (3 instructions, 25.00%)</title>"));
}

#[test]
fn a_timeline_begins_what_it_ends() {
    let out = Output::default();
    show(&mut perfetto::Perfetto::new(out.clone(), symbols()));
    let whole: serde_json::Value = serde_json::from_str(&out.text()).expect("it is JSON");
    let events = whole["traceEvents"].as_array().expect("it is a list");
    let mut open = Vec::new();
    let mut seen = Vec::new();
    let mut last = 0.0;
    for event in events.iter().filter(|event| event["ph"] != "M") {
        let now = event["ts"].as_f64().expect("it has a time");
        assert!(now >= last, "{event}");
        last = now;
        match event["ph"].as_str() {
            Some("B") => open.push(event["name"].as_str().expect("it has a name").to_owned()),
            Some("E") => seen.push(open.pop().expect("something was begun")),
            _ => assert_eq!(event["name"], "write port 0xf4: 0x01"),
        }
    }
    assert_eq!(seen, ["handler", "[interrupt 0xec]", "work", "tail", "main"]);
    assert!(open.is_empty());
}

/// A damaged file may say that.
#[test]
fn a_count_that_cannot_be_higher_is_shown_in_every_form() {
    let names = symbols();
    let out = Output::default();
    let views: [Box<dyn View>; 4] = [
        Box::new(text::Text::new(out.clone(), Arc::clone(&names))),
        Box::new(json::Json::new(out.clone(), Arc::clone(&names))),
        Box::new(perfetto::Perfetto::new(out.clone(), Arc::clone(&names))),
        Box::new(stacks::Stacks::new(out.clone(), names, stacks::Form::Folded)),
    ];
    let at = Moment { cpu: 0, count: u64::MAX - 1, time_ns: u64::MAX };
    let block = Arc::new(block(MAIN, &[&[0x90], &[0x90], &[0xc3], &[0x90]]));
    for mut view in views {
        view.block(&at, &block).expect("a Vec takes all");
        view.finish().expect("a Vec takes all");
    }
    assert_eq!(out.text().matches(&u64::MAX.to_string()).count(), 3 + 7);
}

/// A kernel's ways of calling that are none: a call within the function whose address is dropped,
/// and a return to an address that was put there.
#[test]
fn calls_that_call_nobody_and_returns_that_do() {
    let call_next: &[u8] = &[0xe8, 0, 0, 0, 0];
    let steps = [
        // call to the next instruction, twice; call work, which puts tail's address there and
        // returns to it; tail returns to main.
        block(MAIN, &[call_next]),
        block(MAIN + 5, &[call_next]),
        block(MAIN + 10, &[&[0xe8, 0xf1, 0, 0, 0]]),
        block(WORK, &[&[0xc3]]),
        block(TAIL, &[&[0xc3]]),
        block(MAIN + 15, &[&[0x90]]),
    ];
    let out = Output::default();
    let mut view = stacks::Stacks::new(out.clone(), symbols(), stacks::Form::Folded);
    for step in steps {
        let at = Moment { cpu: 0, count: 0, time_ns: 0 };
        view.block(&at, &Arc::new(step)).expect("a Vec takes all");
    }
    view.finish().expect("a Vec takes all");
    assert_eq!(out.text(), "main 4\nmain;tail 1\nmain;work 1\n");
}

/// What stands for a return by a kernel's mitigations is no function of the stack.
#[test]
fn thunks_that_return_belong_to_who_returns() {
    for thunk in ["__x86_return_thunk", "its_return_thunk", "srso_alias_safe_ret"] {
        let mut builder = Builder::new("vmlinux");
        for (address, name) in [(MAIN, "main"), (WORK, "work"), (TAIL, thunk)] {
            builder.push(address, 0x100, 'T', name).expect("there is room");
        }
        let mut symbols = Symbols::default();
        symbols.add(builder.finish());
        let out = Output::default();
        let mut view = stacks::Stacks::new(out.clone(), Arc::new(symbols), stacks::Form::Folded);
        // call work; jmp to the thunk; ret
        for step in [
            block(MAIN, &[&[0xe8, 0xfb, 0, 0, 0]]),
            block(WORK, &[&[0xe9, 0xfb, 0, 0, 0]]),
            block(TAIL, &[&[0xc3]]),
            block(MAIN + 5, &[&[0x90]]),
        ] {
            let at = Moment { cpu: 0, count: 0, time_ns: 0 };
            view.block(&at, &Arc::new(step)).expect("a Vec takes all");
        }
        view.finish().expect("a Vec takes all");
        assert_eq!(out.text(), "main 2\nmain;work 2\n", "{thunk}");
    }
}

/// Reads a drcov file as its description says: the modules' bases, and the blocks.
fn drcov(bytes: &[u8]) -> (Vec<u64>, Vec<(u64, u16)>) {
    const TABLE: &[u8] = b"BB Table: ";
    let at = bytes.windows(TABLE.len()).position(|it| it == TABLE).expect("there is a table");
    let head = std::str::from_utf8(&bytes[..at]).expect("it is text");
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("DRCOV VERSION: 2"));
    assert!(lines.next().is_some_and(|line| line.starts_with("DRCOV FLAVOR: ")));
    let count = lines.next().and_then(|line| line.strip_prefix("Module Table: version 2, count "));
    let count: usize = count.and_then(|count| count.parse().ok()).expect("a count");
    assert_eq!(lines.next(), Some("Columns: id, base, end, entry, path"));
    let bases: Vec<u64> = lines
        .map(|line| {
            let base = line.split(',').nth(1).expect("a base").trim();
            u64::from_str_radix(base.trim_start_matches("0x"), 16).expect("a number")
        })
        .collect();
    assert_eq!(bases.len(), count);
    let rest = &bytes[at + TABLE.len()..];
    let end = rest.iter().position(|&byte| byte == b'\n').expect("a line");
    let said = std::str::from_utf8(&rest[..end]).expect("text").trim_end_matches(" bbs");
    let rows: Vec<(u64, u16)> = rest[end + 1..]
        .chunks_exact(8)
        .map(|row| {
            let offset = u32::from_le_bytes(row[..4].try_into().expect("4 bytes"));
            let half = |at: usize| u16::from_le_bytes(row[at..at + 2].try_into().expect("2 bytes"));
            (bases[usize::from(half(6))] + u64::from(offset), half(4))
        })
        .collect();
    assert_eq!(rows.len().to_string(), said);
    (bases, rows)
}

#[test]
fn coverage_has_each_run_of_instructions_once() {
    let out = Output::default();
    let mut view = coverage::Drcov::new(out.clone(), symbols());
    show(&mut view);
    let runs = vec![(MAIN, 6), (MAIN + 6, 1), (WORK, 3), (WORK + 3, 5), (TAIL, 3), (HANDLER, 3)];
    assert_eq!(drcov(&out.bytes()), (vec![MAIN], runs.clone()));
    // Without names it is all in one region.
    let out = Output::default();
    show(&mut coverage::Drcov::new(out.clone(), Arc::default()));
    assert_eq!(drcov(&out.bytes()), (vec![0], runs));
}

/// A file of names may reach from a program to its kernel, and offsets have 32 bits.
#[test]
fn coverage_of_what_is_far_from_its_module_is_not_lost() {
    const FAR: u64 = MAIN + (4 << 30);
    let mut builder = Builder::new("both");
    for (address, name) in [(MAIN, "first"), (FAR, "last")] {
        builder.push(address, 0x10, 'T', name).expect("there is room");
    }
    let mut symbols = Symbols::default();
    symbols.add(builder.finish());
    let out = Output::default();
    let mut view = coverage::Drcov::new(out.clone(), Arc::new(symbols));
    let at = Moment { cpu: 0, count: 0, time_ns: 0 };
    for start in [MAIN, FAR] {
        view.block(&at, &Arc::new(block(start, &[&[0x90]]))).expect("a Vec takes all");
    }
    view.finish().expect("a Vec takes all");
    assert_eq!(drcov(&out.bytes()), (vec![MAIN, 1 << 32], vec![(MAIN, 1), (FAR, 1)]));
}

fn options(trace: PathBuf, format: Format) -> Options {
    let filter = Filter::default();
    Options { trace, format, symbols: Vec::new(), output: None, filter, compare: None }
}

#[test]
fn files_that_are_none_are_refused() {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("volvelle-no-trace-{}", std::process::id()));
    std::fs::write(&path, "hello").expect("it is written");
    let error = run(&options(path.clone(), Format::Text)).expect_err("it is no trace");
    assert!(format!("{error:#}").contains("no trace of Volvelle's"), "{error:#}");
    assert!(run(&options(folder.join("volvelle-nothing"), Format::Text)).is_err());
    std::fs::remove_file(path).expect("it is there");
}

/// Writes the trace of a CPU that has executed `blocks`.
fn write_trace(path: &Path, blocks: impl Iterator<Item = Block>) {
    let header = Header {
        machine: "q35".into(),
        engine: "interp".into(),
        cpus: 1,
        clock: Clock::Host,
        what: Kinds::INSNS,
        filters: Filters::default(),
        slot_bytes: None,
    };
    let writer = Writer::create(path, &header, None).expect("the file is made");
    let mut recording = Recording::start(writer, |error| panic!("{error}")).expect("a thread");
    let mut recorder = recording.recorder(0);
    for block in blocks {
        let number = recorder.define(block).expect("a number");
        recorder.word(Recorder::block_word(number));
    }
    recorder.send();
    recording.finish();
}

#[test]
fn a_file_is_shown_as_far_as_the_filter_goes() {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("volvelle-trace-{}", std::process::id()));
    let out = folder.join(format!("volvelle-trace-{}.txt", std::process::id()));
    write_trace(
        &path,
        happenings().into_iter().filter_map(|item| match item {
            Item::Block(block) => Some(Block::clone(&block)),
            Item::Event(_) => None,
        }),
    );
    let shown = |filter: Filter| {
        let options =
            Options { output: Some(out.clone()), filter, ..options(path.clone(), Format::Text) };
        run(&options).expect("it is whole");
        let text = std::fs::read_to_string(&out).expect("it was written");
        text.lines().filter(|line| !line.contains(" -- ")).count()
    };
    assert_eq!(shown(Filter::default()), 12);
    assert_eq!(shown(Filter { from: Some(2), to: Some(7), ..Filter::default() }), 5);
    assert_eq!(shown(Filter { cpl: Some(3), ..Filter::default() }), 0);
    let work = Range::Addresses(WORK..=WORK + 0xff);
    assert_eq!(shown(Filter { range: Some(work), ..Filter::default() }), 4);
    let nowhere = Range::Symbol("nowhere".into());
    let filter = Filter { range: Some(nowhere), ..Filter::default() };
    let refused = run(&Options { filter, ..options(path.clone(), Format::Text) });
    assert!(refused.is_err_and(|error| error.to_string().contains("no such symbol")));
    let refused = run(&options(path.clone(), Format::Lcov));
    assert!(refused.is_err_and(|error| error.to_string().contains("--symbols")));
    for file in [path, out] {
        std::fs::remove_file(file).expect("it is there");
    }
}

#[test]
fn traces_are_compared_by_instructions_and_not_by_blocks() {
    let folder = std::env::temp_dir();
    let file = |name: &str| folder.join(format!("volvelle-compare-{name}-{}", std::process::id()));
    let (nop, hlt, ret): (&[u8], &[u8], &[u8]) = (&[0x90], &[0xf4], &[0xc3]);
    let cases = [
        ("whole", vec![block(MAIN, &[nop, nop, nop, hlt])]),
        ("parts", vec![block(MAIN, &[nop]), block(MAIN + 1, &[nop, nop]), block(MAIN + 3, &[hlt])]),
        ("other", vec![block(MAIN, &[nop, nop]), block(MAIN + 2, &[nop, ret])]),
        ("short", vec![block(MAIN, &[nop, nop])]),
    ];
    for (name, blocks) in cases {
        write_trace(&file(name), blocks.into_iter());
    }
    let out = file("out");
    let compare = |ours: &str, theirs: &str| {
        let options = Options {
            compare: Some(file(theirs)),
            output: Some(out.clone()),
            ..options(file(ours), Format::Text)
        };
        let status = run(&options).expect("both can be read");
        (status, std::fs::read_to_string(&out).expect("it was written"))
    };
    let (status, text) = compare("whole", "parts");
    // The end of recording is an event.
    assert_eq!((status, &*text), (0, "the same: 4 instructions and 1 events\n"));
    let (status, text) = compare("parts", "other");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(status, exit::FAILED);
    assert_eq!(lines.first(), Some(&"the same for 3 instructions and 0 events, then different:"));
    let marked = |mark: char| lines.iter().filter(|line| line.starts_with(mark)).count();
    assert_eq!((marked(' '), marked('<'), marked('>')), (3, 2, 2), "{text}");
    assert!(text.contains("<   0            3 0x1003: f4 "), "{text}");
    assert!(text.contains(">   0            3 0x1003: c3 "), "{text}");
    let (status, text) = compare("short", "whole");
    assert_eq!(status, exit::FAILED);
    assert!(text.starts_with("the same for 2 instructions and 0 events"), "{text}");
    for name in ["whole", "parts", "other", "short", "out"] {
        std::fs::remove_file(file(name)).expect("it is there");
    }
}
