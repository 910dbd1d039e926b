//! The 64 K I/O ports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::{Device, Width, read_split, write_split};
use crate::doorbell::{self, Doorbell, Doorbells};
use crate::space::MapError;

struct Range {
    last: u32,
    device: Arc<dyn Device>,
    doorbells: Doorbells,
}

/// What is at a port.
struct Found {
    device: Arc<dyn Device>,
    doorbells: Doorbells,
    /// The distance from the range's first port.
    offset: u64,
    /// Ports from this one to the end of the range, at least 1.
    left: u32,
}

impl Found {
    fn write(&self, width: Width, value: u32) {
        if !doorbell::rings(&self.doorbells, self.offset, width, u64::from(value)) {
            write_split(&*self.device, self.offset, width, u64::from(value));
        }
    }
}

/// Which device answers at which port. Empty ports read as all ones and swallow writes.
#[derive(Default)]
pub struct PortSpace {
    /// Keyed by first port; ranges never overlap.
    ranges: RwLock<BTreeMap<u32, Range>>,
    generation: AtomicU64,
}

impl PortSpace {
    /// An empty port space.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `count` ports from `first` to `device`, whose offset 0 is `first`.
    pub fn map(&self, first: u16, count: u32, device: Arc<dyn Device>) -> Result<(), MapError> {
        let error = MapError::OutOfRange { base: u64::from(first), size: u64::from(count) };
        let first = u32::from(first);
        let last = count.checked_sub(1).and_then(|c| first.checked_add(c)).ok_or(error)?;
        if last > 0xffff {
            return Err(error);
        }
        let doorbells = doorbell::of(&*device);
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&base, _)) =
            ranges.range(..=last).next_back().filter(|(_, range)| range.last >= first)
        {
            return Err(MapError::Overlap { base: u64::from(first), other: u64::from(base) });
        }
        ranges.insert(first, Range { last, device, doorbells });
        drop(ranges);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Removes the range that starts at `first`, if there is one.
    pub fn unmap(&self, first: u16) {
        let removed =
            self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&u32::from(first));
        drop(removed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Removes every range.
    pub fn unmap_all(&self) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // Devices are let go of without the lock: they may be the last to hold others.
        let removed = std::mem::take(&mut *ranges);
        drop(ranges);
        drop(removed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Moves whenever a port may have become something else.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The doorbells of all devices, each with its port.
    pub fn doorbells(&self) -> Vec<(u64, Doorbell)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let bells = ranges.iter().flat_map(|(&first, range)| {
            doorbell::placed(&range.doorbells, first.into(), range.last.into())
        });
        bells.collect()
    }

    /// What is where: the first port, the last, and what the device is.
    pub fn ranges(&self) -> Vec<(u16, u16, &'static str)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let row = |(&first, range): (&u32, &Range)| {
            (first as u16, range.last as u16, range.device.label())
        };
        ranges.iter().map(row).collect()
    }

    /// Finds what is at `port`, and its offset there and the ports left in its range.
    fn find(&self, port: u32) -> Option<Found> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, range) = ranges.range(..=port).next_back()?;
        (port <= range.last).then(|| Found {
            device: Arc::clone(&range.device),
            doorbells: range.doorbells.clone(),
            offset: u64::from(port - base),
            left: range.last - port + 1,
        })
    }

    /// Reads a port. An access that runs past the device's last port is split, and one past port
    /// 0FFFFH goes on at port 0. No port access is wider than a doubleword.
    pub fn read(&self, port: u16, width: Width) -> u32 {
        let (port, width) = (u32::from(port), width.min(Width::Dword));
        match self.find(port) {
            Some(found) if u64::from(found.left) >= width.bytes() => {
                read_split(&*found.device, found.offset, width) as u32
            }
            found => match width.half() {
                Some(half) => {
                    let low = self.read(port as u16, half);
                    let high = self.read((port + half.bytes() as u32) as u16, half);
                    low | high << (8 * half.bytes())
                }
                None => found.map_or(0xff, |f| read_split(&*f.device, f.offset, width) as u32),
            },
        }
    }

    /// Writes a port, split as [`PortSpace::read`] is.
    pub fn write(&self, port: u16, width: Width, value: u32) {
        let (port, width) = (u32::from(port), width.min(Width::Dword));
        match self.find(port) {
            Some(found) if u64::from(found.left) >= width.bytes() => found.write(width, value),
            found => match width.half() {
                Some(half) => {
                    self.write(port as u16, half, value);
                    let next = (port + half.bytes() as u32) as u16;
                    self.write(next, half, value >> (8 * half.bytes()));
                }
                None => {
                    if let Some(found) = found {
                        found.write(width, value);
                    }
                }
            },
        }
    }
}
