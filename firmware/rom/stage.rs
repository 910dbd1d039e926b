//! A stage: code of one width at one place in the ROM, made of steps that pass or fail.

use std::ops::{Deref, DerefMut};

use iced_x86::code_asm::{CodeAssembler, CodeLabel, dword_ptr};
use iced_x86::{BlockEncoderOptions, Code, IcedError, Instruction};

use crate::rom::layout::{ROM_BASE, STEPS};
use crate::rom::{power_off, print};

/// What every function that emits code returns.
pub type Emit = Result<(), IcedError>;

/// Width of a stage's code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 16-bit code; addresses are offsets in segment F000h.
    Bits16,
    /// 32-bit code; addresses are linear.
    Bits32,
    /// 64-bit code; addresses are linear.
    Bits64,
}

impl Width {
    fn bits(self) -> u32 {
        match self {
            Width::Bits16 => 16,
            Width::Bits32 => 32,
            Width::Bits64 => 64,
        }
    }

    fn address_of(self, rom_offset: usize) -> u64 {
        let base = if self == Width::Bits16 { 0 } else { u64::from(ROM_BASE) };
        base + rom_offset as u64
    }
}

/// A handler for the stage's interrupt table.
struct Handler {
    vector: u8,
    dpl: u8,
    entry: CodeLabel,
}

/// A handler whose address is known.
#[derive(Clone, Copy)]
pub struct Gate {
    /// Interrupt vector.
    pub vector: u8,
    /// Least privileged level that may name the vector in an INT instruction.
    pub dpl: u8,
    /// Offset in CS.
    pub entry: u64,
}

/// A stage as bytes.
pub struct Assembled {
    /// ROM offset of the first byte, which is the entry.
    pub offset: usize,
    /// The code.
    pub code: Vec<u8>,
    /// Its interrupt handlers.
    pub gates: Vec<Gate>,
}

/// A stage being written. Instructions are emitted through the assembler it derefs to.
pub struct Stage {
    asm: CodeAssembler,
    width: Width,
    offset: usize,
    handlers: Vec<Handler>,
    /// Prints the text that follows the CALL.
    pub print: CodeLabel,
    /// Powers off with all steps passed.
    pub succeed: CodeLabel,
    /// Powers off after a failed step.
    pub give_up: CodeLabel,
}

impl Deref for Stage {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

impl Stage {
    /// A stage whose entry is at ROM offset `offset`.
    pub fn new(width: Width, offset: usize) -> Result<Self, IcedError> {
        let mut asm = CodeAssembler::new(width.bits())?;
        let (print, succeed, give_up) =
            (asm.create_label(), asm.create_label(), asm.create_label());
        Ok(Self { asm, width, offset, handlers: Vec::new(), print, succeed, give_up })
    }

    /// Makes the code that follows the handler of `vector` for INT from level `dpl` inwards.
    pub fn handler(&mut self, vector: u8, dpl: u8) -> Emit {
        let mut entry = self.asm.create_label();
        self.asm.set_label(&mut entry)?;
        self.handlers.push(Handler { vector, dpl, entry });
        Ok(())
    }

    /// Jumps to `rom_offset` in the ROM with a new CS; `width` is that of the code there.
    pub fn enter(&mut self, selector: u16, width: Width, rom_offset: usize) -> Emit {
        let (code, offset) = match width {
            Width::Bits16 => (Code::Jmp_ptr1616, rom_offset as u32),
            Width::Bits32 | Width::Bits64 => (Code::Jmp_ptr1632, ROM_BASE + rom_offset as u32),
        };
        self.asm.add_instruction(Instruction::with_far_branch(code, selector, offset)?)
    }

    /// Prints `text`.
    pub fn say(&mut self, text: &str) -> Emit {
        let print = self.print;
        self.asm.call(print)?;
        self.asm.db(text.as_bytes())?;
        self.asm.db(&[0])
    }

    /// Adds the routines that steps call, and assembles.
    pub fn finish_with_steps(mut self) -> Result<Assembled, IcedError> {
        power_off::routines(&mut self)?;
        let width = self.width;
        print::routine(&mut self, width)?;
        self.finish()
    }

    /// Assembles a stage that has no steps and handlers of its own only.
    pub fn finish(mut self) -> Result<Assembled, IcedError> {
        let address = self.width.address_of(self.offset);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.asm.assemble_options(address, options)?;
        let gates = self.handlers.iter().map(|handler| {
            let entry = result.label_ip(&handler.entry)?;
            Ok(Gate { vector: handler.vector, dpl: handler.dpl, entry })
        });
        let gates = gates.collect::<Result<Vec<_>, IcedError>>()?;
        Ok(Assembled { offset: self.offset, code: result.inner.code_buffer, gates })
    }
}

/// A step: checks that jump to `failed`, and one line that says what was found.
pub struct Step {
    name: &'static str,
    /// Where a check goes that does not hold.
    pub failed: CodeLabel,
    next: CodeLabel,
}

impl Step {
    /// Opens the step `name`.
    pub fn new(stage: &mut Stage, name: &'static str) -> Self {
        Self { name, failed: stage.create_label(), next: stage.create_label() }
    }

    /// Closes the step: all checks held, and `found` says what they saw.
    pub fn passed(self, stage: &mut Stage, found: &str) -> Emit {
        self.passed_with(stage, |stage| stage.say(found))
    }

    /// Closes the step with a line whose end is printed by emitted code.
    pub fn passed_with(
        mut self,
        stage: &mut Stage,
        found: impl FnOnce(&mut Stage) -> Emit,
    ) -> Emit {
        self.leave_with(stage, found)?;
        stage.set_label(&mut self.failed)?;
        stage.say(&format!("volvelle: step [{}] FAILED\r\n", self.name))?;
        let give_up = stage.give_up;
        stage.jmp(give_up)?;
        stage.set_label(&mut self.next)
    }

    /// Leaves the step early, passed with another finding, where the processor offers no more.
    pub fn leave(&self, stage: &mut Stage, found: &str) -> Emit {
        self.leave_with(stage, |stage| stage.say(found))
    }

    fn leave_with(&self, stage: &mut Stage, found: impl FnOnce(&mut Stage) -> Emit) -> Emit {
        stage.say(&format!("volvelle: [{}] ", self.name))?;
        found(stage)?;
        stage.say("\r\n")?;
        stage.inc(dword_ptr(STEPS))?;
        stage.jmp(self.next)
    }
}
