//! The guest-physical address space of a PC.
//!
//! RAM and ROM are one private mapping ([`Ram`]); [`PhysicalSpace`] says which guest-physical page
//! is RAM, ROM, a device or nothing; [`PortSpace`] is the 64 K ports. Devices implement [`Device`]
//! and see an offset, a width and a value, never their address. Every page of RAM carries flags
//! ([`PageFlags`]): *dirty* (written since the flag was cleared) and *code* (an engine keeps
//! something derived from its bytes), and a generation that moves when code is written; whoever
//! stores past the flags, or does not look at generations, is a [`CodeWatcher`].
//!
//! Neighbours: nothing of ours below; `cpu` reaches RAM through [`Ram`]'s scalar accessors and
//! everything else through [`PhysicalSpace`]; `machine` maps its chips and does DMA.
//!
//! Left out on purpose: vm-memory's traits. Their `VolatileSlice` promises plain host pointers,
//! past which page flags would have to be kept by hand; [`PhysicalSpace::dma_read`] and
//! [`PhysicalSpace::dma_write`] are what our devices use, and [`Ram::host_address`] is enough for
//! an engine that hands the memory to the host.
//!
//! Invariant: no offset a guest can produce reads or writes outside the mapping.

mod address;
mod device;
mod doorbell;
mod page_flags;
mod ports;
mod ram;
mod space;

pub use address::{GuestLinear, GuestPhysical, PAGE_SHIFT, PAGE_SIZE};
pub use device::{Device, IoError, Width};
pub use doorbell::{Doorbell, Ringing};
pub use page_flags::{CodeWatcher, PageFlags};
pub use ports::PortSpace;
pub use ram::{HostPtr, Ram, RamError, Scalar, register_barriers};
pub use space::{BackedRange, DmaError, MapError, PageKind, PhysicalSpace, RamRange, RegionKind};
