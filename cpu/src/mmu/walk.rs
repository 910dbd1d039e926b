//! Paging: the walk of the guest's tables, access rights, and accessed and dirty bits.
//!
//! Sources: SDM Vol. 3A, "Paging" (hierarchical structures, "Determination of Access Rights",
//! "Page-Fault Exceptions", "Accessed and Dirty Flags", "Protection Keys").

use memory::{GuestPhysical, PageKind, Width};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::mmu::{Access, View};
use crate::state::{cr0, cr4, efer};

pub(super) const P: u64 = 1;
pub(super) const RW: u64 = 1 << 1;
pub(super) const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
pub(super) const XD: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Page-fault error code bits.
mod code {
    pub const P: u16 = 1;
    pub const WRITE: u16 = 1 << 1;
    pub const USER: u16 = 1 << 2;
    pub const RESERVED: u16 = 1 << 3;
    pub const FETCH: u16 = 1 << 4;
    pub const PROTECTION_KEY: u16 = 1 << 5;
}

/// Walks that find an entry changed under them start again, this often at most: a guest that
/// rewrites its tables without end gets a translation from one of the states it was in.
const RETRIES: u32 = 16;

/// A finished translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where the linear address is.
    pub physical: GuestPhysical,
    /// Mapped by a page larger than 4 KiB.
    pub is_large: bool,
    /// The page may be cached as writable: its dirty bit is set and writing is allowed.
    pub is_dirty: bool,
    /// A global page: it outlives loads of CR3.
    pub is_global: bool,
    /// log2 of the page's bytes.
    pub shift: u32,
}

/// One level of a paging structure.
#[derive(Clone, Copy)]
pub(super) struct Level {
    /// Lowest linear-address bit of the index.
    pub(super) shift: u32,
    /// An entry here may map a page: log2 of its size is `shift`.
    pub(super) can_map: bool,
}

/// The shape of the current paging mode.
pub(super) struct Shape {
    pub(super) levels: &'static [Level],
    pub(super) entry_bytes: u64,
    pub(super) index_bits: u32,
}

impl Shape {
    /// The physical address of the table that `entry` points to.
    pub(super) fn next_table(&self, entry: u64) -> u64 {
        if self.entry_bytes == 8 { entry & ADDRESS } else { entry & 0xffff_f000 }
    }
}

const fn level(shift: u32, can_map: bool) -> Level {
    Level { shift, can_map }
}
static LEVELS_5: [Level; 5] =
    [level(48, false), level(39, false), level(30, true), level(21, true), level(12, true)];
static LEVELS_PAE: [Level; 2] = [level(21, true), level(12, true)];
static LEVELS_32: [Level; 2] = [level(22, true), level(12, true)];

/// What the walk has learned on the way down.
struct Rights {
    /// RW and US of all entries together.
    rw_us: u64,
    /// XD of any entry.
    xd: u64,
}

/// The entry changed between reading and updating: walk again.
pub(super) struct Changed;

pub(super) enum Failure {
    Fault(u16),
    Changed,
}

impl From<Changed> for Failure {
    fn from(_: Changed) -> Self {
        Self::Changed
    }
}

impl Cpu {
    /// Translates `linear`, setting accessed and (for a write) dirty bits. On failure CR2 is
    /// written and the exception is #PF.
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
        view: View,
    ) -> Exec<Translation> {
        if self.state.cr0 & cr0::PG == 0 {
            let physical = GuestPhysical(linear & 0xffff_ffff);
            return Ok(Translation {
                physical,
                is_large: false,
                is_dirty: true,
                is_global: false,
                shift: 12,
            });
        }
        for _ in 0..RETRIES {
            match self.walk(linear, access, view, true) {
                Ok(translation) => return Ok(translation),
                Err(Failure::Fault(bits)) => {
                    return Err(self.page_fault(linear, bits, access, view));
                }
                Err(Failure::Changed) => {}
            }
        }
        match self.walk(linear, access, view, false) {
            Ok(translation) => Ok(translation),
            Err(Failure::Fault(bits)) => Err(self.page_fault(linear, bits, access, view)),
            Err(Failure::Changed) => Err(self.page_fault(linear, 0, access, view)),
        }
    }

    /// Translates without touching any bit and without faulting, for debuggers.
    pub fn probe(&mut self, linear: u64) -> Option<GuestPhysical> {
        if self.state.cr0 & cr0::PG == 0 {
            return Some(GuestPhysical(linear & 0xffff_ffff));
        }
        let found = self.walk(linear, Access::Read, View::SupervisorAc, false);
        found.ok().map(|translation| translation.physical)
    }

    /// True if the page of `linear` has its dirty bit set (or there is no paging).
    pub(crate) fn has_dirty_bit(&mut self, linear: u64) -> bool {
        if self.state.cr0 & cr0::PG == 0 {
            return true;
        }
        let found = self.walk(linear, Access::Read, self.mmu.view(), false);
        found.is_ok_and(|translation| translation.is_dirty)
    }

    /// True if a write to `linear` would not fault.
    pub(crate) fn may_write(&mut self, linear: u64) -> bool {
        self.state.cr0 & cr0::PG == 0
            || self.walk(linear, Access::Write, self.mmu.view(), false).is_ok()
    }

    fn page_fault(&mut self, linear: u64, bits: u16, access: Access, view: View) -> Exception {
        let mut error = bits;
        if access == Access::Write {
            error |= code::WRITE;
        }
        if view == View::User {
            error |= code::USER;
        }
        let has_fetch_bit = self.state.cr4 & cr4::SMEP != 0
            || self.is_pae() && self.state.msrs.efer & efer::NXE != 0;
        if access == Access::Execute && has_fetch_bit {
            error |= code::FETCH;
        }
        self.state.cr2 = linear;
        log::trace!(target: "cpu::mmu", "#PF at {linear:#x}, code {error:#x}");
        Exception::pf(error)
    }

    pub(crate) fn is_pae(&self) -> bool {
        self.state.cr4 & cr4::PAE != 0
    }

    pub(super) fn shape(&self) -> Shape {
        if self.state.msrs.efer & efer::LMA != 0 {
            let is_5 = self.state.cr4 & cr4::LA57 != 0;
            let levels = if is_5 { &LEVELS_5[..] } else { &LEVELS_5[1..] };
            Shape { levels, entry_bytes: 8, index_bits: 9 }
        } else if self.is_pae() {
            Shape { levels: &LEVELS_PAE, entry_bytes: 8, index_bits: 9 }
        } else {
            Shape { levels: &LEVELS_32, entry_bytes: 4, index_bits: 10 }
        }
    }

    fn walk(
        &mut self,
        linear: u64,
        access: Access,
        view: View,
        update: bool,
    ) -> Result<Translation, Failure> {
        let shape = self.shape();
        let mut rights = Rights { rw_us: RW | US, xd: 0 };
        let mut table = self.root(linear, &shape)?;
        for (depth, level) in shape.levels.iter().enumerate() {
            let index = linear >> level.shift & ((1 << shape.index_bits) - 1);
            let at = GuestPhysical(table + index * shape.entry_bytes);
            let entry = self.read_entry(at, shape.entry_bytes);
            if entry & P == 0 {
                return Err(Failure::Fault(0));
            }
            let is_last = depth + 1 == shape.levels.len();
            let maps = is_last || level.can_map && self.is_large(entry, &shape);
            if entry & self.reserved_bits(level, &shape, entry, maps, is_last) != 0 {
                return Err(Failure::Fault(code::P | code::RESERVED));
            }
            rights.rw_us &= entry;
            rights.xd |= if shape.entry_bytes == 8 { entry & XD } else { 0 };
            if maps {
                self.check_rights(&rights, entry, access, view)?;
                let wanted = A | if access == Access::Write { D } else { 0 };
                if update {
                    self.set_bits(at, entry, wanted, shape.entry_bytes)?;
                }
                let mut found = leaf(linear, level.shift, entry, wanted, shape.entry_bytes);
                found.is_global = entry & G != 0 && self.state.cr4 & cr4::PGE != 0;
                return Ok(found);
            }
            if update {
                self.set_bits(at, entry, A, shape.entry_bytes)?;
            }
            table = shape.next_table(entry);
        }
        Err(Failure::Fault(0))
    }

    /// The physical address of the first table.
    pub(super) fn root(&self, linear: u64, shape: &Shape) -> Result<u64, Failure> {
        if self.state.msrs.efer & efer::LMA != 0 {
            return Ok(self.state.cr3 & ADDRESS);
        }
        if shape.entry_bytes == 4 {
            return Ok(self.state.cr3 & 0xffff_f000);
        }
        let pdpte = self.state.pdpte[(linear >> 30 & 3) as usize];
        if pdpte & P == 0 {
            return Err(Failure::Fault(0));
        }
        Ok(pdpte & ADDRESS)
    }

    pub(super) fn is_large(&self, entry: u64, shape: &Shape) -> bool {
        entry & PS != 0 && (shape.entry_bytes == 8 || self.state.cr4 & cr4::PSE != 0)
    }

    /// The bits that must be zero in `entry`.
    fn reserved_bits(
        &self,
        level: &Level,
        shape: &Shape,
        entry: u64,
        maps: bool,
        is_last: bool,
    ) -> u64 {
        if shape.entry_bytes == 4 {
            // PSE-36: bits 20 to 13 are address bits 39 to 32, of which MAXPHYADDR leaves some.
            let high = (self.mmu_limits.reserved_physical >> 32 & 0xff) << 13;
            return if maps && !is_last { 1 << 21 | high } else { 0 };
        }
        let mut reserved = self.mmu_limits.reserved_physical;
        if self.state.msrs.efer & efer::NXE == 0 {
            reserved |= XD;
        }
        if self.state.msrs.efer & efer::LMA == 0 {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if maps && !is_last {
            // Bit 12 is PAT; the bits between it and the page's address must be zero.
            reserved |= (1 << level.shift) - (1 << 13);
        }
        let ps_is_reserved =
            !level.can_map || level.shift == 30 && !self.mmu_limits.has_gigabyte_pages;
        if ps_is_reserved && entry & PS != 0 {
            reserved |= PS;
        }
        reserved
    }

    fn check_rights(
        &self,
        rights: &Rights,
        entry: u64,
        access: Access,
        view: View,
    ) -> Result<(), Failure> {
        let is_user_page = rights.rw_us & US != 0;
        let is_user = view == View::User;
        let is_denied = is_user && !is_user_page
            || match access {
                Access::Execute => {
                    let is_smep = self.state.cr4 & cr4::SMEP != 0;
                    rights.xd != 0 || !is_user && is_user_page && is_smep
                }
                Access::Read | Access::Write => {
                    let is_smap = self.state.cr4 & cr4::SMAP != 0 && view == View::Supervisor;
                    let needs_rw =
                        access == Access::Write && (is_user || self.state.cr0 & cr0::WP != 0);
                    is_smap && is_user_page || needs_rw && rights.rw_us & RW == 0
                }
            };
        // The error code tells of the key whether or not it alone denies the access.
        if access != Access::Execute && self.key_denies(is_user_page, entry, access, is_user) {
            return Err(Failure::Fault(code::P | code::PROTECTION_KEY));
        }
        if is_denied { Err(Failure::Fault(code::P)) } else { Ok(()) }
    }

    /// SDM Vol. 3A, "Protection Keys".
    fn key_denies(&self, is_user_page: bool, entry: u64, access: Access, is_user: bool) -> bool {
        let (enable, register) = if is_user_page {
            (cr4::PKE, u64::from(self.state.pkru))
        } else {
            (cr4::PKS, self.state.msrs.pkrs)
        };
        if self.state.cr4 & enable == 0 || self.state.msrs.efer & efer::LMA == 0 {
            return false;
        }
        let key = entry >> 59 & 0xf;
        let bits = register >> (2 * key) & 3;
        let write_counts = is_user || self.state.cr0 & cr0::WP != 0;
        bits & 1 != 0 || bits & 2 != 0 && access == Access::Write && write_counts
    }

    /// Where RAM page `physical` is in [`memory::Ram`], without taking the map's lock.
    #[inline]
    pub(crate) fn ram_page(&self, physical: u64) -> Option<u64> {
        let ranges = &self.mmu_limits.ram_ranges;
        ranges
            .iter()
            .find(|range| physical.wrapping_sub(range.base) < range.size)
            .map(|range| physical - range.base + range.offset)
    }

    fn read_entry(&self, at: GuestPhysical, bytes: u64) -> u64 {
        let width = if bytes == 8 { Width::Qword } else { Width::Dword };
        match self.ram_page(at.0) {
            Some(offset) if bytes == 8 => self.ram.load::<u64>(offset),
            Some(offset) => u64::from(self.ram.load::<u32>(offset)),
            None => self.env.space.read(at, width),
        }
    }

    /// Sets `bits` in the entry, if it still is what was read.
    fn set_bits(
        &self,
        at: GuestPhysical,
        entry: u64,
        bits: u64,
        bytes: u64,
    ) -> Result<(), Changed> {
        if entry & bits == bits {
            return Ok(());
        }
        let Some(offset) = self.ram_page(at.0).or_else(|| self.ram_offset_slow(at)) else {
            return Ok(());
        };
        let is_set = if bytes == 8 {
            self.ram.compare_exchange(offset, entry, entry | bits).is_ok()
        } else {
            self.ram.compare_exchange(offset, entry as u32, (entry | bits) as u32).is_ok()
        };
        if is_set { Ok(()) } else { Err(Changed) }
    }

    fn ram_offset_slow(&self, at: GuestPhysical) -> Option<u64> {
        match self.env.space.page(at) {
            PageKind::Ram(page) => Some(page + at.page_offset()),
            PageKind::Rom(_) | PageKind::Io => None,
        }
    }

    /// Loads the PDPTE registers from CR3 (SDM Vol. 3A, "PDPTE Registers"). #GP(0) if a present
    /// entry has reserved bits; the registers are then as before.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let table = cr3 & 0xffff_ffe0;
        let reserved = self.mmu_limits.reserved_physical | 0xfff0_0000_0000_0000 | 0x1e6;
        let mut entries = [0; 4];
        for (index, entry) in (0u64..).zip(entries.iter_mut()) {
            *entry = self.read_entry(GuestPhysical(table + index * 8), 8);
            if *entry & P != 0 && *entry & reserved != 0 {
                return Err(Exception::GP0);
            }
        }
        self.state.pdpte = entries;
        Ok(())
    }
}

/// Where `linear` is in the page of `1 << shift` bytes that `entry` maps.
pub(super) fn leaf_address(linear: u64, shift: u32, entry: u64, entry_bytes: u64) -> GuestPhysical {
    let offset_mask = (1u64 << shift) - 1;
    let base = if entry_bytes == 8 {
        entry & ADDRESS & !offset_mask
    } else if shift == 22 {
        entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32
    } else {
        entry & 0xffff_f000
    };
    GuestPhysical(base | linear & offset_mask)
}

fn leaf(linear: u64, shift: u32, entry: u64, wanted: u64, entry_bytes: u64) -> Translation {
    Translation {
        physical: leaf_address(linear, shift, entry, entry_bytes),
        is_large: shift != 12,
        is_dirty: (entry | wanted) & D != 0,
        is_global: false,
        shift,
    }
}
