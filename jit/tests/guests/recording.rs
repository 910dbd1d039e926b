//! What translated code tells a trace.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cpu::Cpu;
use cpu::engine::Vcpu;
use cpu::recording::Wishes;
use cpu::testing::CODE;
use iced_x86::code_asm::*;
use jit::Options;
use trace::{
    Clock, Event, Filters, Header, Item, Kinds, Reader, Recording, Register, Target, Value, Writer,
};

use crate::debugger::{looping, without_place};
use crate::{assemble, bench, run, translator};

/// A trace in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Target for Memory {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let length = file.len().max(end);
        file.resize(length, 0);
        file[start..end].copy_from_slice(bytes);
        Ok(())
    }
}

fn header() -> Header {
    Header {
        machine: String::new(),
        engine: String::new(),
        cpus: 1,
        clock: Clock::Host,
        what: Kinds::INSNS,
        filters: Filters::default(),
        slot_bytes: None,
    }
}

/// Has `cpu` tell a trace of `kinds` what it does.
fn record(cpu: &mut Cpu, kinds: Kinds) -> (Memory, Recording) {
    let file = Memory::default();
    let writer = Writer::new(Box::new(file.clone()), &header(), None).expect("room");
    let recording = Recording::start(writer, |error| panic!("{error}")).expect("a thread");
    cpu.start_recording(recording.recorder(0), Wishes { kinds, ..Wishes::default() }, false);
    (file, recording)
}

/// What a trace tells.
fn items(file: &Memory) -> impl Iterator<Item = Item> {
    let bytes = file.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let records = Reader::new(Arc::new(bytes)).expect("a trace").merged();
    records.map(|record| record.expect("whole").item)
}

/// The instructions that a trace tells.
fn told(file: &Memory) -> usize {
    let lengths = items(file).map(|item| match item {
        Item::Block(block) => block.len(),
        Item::Event(_) => 0,
    });
    lengths.sum()
}

#[test]
fn a_trace_that_the_translator_takes_over_is_told_by_its_code() {
    let mut bench = bench();
    let program = assemble(CODE, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    bench.put_code_at(CODE, &program);
    let mut jit = translator(&bench, &Options::default());
    let (file, mut recording) = record(&mut bench.cpu, Kinds::INSNS);
    bench.cpu.run(1);
    jit.take_over(bench.cpu.hand_over());
    run(&mut jit);
    jit.cpu_mut().stop_recording();
    recording.finish();
    assert_eq!(told(&file), 2002);
    let interpreted = jit.statistics().interpreted();
    assert!(interpreted < 100, "the interpreter was called {interpreted} times");
}

/// The values that register `wanted` is told to have, one behind the other.
fn values(file: &Memory, wanted: Register) -> Vec<Value> {
    let values = items(file).filter_map(|item| match item {
        Item::Event(Event::Register { register, value }) if register == wanted => Some(value),
        _ => None,
    });
    values.collect()
}

#[test]
fn vector_and_x87_registers_are_told_as_instructions_change_them() {
    let mut bench = bench();
    let program = assemble(CODE, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.movq(xmm1, rax)?;
        a.vpbroadcastq(ymm1, xmm1)?;
        a.vzeroupper()?;
        a.fninit()?;
        a.fld1()?;
        a.fldz()?;
        a.hlt()
    });
    bench.put_code_at(CODE, &program);
    let mut jit = translator(&bench, &Options::default());
    let (file, mut recording) = record(jit.cpu_mut(), Kinds::INSNS.with(Kinds::REGISTERS));
    run(&mut jit);
    jit.cpu_mut().stop_recording();
    recording.finish();
    let word = 0x1122_3344_5566_7788_u64.to_le_bytes();
    let low = [word, [0; 8]].concat();
    let (wide, narrow) = ([word; 4].concat(), [word; 2].concat());
    let vector = values(&file, Register::vector(1));
    // The first is what it was before.
    assert_eq!(vector[1..], [low, wide, narrow].map(|bytes| Value::of(&bytes)));
    let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    let top = values(&file, Register::stack(0));
    assert_eq!(top[top.len() - 2..], [Value::of(&one), Value::of(&[0; 10])]);
    let second = values(&file, Register::stack(1));
    assert_eq!(second.last(), Some(&Value::of(&one)));
    // ST0 is a zero, ST1 is valid, and the rest is empty.
    let tags = values(&file, Register::FTW);
    assert_eq!(tags.last(), Some(&Value::of_number(0x1fff, 2)));
}

#[test]
fn a_trace_that_has_ended_leaves_nothing_in_the_code() {
    // Superblocks come when they come.
    let options = Options { superblock_after: 0, ..Options::default() };
    let bench = looping();
    let mut untraced = translator(&bench, &options);
    run(&mut untraced);
    let code = |jit: &jit::JitCpu| jit.translated().iter().map(without_place).collect::<Vec<_>>();
    let never = code(&untraced);
    for kinds in [Kinds::INSNS, Kinds::INSNS.with(Kinds::REGISTERS)] {
        let bench = looping();
        let mut jit = translator(&bench, &options);
        let before = jit.state().clone();
        let (_, mut recording) = record(jit.cpu_mut(), kinds);
        run(&mut jit);
        let traced = code(&jit);
        assert_eq!(traced.is_empty(), kinds.has(Kinds::REGISTERS));
        assert_ne!(traced, never);
        jit.cpu_mut().stop_recording();
        recording.finish();
        jit.cpu_mut().state = before;
        run(&mut jit);
        assert_eq!(code(&jit), never, "{kinds:?}");
    }
}
