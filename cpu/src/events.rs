//! The mailbox through which other threads reach a CPU.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// What waits for a CPU. Set from any thread; the CPU polls one word between blocks.
#[derive(Default)]
pub struct Events {
    pending: AtomicU32,
    sipi_vector: AtomicU8,
}

impl Events {
    /// The local APIC may have an interrupt to deliver.
    pub const INTERRUPT: u32 = 1;
    /// An NMI.
    pub const NMI: u32 = 1 << 1;
    /// INIT.
    pub const INIT: u32 = 1 << 2;
    /// A start-up IPI.
    pub const SIPI: u32 = 1 << 3;
    /// The owner wants the CPU out of [`crate::engine::Vcpu::run`].
    pub const EXIT: u32 = 1 << 4;
    /// KVM_HC_KICK_CPU: leave HLT.
    pub const KICK: u32 = 1 << 5;

    /// Posts `bits`.
    pub fn post(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::SeqCst);
    }
    /// Posts a start-up IPI to `vector << 12`. The last one posted wins.
    pub fn post_sipi(&self, vector: u8) {
        self.sipi_vector.store(vector, Ordering::SeqCst);
        self.post(Self::SIPI);
    }
    /// Asks the CPU to leave its run loop at the next instruction boundary.
    pub fn request_exit(&self) {
        self.post(Self::EXIT);
    }
    /// The bits that wait.
    #[inline]
    pub fn peek(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }
    /// True if anything waits.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }
    /// Clears `bits` and tells which of them were set.
    pub fn take(&self, bits: u32) -> u32 {
        self.pending.fetch_and(!bits, Ordering::SeqCst) & bits
    }
    /// The vector of the last start-up IPI.
    pub fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::SeqCst)
    }
}
