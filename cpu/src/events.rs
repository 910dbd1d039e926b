//! The mailbox through which other threads reach a CPU.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// How an engine that does not look at the mailbox by itself is told that something was posted.
pub trait Doorbell: Send + Sync {
    /// Something was posted; called on any thread, after the post.
    fn ring(&self);
}

/// Engines that have a doorbell: the translator and KVM.
const DOORBELLS: usize = 2;

/// What waits for a CPU. Set from any thread; the CPU polls one word between blocks.
#[derive(Default)]
pub struct Events {
    pending: AtomicU32,
    sipi_vector: AtomicU8,
    /// Of each engine that has one, whether or not it runs the CPU now.
    doorbells: [OnceLock<Arc<dyn Doorbell>>; DOORBELLS],
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
    /// A second NMI, posted while the first waited.
    const NMI_AGAIN: u32 = 1 << 6;

    /// Posts `bits`.
    pub fn post(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        self.doorbells.iter().filter_map(OnceLock::get).for_each(|doorbell| doorbell.ring());
    }

    /// Has `doorbell` rung at every post. The first ones stay.
    pub fn add_doorbell(&self, doorbell: Arc<dyn Doorbell>) {
        // An engine is made once for its CPU, and there are no more of them that have a doorbell.
        let free = self.doorbells.iter().find(|place| place.get().is_none());
        if let Some(place) = free {
            let _ = place.set(doorbell);
        }
    }

    /// Where the word of [`Events::peek`] is, for code that looks at it without a call.
    pub fn pending_address(&self) -> *const AtomicU32 {
        &raw const self.pending
    }
    /// Posts a start-up IPI to `vector << 12`. The last one posted wins.
    pub fn post_sipi(&self, vector: u8) {
        self.sipi_vector.store(vector, Ordering::SeqCst);
        self.post(Self::SIPI);
    }
    /// Posts an NMI. A CPU that has not looked yet remembers two: on hardware the first would be
    /// under delivery by now, and the second latched behind it.
    pub fn post_nmi(&self) {
        let next = |bits: u32| if bits & Self::NMI == 0 { Self::NMI } else { Self::NMI_AGAIN };
        let post = |bits| Some(bits | next(bits));
        // The closure always gives a value, so the update cannot fail.
        let _ = self.pending.fetch_update(Ordering::SeqCst, Ordering::SeqCst, post);
        self.ring();
    }
    /// Takes the NMIs posted since the last call: how many, at most two.
    pub fn take_nmis(&self) -> u8 {
        self.take(Self::NMI | Self::NMI_AGAIN).count_ones() as u8
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
