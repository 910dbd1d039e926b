//! Which guest-physical page is what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::{Device, Width, read_split, write_split};
use crate::doorbell::{self, Doorbell, Doorbells};
use crate::{GuestPhysical, PAGE_SIZE, Ram};

/// What a range of guest-physical addresses is.
#[derive(Clone)]
pub enum RegionKind {
    /// RAM, from this offset of [`Ram`].
    Ram(u64),
    /// Read-only memory, from this offset of [`Ram`]; writes are dropped.
    Rom(u64),
    /// A device's registers; the device's offset 0 is the region's first byte.
    Device(Arc<dyn Device>),
}

/// What one guest-physical page is, as an engine's TLB wants to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// RAM; the offset of the page's first byte in [`Ram`].
    Ram(u64),
    /// ROM; the offset of the page's first byte in [`Ram`].
    Rom(u64),
    /// Devices, or nothing, or a mixture: every access goes through the space.
    Io,
}

/// A run of guest-physical addresses that is RAM throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
    /// Offset of the first byte in [`Ram`].
    pub offset: u64,
}

/// A run of guest-physical addresses with bytes of [`Ram`] behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackedRange {
    /// First guest-physical address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
    /// Offset of the first byte in [`Ram`].
    pub offset: u64,
    /// Writes are dropped.
    pub is_rom: bool,
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Another range is there.
    #[error("range at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the range that was to be mapped.
        base: u64,
        /// First address of the range that is there.
        other: u64,
    },
    /// The range does not fit in the space, or its backing does not fit in RAM.
    #[error("range at {base:#x} of {size:#x} bytes does not fit")]
    OutOfRange {
        /// First address of the range.
        base: u64,
        /// Its size in bytes.
        size: u64,
    },
}

/// A device's own access to memory touched something that is not RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA to {address:#x} ({bytes} bytes) is not all RAM")]
pub struct DmaError {
    /// Where the transfer started.
    pub address: u64,
    /// How long it was to be.
    pub bytes: u64,
}

struct Region {
    /// Last address, inclusive.
    last: u64,
    kind: RegionKind,
    /// The device's.
    doorbells: Doorbells,
}

/// What is at an address.
struct Found {
    /// The region's kind; `None` in a hole.
    kind: Option<RegionKind>,
    /// The distance from the region's first byte.
    offset: u64,
    /// Bytes from the address to the end of the region or the hole, at least 1.
    left: u64,
    /// The region's.
    doorbells: Doorbells,
}

/// The guest-physical address space: a map of ranges over [`Ram`] and devices.
pub struct PhysicalSpace {
    ram: Arc<Ram>,
    /// Keyed by first address; ranges never overlap.
    regions: RwLock<BTreeMap<u64, Region>>,
    generation: AtomicU64,
    a20_masked: AtomicBool,
}

impl PhysicalSpace {
    /// An empty space over `ram`.
    pub fn new(ram: Arc<Ram>) -> Self {
        Self {
            ram,
            regions: RwLock::default(),
            generation: AtomicU64::new(0),
            a20_masked: AtomicBool::new(false),
        }
    }

    /// The RAM behind the space.
    #[inline]
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Moves whenever a page may have become something else; engines flush what they derived.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Holds physical address line 20 low (`true`) as a PC's A20 gate does, or lets it pass.
    pub fn mask_a20(&self, masked: bool) {
        if self.a20_masked.swap(masked, Ordering::AcqRel) != masked {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// True if address line 20 passes.
    pub fn is_a20_enabled(&self) -> bool {
        !self.a20_masked.load(Ordering::Acquire)
    }

    #[inline]
    fn gate(&self, address: u64) -> u64 {
        if self.a20_masked.load(Ordering::Relaxed) { address & !(1 << 20) } else { address }
    }

    /// Maps `size` bytes at `base`. RAM and ROM ranges are page-aligned.
    pub fn map(&self, base: GuestPhysical, size: u64, kind: RegionKind) -> Result<(), MapError> {
        let error = MapError::OutOfRange { base: base.0, size };
        let last = size.checked_sub(1).and_then(|s| base.0.checked_add(s)).ok_or(error)?;
        if let RegionKind::Ram(offset) | RegionKind::Rom(offset) = kind {
            let fits = offset.checked_add(size).is_some_and(|end| end <= self.ram.size());
            if !fits || (offset | base.0 | size) & (PAGE_SIZE - 1) != 0 {
                return Err(error);
            }
        }
        let doorbells = match &kind {
            RegionKind::Device(device) => doorbell::of(&**device),
            RegionKind::Ram(_) | RegionKind::Rom(_) => None,
        };
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&other, _)) =
            regions.range(..=last).next_back().filter(|(_, region)| region.last >= base.0)
        {
            return Err(MapError::Overlap { base: base.0, other });
        }
        regions.insert(base.0, Region { last, kind, doorbells });
        drop(regions);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Removes the range that starts at `base`. True if there was one.
    pub fn unmap(&self, base: GuestPhysical) -> bool {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let removed = regions.remove(&base.0).is_some();
        drop(regions);
        if removed {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        removed
    }

    /// Removes every region, when the machine is taken apart.
    pub fn unmap_all(&self) {
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        // Devices are let go of without the lock: they may be the last to hold others.
        let removed = std::mem::take(&mut *regions);
        drop(regions);
        drop(removed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Finds what is at `address`.
    fn find(&self, address: u64) -> Found {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        match regions.range(..=address).next_back() {
            Some((&base, region)) if address <= region.last => Found {
                kind: Some(region.kind.clone()),
                offset: address - base,
                // No region is larger than 2^64 - 1, so neither is what is left of one.
                left: region.last - address + 1,
                doorbells: region.doorbells.clone(),
            },
            _ => {
                let next = regions.range(address..).next();
                let left = next.map_or(u64::MAX, |(&n, _)| n - address);
                Found { kind: None, offset: 0, left, doorbells: None }
            }
        }
    }

    /// The ranges that are RAM, for engines that look up pages without the map's lock. Empty while
    /// address line 20 is masked: no range is contiguous then.
    pub fn ram_ranges(&self) -> Vec<RamRange> {
        if !self.is_a20_enabled() {
            return Vec::new();
        }
        let ram = self.backed_ranges().into_iter().filter(|range| !range.is_rom);
        ram.map(|BackedRange { base, size, offset, .. }| RamRange { base, size, offset }).collect()
    }

    /// What has bytes behind it, RAM and ROM, as a CPU sees it: while address line 20 is masked,
    /// every odd mebibyte is the even one below.
    pub fn backed_ranges(&self) -> Vec<BackedRange> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let ranges: Vec<_> =
            regions.iter().filter_map(|(&base, region)| backed(base, region)).collect();
        drop(regions);
        if self.is_a20_enabled() {
            ranges
        } else {
            ranges.iter().flat_map(fold_at_line_20).collect()
        }
    }

    /// What is where: the first address, the last, and what it is.
    pub fn regions(&self) -> Vec<(u64, u64, &'static str)> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let label = |kind: &RegionKind| match kind {
            RegionKind::Ram(_) => "RAM",
            RegionKind::Rom(_) => "ROM",
            RegionKind::Device(device) => device.label(),
        };
        regions.iter().map(|(&base, region)| (base, region.last, label(&region.kind))).collect()
    }

    /// The doorbells of all devices, each with its address. Those that cannot be reached while
    /// address line 20 is masked are left out.
    pub fn doorbells(&self) -> Vec<(u64, Doorbell)> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let bells = regions
            .iter()
            .flat_map(|(&base, region)| doorbell::placed(&region.doorbells, base, region.last));
        bells.filter(|&(address, _)| self.gate(address) == address).collect()
    }

    /// What the page that holds `address` is.
    pub fn page(&self, address: GuestPhysical) -> PageKind {
        let found = self.find(self.gate(address.page().0));
        match found.kind {
            Some(RegionKind::Ram(start)) if found.left >= PAGE_SIZE => {
                PageKind::Ram(start + found.offset)
            }
            Some(RegionKind::Rom(start)) if found.left >= PAGE_SIZE => {
                PageKind::Rom(start + found.offset)
            }
            _ => PageKind::Io,
        }
    }

    /// Reads a scalar of `width` from whatever is at `address`; all ones where nothing is. An
    /// access that is not inside one region and one page is split into halves, the low one first.
    pub fn read(&self, address: GuestPhysical, width: Width) -> u64 {
        let at = self.gate(address.0);
        let Found { kind, offset, left, .. } = self.find(at);
        if let Some(half) = width.half().filter(|_| !is_whole(at, left, width)) {
            let low = self.read(GuestPhysical(at), half);
            let high = self.read(GuestPhysical(at).wrapping_add(half.bytes()), half);
            return low | high << (8 * half.bytes());
        }
        match kind {
            Some(RegionKind::Ram(start) | RegionKind::Rom(start)) => {
                self.load_width(start + offset, width)
            }
            Some(RegionKind::Device(device)) => read_split(&*device, offset, width),
            None => width.mask(),
        }
    }

    /// Writes a scalar of `width` to whatever is at `address`, split as [`PhysicalSpace::read`] is.
    /// Writes to ROM and to nothing are dropped.
    pub fn write(&self, address: GuestPhysical, width: Width, value: u64) {
        let at = self.gate(address.0);
        let Found { kind, offset, left, doorbells } = self.find(at);
        if let Some(half) = width.half().filter(|_| !is_whole(at, left, width)) {
            self.write(GuestPhysical(at), half, value);
            let high = GuestPhysical(at).wrapping_add(half.bytes());
            return self.write(high, half, value >> (8 * half.bytes()));
        }
        match kind {
            Some(RegionKind::Ram(start)) => self.store_width(start + offset, width, value),
            Some(RegionKind::Device(_)) if doorbell::rings(&doorbells, offset, width, value) => {}
            Some(RegionKind::Device(device)) => write_split(&*device, offset, width, value),
            Some(RegionKind::Rom(_)) | None => {}
        }
    }

    fn load_width(&self, offset: u64, width: Width) -> u64 {
        match width {
            Width::Byte => u64::from(self.ram.load::<u8>(offset)),
            Width::Word => u64::from(self.ram.load::<u16>(offset)),
            Width::Dword => u64::from(self.ram.load::<u32>(offset)),
            Width::Qword => self.ram.load::<u64>(offset),
        }
    }

    fn store_width(&self, offset: u64, width: Width, value: u64) {
        match width {
            Width::Byte => self.ram.store(offset, value as u8),
            Width::Word => self.ram.store(offset, value as u16),
            Width::Dword => self.ram.store(offset, value as u32),
            Width::Qword => self.ram.store(offset, value),
        };
    }

    /// Copies RAM or ROM out for a device or a loader. DMA does not pass the A20 gate, which sits
    /// between the CPU and the bus. On an error `out` holds what came before the address at fault.
    pub fn dma_read(&self, address: GuestPhysical, out: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError { address: address.0, bytes: out.len() as u64 };
        let (mut at, mut rest) = (Some(address.0), out);
        while !rest.is_empty() {
            let now = at.ok_or(error)?;
            let found = self.find(now);
            let Some(RegionKind::Ram(start) | RegionKind::Rom(start)) = found.kind else {
                return Err(error);
            };
            let count = found.left.min(rest.len() as u64) as usize;
            let (bytes, later) = rest.split_at_mut(count);
            self.ram.read_bytes(start + found.offset, bytes);
            rest = later;
            at = now.checked_add(count as u64);
        }
        Ok(())
    }

    /// Copies data into RAM for a device or a loader; dirty and code flags are kept. On an error
    /// what came before the address at fault has been written, as a bus master would have.
    pub fn dma_write(&self, address: GuestPhysical, data: &[u8]) -> Result<(), DmaError> {
        let error = DmaError { address: address.0, bytes: data.len() as u64 };
        let (mut at, mut rest) = (Some(address.0), data);
        while !rest.is_empty() {
            let now = at.ok_or(error)?;
            let found = self.find(now);
            let Some(RegionKind::Ram(start)) = found.kind else { return Err(error) };
            let count = found.left.min(rest.len() as u64) as usize;
            let (bytes, later) = rest.split_at(count);
            self.ram.write_bytes(start + found.offset, bytes);
            rest = later;
            at = now.checked_add(count as u64);
        }
        Ok(())
    }
}

fn backed(base: u64, region: &Region) -> Option<BackedRange> {
    let (offset, is_rom) = match region.kind {
        RegionKind::Ram(offset) => (offset, false),
        RegionKind::Rom(offset) => (offset, true),
        RegionKind::Device(_) => return None,
    };
    Some(BackedRange { base, size: region.last - base + 1, offset, is_rom })
}

/// The parts of `range` in even mebibytes, each at its own address and at the one above.
fn fold_at_line_20(range: &BackedRange) -> Vec<BackedRange> {
    const MIB: u64 = 1 << 20;
    let end = range.base + range.size;
    let mut parts = Vec::new();
    let mut at = range.base;
    while at < end {
        let next = end.min((at | (MIB - 1)) + 1);
        if at & MIB == 0 {
            let part = BackedRange {
                base: at,
                size: next - at,
                offset: range.offset + (at - range.base),
                ..*range
            };
            parts.extend([part, BackedRange { base: at | MIB, ..part }]);
        }
        at = next;
    }
    parts
}

/// True if `width` at `at` is inside the region that has `left` bytes left, and inside one page.
fn is_whole(at: u64, left: u64, width: Width) -> bool {
    let page_left = PAGE_SIZE - (at & (PAGE_SIZE - 1));
    left.min(page_left) >= width.bytes()
}
