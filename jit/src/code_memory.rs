//! Memory of generated code, the return-prediction stacks, and the contexts.
//!
//! Code is written through one mapping and executed through another of the same memfd, so that no
//! page ever is both writable and executable.
// UNSAFETY: maps memory and writes through raw pointers into the mappings.
#![expect(unsafe_code, reason = "unsafe island 3: memory of generated code")]

use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use crate::JitError;
use crate::context::Context;

fn map_error(what: &'static str) -> impl Fn(rustix::io::Errno) -> JitError {
    move |source| JitError::Map { what, source }
}

fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the callers, each a Drop, own the mapping they were made with, of this size.
    if let Err(error) = unsafe { munmap(base.as_ptr().cast(), bytes) } {
        log::warn!(target: "jit", "cannot unmap: {error}");
    }
}

/// The code of one vCPU.
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mappings belong to the value and are reached only through `&mut self`, or by the code
// that its owner's thread executes.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Result<Self, JitError> {
        let error = map_error("code memory");
        let fd = memfd_create(c"volvelle-code", MemfdFlags::CLOEXEC).map_err(&error)?;
        ftruncate(&fd, bytes as u64).map_err(&error)?;
        let map = |protection| {
            let hint = std::ptr::null_mut();
            // SAFETY: a null hint replaces no mapping; the length is the memfd's.
            let base = unsafe { mmap(hint, bytes, protection, MapFlags::SHARED, &fd, 0) };
            NonNull::new(base.map_err(&error)?.cast())
                .ok_or_else(|| error(rustix::io::Errno::NOMEM))
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let executable = map(ProtFlags::READ | ProtFlags::EXEC)?;
        Ok(Self { writable, executable, bytes })
    }

    /// Bytes there are.
    pub(crate) fn size(&self) -> usize {
        self.bytes
    }

    /// Host address of position 0.
    pub(crate) fn base(&self) -> usize {
        self.executable.as_ptr() as usize
    }

    /// Writes `code` at position `at`. False if it does not fit.
    pub(crate) fn write(&mut self, at: usize, code: &[u8]) -> bool {
        if at > self.bytes || code.len() > self.bytes - at {
            return false;
        }
        // SAFETY: 1. the range is inside the mapping, by the check above; 2. the source is a slice
        // of that length elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.writable.as_ptr().add(at),
                code.len(),
            );
        }
        true
    }
}

#[cfg(feature = "testing")]
impl CodeMemory {
    /// The bytes from position `from` to `to`, as far as they exist.
    pub(crate) fn read(&self, from: usize, to: usize) -> Vec<u8> {
        let (from, to) = (from.min(self.bytes), to.min(self.bytes));
        let mut bytes = vec![0; to.saturating_sub(from)];
        // SAFETY: 1. the range is inside the mapping, by the lines above; 2. the target has its
        // length, elsewhere.
        unsafe {
            let source = self.writable.as_ptr().add(from);
            std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len());
        }
        bytes
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        unmap(self.writable, self.bytes);
        unmap(self.executable, self.bytes);
    }
}

const PAGE: usize = 4096;
/// Bytes of the stack of return predictions: 8192 calls.
const STACK_BYTES: usize = 16 * PAGE;
/// Bytes of the one for code with EFLAGS.AC in supervisor mode.
const AC_STACK_BYTES: usize = PAGE;
/// A guard page, the AC stack, a guard page, the stack, and the page that stops safe points.
const STACKS_BYTES: usize = PAGE + AC_STACK_BYTES + PAGE + STACK_BYTES + PAGE;

/// The stacks that translated code calls on. Overflow meets a guard page.
pub(crate) struct Stacks {
    base: NonNull<u8>,
}

// SAFETY: as for CodeMemory.
unsafe impl Send for Stacks {}

impl Stacks {
    pub(crate) fn new() -> Result<Self, JitError> {
        let error = map_error("the stack of return predictions");
        // SAFETY: 1. a null hint replaces no mapping; 2. the guards lie inside the new mapping.
        let base = unsafe {
            let base = mmap_anonymous(
                std::ptr::null_mut(),
                STACKS_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .map_err(&error)?;
            for guard in [0, PAGE + AC_STACK_BYTES, STACKS_BYTES - PAGE] {
                mprotect(base.byte_add(guard), PAGE, MprotectFlags::empty()).map_err(&error)?;
            }
            base
        };
        let base = NonNull::new(base.cast()).ok_or_else(|| error(rustix::io::Errno::NOMEM))?;
        Ok(Self { base })
    }

    fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// RSP of an empty stack: the word there is where a return without a call goes.
    pub(crate) fn bottom(&self) -> u64 {
        (self.address() + STACKS_BYTES - PAGE - 64) as u64
    }

    /// RSP of the empty stack for supervisor code with EFLAGS.AC.
    pub(crate) fn ac_bottom(&self) -> u64 {
        (self.address() + PAGE + AC_STACK_BYTES - 64) as u64
    }

    /// An address that faults, for the safe points' load.
    pub(crate) fn trap(&self) -> usize {
        self.address() + STACKS_BYTES - PAGE
    }

    /// RSP to go on with after a fault at `address`, if it was an overflow.
    pub(crate) fn after_overflow(&self, address: usize) -> Option<u64> {
        let offset = address.wrapping_sub(self.address());
        match offset {
            _ if offset < PAGE => Some(self.ac_bottom()),
            _ if offset.wrapping_sub(PAGE + AC_STACK_BYTES) < PAGE => Some(self.bottom()),
            _ => None,
        }
    }

    /// Lets returns without a call go to host address `target`.
    pub(crate) fn set_sentinel(&mut self, target: u64) {
        for bottom in [self.bottom(), self.ac_bottom()] {
            // SAFETY: both bottoms are 64 bytes below the end of a writable part of the mapping,
            // and aligned; nobody else uses them while translated code does not run.
            unsafe { (bottom as *mut u64).write(target) };
        }
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        unmap(self.base, STACKS_BYTES);
    }
}

/// Words that translated code notes of its execution at a time.
const NOTED_WORDS: usize = 32 << 10;
const NOTED_BYTES: usize = NOTED_WORDS * size_of::<u32>();
const _: () = assert!(NOTED_BYTES.is_multiple_of(PAGE));

/// What translated code notes of its execution, for a trace. Behind the last word is a guard page.
pub(crate) struct Notes {
    base: NonNull<u8>,
}

// SAFETY: as for CodeMemory.
unsafe impl Send for Notes {}

impl Notes {
    pub(crate) fn new() -> Result<Self, JitError> {
        let error = map_error("what a trace is told by");
        // SAFETY: 1. a null hint replaces no mapping; 2. the guard lies inside the new mapping.
        let base = unsafe {
            let base = mmap_anonymous(
                std::ptr::null_mut(),
                NOTED_BYTES + PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .map_err(&error)?;
            mprotect(base.byte_add(NOTED_BYTES), PAGE, MprotectFlags::empty()).map_err(&error)?;
            base
        };
        let base = NonNull::new(base.cast()).ok_or_else(|| error(rustix::io::Errno::NOMEM))?;
        Ok(Self { base })
    }

    /// Where the first word goes.
    pub(crate) fn start(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// True if a store at `address` found the notes full.
    pub(crate) fn is_end(&self, address: usize) -> bool {
        address.wrapping_sub(self.base.as_ptr() as usize + NOTED_BYTES) < PAGE
    }

    /// The words up to address `end`. Translated code must not run meanwhile.
    pub(crate) fn words(&self, end: u64) -> &[u32] {
        let count = (end.wrapping_sub(self.start()) / 4).min(NOTED_WORDS as u64);
        // SAFETY: 1. the mapping is aligned and has that many initialised words; 2. nothing but
        // translated code of the owning vCPU writes to it, and that does not run.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), count as usize) }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        unmap(self.base, NOTED_BYTES + PAGE);
    }
}

/// The contexts of one vCPU, in memory that the host gives when it is touched.
pub(crate) struct Contexts {
    base: NonNull<Context>,
    count: usize,
}

// SAFETY: 1. the memory lives as long as the value; 2. other threads reach only the two atomic
// fields (`ring`), all else is the owning vCPU's thread's.
unsafe impl Send for Contexts {}
// SAFETY: as for Send.
unsafe impl Sync for Contexts {}

impl Contexts {
    /// `count` contexts full of zeroes.
    pub(crate) fn new(count: usize) -> Result<Self, JitError> {
        let error = map_error("contexts");
        // SAFETY: a null hint replaces no mapping.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                count * size_of::<Context>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(&error)?;
        let base = NonNull::new(base.cast()).ok_or_else(|| error(rustix::io::Errno::NOMEM))?;
        Ok(Self { base, count })
    }

    /// The address of context `index`, which is below the count (else of the last).
    pub(crate) fn address(&self, index: usize) -> *mut Context {
        // SAFETY: the index is clipped to the mapping.
        unsafe { self.base.as_ptr().add(index.min(self.count - 1)) }
    }

    /// Lets translated code that uses any of the contexts stop at its next safe point, or (with a
    /// readable `safepoint`) go on.
    pub(crate) fn set_safepoint(&self, is_stopping: bool, safepoint: *mut u8) {
        use std::sync::atomic::Ordering::SeqCst;
        for index in 0..self.count {
            let context = self.address(index);
            // SAFETY: 1. the context is mapped and zero-initialised, of which every byte pattern is
            // a value of the two atomics; 2. no reference to the whole context is made.
            unsafe {
                (*context).poll.store(u32::from(is_stopping), SeqCst);
                (*context).safepoint.store(safepoint, SeqCst);
            }
        }
    }
}

impl Drop for Contexts {
    fn drop(&mut self) {
        unmap(self.base.cast(), self.count * size_of::<Context>());
    }
}
