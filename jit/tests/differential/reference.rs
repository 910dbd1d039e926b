//! The interpreter's run of a case, with a look at which flags mean something.

use cpu::Cpu;
use cpu::engine::{Vcpu, VmExit};
use cpu::state::{State, rflags};
use cpu::testing::shifts;
use decoder::Class;
use iced_x86::{Decoder, Instruction, Mnemonic as M};

use crate::case::{Case, Ready};
use crate::world::{HANDLERS, PAGE, World, offset_of};
use crate::x87_page;

/// Instructions of a run at most; a program that wants more is given up.
const LIMIT: usize = 3000;
const RCX: usize = 1;
const OF: u64 = rflags::OF;
const CF: u64 = rflags::CF;

/// Why a case says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// It does not end.
    Endless,
    /// An instruction reads flags that are undefined.
    UndefinedFlags,
    /// The result of an instruction is undefined, and the host's may be another than ours.
    UndefinedResult,
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
    /// Flags that are undefined.
    pub undefined: u64,
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
    /// Flags that are undefined at the end.
    pub undefined: u64,
    /// Where the last exception's frame has flags, in [`World::contents`].
    pub frame_flags: Option<usize>,
    /// Where x87 operands' addresses were stored, there too, as [`x87_page::stored`] says.
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
        // What is undefined in memory must not be read by the next run.
        let is_last = run.undefined != 0 && run.frame_flags.is_some();
        runs.push(run);
        if is_last {
            break;
        }
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
    let mut undefined = 0;
    let mut points = vec![point(&world.bench.cpu, 0)];
    let mut last = None;
    let mut x87_pages = Vec::new();
    let exit = loop {
        let next = next_instruction(world, case);
        if let Some(instruction) = &next {
            check(&world.bench.cpu, instruction, undefined)?;
            last = next.filter(|_| !is_handler(world)).or(last);
        }
        let before = world.bench.cpu.state.clone();
        let retired = world.bench.cpu.retired();
        let exit = world.bench.cpu.run(1);
        let is_done = !is_handler(world) && world.bench.cpu.retired() != retired;
        if let Some(instruction) = next.filter(|_| is_done) {
            undefined = undefined_after(&before, &instruction, undefined);
            x87_pages.extend(x87_page::stored(&before, &instruction));
        }
        points.push(point(&world.bench.cpu, undefined));
        if exit != VmExit::Budget {
            break exit;
        }
        if points.len() > LIMIT {
            return Err(Discard::Endless);
        }
    };
    if undefined != 0 && has_part_of_frame(world, &exit) {
        return Err(Discard::UndefinedFlags);
    }
    let cpu = &world.bench.cpu;
    let outcome = Outcome {
        exit,
        state: cpu.state.clone(),
        contents: world.contents(),
        retired: cpu.retired() - started,
    };
    let frame_flags = frame_flags(world, case, &outcome.contents, last);
    Ok(Run { outcome, points, undefined, frame_flags, x87_pages })
}

/// The CPU is in the handler of an exception.
fn is_handler(world: &World) -> bool {
    vector(world).is_some()
}

/// The exception whose handler the CPU is in.
fn vector(world: &World) -> Option<u64> {
    let offset = world.bench.cpu.state.rip.checked_sub(HANDLERS)?;
    (offset < PAGE).then_some(offset / 16)
}

/// An exception could not be delivered: of its frame some may have been stored, flags too.
fn has_part_of_frame(world: &World, exit: &VmExit) -> bool {
    const DF: u64 = 8;
    *exit == VmExit::Shutdown || vector(world) == Some(DF)
}

fn point(cpu: &Cpu, undefined: u64) -> Point {
    let state = &cpu.state;
    Point {
        rip: state.rip,
        rflags: state.rflags,
        undefined,
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

fn check(cpu: &Cpu, instruction: &Instruction, undefined: u64) -> Result<(), Discard> {
    let row = decoder::row(instruction.code());
    let reads_all = matches!(
        instruction.mnemonic(),
        M::Pushf | M::Pushfd | M::Pushfq | M::Syscall | M::Iret | M::Iretd | M::Iretq
    );
    let read = if reads_all { rflags::STATUS } else { u64::from(row.flags_read) };
    if read & undefined != 0 {
        return Err(Discard::UndefinedFlags);
    }
    if shifts::is_open(instruction, &cpu.state.gpr) {
        return Err(Discard::UndefinedResult);
    }
    Ok(())
}

/// The flags that are undefined behind `instruction`, which executed in state `before`.
fn undefined_after(before: &State, instruction: &Instruction, undefined: u64) -> u64 {
    let row = decoder::row(instruction.code());
    let mask = u64::from(row.flags_undefined);
    let now = match row.class {
        // Every processor clears AF.
        Class::Alu if matches!(instruction.mnemonic(), M::And | M::Or | M::Xor | M::Test) => {
            return 0;
        }
        Class::String if is_repeated(instruction) && before.gpr[RCX] as u32 == 0 => {
            return undefined;
        }
        Class::Shift => match shifts::count(instruction, &before.gpr) {
            0 => return undefined,
            1 => mask & !OF,
            count if count >= shifts::operand_bits(instruction) => mask | CF,
            _ => mask,
        },
        _ => mask,
    };
    undefined & !u64::from(row.flags_written) & rflags::STATUS | now
}

fn is_repeated(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// Where the frame of the exception that ended the run has its flags; `last` is the instruction
/// that raised it. INT n pushes no error code, whichever n.
fn frame_flags(
    world: &World,
    case: &Case,
    contents: &[u8],
    last: Option<Instruction>,
) -> Option<usize> {
    let state = &world.bench.cpu.state;
    let vector = vector(world)?;
    let slot = if case.mode.is_paged() { 8 } else { 4 };
    let top = offset_of(state.gpr[4])?;
    let pushed = contents.get(top..top + 4)?;
    let is_trap = last.is_some_and(|last| pushed == (last.next_ip() as u32).to_le_bytes());
    let has_code = matches!(vector, 8 | 10..=14 | 17) && !is_trap;
    offset_of(state.gpr[4] + slot * (2 + u64::from(has_code)))
}
