//! From segment and offset to bytes: segmentation checks, translation, and the access itself.
//!
//! [`access`] is what instruction handlers call; [`tlb`] caches linear page to RAM page for each
//! *view* (who is asking), so that a hit needs no permission check; [`walk`] reads the page tables,
//! keeps accessed and dirty bits, and is the only place where page faults are made; [`inspect`]
//! walks for debuggers.

pub(crate) mod access;
pub(crate) mod flush;
mod inspect;
pub(crate) mod segment;
pub(crate) mod tlb;
pub(crate) mod walk;

pub use flush::{Flush, FlushLog};
pub use inspect::{MappedRange, PageWalk, WalkLevel};
pub(crate) use tlb::Mmu;

/// What an access does, as page faults tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write, or the read of a read-modify-write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Who makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum View {
    /// CPL < 3 with EFLAGS.AC = 0, and every implicit supervisor access (descriptor tables, TSS)
    /// whatever CPL and AC are: user pages are closed under SMAP.
    Supervisor = 0,
    /// CPL < 3 with EFLAGS.AC = 1: SMAP does not apply.
    SupervisorAc = 1,
    /// CPL 3.
    User = 2,
}

/// What the page walk needs to know of the physical space and of CPUID.
#[derive(Debug, Default)]
pub(crate) struct MmuLimits {
    /// The physical-address bits above MAXPHYADDR, up to bit 51.
    pub(crate) reserved_physical: u64,
    /// CPUID.80000001H:EDX.Page1GB.
    pub(crate) has_gigabyte_pages: bool,
    /// Where RAM is, as of [`Mmu::space_generation`].
    pub(crate) ram_ranges: Vec<memory::RamRange>,
}
