//! Execution traces: what CPUs have executed, in a file of less than a byte a block.
//!
//! # What a trace says
//!
//! Each CPU has a stream of its own of [`Record`]s, in the order of execution. A record is a
//! [`Block`] all of whose instructions were retired, one behind the other, or an [`Event`] between
//! two of them (an event inside of a block has the block cut in two). So the instructions of the
//! blocks are the instruction trace, with their bytes: a trace is disassembled without the guest.
//! Each record knows how many instructions its CPU had retired before it and the guest time of the
//! last [`Event::Time`]; by the time the streams are merged ([`Reader::merged`]). Where time is
//! counted (`--clock icount --sched serial`) the merged order is the order of execution.
//!
//! Where recording begins or goes on ([`Event::Begin`]) the stream has the CPU's registers
//! ([`Event::Register`]), and with `what=regs` those that change from then on. A ring may have lost
//! its beginning, and has only the changes then.
//!
//! # The file
//!
//! All numbers are little-endian; a *varint* has 7 bits a byte, the lowest first, and the high bit
//! set in all bytes but the last; *zigzag* maps a difference to it by `(d << 1) ^ (d >> 63)`.
//!
//! ```text
//! file    = header, then chunks (linear), or slots of chunks (a ring)
//! header  = "VVTRACE\n", version u16, length u32, body, CRC-32 of the body u32
//! chunk   = magic u32, segment u32, cpu u16, kind u16, packed u32, raw u32, CRC-32 u32,
//!           count u64, time u64, then `packed` bytes: LZ4 (one block) of `raw` bytes
//! ```
//!
//! The header's body is in [`header`](Header). A chunk is of one CPU; `count` is how many
//! instructions that CPU had retired at its start and `time` the guest time then. Kind 0 has
//! records; kind 1 is the last chunk of a file that was closed properly and has none.
//!
//! A *segment* is a run of chunks that can be read by themselves: at its start no blocks are
//! defined and the predictors are empty. A linear file has its segments one behind the other, and
//! mostly one in all. A ring is [`SLOTS`] slots of equal size, each of which has one segment from
//! its start on and then rubbish; segment number `n` is in slot `n % SLOTS`, over what was there
//! before. What does not begin a chunk of the slot's segment ends it.
//!
//! # Records
//!
//! Blocks have numbers within a CPU's stream and a segment, from 0 in the order of their
//! definitions. A byte says what comes:
//!
//! ```text
//! 00..7f  the predicted block, 1 to 128 times, each time as predicted then
//! 80..bf  the block whose number's low 6 bits these are; the rest is a varint
//! c0      the block that was noted to follow the last one
//! c1      definition of a block
//! c2      definition of a block as a part of another: number, first instruction, how many
//! c3..    events, each with its fields; see `event.rs`
//! ```
//!
//! The prediction is what followed the last three blocks the last time, in a table of 65536 entries
//! by a hash; 0 where nothing did. Only where it is wrong it is noted what followed, by the last
//! three and by the last one (`prediction.rs`).
//!
//! A definition is: a byte of mode (bits 0 and 1 the CPL, 2 and 3 the width of code as 16, 32, 64;
//! 4 real mode, 5 virtual-8086 mode), the base of CS as a varint, the number of instructions as a
//! byte (1 to [`INSNS_MAX`]), RIP as a zigzag difference to that of the last definition, then for
//! each instruction a byte with its length and, with bit 4 set, the zigzag difference of its RIP to
//! where the one before ends (a block follows jumps), and its bytes.
//!
//! # What a reader may rely on
//!
//! Everything is validated when it is read, whoever wrote the file: numbers of blocks and
//! registers, lengths, checksums. Memory is bounded by constants for each CPU. A file that was cut
//! off is read up to the last whole chunk.

#![forbid(unsafe_code)]

mod block;
mod chunk;
mod decoder;
mod encoder;
mod event;
mod header;
mod numbers;
mod prediction;
mod reader;
mod recorder;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod varint;
mod writer;

pub use block::{Block, Insn, Mode, Width};
pub use chunk::{BLOCKS_MAX, CODE_BYTES_MAX};
pub use event::{Access, Event, InterruptSource, Register, Value};
pub use header::{Clock, Filters, Header, Kinds};
pub use reader::{Ending, Item, Merged, Reader, Record, Records, Source};
pub use recorder::{Recorder, Recording};
pub use writer::{RING_BYTES_MIN, Target, Writer};

/// Instructions of a block at most.
pub const INSNS_MAX: usize = 64;
/// The longest instruction.
pub const INSN_BYTES_MAX: usize = 15;
/// Slots of a ring.
pub const SLOTS: u32 = 8;
/// CPUs at most.
pub const CPUS_MAX: u16 = 1024;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read the trace")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("this is no trace of Volvelle's")]
    NoTrace,
    /// It is of another version.
    #[error("the trace has version {0}, and this program reads version {VERSION}")]
    Version(u16),
    /// The header says what cannot be.
    #[error("the header of the trace is damaged: {0}")]
    Header(&'static str),
    /// A chunk says what cannot be.
    #[error("the trace is damaged in the chunk at byte {at:#x}: {what}")]
    Chunk {
        /// Where the chunk begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// The version of the format that is written and read.
pub const VERSION: u16 = 2;
