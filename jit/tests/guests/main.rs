//! Small guests for what random programs seldom do: returns that lead nowhere expected, code that
//! changes, two vCPUs at the same memory.
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod code_changes;
mod debugger;
mod exceptions;
mod interrupts;
mod mappings;
mod recording;
mod returns;
mod statistics;
mod superblocks;
mod time;
mod two_vcpus;
mod x87_pointers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cpu::engine::{Vcpu, VmExit};
use cpu::state::{Segment, State, attr};
use cpu::testing::{Bench, CODE, IDT, selector};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use jit::{JitCpu, Options};

/// Longer than any of these guests may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The handlers of exceptions: HLTs, 16 bytes from one to the next.
const HANDLERS: u64 = 0x11_0000;
/// The end of the stack of handlers that come from CPL 3.
const HANDLER_STACK: u64 = 0x12_1000;
const TSS: u64 = 0x1_2000;

/// The code that `program` assembles at `address`.
fn assemble(
    address: u64,
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64-bit");
    program(&mut assembler).expect("a program");
    assembler.assemble(address).expect("code")
}

/// A bench in 64-bit mode whose exceptions end in HLTs.
fn bench() -> Bench {
    let mut bench = Bench::long64();
    for vector in 0..256u64 {
        let handler = HANDLERS + 16 * vector;
        let low = handler & 0xffff
            | u64::from(selector::CODE64) << 16
            | 0xee << 40
            | (handler >> 16) << 48;
        bench.poke(IDT + 16 * vector, &low.to_le_bytes());
    }
    bench.poke(HANDLERS, &[0xf4; 4096]);
    bench.poke(TSS + 4, &HANDLER_STACK.to_le_bytes());
    bench.cpu.state.tr =
        Segment { selector: 0x38, attributes: attr::P | 0xb, limit: 0x67, base: TSS };
    bench
}

/// A translator of `bench`'s memory, in the state of its CPU.
fn translator(bench: &Bench, options: &Options) -> JitCpu {
    let mut env = bench.cpu.env.clone();
    env.events = Arc::default();
    let mut jit = JitCpu::new(env, options).expect("a translator");
    jit.set_state(bench.cpu.state.clone());
    jit
}

/// Runs `jit` to its HLT.
fn run(jit: &mut JitCpu) {
    let events = Arc::clone(jit.events());
    let (done, is_done) = std::sync::mpsc::channel();
    let watch = std::thread::spawn(move || {
        if is_done.recv_timeout(LIMIT).is_err() {
            events.request_exit();
        }
    });
    let exit = jit.run(u64::MAX);
    // The watch has gone if it has rung.
    let _ = done.send(());
    watch.join().expect("the watch");
    assert!(matches!(exit, VmExit::Halt { .. }), "{exit:?} at {:#x}", jit.state().rip);
}

/// Runs all of `cpus` at once, each to its HLT.
fn run_all(cpus: &mut [JitCpu]) {
    let events: Vec<_> = cpus.iter().map(|cpu| Arc::clone(cpu.events())).collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            cpus.iter_mut().map(|cpu| scope.spawn(move || cpu.run(u64::MAX))).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(2));
            if started.elapsed() > LIMIT {
                events.iter().for_each(|events| events.request_exit());
            }
        }
        for thread in threads {
            let exit = thread.join().expect("a vCPU's thread");
            assert!(matches!(exit, VmExit::Halt { .. }), "{exit:?}");
        }
    });
}

/// General registers, RIP and flags, and the stack around RSP.
fn summary(state: &State) -> (Vec<String>, String, u64, u8) {
    let gpr = state.gpr.iter().map(|value| format!("{value:#x}")).collect();
    (gpr, format!("{:#x}", state.rip), state.rflags, state.cpl)
}

/// The ways to translate: as usual, block by instruction, counting instructions, counting accesses
/// with trashed registers, every loop as a superblock.
fn all_ways() -> [Options; 5] {
    let plain = Options::default();
    [
        plain.clone(),
        Options { block_size: 1, ..plain.clone() },
        Options { counting: true, ..plain.clone() },
        Options { trash_helpers: true, count_accesses: true, ..plain.clone() },
        Options { superblock_after: 1, ..plain },
    ]
}

/// Runs the guest that `make` prepares by both engines, with several options, and compares. Gives
/// the state at the end.
fn compare(make: impl Fn() -> Bench) -> State {
    let mut interpreted = make();
    let exit = interpreted.cpu.run(10_000_000);
    assert!(matches!(exit, VmExit::Halt { .. }), "the interpreter: {exit:?}");
    for options in all_ways() {
        let bench = make();
        let mut jit = translator(&bench, &options);
        run(&mut jit);
        let (state, expected) = (jit.state(), &interpreted.cpu.state);
        assert_eq!(summary(state), summary(expected), "{options:?}");
        assert_eq!(state.cr2, expected.cr2, "{options:?}");
        let (mut here, mut there) = ([0; 64], [0; 64]);
        bench.cpu.ram().read_bytes(state.gpr[4] & 0xff_ffff, &mut here);
        interpreted.cpu.ram().read_bytes(state.gpr[4] & 0xff_ffff, &mut there);
        assert_eq!(here, there, "the frame, {options:?}");
    }
    interpreted.cpu.state.clone()
}

/// A bench with `program` at [`CODE`].
fn with_program(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    let mut bench = bench();
    bench.put_code_at(CODE, &assemble(CODE, program));
    bench
}
