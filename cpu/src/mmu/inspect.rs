//! The page walk as a debugger sees it: every level with its entry, and no trace in the guest.
//!
//! Nothing is written, no right is checked and no device is read: page tables outside of RAM and
//! ROM end the walk.

use memory::{GuestPhysical, PAGE_SIZE, PageKind};

use crate::Cpu;
use crate::state::{cr0, efer};

use super::walk::{P, RW, US, XD, leaf_address};

/// One step of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkLevel {
    /// The lowest bit of the linear address that chose the entry.
    pub shift: u32,
    /// Where the entry is.
    pub at: GuestPhysical,
    /// The entry.
    pub entry: u64,
}

/// A walk and where it led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageWalk {
    /// The entries on the way, from the root; none without paging.
    pub levels: Vec<WalkLevel>,
    /// The physical address and log2 of the page's bytes; `None` if nothing is mapped there.
    pub found: Option<(GuestPhysical, u32)>,
}

impl PageWalk {
    /// Bits that all entries on the way have, and those that any has: rights are of the one kind
    /// (W, U) or of the other (XD).
    pub fn rights(&self) -> (u64, u64) {
        let entries = || self.levels.iter().map(|level| level.entry);
        (entries().fold(u64::MAX, |all, entry| all & entry), entries().fold(0, |any, e| any | e))
    }

    /// The first linear address behind `linear` that another entry is about.
    fn behind(&self, linear: u64) -> Option<u64> {
        let shift = match (self.found, self.levels.last()) {
            (Some((_, shift)), _) => shift,
            (None, Some(level)) => level.shift,
            (None, None) => return None,
        };
        (linear >> shift).checked_add(1)?.checked_mul(1 << shift)
    }
}

/// A run of linear pages that are mapped with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub last: u64,
    /// May be written.
    pub is_writable: bool,
    /// Is open to CPL 3.
    pub is_user: bool,
    /// Code may be fetched.
    pub is_executable: bool,
}

impl MappedRange {
    fn has_rights_of(&self, other: &Self) -> bool {
        let rights = |range: &Self| (range.is_writable, range.is_user, range.is_executable);
        rights(self) == rights(other)
    }
}

impl Cpu {
    /// What is mapped from linear address `from` on: at most `most` ranges, looking at so many
    /// entries, and where to go on if that was not all. Without paging there is nothing to say.
    pub fn mapped_ranges(&self, from: u64, most: usize) -> (Vec<MappedRange>, Option<u64>) {
        /// Entries that are looked at for each range that is wanted.
        const ENTRIES: usize = 4096;
        let mut ranges: Vec<MappedRange> = Vec::new();
        let mut next = Some(from).filter(|_| self.state.cr0 & cr0::PG != 0);
        for _ in 0..most.saturating_mul(ENTRIES) {
            let Some(linear) = next.map(|next| self.canonical_from(next)) else { break };
            let walk = self.inspect(linear);
            next = walk.behind(linear).filter(|&next| self.is_linear(next));
            if walk.found.is_none() {
                if walk.levels.is_empty() && !self.mode.is_long() {
                    // An absent PDPTE is about 1 GiB.
                    next = (linear >> 30)
                        .checked_add(1)
                        .map(|g| g << 30)
                        .filter(|&n| self.is_linear(n));
                }
                continue;
            }
            let (all, any) = walk.rights();
            let range = MappedRange {
                start: linear,
                last: next.map_or(self.last_linear(), |next| next - 1),
                is_writable: all & RW != 0,
                is_user: all & US != 0,
                is_executable: any & XD == 0 || self.state.msrs.efer & efer::NXE == 0,
            };
            let last = ranges.last_mut().filter(|last| {
                last.last.checked_add(1) == Some(linear) && last.has_rights_of(&range)
            });
            if let Some(last) = last {
                last.last = range.last;
            } else if ranges.len() == most {
                return (ranges, Some(linear));
            } else {
                ranges.push(range);
            }
        }
        (ranges, next)
    }

    fn last_linear(&self) -> u64 {
        if self.mode.is_long() { u64::MAX } else { 0xffff_ffff }
    }

    fn is_linear(&self, address: u64) -> bool {
        address <= self.last_linear()
    }

    /// `address`, or the first canonical address behind it.
    fn canonical_from(&self, address: u64) -> u64 {
        if !self.mode.is_long() || self.mode.is_canonical(address) {
            return address;
        }
        u64::MAX << self.mode.canonical_shift
    }

    /// Walks the page tables for `linear`, by the current paging mode.
    pub fn inspect(&self, linear: u64) -> PageWalk {
        let mut walk = PageWalk::default();
        if self.state.cr0 & cr0::PG == 0 {
            walk.found = Some((GuestPhysical(linear & 0xffff_ffff), 12));
            return walk;
        }
        if self.mode.is_long() && !self.mode.is_canonical(linear) {
            return walk;
        }
        let linear = if self.mode.is_long() { linear } else { linear & 0xffff_ffff };
        let shape = self.shape();
        let Ok(mut table) = self.root(linear, &shape) else { return walk };
        for (depth, level) in shape.levels.iter().enumerate() {
            let index = linear >> level.shift & ((1 << shape.index_bits) - 1);
            let at = GuestPhysical(table + index * shape.entry_bytes);
            let mut bytes = [0; 8];
            let entry_bytes = bytes.get_mut(..shape.entry_bytes as usize).unwrap_or_default();
            if !self.inspect_physical(at, entry_bytes) {
                return walk;
            }
            let entry = u64::from_le_bytes(bytes);
            walk.levels.push(WalkLevel { shift: level.shift, at, entry });
            if entry & P == 0 {
                return walk;
            }
            let is_last = depth + 1 == shape.levels.len();
            if is_last || level.can_map && self.is_large(entry, &shape) {
                let physical = leaf_address(linear, level.shift, entry, shape.entry_bytes);
                walk.found = Some((physical, level.shift));
                return walk;
            }
            table = shape.next_table(entry);
        }
        walk
    }

    /// Reads memory at a linear address into `out`, and tells how many bytes could be read: it ends
    /// where nothing is mapped, or a device.
    pub fn inspect_bytes(&self, linear: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        for (at, part) in self.pieces(linear, out.len()) {
            let Some(out) = out.get_mut(done..done + part) else { return done };
            if !at.is_some_and(|at| self.inspect_physical(at, out)) {
                return done;
            }
            done += part;
        }
        done
    }

    /// Writes memory at a linear address whatever the rights are, all or nothing: to RAM, and to
    /// ROM as a programmer of its chip does. False if some of it is not mapped, or a device.
    pub fn patch_bytes(&mut self, linear: u64, data: &[u8]) -> bool {
        let pieces: Vec<_> = self.pieces(linear, data.len()).collect();
        let mut places = Vec::with_capacity(pieces.len());
        for (at, part) in pieces {
            let Some(place) = at.and_then(|at| self.backed(at)) else { return false };
            places.push((place, part));
        }
        let mut rest = data;
        for (place, part) in places {
            let (now, later) = rest.split_at(part.min(rest.len()));
            self.ram.write_bytes(place, now);
            rest = later;
        }
        true
    }

    /// Reads RAM or ROM at a physical address, inside of one page. False elsewhere.
    pub fn inspect_physical(&self, at: GuestPhysical, out: &mut [u8]) -> bool {
        let is_inside = at.page_offset() + out.len() as u64 <= PAGE_SIZE;
        match self.backed(at).filter(|_| is_inside) {
            Some(offset) => {
                self.ram.read_bytes(offset, out);
                true
            }
            None => false,
        }
    }

    /// Where in [`memory::Ram`] a physical address is that is RAM or ROM. The local APIC's page is
    /// neither, whatever lies behind it.
    fn backed(&self, at: GuestPhysical) -> Option<u64> {
        if at.page().0 == self.mmu.lapic_page {
            return None;
        }
        match self.env.space.page(at) {
            PageKind::Ram(page) | PageKind::Rom(page) => Some(page + at.page_offset()),
            PageKind::Io => None,
        }
    }

    /// `count` bytes at a linear address as pieces inside of pages, each where it is mapped.
    fn pieces(
        &self,
        linear: u64,
        count: usize,
    ) -> impl Iterator<Item = (Option<GuestPhysical>, usize)> + '_ {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = linear.wrapping_add(done as u64);
            let left = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
            let part = left.min(count - done);
            done += part;
            (part != 0).then(|| (self.inspect(at).found.map(|(physical, _)| physical), part))
        })
    }
}
