//! Instructions of a form with random registers.

pub mod encode;

use decoder::{Executor, MemoryShape, Register, Row};

/// Where the r/m operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Register,
    Memory,
    Broadcast,
}

/// True if the host's processor has everything that `row` needs, and the row is the host's to
/// execute as a whole (gathers, scatters and mask moves are not).
pub fn host_has(row: &Row) -> bool {
    let is_indexed = matches!(
        row.memory.shape,
        MemoryShape::Gather | MemoryShape::Scatter | MemoryShape::MaskMove
    );
    !is_indexed && host_has_features(row)
}

/// As [`host_has`], for all shapes of memory operands.
pub fn host_has_features(row: &Row) -> bool {
    row.executor == Executor::Native
        && row.features.iter().all(|feature| {
            let (leaf, subleaf, register, bit) = feature.cpuid();
            let found = std::arch::x86_64::__cpuid_count(leaf, subleaf);
            let value = match register {
                Register::Eax => found.eax,
                Register::Ebx => found.ebx,
                Register::Ecx => found.ecx,
                Register::Edx => found.edx,
            };
            value >> bit & 1 != 0
        })
}
