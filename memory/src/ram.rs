//! RAM and ROM contents: one private mapping, of huge pages where the host has them.
//!
//! The host gives huge pages to private memory by default, and to a memfd hardly anywhere. A guest
//! whose working set is beyond the reach of the host's TLB runs faster on them.
// UNSAFETY: maps memory and reaches it with single host instructions, because guest RAM is shared
// between vCPU threads that race by design: a Rust reference into it, or a plain load, would be
// undefined behaviour.
#![expect(unsafe_code, reason = "unsafe island 1: guest memory is raced on by design")]

use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::page_flags::PageFlags;
use crate::{PAGE_SHIFT, PAGE_SIZE};

/// Bytes of the host's huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The kernel refused the mapping.
    #[error("cannot get {size:#x} bytes of guest memory")]
    Map {
        /// The size asked for, in bytes.
        size: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// A size that is zero or no multiple of a page.
    #[error("guest memory size {size:#x} is not a positive multiple of 4096")]
    Size {
        /// The size asked for, in bytes.
        size: u64,
    },
}

mod sealed {
    pub trait Sealed {}
}

/// An unsigned integer that one host instruction loads and stores.
pub trait Scalar: sealed::Sealed + Copy + Eq + Default + Send + Sync + 'static {
    /// Its size in bytes.
    const BYTES: u64;
    /// Zero-extends to 64 bits.
    fn to_u64(self) -> u64;
    /// Truncates from 64 bits.
    fn from_u64(value: u64) -> Self;

    /// # Safety
    /// `address` is mapped readable for `BYTES` bytes.
    #[doc(hidden)]
    unsafe fn raw_load(address: *const u8) -> Self;
    /// # Safety
    /// `address` is mapped writable for `BYTES` bytes.
    #[doc(hidden)]
    unsafe fn raw_store(address: *mut u8, value: Self);
    /// # Safety
    /// `address` is mapped writable for `BYTES` bytes.
    #[doc(hidden)]
    unsafe fn raw_compare_exchange(address: *mut u8, old: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! scalar {
    ($t:ty, $class:ident, $fmt:literal, $acc:tt) => {
        impl sealed::Sealed for $t {}
        impl Scalar for $t {
            const BYTES: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            unsafe fn raw_load(address: *const u8) -> Self {
                let value: $t;
                // SAFETY: 1. the caller promises the bytes are mapped; 2. the instruction only
                // reads them; 3. alignment does not matter to it.
                unsafe {
                    std::arch::asm!(concat!("mov {v", $fmt, "}, [{a}]"), v = out($class) value,
                        a = in(reg) address, options(nostack, preserves_flags, readonly));
                }
                value
            }
            #[inline(always)]
            unsafe fn raw_store(address: *mut u8, value: Self) {
                // SAFETY: as raw_load, and the caller promises they are writable.
                unsafe {
                    std::arch::asm!(concat!("mov [{a}], {v", $fmt, "}"), v = in($class) value,
                        a = in(reg) address, options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            unsafe fn raw_compare_exchange(
                address: *mut u8,
                old: Self,
                new: Self,
            ) -> Result<Self, Self> {
                let found: $t;
                // SAFETY: as raw_store; an unaligned operand is legal for LOCK CMPXCHG.
                unsafe {
                    std::arch::asm!(concat!("lock cmpxchg [{a}], {n", $fmt, "}"),
                        n = in($class) new, a = in(reg) address,
                        inout($acc) old => found, options(nostack));
                }
                if found == old { Ok(found) } else { Err(found) }
            }
        }
    };
}
scalar!(u8, reg_byte, "", "al");
scalar!(u16, reg, ":x", "ax");
scalar!(u32, reg, ":e", "eax");
scalar!(u64, reg, ":r", "rax");

/// An address in this process, of a byte of guest memory. A number: to follow it is unsafe and the
/// business of whoever does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPtr(pub u64);

/// The bytes of the machine: RAM from offset 0, ROMs behind it. Offsets are not guest-physical
/// addresses; [`crate::PhysicalSpace`] maps those to offsets.
///
/// An access outside reads as all ones and writes nothing: callers have translated the offset
/// before, so it is a second line of defence and not an error path.
pub struct Ram {
    base: NonNull<u8>,
    size: u64,
    flags: PageFlags,
}

// SAFETY: 1. the mapping lives as long as the value and is never moved; 2. every access is one host
// instruction or a byte loop of them, so races have the hardware's meaning and no other.
unsafe impl Send for Ram {}
// SAFETY: as for Send.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps `size` bytes of zeroes.
    pub fn new(size: u64) -> Result<Self, RamError> {
        let length = usize::try_from(size).map_err(|_| RamError::Size { size })?;
        if size == 0 || size & (PAGE_SIZE - 1) != 0 {
            return Err(RamError::Size { size });
        }
        let base = map_zeroes(length).map_err(|source| RamError::Map { size, source })?;
        Ok(Self { base, size, flags: PageFlags::new((size >> PAGE_SHIFT) as usize) })
    }

    /// The size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The flags of the pages.
    #[inline]
    pub fn flags(&self) -> &PageFlags {
        &self.flags
    }

    /// Where the byte at `offset` is in this process, for engines that hand memory to the host
    /// (KVM's memory slots) or compute addresses themselves. Good for as long as the value lives,
    /// and for the bytes up to [`Ram::size`]; whoever writes through it keeps the page flags.
    pub fn host_address(&self, offset: u64) -> Option<HostPtr> {
        self.contains(offset, 1).then(|| HostPtr(self.base.as_ptr() as u64 + offset))
    }

    #[inline(always)]
    fn contains(&self, offset: u64, bytes: u64) -> bool {
        offset <= self.size && bytes <= self.size - offset
    }

    /// Loads a scalar with one host instruction.
    #[inline(always)]
    pub fn load<T: Scalar>(&self, offset: u64) -> T {
        if !self.contains(offset, T::BYTES) {
            return T::from_u64(u64::MAX);
        }
        // SAFETY: 1. `contains` has put the whole operand inside the mapping, so `add` stays in one
        // allocation and its argument fits isize (mmap gave that many bytes); 2. the mapping is
        // readable and lives as long as `self`.
        unsafe { T::raw_load(self.base.as_ptr().add(offset as usize)) }
    }

    /// Stores a scalar with one host instruction, and keeps the page's flags. Must not cross a
    /// page. True if the bytes were marked as code ([`PageFlags::note_store`]).
    #[inline(always)]
    pub fn store<T: Scalar>(&self, offset: u64, value: T) -> bool {
        if !self.contains(offset, T::BYTES) {
            return false;
        }
        // SAFETY: as in `load`; the mapping is writable too.
        unsafe { T::raw_store(self.base.as_ptr().add(offset as usize), value) };
        self.note(offset, T::BYTES)
    }

    /// Keeps the flags of the page at `offset` after a store of `bytes` bytes, which are inside it.
    /// True if they were marked as code.
    #[inline(always)]
    fn note(&self, offset: u64, bytes: u64) -> bool {
        let page = offset >> PAGE_SHIFT;
        !self.flags.is_plain(page) && self.flags.note_store(page, offset & (PAGE_SIZE - 1), bytes)
    }

    /// Replaces `old` with `new` by one locked host instruction; the error is what was found.
    /// Must not cross a page. Flags are kept whether or not it succeeds, so
    /// [`PageFlags::generation`] has moved if the bytes were marked as code.
    #[inline]
    pub fn compare_exchange<T: Scalar>(&self, offset: u64, old: T, new: T) -> Result<T, T> {
        if !self.contains(offset, T::BYTES) {
            return Err(T::from_u64(u64::MAX));
        }
        let result =
            // SAFETY: as in `load`; the mapping is writable too.
            unsafe { T::raw_compare_exchange(self.base.as_ptr().add(offset as usize), old, new) };
        self.note(offset, T::BYTES);
        result
    }

    /// 16-byte compare-exchange. `offset` must be a multiple of 16.
    pub fn compare_exchange_16(&self, offset: u64, old: u128, new: u128) -> Result<u128, u128> {
        if !self.contains(offset, 16) || offset & 15 != 0 {
            return Err(u128::MAX);
        }
        let (low, high): (u64, u64);
        // SAFETY: 1. the operand is inside the mapping (`contains`), writable, and aligned as the
        // instruction demands, because the mapping starts on a page; 2. rbx, which LLVM reserves,
        // is exchanged around the instruction and so preserved; 3. the address is in rdi, because
        // `in(reg)` may pick rbx, which holds `new` when the address is used.
        unsafe {
            std::arch::asm!("xchg {b}, rbx", "lock cmpxchg16b [rdi]", "mov rbx, {b}",
                in("rdi") self.base.as_ptr().add(offset as usize),
                b = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
                inout("rax") old as u64 => low, inout("rdx") (old >> 64) as u64 => high,
                options(nostack));
        }
        self.note(offset, 16);
        let found = u128::from(high) << 64 | u128::from(low);
        if found == old { Ok(found) } else { Err(found) }
    }

    /// Copies bytes out; what lies outside reads as all ones.
    pub fn read_bytes(&self, offset: u64, out: &mut [u8]) {
        let bytes = out.len() as u64;
        if !self.contains(offset, bytes) {
            out.fill(0xff);
            return;
        }
        // SAFETY: 1. `contains` has put the source range inside the mapping, which is readable;
        // 2. the destination is a slice of the same length, exclusively ours, so they do not
        // overlap; 3. the direction flag is clear on entry to every asm block; 4. `rep movsb` reads
        // racing bytes as the hardware does, with no Rust reference to them.
        unsafe {
            let source = self.base.as_ptr().add(offset as usize);
            std::arch::asm!("rep movsb", inout("rsi") source => _,
                inout("rdi") out.as_mut_ptr() => _, inout("rcx") out.len() => _,
                options(nostack, preserves_flags));
        }
    }

    /// Copies bytes in and keeps the flags of every page touched. True if any were marked as code.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) -> bool {
        let bytes = data.len() as u64;
        if !self.contains(offset, bytes) || data.is_empty() {
            return false;
        }
        // SAFETY: as `read_bytes`, the other way round: 1. the target range is inside the mapping,
        // which is writable; 2. the source is a slice of the same length.
        unsafe {
            let target = self.base.as_ptr().add(offset as usize);
            std::arch::asm!("rep movsb", inout("rsi") data.as_ptr() => _,
                inout("rdi") target => _, inout("rcx") data.len() => _,
                options(nostack, preserves_flags));
        }
        self.note_range(offset, bytes)
    }

    /// Copies `bytes` bytes inside RAM, lowest address first, as `REP MOVSB` does (an overlapping
    /// copy upwards repeats). True if any bytes written were marked as code.
    pub fn copy_forward(&self, to: u64, from: u64, bytes: u64) -> bool {
        if bytes == 0 || !self.contains(to, bytes) || !self.contains(from, bytes) {
            return false;
        }
        // SAFETY: 1. both ranges are inside the mapping (`contains`), which is readable and
        // writable;
        // 2. overlap has the instruction's own meaning; 3. the direction flag is clear on entry.
        unsafe {
            let base = self.base.as_ptr();
            std::arch::asm!("rep movsb", inout("rsi") base.add(from as usize) => _,
                inout("rdi") base.add(to as usize) => _, inout("rcx") bytes => _,
                options(nostack, preserves_flags));
        }
        self.note_range(to, bytes)
    }

    /// Stores `count` copies of `value` upwards from `offset`. True if any bytes were marked as
    /// code.
    pub fn fill<T: Scalar>(&self, offset: u64, value: T, count: u64) -> bool {
        let Some(bytes) = count.checked_mul(T::BYTES) else { return false };
        if bytes == 0 || !self.contains(offset, bytes) {
            return false;
        }
        for index in 0..count {
            // SAFETY: 1. the whole range is inside the mapping (`contains`); 2. `index` is below
            // `count`, so the operand is inside the range and the sum does not overflow.
            unsafe {
                T::raw_store(self.base.as_ptr().add((offset + index * T::BYTES) as usize), value);
            }
        }
        self.note_range(offset, bytes)
    }

    fn note_range(&self, offset: u64, bytes: u64) -> bool {
        let end = offset + bytes;
        let pages = offset >> PAGE_SHIFT..=(end - 1) >> PAGE_SHIFT;
        pages.fold(false, |code, page| {
            let start = offset.max(page << PAGE_SHIFT);
            let bytes = end.min((page + 1) << PAGE_SHIFT) - start;
            self.note(start, bytes) | code
        })
    }
}

/// Maps `length` bytes of zeroes that begin where a huge page may.
fn map_zeroes(length: usize) -> Result<NonNull<u8>, Errno> {
    let room = length.checked_add(HUGE_PAGE).ok_or(Errno::NOMEM)?;
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a null hint lets the kernel place the mapping, so nothing is replaced.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), room, rights, flags)? };
    let before = start.align_offset(HUGE_PAGE);
    // SAFETY: 1. `before` is less than a huge page, so `base` and `end` are in the mapping or at
    // its end, and the three parts are all of it; 2. nobody knows of it yet, so what is unmapped is
    // in no use; 3. the advice changes no contents.
    unsafe {
        let base = start.byte_add(before);
        let end = base.byte_add(length);
        if before > 0 {
            munmap(start, before)?;
        }
        munmap(end, HUGE_PAGE - before)?;
        if let Err(error) = madvise(base, length, Advice::LinuxHugepage) {
            log::info!("guest memory is without huge pages: {error}");
        }
        NonNull::new(base.cast()).ok_or(Errno::NOMEM)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: 1. the mapping was made by `new` with this base and size and is ours alone;
        // 2. every access borrows `self`, so none is under way.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.size as usize) } {
            log::warn!("cannot unmap guest memory: {error}");
        }
    }
}

/// `count` zeroes, of memory that the host gives when it is touched.
pub(crate) fn zeroed_slice<T: ZeroIsValid>(count: usize) -> Box<[T]> {
    // SAFETY: all bytes zero are a value of `T` (promise of `ZeroIsValid`).
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}

/// # Safety
/// All bytes zero are a value of the type.
pub(crate) unsafe trait ZeroIsValid {}
// SAFETY: an atomic integer has the integer's representation, and zero is one.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU8 {}
// SAFETY: as for AtomicU8.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU32 {}
// SAFETY: as for AtomicU8.
unsafe impl ZeroIsValid for std::sync::atomic::AtomicU64 {}

const MEMBARRIER_CMD_GLOBAL: i32 = 1;
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: i32 = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;

fn membarrier(command: i32) -> i64 {
    // SAFETY: 1. the arguments are integers, as membarrier(2) wants them; 2. it reads and writes no
    // memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

/// Tells the kernel that this process will ask for barriers on all its threads, which every engine
/// does before it reads code. Call it before the first thread starts: the kernel then has nobody to
/// wait for, while with threads it takes some 30 ms. Without the call the first barrier does it.
pub fn register_barriers() {
    static REGISTER: std::sync::Once = std::sync::Once::new();
    REGISTER.call_once(|| {
        // A kernel without it says so again when the barrier is asked for.
        membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
    });
}

/// Makes every running thread of this process pass a full memory barrier.
pub(crate) fn full_barrier_on_all_threads() {
    register_barriers();
    if membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0 && membarrier(MEMBARRIER_CMD_GLOBAL) != 0 {
        // A host without membarrier: the caller's own fence and the writer's next locked
        // instruction are all there is; self-checks of the code's users cover the rest.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}
