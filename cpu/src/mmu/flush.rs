//! What flushes ask for, kept for engines whose translation caches hold more than [`super::tlb`].
//!
//! The interpreter drops everything at every flush. A translator keeps address spaces apart and
//! global pages through loads of CR3, so it must know what the architecture asked for (SDM Vol. 3A,
//! "Operations that Invalidate TLBs and Paging-Structure Caches").

/// One invalidation, as the architecture words it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Everything, global pages and all PCIDs included.
    Everything,
    /// Every PCID but for global pages (INVPCID type 3).
    NonGlobal,
    /// One PCID but for global pages (MOV CR3, INVPCID type 1).
    Pcid(u16),
    /// One linear page: of the current PCID, and global ones of all (INVLPG, INVPCID type 0).
    Page(u64),
}

/// Flushes that are remembered one by one; more of them are [`Flush::Everything`].
const REMEMBERED: usize = 16;

/// Flushes since the log was last taken, in order.
#[derive(Clone, Debug, Default)]
pub struct FlushLog {
    flushes: [Option<Flush>; REMEMBERED],
    count: usize,
}

impl FlushLog {
    /// Adds a flush. One of everything makes those before it superfluous.
    pub(crate) fn note(&mut self, flush: Flush) {
        if self.count == REMEMBERED || flush == Flush::Everything {
            self.flushes[0] = Some(Flush::Everything);
            self.count = 1;
        } else if self.count == 0 || self.flushes[0] != Some(Flush::Everything) {
            self.flushes[self.count] = Some(flush);
            self.count += 1;
        }
    }

    /// True if nothing was flushed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The flushes, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Flush> + '_ {
        self.flushes.iter().take(self.count).flatten().copied()
    }
}
