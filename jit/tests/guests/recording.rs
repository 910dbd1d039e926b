//! What translated code tells a trace.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cpu::engine::Vcpu;
use cpu::recording::Wishes;
use cpu::testing::CODE;
use iced_x86::code_asm::*;
use jit::Options;
use trace::{Clock, Filters, Header, Item, Kinds, Reader, Recording, Target, Writer};

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

/// The instructions that a trace tells.
fn told(file: &Memory) -> usize {
    let bytes = file.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let records = Reader::new(Arc::new(bytes)).expect("a trace").merged();
    let lengths = records.map(|record| match record.expect("whole").item {
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
    let file = Memory::default();
    let writer = Writer::new(Box::new(file.clone()), &header(), None).expect("room");
    let mut recording = Recording::start(writer, |error| panic!("{error}")).expect("a thread");
    let wishes = Wishes { kinds: Kinds::INSNS, ..Wishes::default() };
    bench.cpu.start_recording(recording.recorder(0), wishes, false);
    bench.cpu.run(1);
    jit.take_over(bench.cpu.hand_over());
    run(&mut jit);
    jit.cpu_mut().stop_recording();
    recording.finish();
    assert_eq!(told(&file), 2002);
    let interpreted = jit.statistics().interpreted();
    assert!(interpreted < 100, "the interpreter was called {interpreted} times");
}
