//! The interpreter's run of a case, with a look at which flags mean something.

use cpu::Cpu;
use cpu::engine::{Vcpu, VmExit};
use cpu::state::State;
use iced_x86::{Decoder, Instruction};

use crate::case::{Case, Ready};
use crate::world::{HANDLERS, PAGE, World, offset_of};
use crate::x87_page;

/// Instructions of a run at most; a program that wants more is given up.
const LIMIT: usize = 3000;

/// Why a case says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// It does not end.
    Endless,
    /// It stores where no case does.
    Wild,
}

/// A point of a run, between two instructions.
#[derive(Clone, Debug)]
pub struct Point {
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// General registers.
    pub gpr: [u64; 16],
    /// The last x87 instruction.
    pub x87_instruction: (u64, u16, u16),
    /// The last x87 operand.
    pub x87_data: (u64, u16),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it did.
    pub exit: VmExit,
    /// The state.
    pub state: State,
    /// [`World::contents`].
    pub contents: Vec<u8>,
    /// Instructions retired.
    pub retired: u64,
}

/// A run of the interpreter.
#[derive(Clone, Debug)]
pub struct Run {
    /// How it ended.
    pub outcome: Outcome,
    /// By number of retired instructions.
    pub points: Vec<Point>,
    /// Where x87 operands' addresses were stored in [`World::contents`], as [`x87_page::stored`]
    /// says.
    pub x87_pages: Vec<(usize, u8)>,
}

/// Runs `case` as often as it says.
pub fn run(world: &mut World, case: &Case, ready: &Ready) -> Result<Vec<Run>, Discard> {
    let runs = run_all(world, case, ready);
    let is_wild = world.undo_wild_stores();
    runs.and_then(|runs| if is_wild { Err(Discard::Wild) } else { Ok(runs) })
}

fn run_all(world: &mut World, case: &Case, ready: &Ready) -> Result<Vec<Run>, Discard> {
    world.restore(&ready.pages, case.start.rights);
    world.bench.cpu.set_state(ready.state.clone());
    let mut runs = Vec::new();
    for number in 0..case.start.runs {
        if number > 0 {
            again(&mut world.bench.cpu, &ready.state);
            world.reset_counter(case.start.turns);
        }
        let mut run = run_once(world, case)?;
        // What one run has stored is there in the next.
        run.x87_pages.extend(runs.last().iter().flat_map(|run: &&Run| &run.x87_pages));
        runs.push(run);
    }
    Ok(runs)
}

/// Puts a CPU back to where the program starts, with everything that it knows of memory.
pub fn again(cpu: &mut Cpu, state: &State) {
    cpu.state = state.clone();
    cpu.pending_dr6 = 0;
    cpu.mode_changed();
}

fn run_once(world: &mut World, case: &Case) -> Result<Run, Discard> {
    let started = world.bench.cpu.retired();
    let mut points = vec![point(&world.bench.cpu)];
    let mut x87_pages = Vec::new();
    let exit = loop {
        let next = next_instruction(world, case);
        let before = world.bench.cpu.state.clone();
        let retired = world.bench.cpu.retired();
        let exit = world.bench.cpu.run(1);
        let is_done = !is_handler(world) && world.bench.cpu.retired() != retired;
        if let Some(instruction) = next.filter(|_| is_done) {
            x87_pages.extend(x87_page::stored(&before, &instruction));
        }
        points.push(point(&world.bench.cpu));
        if exit != VmExit::Budget {
            break exit;
        }
        if points.len() > LIMIT {
            return Err(Discard::Endless);
        }
    };
    let cpu = &world.bench.cpu;
    let outcome = Outcome {
        exit,
        state: cpu.state.clone(),
        contents: world.contents(),
        retired: cpu.retired() - started,
    };
    Ok(Run { outcome, points, x87_pages })
}

/// The CPU is in the handler of an exception.
fn is_handler(world: &World) -> bool {
    let offset = world.bench.cpu.state.rip.checked_sub(HANDLERS);
    offset.is_some_and(|offset| offset < PAGE)
}

fn point(cpu: &Cpu) -> Point {
    let state = &cpu.state;
    Point {
        rip: state.rip,
        rflags: state.rflags,
        gpr: state.gpr,
        x87_instruction: state.fpu.instruction_pointer(),
        x87_data: state.fpu.data_pointer(),
    }
}

fn next_instruction(world: &World, case: &Case) -> Option<Instruction> {
    let rip = world.bench.cpu.state.rip;
    offset_of(rip)?;
    let mut bytes = [0; 15];
    for (address, byte) in (rip..).zip(&mut bytes) {
        let physical = crate::world::physical(address);
        *byte = world.bench.peek::<1>(physical)[0];
    }
    let options = world.bench.cpu.decoder_options();
    let instruction = Decoder::with_ip(case.mode.bits(), &bytes, rip, options).decode();
    (!instruction.is_invalid()).then_some(instruction)
}
