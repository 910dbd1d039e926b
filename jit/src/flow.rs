//! Where the guest's status flags are while a block is translated.
//!
//! They live in EFLAGS across instructions and blocks. The checks of memory accesses destroy
//! EFLAGS; before the first one the flags are *spilled* to [`crate::context::Context::flags`], so
//! that a fault can always tell them, and restored only where somebody reads them or changes a
//! part.

use cpu::flags::{self, Word};
use decoder::{Class, Row};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::plan::{Action, Step};
use crate::registers::{Number, RSP, is_pinned};

/// The six flags of arithmetic.
pub(crate) const STATUS: u32 = 0x8d5;

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// In EFLAGS only.
    Live,
    /// In the context only.
    Spilled,
    /// In both.
    Both,
    /// In neither: a recipe of the block, by its number, says what they are.
    Recipe(u8),
}

/// What an instruction does to the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// Reads some.
    Reads,
    /// Changes some and keeps or reads others.
    Changes,
    /// Replaces all, whatever they were.
    Replaces,
}

/// What `iced` does to the status flags on the host.
pub(crate) fn effect(row: &Row, iced: &Instruction) -> Effect {
    let touched = (row.flags_written | row.flags_undefined) & STATUS;
    if touched == 0 {
        return if row.flags_read & STATUS != 0 { Effect::Reads } else { Effect::None };
    }
    // Comparisons of floating-point numbers may fault, and show the flags before them.
    let may_fault = matches!(row.class, Class::SimdFloat | Class::X87);
    if touched == STATUS && row.flags_read & STATUS == 0 && !may_fault && is_whole(row, iced) {
        return Effect::Replaces;
    }
    Effect::Changes
}

/// True if what the instruction leaves undefined does not depend on the flags before it on any
/// processor: logic clears AF on all of them. Of the others nobody promises it.
fn is_whole(row: &Row, iced: &Instruction) -> bool {
    if row.flags_undefined & STATUS == 0 {
        return true;
    }
    row.class == Class::Alu
        && matches!(iced.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test)
        || shift_replaces(iced)
}

/// Shifts by a constant that is not 0 replace all flags on the processors that were tried.
fn shift_replaces(iced: &Instruction) -> bool {
    use Mnemonic as M;
    if !matches!(iced.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar) || iced.op_count() != 2 {
        return false;
    }
    let width_mask = if iced.op0_register().size() == 8 { 63 } else { 31 };
    let is_constant = iced.op1_kind() == OpKind::Immediate8;
    is_constant
        && u32::from(iced.immediate8()) & width_mask != 0
        && *crate::host::SHIFTS_REPLACE_FLAGS
}

/// How the status flags can be computed once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) source: RecipeSource,
    /// Operand size in bytes.
    pub(crate) size: u8,
    /// A guest register.
    pub(crate) left: Number,
    pub(crate) right: RecipeOperand,
}

/// What the flags are those of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecipeSource {
    /// `cmp left, right`.
    Compare,
    /// `test left, right`; logic too, by its result.
    Test,
    /// An addition of `right` that left its result in `left`.
    Sum,
    /// A subtraction of `right` that left its result in `left`.
    Difference,
}

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecipeOperand {
    /// A guest register.
    Register(Number),
    /// A constant, of 32 bits sign-extended at most.
    Immediate(i32),
}

impl Recipe {
    /// The recipe for the flags that `step` leaves, if its operands stay in registers.
    pub(crate) fn of(step: &Step) -> Option<Self> {
        use Mnemonic as M;
        let iced = &step.iced;
        if step.action != Action::Copy || iced.has_lock_prefix() || iced.op_count() != 2 {
            return None;
        }
        let left = plain_register(iced, 0)?;
        let size = iced.op0_register().size() as u8;
        let right = match iced.op1_kind() {
            OpKind::Register => plain_register(iced, 1).map(RecipeOperand::Register),
            OpKind::Memory => None,
            _ => i32::try_from(iced.try_immediate(1).ok()? as i64)
                .ok()
                .or_else(|| (size == 4).then(|| iced.immediate(1) as i32))
                .map(RecipeOperand::Immediate),
        };
        let (source, right) = match iced.mnemonic() {
            M::Cmp => (RecipeSource::Compare, right?),
            M::Test => (RecipeSource::Test, right?),
            M::And | M::Or | M::Xor => (RecipeSource::Test, RecipeOperand::Register(left)),
            M::Add => (RecipeSource::Sum, right?),
            M::Sub => (RecipeSource::Difference, right?),
            _ => return None,
        };
        let is_sum = matches!(source, RecipeSource::Sum | RecipeSource::Difference);
        if is_sum && right == RecipeOperand::Register(left) {
            return None;
        }
        Some(Self { source, size, left, right })
    }

    /// The guest registers that it reads.
    pub(crate) fn registers(&self) -> impl Iterator<Item = Number> {
        let right = match self.right {
            RecipeOperand::Register(number) => Some(number),
            RecipeOperand::Immediate(_) => None,
        };
        std::iter::once(self.left).chain(right)
    }

    /// The status flags, with the values of `gpr`.
    pub(crate) fn flags(&self, gpr: &[u64; 16]) -> u64 {
        match self.size {
            1 => self.sized_flags::<u8>(gpr),
            2 => self.sized_flags::<u16>(gpr),
            4 => self.sized_flags::<u32>(gpr),
            _ => self.sized_flags::<u64>(gpr),
        }
    }

    fn sized_flags<T: Word>(&self, gpr: &[u64; 16]) -> u64 {
        let value = |number: Number| T::from_u64(gpr[usize::from(number & 15)]);
        let left = value(self.left);
        let right = match self.right {
            RecipeOperand::Register(number) => value(number),
            RecipeOperand::Immediate(constant) => T::from_u64(constant as i64 as u64),
        };
        let difference = |a: T, b: T| T::from_u64(a.to_u64().wrapping_sub(b.to_u64()));
        let sum = |a: T, b: T| T::from_u64(a.to_u64().wrapping_add(b.to_u64()));
        match self.source {
            RecipeSource::Compare => flags::sub(left, right, 0).1,
            RecipeSource::Test => flags::logic(T::from_u64(left.to_u64() & right.to_u64())),
            RecipeSource::Sum => flags::add(difference(left, right), right, 0).1,
            RecipeSource::Difference => flags::sub(sum(left, right), right, 0).1,
        }
    }
}

/// The number of register operand `operand`, if the host holds it in a register and it is no high
/// byte.
fn plain_register(iced: &Instruction, operand: u32) -> Option<Number> {
    if iced.op_kind(operand) != OpKind::Register {
        return None;
    }
    let register = iced.op_register(operand);
    let is_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    let number = register.full_register().number() as Number;
    (register.is_gpr() && !is_high && is_pinned(number)).then_some(number)
}

/// True if `step` may change guest register `register`.
pub(crate) fn changes_register(step: &Step, register: Number) -> bool {
    use Mnemonic as M;
    let iced = &step.iced;
    let names = |operand: u32| {
        iced.op_kind(operand) == OpKind::Register
            && iced.op_register(operand).is_gpr()
            && iced.op_register(operand).full_register().number() as Number == register
    };
    let is_named = (0..iced.op_count().min(2)).any(names);
    let implicit: &[Number] = match step.action {
        Action::Push | Action::PushFlags => &[RSP],
        Action::Pop => &[RSP],
        Action::Leave => &[RSP, 5],
        _ => match iced.mnemonic() {
            M::Rdpkru | M::Rdtsc => &[0, 2],
            M::Rdtscp => &[0, 1, 2],
            M::Cwd | M::Cdq | M::Cqo => &[2],
            M::Cbw | M::Cwde | M::Cdqe | M::Fnstsw | M::Lahf => &[0],
            M::Mul | M::Imul | M::Div | M::Idiv => &[0, 2],
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => &[0, 2],
            _ => &[],
        },
    };
    let is_source_only = matches!(iced.mnemonic(), M::Cmp | M::Test | M::Push);
    is_named && !is_source_only || implicit.contains(&register)
}
