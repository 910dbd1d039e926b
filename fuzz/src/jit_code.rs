//! Random bytes as guest code on the translator: the target `jit_code`, and inputs for it.
//!
//! The first byte of an input chooses the translator's options, the rest is an input of
//! `cpu::testing::fuzz`. With budgets an input always does the same. Without them, where memory
//! accesses share checks and no guest ends by itself, a second thread ends each part. Some have
//! each
//! block executed by the interpreter too, and its results compared.

use std::cell::Cell;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cpu::Cpu;
use cpu::engine::{Vcpu, VmExit};
use cpu::testing::fuzz::{self, generate, guest_code_on};
use cpu::testing::random::Random;
use jit::{JitCpu, Options};

/// How long a guest without a budget runs before it is asked to stop.
const PATIENCE: Duration = Duration::from_micros(500);
/// Instructions of the code at most.
const INSTRUCTIONS_MAX: u64 = 120;

/// A translating vCPU, or the interpreter's where there is none.
enum Subject {
    Translator { jit: Box<JitCpu>, options: Options, mismatches: Rc<Cell<u64>> },
    Interpreter(Box<Cpu>),
}

/// Runs `input` as a guest on the translator.
pub fn run(input: &[u8]) -> Result<(), String> {
    let (&choice, rest) = input.split_first().unwrap_or((&0, &[]));
    let options = options(choice);
    let mismatches = Rc::<Cell<u64>>::default();
    let mut problem = None;
    let outcome = guest_code_on(rest, |cpu| match JitCpu::new(cpu.env.clone(), &options) {
        Ok(mut jit) => {
            jit.set_state(cpu.state.clone());
            let mismatches = Rc::clone(&mismatches);
            Subject::Translator { jit: Box::new(jit), options, mismatches }
        }
        Err(error) => {
            problem = Some(error.to_string());
            Subject::Interpreter(Box::new(cpu))
        }
    });
    if mismatches.get() != 0 {
        return Err(format!("{} blocks differ from the interpreter", mismatches.get()));
    }
    problem.map_or(outcome.map_err(|failure| format!("{failure:?}")), Err)
}

fn options(choice: u8) -> Options {
    let default = Options::default();
    Options {
        counting: choice & 1 == 0,
        trash_helpers: choice & 2 != 0,
        block_size: [default.block_size, 1, 3, default.block_size][usize::from(choice >> 2 & 3)],
        // Full after a few blocks, so that everything is dropped now and then.
        cache_bytes: if choice & 0x30 == 0 { 16 << 10 } else { 1 << 20 },
        cross_check: choice & 0x41 == 0x40,
        superblock_after: if choice & 0x80 == 0 { default.superblock_after } else { 1 },
        ..default
    }
}

impl fuzz::Subject for Subject {
    fn run(&mut self, budget: u64) -> VmExit {
        match self {
            Self::Translator { jit, options, mismatches } => {
                let exit = if options.counting { jit.run(budget) } else { run_for_a_while(jit) };
                if options.cross_check {
                    mismatches.set(jit.statistics().mismatches());
                }
                exit
            }
            Self::Interpreter(cpu) => Vcpu::run(cpu.as_mut(), budget),
        }
    }

    fn cpu(&self) -> &Cpu {
        match self {
            Self::Translator { jit, .. } => jit.cpu(),
            Self::Interpreter(cpu) => cpu,
        }
    }

    fn keeps_budgets(&self) -> bool {
        matches!(self, Self::Translator { options, .. } if options.counting)
    }

    /// Everything that is mapped: code, contexts, stacks, guest RAM.
    fn host_addresses(&self) -> Vec<u64> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let start = |line: &str| u64::from_str_radix(line.split_once('-')?.0, 16).ok();
        // The kernel's own page is at an address that guests know too.
        let is_ours = |address: &u64| address >> 47 == 0;
        let mut addresses: Vec<u64> = maps.lines().filter_map(start).filter(is_ours).collect();
        addresses.dedup_by_key(|address| *address >> 32);
        addresses
    }
}

/// Runs until the guest stops, or this thread's helper asks for it.
fn run_for_a_while(jit: &mut JitCpu) -> VmExit {
    let events = Arc::clone(jit.events());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let helper = scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                std::thread::park_timeout(PATIENCE);
                if !is_done.load(Ordering::SeqCst) {
                    events.request_exit();
                }
            }
        });
        let exit = jit.run(u64::MAX);
        is_done.store(true, Ordering::SeqCst);
        helper.thread().unpark();
        exit
    })
}

/// An input for [`run`]: instructions of all kinds, and among them what a translator is about:
/// loops, calls, memory by few registers, stores to code.
pub fn generate(random: &mut Random) -> Vec<u8> {
    let mut input = vec![random.byte()];
    // Threads cost more than they show.
    if random.below(4) != 0 {
        input[0] &= !1;
    }
    let mut header = generate::header(random);
    if random.below(8) != 0 {
        tame(random, &mut header);
    }
    input.append(&mut header);
    for register in [0xb8, 0xb9, 0xba, 0xbb, 0xbd, 0xbe, 0xbf] {
        if random.below(4) != 0 {
            // Data, the page before it, code.
            let page = [0x20, 0x20, 0x1f, 0x10][random.below(4) as usize];
            input.extend([register, random.byte(), random.byte() & 0x0f, page, 0]);
        }
    }
    let share = random.below(8);
    for _ in 0..=random.below(INSTRUCTIONS_MAX) {
        if random.below(8) < share {
            generate::instruction(random, &mut input);
        } else {
            idiom(random, &mut input);
        }
    }
    input
}

/// Makes a guest start where code is translated: in a mode with flat segments, without single steps
/// (which are in bit 0 of the flags' second byte), all units on.
fn tame(random: &mut Random, header: &mut [u8]) {
    const MODE: usize = 0;
    const UNITS: usize = 1;
    const FLAGS: usize = 8;
    header[MODE] = 3 + random.below(6) as u8;
    header[UNITS] = header[UNITS] & !7 | 1;
    header[FLAGS] &= !1;
}

/// Appends an instruction that compilers write, or one that changes the code.
fn idiom(random: &mut Random, code: &mut Vec<u8>) {
    let (register, byte, near) = (random.byte() & 0x3f, random.byte(), random.byte() & 0x1f);
    let back = 0u8.wrapping_sub(random.byte() & 0x3f);
    let rex = 0x48 | random.byte() & 7;
    match random.below(20) {
        0 => code.extend([rex, 0x01 | random.byte() & 0x3a, 0xc0 | register]),
        1 => code.extend([rex, 0x89 | random.byte() & 2, 0x40 | register & 0x3b, byte & 0x78]),
        2 => code.extend([rex, 0x03 | random.byte() & 0x38, 0x40 | register & 0x3b, byte & 0x78]),
        3 => code.extend([0x88 | random.byte() & 3, 0x44 | register & 0x38, 0x24, byte & 0x78]),
        // A store relative to RIP (outside 64-bit mode, to a low address).
        4 => code.extend([0xc6, 0x05, near, 0, 0, 0, byte]),
        5 => code.extend([0xc7, 0x05, back, 0xff, 0xff, 0xff, byte, 0x90, near, byte]),
        6 => code.extend([0x50 | random.byte() & 15]),
        7 => code.extend([0x70 | random.byte() & 15, near]),
        8 => code.extend([0x70 | random.byte() & 15, back]),
        9 => code.extend([0xe0 | random.byte() & 3, back]),
        10 => code.extend([0xe8, near, 0, 0, 0]),
        11 => code.extend([0xe8, back, 0xff, 0xff, 0xff]),
        12 => code.extend([0xc3]),
        13 => code.extend([0xff, 0xd0 | random.byte() & 0x37]),
        14 => code.extend([[0xf3, 0xf2, 0x48][random.below(3) as usize], 0xa4 | near & 15]),
        15 => code.extend([0xb8 | random.byte() & 7, byte, 0, 0x10, 0]),
        16 => code.extend([0x66, 0x0f, [0x6f, 0x7f, 0xef, 0xd4][near as usize & 3], register]),
        17 => code.extend([0xd8 | near & 7, 0xc0 | register]),
        18 => code.extend([[0x9c, 0x9d, 0xfa, 0xfb, 0xfc, 0xfd, 0xc9, 0x9e][near as usize & 7]]),
        _ => code.extend([0x48 | random.byte() & 1, 0x0f, 0x40 | near, 0xc0 | register]),
    }
}
