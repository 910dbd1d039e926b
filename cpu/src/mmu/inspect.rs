//! The page walk as a debugger sees it: every level with its entry, and no trace in the guest.
//!
//! Nothing is written, no right is checked and no device is read: page tables outside of RAM and
//! ROM end the walk.

use memory::{GuestPhysical, PAGE_SIZE, PageKind};

use crate::Cpu;
use crate::state::{cr0, efer};

use super::walk::{P, leaf_address};

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

impl Cpu {
    /// Walks the page tables for `linear`, by the current paging mode.
    pub fn inspect(&self, linear: u64) -> PageWalk {
        let mut walk = PageWalk::default();
        if self.state.cr0 & cr0::PG == 0 {
            walk.found = Some((GuestPhysical(linear & 0xffff_ffff), 12));
            return walk;
        }
        if self.state.msrs.efer & efer::LMA != 0 && !self.mode.is_canonical(linear) {
            return walk;
        }
        let linear =
            if self.state.msrs.efer & efer::LMA != 0 { linear } else { linear & 0xffff_ffff };
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
