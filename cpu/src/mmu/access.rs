//! Memory accesses of instructions, and implicit ones of the CPU itself.
//!
//! Each access checks segmentation, then translates, then touches bytes; one that spans two pages
//! translates both before it touches either, so a fault leaves memory as it was. Accesses that miss
//! the translation cache end in `read_slow`, `write_slow` and `modify_slow`, never in a copy of
//! them.
//!
//! Known departure: a locked access over two pages is atomic to others of its kind and not to a
//! locked access that lies in one of the two pages.

use std::sync::{Mutex, MutexGuard, PoisonError};

use memory::{GuestPhysical, PAGE_SIZE, PageKind, Width};

use crate::Cpu;
use crate::debugger::Caught;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::mmu::{Access, View};
use crate::state::{cr0, rflags};

/// Where one piece of an access goes, after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// This offset of RAM.
    Ram(u64),
    /// Through the physical space: ROM, devices, nothing.
    Space(GuestPhysical),
    /// The CPU's own local APIC, at this offset of its page.
    Lapic(u64),
}

/// Serialises locked accesses that span two pages, which no host instruction can do.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

fn split_lock() -> MutexGuard<'static, ()> {
    SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn crosses_page(linear: u64, bytes: u64) -> bool {
    (linear & (PAGE_SIZE - 1)) + bytes > PAGE_SIZE
}

impl Cpu {
    /// Reads `T` at `offset` of segment register `segment`.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, segment: usize, offset: u64) -> Exec<T> {
        let linear = self.linear(segment, offset, T::BYTES, Access::Read)?;
        if let Some(at) = self.mmu.lookup_read(linear)
            && !crosses_page(linear, T::BYTES)
        {
            return Ok(self.ram.load(at));
        }
        self.read_slow(linear, self.mmu.view())
    }

    /// Writes `T` at `offset` of segment register `segment`.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, segment: usize, offset: u64, value: T) -> Exec {
        let linear = self.linear(segment, offset, T::BYTES, Access::Write)?;
        if let Some(at) = self.mmu.lookup_write(linear)
            && !crosses_page(linear, T::BYTES)
        {
            self.break_block |= self.ram.store(at, value);
            return Ok(());
        }
        self.write_slow(linear, value, self.mmu.view())
    }

    /// Reads, changes and writes `T` in place; `change` gives the new value and a result. With
    /// `is_locked` the change is atomic and `change` may run more than once. Faults come as for a
    /// write and before `change` runs; the write itself cannot fault.
    #[inline(always)]
    pub fn modify<T: Word, R>(
        &mut self,
        segment: usize,
        offset: u64,
        is_locked: bool,
        mut change: impl FnMut(T) -> (T, R),
    ) -> Exec<R> {
        let linear = self.linear(segment, offset, T::BYTES, Access::Write)?;
        if let Some(at) = self.mmu.lookup_write(linear)
            && !crosses_page(linear, T::BYTES)
            && !is_locked
        {
            let (value, result) = change(self.ram.load(at));
            self.break_block |= self.ram.store(at, value);
            return Ok(result);
        }
        self.modify_slow(linear, is_locked, change)
    }

    /// Like [`Cpu::modify`], but `change` may decline to write (`None`), as a failing CMPXCHG does.
    /// The page must be writable either way.
    pub fn modify_maybe<T: Word, R>(
        &mut self,
        segment: usize,
        offset: u64,
        is_locked: bool,
        mut change: impl FnMut(T) -> (Option<T>, R),
    ) -> Exec<R> {
        self.modify(segment, offset, is_locked, |old| {
            let (new, result) = change(old);
            (new.unwrap_or(old), result)
        })
    }

    /// Reads `out.len()` bytes (at most 4096) at `offset` of `segment`, all or nothing.
    pub fn read_bytes(&mut self, segment: usize, offset: u64, out: &mut [u8]) -> Exec {
        let linear = self.linear(segment, offset, out.len().max(1) as u64, Access::Read)?;
        self.read_linear_bytes(linear, out, self.mmu.view())
    }

    /// Writes `data` (at most 4096 bytes) at `offset` of `segment`, all or nothing.
    pub fn write_bytes(&mut self, segment: usize, offset: u64, data: &[u8]) -> Exec {
        let linear = self.linear(segment, offset, data.len().max(1) as u64, Access::Write)?;
        self.write_linear_bytes(linear, data, self.mmu.view())
    }

    /// Checks that `bytes` bytes (at most 4096) at `offset` of `segment` can be accessed so, as
    /// the access itself would, without touching them.
    pub fn check_access(
        &mut self,
        segment: usize,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Exec {
        let linear = self.linear(segment, offset, bytes, access)?;
        self.places(linear, bytes, access, self.mmu.view()).map(|_| ())
    }

    /// Reads `T` at a linear address as the CPU itself does (descriptor tables, TSS): with
    /// supervisor rights whatever the CPL is.
    #[inline]
    pub fn read_system<T: Word>(&mut self, linear: u64) -> Exec<T> {
        self.read_as(View::Supervisor, linear)
    }

    /// Writes `T` at a linear address as the CPU itself does.
    #[inline]
    pub fn write_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        self.write_as(View::Supervisor, linear, value)
    }

    /// Reads `T` at a linear address with the rights of `view`, for stacks of another privilege.
    #[inline]
    pub(crate) fn read_as<T: Word>(&mut self, view: View, linear: u64) -> Exec<T> {
        let linear = self.wrap_linear(linear);
        if let Some(at) = self.mmu.lookup_as(view, linear, Access::Read)
            && !crosses_page(linear, T::BYTES)
        {
            return Ok(self.ram.load(at));
        }
        self.read_slow(linear, view)
    }

    /// Writes `T` at a linear address with the rights of `view`.
    #[inline]
    pub(crate) fn write_as<T: Word>(&mut self, view: View, linear: u64, value: T) -> Exec {
        let linear = self.wrap_linear(linear);
        if let Some(at) = self.mmu.lookup_as(view, linear, Access::Write)
            && !crosses_page(linear, T::BYTES)
        {
            self.break_block |= self.ram.store(at, value);
            return Ok(());
        }
        self.write_slow(linear, value, view)
    }

    /// Sets `bits` of the byte at a linear address atomically, as the CPU itself does (accessed and
    /// busy bits of descriptors).
    pub fn set_system_bits(&mut self, linear: u64, bits: u8) -> Exec {
        let linear = self.wrap_linear(linear);
        let place = self.place(linear, 1, Access::Write, View::Supervisor)?;
        self.modify_place::<u8, ()>(place, true, &mut |old| (old | bits, ()));
        Ok(())
    }

    /// Clears `bits` of the byte at a linear address atomically, as the CPU itself does.
    pub fn clear_system_bits(&mut self, linear: u64, bits: u8) -> Exec {
        let linear = self.wrap_linear(linear);
        let place = self.place(linear, 1, Access::Write, View::Supervisor)?;
        self.modify_place::<u8, ()>(place, true, &mut |old| (old & !bits, ()));
        Ok(())
    }

    /// Checks that the CPU itself could write `bytes` bytes at `linear`.
    pub fn check_system_write(&mut self, linear: u64, bytes: u64) -> Exec {
        self.places(self.wrap_linear(linear), bytes, Access::Write, View::Supervisor).map(|_| ())
    }

    /// Linear addresses outside long mode are 32 bits.
    fn wrap_linear(&self, linear: u64) -> u64 {
        if self.mode.is_long() { linear } else { linear & 0xffff_ffff }
    }

    /// Where `bytes` bytes at `linear`, inside one page, are.
    fn place(&mut self, linear: u64, bytes: u64, access: Access, view: View) -> Exec<Place> {
        self.check_alignment(linear, bytes, view)?;
        self.check_data_breakpoints(linear, bytes, access);
        let translation = self.translate(linear, access, view)?;
        self.check_watchpoints(linear, bytes, access);
        let physical = translation.physical;
        if physical.page().0 == self.mmu.lapic_page {
            return Ok(Place::Lapic(physical.page_offset()));
        }
        let ram = match self.ram_page(physical.page().0) {
            Some(page) => Some((page, true)),
            None => match self.env.space.page(physical) {
                PageKind::Ram(page) => Some((page, true)),
                PageKind::Rom(page) => Some((page, false)),
                PageKind::Io => None,
            },
        };
        let Some((page, is_writable)) = ram else { return Ok(Place::Space(physical)) };
        if access == Access::Write && !is_writable {
            return Ok(Place::Space(physical));
        }
        if self.is_watched_page(linear) || self.records_memory() {
            return Ok(Place::Ram(page + physical.page_offset()));
        }
        self.mmu.insert(view, access, linear, page, translation.is_large);
        if access == Access::Write {
            // What may be written may be read, by everyone but a write-only protection key.
            self.mmu.insert(view, Access::Read, linear, page, translation.is_large);
        }
        Ok(Place::Ram(page + physical.page_offset()))
    }

    /// The place of a fetch, for the decoder.
    pub(crate) fn fetch_place(&mut self, linear: u64) -> Exec<Place> {
        let view = match self.mmu.view() {
            View::SupervisorAc => View::Supervisor,
            view => view,
        };
        let translation = self.translate(linear, Access::Execute, view)?;
        let physical = translation.physical;
        let page = match self.ram_page(physical.page().0) {
            Some(page) => page,
            None => match self.env.space.page(physical) {
                PageKind::Ram(page) | PageKind::Rom(page) => page,
                PageKind::Io => return Ok(Place::Space(physical)),
            },
        };
        let view = self.mmu.view();
        self.mmu.insert(view, Access::Execute, linear, page, translation.is_large);
        Ok(Place::Ram(page + physical.page_offset()))
    }

    /// The one or two places of an access, with the length of the first; both are translated before
    /// either is used.
    fn places(
        &mut self,
        linear: u64,
        bytes: u64,
        access: Access,
        view: View,
    ) -> Exec<(Place, u64, Option<Place>)> {
        if !crosses_page(linear, bytes) {
            return Ok((self.place(linear, bytes, access, view)?, bytes, None));
        }
        let first_bytes = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
        self.check_alignment(linear, bytes, view)?;
        let first = self.place(linear, 1, access, view)?;
        let next = self.wrap_linear(linear.wrapping_add(first_bytes));
        let second = self.place(next, 1, access, view)?;
        self.check_data_breakpoints(linear, bytes, access);
        self.check_watchpoints(linear, bytes, access);
        Ok((first, first_bytes, Some(second)))
    }

    /// #AC (SDM Vol. 3A, "Interrupt 17"): CPL 3 with CR0.AM and EFLAGS.AC.
    fn check_alignment(&self, linear: u64, bytes: u64, view: View) -> Exec {
        let is_on = view == View::User
            && self.state.cr0 & cr0::AM != 0
            && self.state.rflags & rflags::AC != 0;
        let is_checked_size = matches!(bytes, 2 | 4 | 8);
        if is_on && is_checked_size && linear & (bytes - 1) != 0 {
            return Err(Exception::AC);
        }
        Ok(())
    }

    #[cold]
    fn read_slow<T: Word>(&mut self, linear: u64, view: View) -> Exec<T> {
        let (first, first_bytes, second) = self.places(linear, T::BYTES, Access::Read, view)?;
        let value = match second {
            None => self.read_place(first),
            Some(second) => {
                let mut bytes = [0; 8];
                let (low, high) =
                    bytes[..T::BYTES as usize % 9].split_at_mut(first_bytes as usize % 8);
                self.read_place_bytes(first, low);
                self.read_place_bytes(second, high);
                T::from_u64(u64::from_le_bytes(bytes))
            }
        };
        self.record_word(Access::Read, linear, value);
        Ok(value)
    }

    #[cold]
    fn write_slow<T: Word>(&mut self, linear: u64, value: T, view: View) -> Exec {
        let (first, first_bytes, second) = self.places(linear, T::BYTES, Access::Write, view)?;
        self.record_word(Access::Write, linear, value);
        match second {
            None => self.write_place(first, value),
            Some(second) => self.write_pair(first, first_bytes, second, value),
        }
        Ok(())
    }

    fn write_pair<T: Word>(&mut self, first: Place, first_bytes: u64, second: Place, value: T) {
        let bytes = value.to_u64().to_le_bytes();
        let (low, high) = bytes[..T::BYTES as usize % 9].split_at(first_bytes as usize % 8);
        self.write_place_bytes(first, low);
        self.write_place_bytes(second, high);
    }

    #[cold]
    fn modify_slow<T: Word, R>(
        &mut self,
        linear: u64,
        is_locked: bool,
        mut change: impl FnMut(T) -> (T, R),
    ) -> Exec<R> {
        let view = self.mmu.view();
        let (first, first_bytes, second) = self.places(linear, T::BYTES, Access::Write, view)?;
        self.check_watchpoints(linear, T::BYTES, Access::Read);
        let mut told = None;
        let mut change = |old| {
            let (new, result) = change(old);
            told = Some((old, new));
            (new, result)
        };
        let result = match second {
            None => self.modify_place(first, is_locked, &mut change),
            Some(second) => self.modify_pair(first, first_bytes, second, &mut change),
        };
        if let Some((old, new)) = told {
            self.record_word(Access::Read, linear, old);
            self.record_word(Access::Write, linear, new);
        }
        Ok(result)
    }

    fn modify_pair<T: Word, R>(
        &mut self,
        first: Place,
        first_bytes: u64,
        second: Place,
        change: &mut impl FnMut(T) -> (T, R),
    ) -> R {
        let _guard = split_lock();
        let mut bytes = [0; 8];
        let (low, high) = bytes[..T::BYTES as usize % 9].split_at_mut(first_bytes as usize % 8);
        self.read_place_bytes(first, low);
        self.read_place_bytes(second, high);
        let (value, result) = change(T::from_u64(u64::from_le_bytes(bytes)));
        self.write_pair(first, first_bytes, second, value);
        result
    }

    fn record_word<T: Word>(&mut self, access: Access, linear: u64, value: T) {
        let bytes = value.to_u64().to_le_bytes();
        self.record_access(access, linear, bytes.get(..T::BYTES as usize).unwrap_or_default());
    }

    fn modify_place<T: Word, R>(
        &mut self,
        place: Place,
        is_locked: bool,
        change: &mut impl FnMut(T) -> (T, R),
    ) -> R {
        let at = match place {
            Place::Ram(at) if is_locked => at,
            _ => {
                let (value, result) = change(self.read_place(place));
                self.write_place(place, value);
                return result;
            }
        };
        let generation = self.ram.flags().generation(at >> 12);
        let mut old = self.ram.load(at);
        loop {
            let (new, result) = change(old);
            match self.ram.compare_exchange(at, old, new) {
                Ok(_) => {
                    self.break_block |= generation != self.ram.flags().generation(at >> 12);
                    return result;
                }
                Err(found) => old = found,
            }
        }
    }

    fn read_place<T: Word>(&mut self, place: Place) -> T {
        // BYTES is 1, 2, 4 or 8: a width always exists.
        let width = Width::from_bytes(T::BYTES as usize).unwrap_or(Width::Byte);
        let (at, value) = match place {
            Place::Ram(at) => return self.ram.load(at),
            Place::Space(at) => (at.0, self.env.space.read(at, width)),
            Place::Lapic(offset) => (self.mmu.lapic_page + offset, self.read_lapic(offset, width)),
        };
        self.note_mmio(Access::Read, at, value, T::BYTES);
        T::from_u64(value)
    }

    /// Tells a trace and a debugger of an access; a write's effects come behind it.
    fn note_mmio(&mut self, access: Access, address: u64, value: u64, bytes: u64) {
        self.record_mmio(access, address, value, bytes);
        let is_write = access == Access::Write;
        self.catch(|| Caught::Mmio { address, bytes: bytes as u8, value, is_write });
    }

    fn read_lapic(&mut self, offset: u64, width: Width) -> u64 {
        self.sync_pv_eoi();
        self.env.lapic.mmio_read(offset, width)
    }

    fn write_lapic(&mut self, offset: u64, width: Width, value: u64) {
        self.sync_pv_eoi();
        self.env.lapic.mmio_write(offset, width, value);
    }

    /// Reads what is at a physical address, as this CPU sees it.
    pub fn read_physical(&mut self, at: GuestPhysical, width: Width) -> u64 {
        if at.page().0 == self.mmu.lapic_page {
            return self.read_lapic(at.page_offset(), width);
        }
        self.env.space.read(at, width)
    }

    /// Writes to what is at a physical address, as this CPU sees it.
    pub fn write_physical(&mut self, at: GuestPhysical, width: Width, value: u64) {
        if at.page().0 == self.mmu.lapic_page {
            return self.write_lapic(at.page_offset(), width, value);
        }
        self.env.space.write(at, width, value);
    }

    fn write_place<T: Word>(&mut self, place: Place, value: T) {
        let width = Width::from_bytes(T::BYTES as usize).unwrap_or(Width::Byte);
        match place {
            Place::Ram(at) => self.break_block |= self.ram.store(at, value),
            Place::Space(at) => {
                self.note_mmio(Access::Write, at.0, value.to_u64(), T::BYTES);
                self.env.space.write(at, width, value.to_u64());
                self.device_written = true;
            }
            Place::Lapic(offset) => {
                let at = self.mmu.lapic_page + offset;
                self.note_mmio(Access::Write, at, value.to_u64(), T::BYTES);
                self.write_lapic(offset, width, value.to_u64());
                self.device_written = true;
            }
        }
    }

    fn read_place_bytes(&mut self, place: Place, out: &mut [u8]) {
        if let Place::Ram(at) = place {
            return self.ram.read_bytes(at, out);
        }
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let place = place.behind(done as u64);
            // Devices see the widest aligned accesses that fit.
            match rest.len() {
                8.. => rest[..8].copy_from_slice(&self.read_place::<u64>(place).to_le_bytes()),
                4.. => rest[..4].copy_from_slice(&self.read_place::<u32>(place).to_le_bytes()),
                2.. => rest[..2].copy_from_slice(&self.read_place::<u16>(place).to_le_bytes()),
                _ => rest[0] = self.read_place::<u8>(place),
            }
            done += match rest.len() {
                8.. => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
        }
    }

    fn write_place_bytes(&mut self, place: Place, data: &[u8]) {
        if let Place::Ram(at) = place {
            self.break_block |= self.ram.write_bytes(at, data);
            return;
        }
        let mut rest = data;
        let mut done = 0;
        while !rest.is_empty() {
            let place = place.behind(done);
            let count = if let Some((now, _)) = rest.split_first_chunk::<8>() {
                self.write_place(place, u64::from_le_bytes(*now));
                8
            } else if let Some((now, _)) = rest.split_first_chunk::<4>() {
                self.write_place(place, u32::from_le_bytes(*now));
                4
            } else if let Some((now, _)) = rest.split_first_chunk::<2>() {
                self.write_place(place, u16::from_le_bytes(*now));
                2
            } else {
                self.write_place(place, rest[0]);
                1
            };
            rest = rest.get(count..).unwrap_or_default();
            done += count as u64;
        }
    }

    /// Reads bytes at a linear address, all or nothing.
    pub(crate) fn read_linear_bytes(&mut self, linear: u64, out: &mut [u8], view: View) -> Exec {
        let (first, first_bytes, second) =
            self.places(linear, out.len() as u64, Access::Read, view)?;
        let (low, high) = out.split_at_mut(out.len().min(first_bytes as usize));
        self.read_place_bytes(first, low);
        if let Some(second) = second {
            self.read_place_bytes(second, high);
        }
        self.record_access(Access::Read, linear, out);
        Ok(())
    }

    /// Writes bytes at a linear address, all or nothing.
    pub(crate) fn write_linear_bytes(&mut self, linear: u64, data: &[u8], view: View) -> Exec {
        let (first, first_bytes, second) =
            self.places(linear, data.len() as u64, Access::Write, view)?;
        self.record_access(Access::Write, linear, data);
        let (low, high) = data.split_at(data.len().min(first_bytes as usize));
        self.write_place_bytes(first, low);
        if let Some(second) = second {
            self.write_place_bytes(second, high);
        }
        Ok(())
    }

    /// 16 bytes compare-exchange for CMPXCHG16B; the error is what was found. The operand is
    /// aligned (the instruction has checked), so it never crosses a page.
    pub(crate) fn compare_exchange_16(
        &mut self,
        segment: usize,
        offset: u64,
        old: u128,
        new: u128,
    ) -> Exec<Result<u128, u128>> {
        let linear = self.linear(segment, offset, 16, Access::Write)?;
        let place = self.place(linear, 16, Access::Write, self.mmu.view())?;
        if let Place::Ram(at) = place {
            let generation = self.ram.flags().generation(at >> 12);
            let result = self.ram.compare_exchange_16(at, old, new);
            let found = result.unwrap_or_else(|found| found);
            self.record_access(Access::Read, linear, &found.to_le_bytes());
            if result.is_ok() {
                self.record_access(Access::Write, linear, &new.to_le_bytes());
            }
            self.break_block |= generation != self.ram.flags().generation(at >> 12);
            return Ok(result);
        }
        let mut bytes = [0; 16];
        self.read_place_bytes(place, &mut bytes);
        let found = u128::from_le_bytes(bytes);
        let value = if found == old { new } else { found };
        self.write_place_bytes(place, &value.to_le_bytes());
        Ok(if found == old { Ok(found) } else { Err(found) })
    }
}

impl Place {
    /// The place `bytes` further on in the same page.
    fn behind(self, bytes: u64) -> Self {
        match self {
            Self::Ram(at) => Self::Ram(at + bytes),
            Self::Space(at) => Self::Space(at.wrapping_add(bytes)),
            Self::Lapic(offset) => Self::Lapic(offset + bytes),
        }
    }
}
