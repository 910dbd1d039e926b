//! The translator: same-ISA dynamic binary translation.
//!
//! Guest blocks become host code that is mostly the same instructions with renamed operands. The
//! way of a block: [`translate`] finds its bytes and decodes them, [`plan`] says how each
//! instruction is translated and which memory accesses share a check, [`emit`] and [`steps`] make
//! the code, [`cache`] keeps it and links blocks to each other. [`context`] is what the code works
//! on, [`thunks`] and [`runtime`] are its border to Rust, [`vcpu`] the loop around it. [`slots`]
//! keeps address spaces apart, [`remote`] lets other threads stop a vCPU and make it forget.
//!
//! Neighbours: `cpu` has the architecture and the interpreter, which executes whatever is not
//! translated; `memory` has RAM and says when code was written.
//!
//! Invariant: only instructions that [`plan`] names reach the host's decoder; all others are the
//! interpreter's.

mod asm;
mod bit_strings;
mod border;
mod cache;
mod callbacks;
mod code_memory;
mod context;
mod cross_check;
mod emit;
mod encoding;
mod exit;
mod flags;
mod flow;
mod forms;
mod gaps;
mod grouping;
mod handlers;
mod host;
mod listing;
mod memory_access;
mod perf_map;
mod plan;
mod recording;
mod registers;
mod remote;
mod runtime;
mod slots;
mod slow;
mod statistics;
mod steps;
mod strings;
mod superblock;
mod system_steps;
mod thunks;
mod translate;
mod vcpu;
mod wanted;
mod x87_pointers;

use std::sync::Arc;

#[cfg(feature = "testing")]
pub use cache::Translated;
pub use perf_map::PerfMap;
pub use statistics::Statistics;
pub use vcpu::JitCpu;

/// How a vCPU is to be translated.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of code memory of the vCPU.
    pub cache_bytes: u64,
    /// Guest instructions in a block at most.
    pub block_size: usize,
    /// How often a jump is taken until its target becomes a superblock; 0 for never.
    pub superblock_after: u32,
    /// Helpers fill registers that they may change with rubbish.
    pub trash_helpers: bool,
    /// Every block is executed by the interpreter too, and the results are compared.
    pub cross_check: bool,
    /// Accesses that look into the TLB are counted, for the statistics.
    pub count_accesses: bool,
    /// Retired instructions are counted exactly, and budgets kept.
    pub counting: bool,
    /// Where translated blocks are written down for perf.
    pub perf_map: Option<Arc<PerfMap>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            block_size: translate::MAX_STEPS,
            superblock_after: superblock::AFTER,
            trash_helpers: false,
            cross_check: false,
            count_accesses: false,
            counting: false,
            perf_map: None,
        }
    }
}

/// Why there is no translator.
#[derive(Debug, thiserror::Error)]
pub enum JitError {
    /// The host lacks something.
    #[error("the translator cannot run on this host: {0}")]
    Host(String),
    /// The kernel gave no memory.
    #[error("cannot map {what}")]
    Map {
        /// What it was for.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The code memory has no room for anything.
    #[error("{bytes:#x} bytes of code memory are too few")]
    Size {
        /// The bytes asked for.
        bytes: u64,
    },
}

/// Whether the translator runs on this host; the error says what is missing.
pub fn supported() -> Result<(), String> {
    // LAHF and SAHF in 64-bit mode keep the flags; every processor since 2006 has them.
    let leaf = std::arch::x86_64::__cpuid(0x8000_0001);
    if leaf.ecx & 1 == 0 {
        return Err("the processor has no LAHF in 64-bit mode".into());
    }
    Ok(())
}
