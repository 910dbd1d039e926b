//! Memory for generated thunks, and the one place that jumps into it.
// UNSAFETY: runs generated machine code and maps the memory for it. What the code does is decided
// in `thunk.rs`, which is safe; that it does no more is the invariant this file relies on.
#![expect(unsafe_code, reason = "unsafe island 2: one host instruction on the guest's state")]

use std::mem::offset_of;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::signal;
use super::thunk::{Thunk, ThunkCode};
use crate::fpu::FpuState;

/// Bytes of thunks before all are dropped and made anew: some 30 000 thunks.
const CAPACITY: usize = 4 << 20;
/// MXCSR as Rust code expects it.
pub(super) const HOST_MXCSR: u32 = 0x1f80;

/// What a thunk works on. The offsets are what `thunk.rs` addresses relative to RDI.
#[repr(C)]
struct Frame {
    fpu: *mut FpuState,
    gpr: *mut [u64; 16],
    memory: *mut [u8; 64],
    image: *mut [u8; 512],
    rflags: u64,
    mxcsr: u32,
    host_mxcsr: u32,
    faulted: u32,
}

/// Offsets into [`Frame`] and [`FpuState`], for the generator.
pub(super) mod offset {
    use super::{FpuState, Frame, offset_of};
    pub(in crate::native) const FPU: i32 = offset_of!(Frame, fpu) as i32;
    pub(in crate::native) const GPR: i32 = offset_of!(Frame, gpr) as i32;
    pub(in crate::native) const MEMORY: i32 = offset_of!(Frame, memory) as i32;
    pub(in crate::native) const IMAGE: i32 = offset_of!(Frame, image) as i32;
    pub(in crate::native) const RFLAGS: i32 = offset_of!(Frame, rflags) as i32;
    pub(in crate::native) const MXCSR: i32 = offset_of!(Frame, mxcsr) as i32;
    pub(in crate::native) const HOST_MXCSR: i32 = offset_of!(Frame, host_mxcsr) as i32;
    pub(in crate::native) const FAULTED: i32 = offset_of!(Frame, faulted) as i32;
    pub(in crate::native) const ZMM: i32 = offset_of!(FpuState, zmm) as i32;
    pub(in crate::native) const OPMASK: i32 = offset_of!(FpuState, opmask) as i32;
}

/// Where a thunk's memory operand and x87 state are.
#[repr(C, align(64))]
pub(super) struct Scratch {
    /// The memory operand.
    pub(super) memory: [u8; 64],
    /// x87 state as FXSAVE64 has it.
    pub(super) image: [u8; 512],
}

/// What a thunk run works on.
pub(super) struct Inputs<'a> {
    pub(super) fpu: &'a mut FpuState,
    pub(super) gpr: &'a mut [u64; 16],
    pub(super) scratch: &'a mut Scratch,
    /// The guest's status flags and nothing else.
    pub(super) status_flags: u64,
    /// The guest's MXCSR, without bits that the host lacks.
    pub(super) mxcsr: u32,
}

/// What a thunk run gave besides registers.
pub(super) struct Outputs {
    /// The host's flags behind the instruction; meaningful if the thunk captures them.
    pub(super) rflags: u64,
    /// MXCSR behind the instruction.
    pub(super) mxcsr: u32,
    /// The instruction raised an unmasked floating-point exception: no register was written, but
    /// the x87 unit may be in MMX operation.
    pub(super) has_faulted: bool,
}

/// Thunks, mapped twice: once to write, once to execute.
pub(super) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
}

// SAFETY: 1. the mappings belong to this value alone and live as long as it; 2. nothing in them
// depends on the thread.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps memory for [`CAPACITY`] bytes of code.
    pub(super) fn new() -> Result<Self, rustix::io::Errno> {
        let fd = memfd_create(c"volvelle-thunks", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, CAPACITY as u64)?;
        let map = |protection| {
            // SAFETY: 1. a null hint lets the kernel place the mapping, so nothing is replaced;
            // 2. the length is the memfd's size.
            let address = unsafe {
                mmap(std::ptr::null_mut(), CAPACITY, protection, MapFlags::SHARED, &fd, 0)
            }?;
            NonNull::new(address.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)
        };
        let writable = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let executable = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(executable) => executable,
            Err(error) => {
                unmap(writable);
                return Err(error);
            }
        };
        Ok(Self { writable, executable, used: 0 })
    }

    /// Adds a thunk; `None` if there is no room.
    pub(super) fn add(&mut self, code: &ThunkCode) -> Option<Thunk> {
        let start = self.used;
        let end = start.checked_add(code.bytes.len()).filter(|&end| end <= CAPACITY)?;
        // SAFETY: 1. start..end is inside the mapping, checked just above; 2. the mapping is
        // written by this value only, which is borrowed mutably; 3. nothing before `end` that has
        // been executed is written again, so no processor holds stale instructions.
        unsafe {
            std::ptr::copy_nonoverlapping(
                code.bytes.as_ptr(),
                self.writable.as_ptr().add(start),
                code.bytes.len(),
            );
        }
        self.used = (end + 15) & !15;
        Some(Thunk {
            start: start as u32,
            end: end as u32,
            fault_exit: start as u32 + code.fault_exit,
            plan: code.plan,
        })
    }

    /// Runs a thunk of this memory. A floating-point exception ends it at its fault exit.
    pub(super) fn run(&self, thunk: &Thunk, inputs: Inputs<'_>) -> Outputs {
        let is_guarded = thunk.plan.uses_x87
            || thunk.plan.uses_mxcsr && inputs.mxcsr & signal::MXCSR_MASKS != signal::MXCSR_MASKS;
        let mut frame = Frame {
            fpu: inputs.fpu,
            gpr: inputs.gpr,
            memory: &raw mut inputs.scratch.memory,
            image: &raw mut inputs.scratch.image,
            rflags: inputs.status_flags,
            mxcsr: inputs.mxcsr,
            host_mxcsr: HOST_MXCSR,
            faulted: 0,
        };
        let _guard = is_guarded.then(|| {
            let base = self.executable.as_ptr() as usize;
            signal::Guard::new(signal::Region {
                start: base + thunk.start as usize,
                end: base + thunk.end as usize,
                exit: base + thunk.fault_exit as usize,
            })
        });
        // SAFETY: 1. `start` is the offset of code that `add` put here (thunks are only made
        // there, and `Native` drops them with their memory); 2. that code is a function of the
        // System V ABI by `thunk.rs`: it touches the frame, what the frame points to, and
        // caller-saved registers, and leaves DF, MXCSR and the x87 unit as Rust expects them;
        // 3. the frame's pointers come from exclusive borrows that outlive the call; 4. the
        // operand is at least as large as any memory operand (64 bytes) and 64-byte aligned.
        unsafe {
            let entry = self.executable.as_ptr().add(thunk.start as usize);
            let function: extern "sysv64" fn(*mut Frame) = std::mem::transmute(entry);
            function(&raw mut frame);
        }
        Outputs { rflags: frame.rflags, mxcsr: frame.mxcsr, has_faulted: frame.faulted != 0 }
    }
}

fn unmap(address: NonNull<u8>) {
    // SAFETY: the mapping was made by `CodeMemory::new` with this size and is used no more.
    if let Err(error) = unsafe { munmap(address.as_ptr().cast(), CAPACITY) } {
        log::warn!("cannot unmap thunk memory: {error}");
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        unmap(self.writable);
        unmap(self.executable);
    }
}

/// The bits of MXCSR that the host has (SDM Vol. 1, "Guidelines for Writing to the MXCSR
/// Register"): what FXSAVE reports, or the default where it reports nothing.
pub(super) fn host_mxcsr_mask() -> u32 {
    let mut scratch = Scratch { memory: [0; 64], image: [0; 512] };
    // SAFETY: 1. every x86-64 processor has FXSAVE; 2. the image is 512 bytes, aligned to 16 by
    // `Scratch` (64 bytes of operand before it).
    unsafe { std::arch::x86_64::_fxsave64(scratch.image.as_mut_ptr()) };
    let mut mask = [0; 4];
    mask.copy_from_slice(&scratch.image[28..32]);
    match u32::from_le_bytes(mask) {
        0 => 0xffbf,
        mask => mask,
    }
}

const _: () = assert!(offset_of!(Scratch, image) % 16 == 0);
