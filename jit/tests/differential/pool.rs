//! Which instructions programs are made of.

use std::collections::BTreeMap;

use cpu::Cpu;
use cpu::testing::forms::is_decoded;
use decoder::{Class, Executor, MemoryShape, Privilege, Row};
use iced_x86::Mnemonic as M;

use crate::world::Mode;

/// What stores the pointers of the x87 unit to memory. The host's unit, which has them for the
/// translator, may lose them in a switch of threads: a difference that does not come again is that.
pub const STORES_X87_POINTERS: &[M] = &[
    M::Fnstenv,
    M::Fstenv,
    M::Fnsave,
    M::Fsave,
    M::Fxsave,
    M::Fxsave64,
    M::Xsave,
    M::Xsave64,
    M::Xsavec,
    M::Xsavec64,
    M::Xsaveopt,
    M::Xsaveopt64,
    M::Xsaves,
    M::Xsaves64,
];

/// Forms by class and mnemonic, to be picked by weight.
pub struct Pool {
    classes: Vec<(u64, Vec<Vec<&'static Row>>)>,
    total: u64,
}

/// How often a class is picked.
fn weight(class: Class) -> u64 {
    match class {
        Class::Alu => 260,
        Class::Mov => 220,
        Class::Condition => 70,
        Class::Shift => 70,
        Class::Bit => 70,
        Class::MulDiv => 30,
        Class::Exchange => 50,
        Class::Stack => 90,
        Class::Flag => 40,
        Class::SimdInteger => 60,
        Class::SimdFloat => 60,
        Class::X87 => 50,
        Class::Crypto | Class::Opmask | Class::String => 12,
        Class::Nop | Class::Cache | Class::StateImage | Class::Segment => 8,
        Class::System | Class::Bcd | Class::Descriptor => 4,
        Class::Random | Class::Interrupt | Class::Io => 2,
        _ => 0,
    }
}

/// What would end or upset every program: control state that later runs do not reset, and what
/// depends on time.
fn is_unwelcome(row: &Row) -> bool {
    let mnemonic = row.code.mnemonic();
    let is_system = row.class == Class::System && !matches!(mnemonic, M::Cpuid | M::Xgetbv);
    let is_privileged = matches!(
        row.privilege,
        Privilege::Cpl0 | Privilege::Cpl0Undefined | Privilege::Tsd | Privilege::Pce
    ) && !matches!(row.class, Class::Flag);
    is_system
        || is_privileged
        || matches!(mnemonic, M::Lmsw | M::Clts | M::Swapgs | M::Monitor | M::Wrpkru | M::Xsetbv)
}

/// True if a guest of `cpu` in `mode` has the form.
pub fn exists(row: &Row, cpu: &Cpu, mode: Mode) -> bool {
    let bits = if mode.bits() == 64 { decoder::Modes::BITS64 } else { decoder::Modes::BITS32 };
    row.executor != Executor::Undefined
        && row.modes.contains(bits)
        && cpu.env.cpuid.features().contains_all(row.features)
        && row.code.op_code().is_instruction()
        && is_decoded(row, mode.bits(), cpu.env.cpuid.vendor())
}

impl Pool {
    /// The pool for code of `mode` on `cpu`.
    pub fn new(cpu: &Cpu, mode: Mode) -> Self {
        let mut classes: BTreeMap<Class, BTreeMap<M, Vec<&'static Row>>> = BTreeMap::new();
        for row in decoder::rows() {
            if weight(row.class) != 0 && exists(row, cpu, mode) && !is_unwelcome(row) {
                let mnemonics = classes.entry(row.class).or_default();
                mnemonics.entry(row.code.mnemonic()).or_default().push(row);
            }
        }
        let classes: Vec<_> = classes
            .into_iter()
            .map(|(class, mnemonics)| (weight(class), mnemonics.into_values().collect()))
            .collect();
        let total = classes.iter().map(|(weight, _)| weight).sum();
        Self { classes, total }
    }

    /// One form.
    pub fn pick(&self, random: &mut cpu::testing::random::Random) -> Option<&'static Row> {
        let mut number = random.below(self.total);
        let (_, mnemonics) = self.classes.iter().find(|(weight, _)| {
            let is_here = number < *weight;
            number = number.wrapping_sub(if is_here { 0 } else { *weight });
            is_here
        })?;
        let rows = &mnemonics[random.below(mnemonics.len() as u64) as usize];
        Some(rows[random.below(rows.len() as u64) as usize])
    }
}

/// True if the form's memory operand is written.
pub fn writes(row: &Row) -> bool {
    use MemoryShape as S;
    matches!(
        row.memory.shape,
        S::Write | S::ReadWrite | S::MaskedWrite | S::CompressWrite | S::Scatter | S::BitString
    )
}
