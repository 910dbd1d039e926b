//! Moving the guest's status flags between EFLAGS, the context, and nowhere at all.
//!
//! Most flags that a memory access would destroy are dead: some later instruction replaces them
//! before anybody reads them. Only a fault in between can show them. Where they are the result of a
//! comparison or a sum whose operands are still in their registers then, they need not be kept: a
//! [`Recipe`] says how to compute them, should it come to that.

use crate::asm::{Alu, Mem, Rm};
use crate::emit::{Emitter, MarkedFlags, context};
use crate::flow::{Effect, Flags, Recipe, RecipeOperand, RecipeSource, changes_register};
use crate::registers::{Number, RAX, S1, host};

/// Bytes of [`Emitter::spill_flags`].
pub(crate) const SPILL_BYTES: usize = 18;
/// Recipes of a block at most: what marks can number.
const MAX_RECIPES: usize = 250;

impl Flags {
    /// The same for a mark.
    pub(crate) fn marked(self) -> MarkedFlags {
        match self {
            Self::Live | Self::Both => MarkedFlags::Live,
            Self::Spilled => MarkedFlags::Spilled,
            Self::Recipe(number) => MarkedFlags::Recipe(number),
        }
    }
}

impl Emitter<'_> {
    /// Makes EFLAGS free to be destroyed.
    pub(crate) fn free_flags(&mut self) {
        self.flags = match self.flags {
            Flags::Live => match self.recipe() {
                Some(number) => Flags::Recipe(number),
                None => {
                    self.spill_flags();
                    Flags::Spilled
                }
            },
            Flags::Both => Flags::Spilled,
            kept => kept,
        };
        self.remark();
    }

    /// Puts the flags into EFLAGS.
    pub(crate) fn want_flags(&mut self) {
        match self.flags {
            Flags::Spilled => {
                self.restore_flags();
                self.flags = Flags::Both;
            }
            Flags::Recipe(number) => {
                self.compute_flags(number);
                self.flags = Flags::Live;
            }
            Flags::Live | Flags::Both => {}
        }
    }

    /// Puts the flags into the context, without destroying EFLAGS.
    pub(crate) fn want_spilled(&mut self) {
        if let Flags::Recipe(number) = self.flags {
            self.compute_flags(number);
            self.flags = Flags::Live;
        }
        if self.flags == Flags::Live {
            self.spill_flags();
            self.flags = Flags::Both;
        }
    }

    /// The flags are those that the current step has left in EFLAGS.
    pub(crate) fn flags_produced(&mut self) {
        self.flags = Flags::Live;
        self.producer = Some(self.current);
    }

    /// From here on the current step's flags are somewhere else.
    pub(crate) fn remark(&mut self) {
        let flags = self.flags.marked();
        if self.marks.last().is_some_and(|mark| mark.flags != flags) {
            self.mark(self.current, flags);
        }
    }

    /// 18 bytes, flags kept: RAX is RAX again.
    pub(crate) fn spill_flags(&mut self) {
        self.asm.mov(S1, RAX);
        self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        self.asm.store32(context!(flags), RAX);
        self.asm.mov(RAX, S1);
    }

    pub(crate) fn restore_flags(&mut self) {
        self.asm.mov(S1, RAX);
        self.asm.load32(RAX, context!(flags));
        self.asm.raw(&[0x04, 0x7f, 0x9e]); // add al, 0x7f; sahf
        self.asm.mov(RAX, S1);
    }

    /// A recipe for the flags in EFLAGS, if it is good until something replaces them.
    fn recipe(&mut self) -> Option<u8> {
        let producer = usize::from(self.producer?);
        let recipe = Recipe::of(self.steps.get(producer)?)?;
        let since = self.steps.get(producer + 1..usize::from(self.current)).unwrap_or_default();
        let is_intact =
            !since.iter().any(|step| recipe.registers().any(|r| changes_register(step, r)));
        if self.recipes.len() == MAX_RECIPES || !is_intact || !self.outlives(&recipe) {
            return None;
        }
        self.recipes.push(recipe);
        Some((self.recipes.len() - 1) as u8)
    }

    /// True if from the current step on the flags are replaced before anybody asks for them or an
    /// operand of the recipe changes.
    fn outlives(&self, recipe: &Recipe) -> bool {
        for step in self.steps.get(usize::from(self.current)..).unwrap_or_default() {
            if !step.action.is_plain() {
                return false;
            }
            match step.effect {
                Effect::Replaces => return true,
                Effect::Reads | Effect::Changes => return false,
                Effect::None => {}
            }
            if recipe.registers().any(|register| changes_register(step, register)) {
                return false;
            }
        }
        false
    }

    /// Computes the flags of recipe `number` again. Destroys S1.
    pub(crate) fn compute_flags(&mut self, number: u8) {
        let Some(recipe) = self.recipes.get(usize::from(number)).copied() else { return };
        let Recipe { source, size, left, right } = recipe;
        let left = host(left).unwrap_or(S1);
        match source {
            RecipeSource::Compare => self.sized(Alu::Cmp, size, left, right),
            RecipeSource::Test => self.sized_test(size, left, right),
            RecipeSource::Sum | RecipeSource::Difference => {
                let (undo, redo) = if source == RecipeSource::Sum {
                    (Alu::Sub, Alu::Add)
                } else {
                    (Alu::Add, Alu::Sub)
                };
                self.asm.mov(S1, left);
                self.sized(undo, size, S1, right);
                self.sized(redo, size, S1, right);
            }
        }
    }

    /// `op left, right` of `size` bytes.
    fn sized(&mut self, alu: Alu, size: u8, left: Number, right: RecipeOperand) {
        match right {
            RecipeOperand::Register(right) => {
                let right = host(right).unwrap_or(S1);
                self.sized_op(size, (alu as u8) << 3 | 2, left, Rm::Reg(right));
            }
            RecipeOperand::Immediate(value) => {
                self.sized_op(size, 0x80, alu as u8, Rm::Reg(left));
                self.immediate(size, value);
            }
        }
    }

    fn sized_test(&mut self, size: u8, left: Number, right: RecipeOperand) {
        match right {
            RecipeOperand::Register(right) => {
                let right = host(right).unwrap_or(S1);
                self.sized_op(size, 0x84, right, Rm::Reg(left));
            }
            RecipeOperand::Immediate(value) => {
                self.sized_op(size, 0xf6, 0, Rm::Reg(left));
                self.immediate(size, value);
            }
        }
    }

    /// An operation whose opcode for bytes is `opcode`, and one more for other sizes.
    fn sized_op(&mut self, size: u8, opcode: u8, reg: Number, rm: Rm) {
        if size == 2 {
            self.asm.byte(0x66);
        }
        if size == 1 {
            return self.asm.op8(opcode, reg, rm);
        }
        self.asm.op(size == 8, &[opcode | 1], reg, rm);
    }

    fn immediate(&mut self, size: u8, value: i32) {
        let bytes = value.to_le_bytes();
        let count = match size {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        self.asm.raw(bytes.get(..count).unwrap_or_default());
    }
}

/// A recipe's operands must be in host registers: those in the context would need a second scratch
/// register.
const _: () = assert!(crate::registers::is_pinned(RAX));

const _: fn(usize) -> Mem = Mem::context;
