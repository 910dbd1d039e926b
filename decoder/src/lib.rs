//! What engines must know of an instruction beyond its encoding.
//!
//! iced-x86 decodes; this crate adds one table indexed by iced's [`Code`]: [`row()`] says who
//! executes an instruction, which CPUID features, processor state and privilege it needs, how it
//! touches memory and flags, and whether a basic block ends with it. [`BlockScanner`] finds guest
//! basic blocks in a window of bytes.
//!
//! The table is an allow-list: what no line of [`general`] names and no offered CPUID feature
//! covers is [`Executor::Undefined`], an invalid opcode.
//!
//! Known departures from hardware: none of the instructions of SMX, SGX, VMX, SVM, TSX, AMX,
//! CET shadow stacks, Key Locker, UINTR, WAITPKG and PTWRITE exists (CPUID never offers them);
//! the AMD-only 3DNow!, XOP, FMA4, TBM and LWP neither.
#![forbid(unsafe_code)]

mod block;
mod derive;
mod feature;
mod general;
mod map;
mod memory;
mod options;
mod row;
mod shape;
mod table;

pub use block::{Block, BlockEnd, BlockScanner, MAX_INSTRUCTION_BYTES};
pub use feature::{Feature, FeatureSet, Register};
pub use iced_x86::Code;
pub use memory::{Memory, MemoryShape};
pub use options::{Vendor, decoder_options};
pub use row::{Class, Executor, Modes, Privilege, Row, Unit};
pub use table::{row, rows};
