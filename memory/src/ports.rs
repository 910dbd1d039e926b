//! The 64 K I/O ports.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::{Device, Width, read_split, write_split};
use crate::space::MapError;

struct Range {
    last: u32,
    device: Arc<dyn Device>,
}

/// Which device answers at which port. Empty ports read as all ones and swallow writes.
#[derive(Default)]
pub struct PortSpace {
    /// Keyed by first port; ranges never overlap.
    ranges: RwLock<BTreeMap<u32, Range>>,
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
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&base, _)) =
            ranges.range(..=last).next_back().filter(|(_, range)| range.last >= first)
        {
            return Err(MapError::Overlap { base: u64::from(first), other: u64::from(base) });
        }
        ranges.insert(first, Range { last, device });
        Ok(())
    }

    /// Removes the range that starts at `first`, if there is one.
    pub fn unmap(&self, first: u16) {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner).remove(&u32::from(first));
    }

    /// Removes every range.
    pub fn unmap_all(&self) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // Devices are let go of without the lock: they may be the last to hold others.
        let removed = std::mem::take(&mut *ranges);
        drop(ranges);
        drop(removed);
    }

    /// What is where: the first port, the last, and what the device is.
    pub fn ranges(&self) -> Vec<(u16, u16, &'static str)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let row = |(&first, range): (&u32, &Range)| {
            (first as u16, range.last as u16, range.device.label())
        };
        ranges.iter().map(row).collect()
    }

    /// Finds the device at `port`, and its offset there and the ports left in its range.
    fn find(&self, port: u32) -> Option<(Arc<dyn Device>, u64, u32)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, range) = ranges.range(..=port).next_back()?;
        (port <= range.last)
            .then(|| (Arc::clone(&range.device), u64::from(port - base), range.last - port + 1))
    }

    /// Reads a port. An access that runs past the device's last port is split, and one past port
    /// 0FFFFH goes on at port 0. No port access is wider than a doubleword.
    pub fn read(&self, port: u16, width: Width) -> u32 {
        let (port, width) = (u32::from(port), width.min(Width::Dword));
        match self.find(port) {
            Some((device, offset, left)) if u64::from(left) >= width.bytes() => {
                read_split(&*device, offset, width) as u32
            }
            found => match width.half() {
                Some(half) => {
                    let low = self.read(port as u16, half);
                    let high = self.read((port + half.bytes() as u32) as u16, half);
                    low | high << (8 * half.bytes())
                }
                None => found.map_or(0xff, |(d, o, _)| read_split(&*d, o, width) as u32),
            },
        }
    }

    /// Writes a port, split as [`PortSpace::read`] is.
    pub fn write(&self, port: u16, width: Width, value: u32) {
        let (port, width) = (u32::from(port), width.min(Width::Dword));
        match self.find(port) {
            Some((device, offset, left)) if u64::from(left) >= width.bytes() => {
                write_split(&*device, offset, width, u64::from(value));
            }
            found => match width.half() {
                Some(half) => {
                    self.write(port as u16, half, value);
                    let next = (port + half.bytes() as u32) as u16;
                    self.write(next, half, value >> (8 * half.bytes()));
                }
                None => {
                    if let Some((device, offset, _)) = found {
                        write_split(&*device, offset, width, u64::from(value));
                    }
                }
            },
        }
    }
}
