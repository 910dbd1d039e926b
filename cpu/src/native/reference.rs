//! The host itself, as what the thunks are compared with: one instruction on a whole register file.
//!
//! Independent of `thunk.rs` on purpose: every register is loaded and stored whatever the
//! instruction names, nothing is renamed, and the whole x87 state goes through one image.
// UNSAFETY: runs generated machine code, as `code_memory.rs` does.
#![expect(unsafe_code, reason = "unsafe island 2: one host instruction on the test's state")]

use std::mem::offset_of;
use std::ptr::NonNull;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpKind, Register};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::code_memory::HOST_MXCSR;
use super::signal::{Guard, Region};
use crate::fpu::{FpuState, fxsave, put};

/// A register file, and the memory operand.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct HostState {
    /// Vector, mask and x87 registers.
    pub fpu: FpuState,
    /// The memory operand, where R15 points.
    pub memory: [u8; 64],
    image: [u8; 512],
    /// General registers; RSP and R15 are not the instruction's to use.
    pub gpr: [u64; 16],
    /// Status flags.
    pub rflags: u64,
    memory_address: u64,
    host_mxcsr: u32,
    faulted: u32,
}

const MAX_CODE: usize = 4096;
const BASE: Register = Register::R15;

impl HostState {
    /// A state with the given registers.
    pub fn new(fpu: FpuState, gpr: [u64; 16], rflags: u64, memory: [u8; 64]) -> Self {
        let (image, host_mxcsr) = ([0; 512], HOST_MXCSR);
        Self { fpu, memory, image, gpr, rflags, memory_address: 0, host_mxcsr, faulted: 0 }
    }
}

/// An instruction ready to run on the host.
pub struct Reference {
    code: NonNull<u8>,
    exit: usize,
}

impl Reference {
    /// Makes `instruction` runnable. Its memory operand, if it has one, must have been given by
    /// [`at_memory`]. `None` if it is no instruction that the decoder's table gives to the host.
    pub fn new(instruction: &Instruction) -> Option<Self> {
        let is_ours = decoder::row(instruction.code()).executor == decoder::Executor::Native
            && matches!(instruction.memory_base(), Register::None | BASE)
            && !instruction.memory_index().is_gpr();
        let (bytes, exit) = generate(instruction).ok().filter(|_| is_ours)?;
        // SAFETY: 1. a null hint lets the kernel place the mapping; 2. the slice is the mapping,
        // which nobody else knows yet; 3. the copy fits, checked by `get_mut`.
        let code = unsafe {
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            let at =
                mmap_anonymous(std::ptr::null_mut(), MAX_CODE, flags, MapFlags::PRIVATE).ok()?;
            let target = std::slice::from_raw_parts_mut(at.cast::<u8>(), MAX_CODE);
            target.get_mut(..bytes.len())?.copy_from_slice(&bytes);
            mprotect(at, MAX_CODE, MprotectFlags::READ | MprotectFlags::EXEC).ok()?;
            NonNull::new(at.cast::<u8>())?
        };
        Some(Self { code, exit })
    }

    /// Runs the instruction on `state`. True if it raised a SIMD floating-point exception.
    pub fn run(&self, state: &mut HostState) -> bool {
        state.memory_address = (&raw mut state.memory) as u64;
        state.fpu.write_x87(&mut state.image);
        put(&mut state.image, fxsave::MXCSR, HOST_MXCSR.to_le_bytes());
        state.faulted = 0;
        let start = self.code.as_ptr() as usize;
        let region = Region { start, end: start + MAX_CODE, exit: start + self.exit };
        let guard = Guard::new(region);
        // SAFETY: the code is `generate`'s, a System V function that reads and writes `state` and
        // 64 bytes of operand at most, which lie in it, and keeps what the ABI keeps.
        unsafe {
            let function: extern "sysv64" fn(*mut HostState) = std::mem::transmute(self.code);
            function(state);
        }
        drop(guard);
        if state.faulted == 0 {
            let image = state.image;
            state.fpu.read_x87(&image);
        }
        state.faulted != 0
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and is used no more.
        unsafe { munmap(self.code.as_ptr().cast(), MAX_CODE) }.ok();
    }
}

/// Points the memory operand of `instruction`, if it has one, at [`HostState::memory`]. A vector
/// index stays: the caller keeps it inside.
pub fn at_memory(instruction: &mut Instruction) {
    let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    if has_memory {
        instruction.set_memory_base(BASE);
        if instruction.memory_index().is_gpr() {
            instruction.set_memory_index(Register::None);
        }
        instruction.set_memory_displacement64(0);
        instruction.set_memory_displ_size(0);
    }
}

struct Emitter {
    encoder: Encoder,
    at: usize,
}

type Emit = Result<(), iced_x86::IcedError>;

impl Emitter {
    fn emit(&mut self, instruction: Instruction) -> Emit {
        self.at += self.encoder.encode(&instruction, self.at as u64)?;
        Ok(())
    }
    fn one(&mut self, code: Code, register: Register) -> Emit {
        self.emit(Instruction::with1(code, register)?)
    }
    fn memory(&mut self, code: Code, at: usize) -> Emit {
        self.emit(Instruction::with1(code, field(at))?)
    }
    fn load(&mut self, code: Code, register: Register, at: usize) -> Emit {
        self.emit(Instruction::with2(code, register, field(at))?)
    }
    fn store(&mut self, code: Code, at: usize, register: Register) -> Emit {
        self.emit(Instruction::with2(code, field(at), register)?)
    }
}

fn field(at: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RDI, at as i64)
}

const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
const FPU: usize = offset_of!(HostState, fpu);
const GPR: usize = offset_of!(HostState, gpr);
const MXCSR: usize = FPU + offset_of!(FpuState, mxcsr);

/// The function that runs `instruction`, and the offset of its exit for exceptions.
fn generate(instruction: &Instruction) -> Result<(Vec<u8>, usize), iced_x86::IcedError> {
    let mut emitter = Emitter { encoder: Encoder::new(64), at: 0 };
    let e = &mut emitter;
    for register in KEPT.into_iter().chain([Register::RDI]) {
        e.one(Code::Push_r64, register)?;
    }
    load_all(e)?;
    e.emit(*instruction)?;
    // The frame pointer waits on the stack; RDI takes its place there.
    e.emit(Instruction::with(Code::Pushfq))?;
    let slot = MemoryOperand::with_base_displ(Register::RSP, 8);
    e.emit(Instruction::with2(Code::Xchg_rm64_r64, slot, Register::RDI)?)?;
    e.memory(Code::Pop_rm64, offset_of!(HostState, rflags))?;
    e.memory(Code::Pop_rm64, GPR + 8 * 7)?;
    for number in (0..15).filter(|number| ![4, 7].contains(number)) {
        e.store(Code::Mov_rm64_r64, GPR + 8 * number, Register::RAX + number as u32)?;
    }
    e.memory(Code::Stmxcsr_m32, MXCSR)?;
    store_vectors(e)?;
    e.memory(Code::Fxsave64_m512byte, offset_of!(HostState, image))?;
    leave(e)?;
    let exit = e.at;
    e.one(Code::Pop_r64, Register::RDI)?;
    e.memory(Code::Stmxcsr_m32, MXCSR)?;
    let faulted = field(offset_of!(HostState, faulted));
    e.emit(Instruction::with2(Code::Mov_rm32_imm32, faulted, 1)?)?;
    leave(e)?;
    Ok((emitter.encoder.take_buffer(), exit))
}

fn load_all(e: &mut Emitter) -> Emit {
    e.memory(Code::Fxrstor64_m512byte, offset_of!(HostState, image))?;
    load_vectors(e)?;
    e.memory(Code::Push_rm64, offset_of!(HostState, rflags))?;
    e.emit(Instruction::with(Code::Popfq))?;
    e.memory(Code::Ldmxcsr_m32, MXCSR)?;
    for number in (0..15).filter(|number| ![4, 7].contains(number)) {
        e.load(Code::Mov_r64_rm64, Register::RAX + number as u32, GPR + 8 * number)?;
    }
    e.load(Code::Mov_r64_rm64, BASE, offset_of!(HostState, memory_address))?;
    e.load(Code::Mov_r64_rm64, Register::RDI, GPR + 8 * 7)
}

/// AVX-512 with KMOVQ; without it the reference has sixteen YMM registers.
fn has_avx512() -> bool {
    std::arch::is_x86_feature_detected!("avx512bw")
}

fn zmm_at(number: u32) -> usize {
    FPU + offset_of!(FpuState, zmm) + 64 * number as usize
}

fn opmask_at(number: u32) -> usize {
    FPU + offset_of!(FpuState, opmask) + 8 * number as usize
}

fn load_vectors(e: &mut Emitter) -> Emit {
    if !has_avx512() {
        return (0..16).try_for_each(|number| {
            e.load(Code::VEX_Vmovdqu_ymm_ymmm256, Register::YMM0 + number, zmm_at(number))
        });
    }
    for number in 0..32 {
        let code = Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512;
        e.load(code, Register::ZMM0 + number, zmm_at(number))?;
    }
    (0..8).try_for_each(|number| {
        e.load(Code::VEX_Kmovq_kr_km64, Register::K0 + number, opmask_at(number))
    })
}

fn store_vectors(e: &mut Emitter) -> Emit {
    if !has_avx512() {
        return (0..16).try_for_each(|number| {
            e.store(Code::VEX_Vmovdqu_ymmm256_ymm, zmm_at(number), Register::YMM0 + number)
        });
    }
    for number in 0..32 {
        let code = Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm;
        e.store(code, zmm_at(number), Register::ZMM0 + number)?;
    }
    (0..8).try_for_each(|number| {
        e.store(Code::VEX_Kmovq_m64_kr, opmask_at(number), Register::K0 + number)
    })
}

fn leave(e: &mut Emitter) -> Emit {
    e.memory(Code::Ldmxcsr_m32, offset_of!(HostState, host_mxcsr))?;
    e.emit(Instruction::with(Code::Fninit))?;
    e.emit(Instruction::with(Code::VEX_Vzeroupper))?;
    for register in KEPT.into_iter().rev() {
        e.one(Code::Pop_r64, register)?;
    }
    e.emit(Instruction::with(Code::Retnq))
}
