//! Who called whom: functions, interrupts and exceptions, followed through a trace.
//!
//! Each CPU has a stack of frames. A call pushes its target with the address to return to; a return
//! pops to the frame that waits for that address, for not all code returns in order. What delivers
//! an interrupt or an exception, and SYSCALL, push a *gate*, which IRET and SYSRET pop with all
//! that is above it. A jump into another function replaces the topmost one (a tail call), and so
//! does a return to where nobody waits. A call into the middle of its own function is no call of a
//! function: kernels fill the processor's return predictor by such.
//!
//! A kernel changes stacks by loading RSP from memory; whose stack it goes on with is not in the
//! trace, so all frames end there and new ones begin with what returns. The same is true where
//! instructions were not recorded.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use cpu::exception;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use rustc_hash::FxHashMap;
use symbols::Symbols;
use trace::{Block, Event};

use super::cache::Cache;
use super::{Moment, events};

/// Frames of a stack at most; a deeper one is begun anew.
const FRAMES_MAX: usize = 4096;
/// Different names at most.
const NAMES_MAX: usize = 1 << 20;
/// What code without a name is called where it was not called by its address.
const UNNAMED: &str = "[unnamed]";

/// The number of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name(pub(super) u32);

/// What takes the frames as they come and go.
pub(super) trait Sink {
    /// A frame is pushed.
    fn enter(&mut self, at: &Moment, name: Name, text: &str) -> io::Result<()>;
    /// The topmost frame is popped.
    fn leave(&mut self, at: &Moment) -> io::Result<()>;
    /// So many instructions were executed in the topmost frame.
    fn spend(&mut self, at: &Moment, instructions: u64) -> io::Result<()>;
}

/// What comes between instructions, and so before the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    /// The next instruction, or a jump.
    #[default]
    Plain,
    /// A call, that returns to an address.
    Call(u64),
    Return,
    /// A frame that is a gate was pushed.
    Gate,
    GateReturn,
    Syscall,
    /// RSP was loaded.
    OtherStack,
}

/// Instructions of a block, one behind the other, with what ends them.
struct Step {
    start: u64,
    instructions: u64,
    flow: Flow,
    /// The function that they are in, if it has a name.
    function: Option<Name>,
    /// They are where it begins.
    is_entry: bool,
}

struct Frame {
    name: Name,
    /// Where it returns to; a gate has no such address.
    return_to: Option<u64>,
    is_gate: bool,
}

/// One CPU.
#[derive(Default)]
struct Stack {
    frames: Vec<Frame>,
    flow: Flow,
}

/// When frames come and go, who is told of it, and what the frames are called.
struct Scene<'a> {
    at: Moment,
    names: &'a mut Names,
    sink: &'a mut dyn Sink,
}

/// The frames of all CPUs.
pub(super) struct Calls {
    symbols: Arc<Symbols>,
    names: Names,
    steps: Cache<Vec<Step>>,
    stacks: FxHashMap<u16, Stack>,
}

#[derive(Default)]
struct Names {
    texts: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, Name>,
}

impl Names {
    fn number(&mut self, text: &str) -> Name {
        if let Some(name) = self.numbers.get(text) {
            return *name;
        }
        if self.texts.len() >= NAMES_MAX {
            // Far more than there are functions: what comes now is as good as nameless.
            return Name(0);
        }
        let (name, text) = (Name(self.texts.len() as u32), Arc::<str>::from(text));
        self.texts.push(Arc::clone(&text));
        self.numbers.insert(text, name);
        name
    }

    fn text(&self, name: Name) -> Arc<str> {
        self.texts.get(name.0 as usize).map_or_else(|| UNNAMED.into(), Arc::clone)
    }
}

impl Calls {
    pub(super) fn new(symbols: Arc<Symbols>) -> Self {
        let mut names = Names::default();
        names.number(UNNAMED);
        Self { symbols, names, steps: Cache::default(), stacks: FxHashMap::default() }
    }

    /// The text of a name.
    pub(super) fn text(&self, name: Name) -> Arc<str> {
        self.names.text(name)
    }

    /// A block was executed.
    pub(super) fn block(
        &mut self,
        at: &Moment,
        block: &Arc<Block>,
        sink: &mut dyn Sink,
    ) -> io::Result<()> {
        let Self { symbols, names, steps, stacks } = self;
        let steps = steps.get(block, |block| steps_of(block, symbols, names));
        let stack = stacks.entry(at.cpu).or_default();
        let mut scene = Scene { at: *at, names, sink };
        for step in steps.iter() {
            stack.arrive(step, &mut scene)?;
            scene.sink.spend(&scene.at, step.instructions)?;
            stack.flow = step.flow;
            scene.at.count = scene.at.count.saturating_add(step.instructions);
        }
        Ok(())
    }

    /// Something else happened.
    pub(super) fn event(
        &mut self,
        at: &Moment,
        event: &Event,
        sink: &mut dyn Sink,
    ) -> io::Result<()> {
        let Self { names, stacks, .. } = self;
        let stack = stacks.entry(at.cpu).or_default();
        let mut scene = Scene { at: *at, names, sink };
        let text = match event {
            Event::Interrupt { vector, source } => events::interrupt(*vector, *source),
            Event::Exception { vector, .. } => exception::name(*vector).into(),
            Event::Begin | Event::End | Event::Reset | Event::Skipped { .. } => {
                stack.flow = Flow::Plain;
                return stack.pop_to(0, &mut scene);
            }
            _ => return Ok(()),
        };
        stack.flow = Flow::Gate;
        stack.push_gate(&text, &mut scene)
    }

    /// The trace has ended: all frames end.
    pub(super) fn finish(&mut self, at: &Moment, sink: &mut dyn Sink) -> io::Result<()> {
        let Self { names, stacks, .. } = self;
        let mut scene = Scene { at: *at, names, sink };
        stacks.iter_mut().try_for_each(|(&cpu, stack)| {
            scene.at.cpu = cpu;
            stack.pop_to(0, &mut scene)
        })
    }
}

impl Stack {
    /// The next instructions are those of `step`.
    fn arrive(&mut self, step: &Step, scene: &mut Scene<'_>) -> io::Result<()> {
        match std::mem::take(&mut self.flow) {
            Flow::Plain => {}
            Flow::Call(return_to) => {
                let top = self.frames.last().map(|frame| frame.name);
                let is_inside = step.function.is_some() && step.function == top && !step.is_entry;
                if !is_inside {
                    return self.push(step, Some(return_to), scene);
                }
            }
            Flow::Gate => return self.push(step, None, scene),
            Flow::Return => {
                let waits = |frame: &Frame| frame.return_to == Some(step.start);
                // Who returns to nowhere has replaced the address: that is a jump.
                if let Some(depth) = self.frames.iter().rposition(waits) {
                    self.pop_to(depth, scene)?;
                }
            }
            Flow::GateReturn => {
                // IRET is used as a barrier too, and then goes nowhere.
                let is_barrier = step.function.is_some()
                    && self.frames.last().map(|frame| frame.name) == step.function;
                if !is_barrier {
                    let gate = self.frames.iter().rposition(|frame| frame.is_gate);
                    self.pop_to(gate.unwrap_or(0), scene)?;
                }
            }
            Flow::Syscall => {
                self.push_gate("syscall", scene)?;
            }
            Flow::OtherStack => {
                let is_gate = self.frames.last().is_some_and(|frame| frame.is_gate);
                if !is_gate {
                    self.pop_to(0, scene)?;
                }
            }
        }
        self.settle(step, scene)
    }

    /// Has the function of `step` on top.
    fn settle(&mut self, step: &Step, scene: &mut Scene<'_>) -> io::Result<()> {
        let Some(top) = self.frames.last().filter(|frame| !frame.is_gate) else {
            return self.push(step, None, scene);
        };
        let (Some(function), return_to) = (step.function, top.return_to) else { return Ok(()) };
        if function == top.name {
            return Ok(());
        }
        self.pop_to(self.frames.len() - 1, scene)?;
        self.push(step, return_to, scene)
    }

    fn push(
        &mut self,
        step: &Step,
        return_to: Option<u64>,
        scene: &mut Scene<'_>,
    ) -> io::Result<()> {
        let was_called = return_to.is_some();
        let name = step.function.unwrap_or_else(|| match was_called {
            true => scene.names.number(&format!("{:#x}", step.start)),
            false => Name(0),
        });
        self.push_frame(Frame { name, return_to, is_gate: false }, scene)
    }

    fn push_gate(&mut self, what: &str, scene: &mut Scene<'_>) -> io::Result<()> {
        let name = scene.names.number(&format!("[{what}]"));
        self.push_frame(Frame { name, return_to: None, is_gate: true }, scene)
    }

    fn push_frame(&mut self, frame: Frame, scene: &mut Scene<'_>) -> io::Result<()> {
        if self.frames.len() >= FRAMES_MAX {
            self.pop_to(0, scene)?;
        }
        scene.sink.enter(&scene.at, frame.name, &scene.names.text(frame.name))?;
        self.frames.push(frame);
        Ok(())
    }

    fn pop_to(&mut self, depth: usize, scene: &mut Scene<'_>) -> io::Result<()> {
        while self.frames.len() > depth {
            self.frames.pop();
            scene.sink.leave(&scene.at)?;
        }
        Ok(())
    }
}

fn steps_of(block: &Block, symbols: &Symbols, names: &mut Names) -> Vec<Step> {
    let bits = block.mode().width.bits();
    let mut steps: Vec<Step> = Vec::new();
    let mut expected = None;
    let mut is_open = false;
    for insn in block.insns() {
        let start = block.linear(insn.rip);
        let mut decoder = Decoder::with_ip(bits, insn.bytes, insn.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let next = insn.rip.wrapping_add(insn.bytes.len() as u64);
        if !is_open || expected != Some(insn.rip) {
            let place = symbols.at(start).filter(|place| place.symbol.is_code());
            let is_entry = place.is_some_and(|place| place.offset == 0);
            let place = place.filter(|place| !is_return(place.symbol.name));
            let function = place.map(|place| {
                // The compiler puts what it takes for rare elsewhere.
                let name = place.symbol.name;
                names.number(name.split_once(".cold").map_or(name, |(name, _)| name))
            });
            steps.push(Step { start, instructions: 0, flow: Flow::Plain, function, is_entry });
        }
        expected = Some(next);
        let Some(step) = steps.last_mut() else { continue };
        step.instructions += 1;
        step.flow = flow(&instruction, block.linear(next));
        is_open = step.flow == Flow::Plain;
    }
    steps
}

/// True for what kernels execute instead of a return: it belongs to the function that returns.
fn is_return(name: &str) -> bool {
    name.ends_with("return_thunk")
        || ["srso_", "retbleed_"].iter().any(|start| name.starts_with(start))
}

/// What an instruction does to the stack of functions.
fn flow(instruction: &Instruction, next: u64) -> Flow {
    match instruction.mnemonic() {
        Mnemonic::Syscall | Mnemonic::Sysenter => return Flow::Syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            return Flow::GateReturn;
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => return Flow::GateReturn,
        _ => {}
    }
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => Flow::Call(next),
        FlowControl::Return => Flow::Return,
        _ if loads_stack(instruction) => Flow::OtherStack,
        _ => Flow::Plain,
    }
}

/// `mov rsp, [register+...]`: a kernel's change of stacks. By GS it is its own, when it is entered.
fn loads_stack(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r64_rm64
        && instruction.op0_register() == Register::RSP
        && instruction.op1_kind() == OpKind::Memory
        && instruction.segment_prefix() == Register::None
        && !matches!(instruction.memory_base(), Register::None | Register::RIP | Register::RSP)
}
