//! Generates the thunk of an instruction: load what it reads, run it, store what it writes.
//!
//! A thunk is a System V function of one argument, the frame of `code_memory.rs` in RDI. Vector
//! and mask registers go into the host registers of the same number; general registers that are
//! not caller-saved (or taken: RDI frame, R10 temporary, R11 memory operand) are renamed. The
//! memory operand becomes \[R11\]. Every register that the instruction names is loaded, also one
//! that it only writes: merging, partial writes and conditional writes then need no case of their
//! own. Only those that it may write are stored, as a VEX form stores more of a register than it
//! loads.
//!
//! What it keeps for Rust: RBX, RBP, RSP, R12 to R15 are never touched, MXCSR is set back, the x87
//! unit is initialised again, DF stays clear, and no upper half stays dirty (VZEROUPPER).

use iced_x86::{
    Code, Encoder, EncodingKind, IcedError, Instruction, InstructionInfoFactory, MemoryOperand,
    OpAccess, OpKind, Register,
};

use super::HostUnits;
use super::code_memory::offset;

/// How a thunk is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    /// Loads and stores the x87 image.
    pub(super) uses_x87: bool,
    /// Runs under the guest's MXCSR.
    pub(super) uses_mxcsr: bool,
    /// Takes the guest's status flags.
    pub(super) reads_flags: bool,
    /// Its status flags are to be taken over.
    pub(super) writes_flags: bool,
}

/// A thunk in `CodeMemory`, by offsets into it.
#[derive(Clone, Copy)]
pub(super) struct Thunk {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) fault_exit: u32,
    pub(super) plan: Plan,
}

/// A thunk before it has a place.
pub(super) struct ThunkCode {
    pub(super) bytes: Vec<u8>,
    /// Offset of the fault exit.
    pub(super) fault_exit: u32,
    pub(super) plan: Plan,
}

/// An instruction as the host can run it, and what stands for what.
pub(super) struct Renamed {
    /// Memory operand at \[R11\], no general register that the ABI keeps.
    instruction: Instruction,
    /// Guest and host number of each general register it names.
    gprs: Vec<(u8, u8)>,
    /// The vector registers it names.
    vectors: Vec<Used>,
    /// The mask registers it names.
    opmasks: Vec<Used>,
}

/// A register that an instruction names, and whether it may write it.
#[derive(Clone, Copy)]
struct Used {
    number: u8,
    is_written: bool,
}

/// Adds a register to the list of those used.
fn note(list: &mut Vec<Used>, number: u8, access: OpAccess) {
    use OpAccess as A;
    let is_written = matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite);
    match list.iter_mut().find(|used| used.number == number) {
        Some(used) => used.is_written |= is_written,
        None => list.push(Used { number, is_written }),
    }
}

/// RAX, RCX, RDX, RSI, R8, R9: caller-saved and not otherwise taken.
const HOST_GPRS: [u8; 6] = [0, 1, 2, 6, 8, 9];
const FRAME: Register = Register::RDI;
const TEMPORARY: Register = Register::R10;
const MEMORY: Register = Register::R11;

impl Renamed {
    /// Replaces the operands of `original` that cannot stay what they are.
    pub(super) fn new(original: &Instruction) -> Self {
        let mut instruction = *original;
        instruction.set_ip(0);
        instruction.set_segment_prefix(Register::None);
        set_memory(&mut instruction, Register::None);
        let mut renamed =
            Self { instruction, gprs: Vec::new(), vectors: Vec::new(), opmasks: Vec::new() };
        let mut info = InstructionInfoFactory::new();
        for used in info.info(&instruction).used_registers() {
            let register = used.register();
            let number = register.full_register().number() as u8;
            if register.is_vector_register() {
                note(&mut renamed.vectors, number, used.access());
            } else if register.is_k() {
                note(&mut renamed.opmasks, number, used.access());
            } else if register.is_gpr() {
                renamed.gprs.push((number, number));
            }
        }
        renamed.rename_gprs();
        set_memory(&mut renamed.instruction, MEMORY);
        renamed
    }

    /// Registers of [`HOST_GPRS`] stay (implicit operands are among them and must); others move.
    fn rename_gprs(&mut self) {
        self.gprs.sort_unstable();
        self.gprs.dedup();
        for index in 0..self.gprs.len() {
            let Some(&(guest, _)) = self.gprs.get(index) else { continue };
            if HOST_GPRS.contains(&guest) {
                continue;
            }
            let is_free = |host: &u8| !self.gprs.iter().any(|(_, taken)| taken == host);
            let Some(host) = HOST_GPRS.into_iter().find(is_free) else { continue };
            if let Some(pair) = self.gprs.get_mut(index) {
                pair.1 = host;
            }
            for operand in 0..self.instruction.op_count() {
                rename_operand(&mut self.instruction, operand, guest, host);
            }
        }
    }

    /// The encoding, which identifies the thunk. `None` if the host has no such instruction.
    pub(super) fn key(&self) -> Option<Key> {
        let mut encoder = Encoder::new(64);
        let length = encoder.encode(&self.instruction, 0).ok()?;
        let mut bytes = [0; 24];
        bytes.get_mut(..length)?.copy_from_slice(encoder.take_buffer().get(..length)?);
        // Renaming loses which guest registers are meant: they belong to the key.
        for (slot, (guest, _)) in bytes.get_mut(16..)?.iter_mut().zip(&self.gprs) {
            *slot = guest + 1;
        }
        Some(Key(bytes))
    }
}

/// What tells thunks apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 24]);

fn set_memory(instruction: &mut Instruction, base: Register) {
    let has_memory =
        (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if has_memory {
        instruction.set_memory_base(base);
        instruction.set_memory_index(Register::None);
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displacement64(0);
        // Without a base, an address is a displacement; iced wants to know its width.
        instruction.set_memory_displ_size(if base == Register::None { 4 } else { 0 });
    }
}

fn rename_operand(instruction: &mut Instruction, operand: u32, from: u8, to: u8) {
    if instruction.op_kind(operand) != OpKind::Register {
        return;
    }
    let register = instruction.op_register(operand);
    let first = match register {
        _ if register.is_gpr64() => Register::RAX,
        _ if register.is_gpr32() => Register::EAX,
        _ if register.is_gpr16() => Register::AX,
        _ => return,
    };
    if register.number() == usize::from(from) {
        instruction.set_op_register(operand, first + u32::from(to));
    }
}

/// Generates the thunk of `renamed`.
pub(super) fn generate(
    renamed: &Renamed,
    plan: Plan,
    host: HostUnits,
) -> Result<ThunkCode, IcedError> {
    let encoding = renamed.instruction.code().op_code().encoding();
    let mut thunk = Generator { encoder: Encoder::new(64), at: 0, host, plan, encoding };
    thunk.load(renamed)?;
    thunk.emit(renamed.instruction)?;
    thunk.store(renamed)?;
    let fault_exit = thunk.at;
    thunk.fault_exit()?;
    Ok(ThunkCode { bytes: thunk.encoder.take_buffer(), fault_exit, plan })
}

struct Generator {
    encoder: Encoder,
    at: u32,
    host: HostUnits,
    plan: Plan,
    encoding: EncodingKind,
}

type Emit = Result<(), IcedError>;

impl Generator {
    fn emit(&mut self, instruction: Instruction) -> Emit {
        self.at += self.encoder.encode(&instruction, u64::from(self.at))? as u32;
        Ok(())
    }

    fn load(&mut self, renamed: &Renamed) -> Emit {
        if self.plan.uses_x87 {
            // FXRSTOR loads XMM registers too, so it goes first.
            self.load_pointer(TEMPORARY, offset::IMAGE)?;
            self.emit(Instruction::with1(Code::Fxrstor64_m512byte, at(TEMPORARY, 0))?)?;
        }
        self.load_pointer(TEMPORARY, offset::FPU)?;
        for Used { number, .. } in renamed.vectors.iter().copied() {
            let (code, first) = self.vector_load();
            let memory = at(TEMPORARY, offset::ZMM + 64 * i32::from(number));
            self.emit(Instruction::with2(code, first + u32::from(number), memory)?)?;
        }
        for Used { number, .. } in renamed.opmasks.iter().copied() {
            let code = if self.host.has_wide_opmasks {
                Code::VEX_Kmovq_kr_km64
            } else {
                Code::VEX_Kmovw_kr_km16
            };
            let memory = at(TEMPORARY, offset::OPMASK + 8 * i32::from(number));
            self.emit(Instruction::with2(code, Register::K0 + u32::from(number), memory)?)?;
        }
        if self.plan.reads_flags {
            self.emit(Instruction::with1(Code::Push_rm64, at(FRAME, offset::RFLAGS))?)?;
            self.emit(Instruction::with(Code::Popfq))?;
        }
        self.load_pointer(TEMPORARY, offset::GPR)?;
        for &(guest, host) in &renamed.gprs {
            let register = Register::RAX + u32::from(host);
            let memory = at(TEMPORARY, 8 * i32::from(guest));
            self.emit(Instruction::with2(Code::Mov_r64_rm64, register, memory)?)?;
        }
        self.load_pointer(MEMORY, offset::MEMORY)?;
        if self.plan.uses_mxcsr {
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, at(FRAME, offset::MXCSR))?)?;
        }
        Ok(())
    }

    fn store(&mut self, renamed: &Renamed) -> Emit {
        if self.plan.writes_flags {
            self.emit(Instruction::with(Code::Pushfq))?;
            self.emit(Instruction::with1(Code::Pop_rm64, at(FRAME, offset::RFLAGS))?)?;
        }
        self.load_pointer(TEMPORARY, offset::GPR)?;
        for &(guest, host) in &renamed.gprs {
            let register = Register::RAX + u32::from(host);
            let memory = at(TEMPORARY, 8 * i32::from(guest));
            self.emit(Instruction::with2(Code::Mov_rm64_r64, memory, register)?)?;
        }
        self.load_pointer(TEMPORARY, offset::FPU)?;
        for Used { number, .. } in renamed.vectors.iter().copied().filter(|used| used.is_written) {
            let (code, first) = self.vector_store();
            let memory = at(TEMPORARY, offset::ZMM + 64 * i32::from(number));
            self.emit(Instruction::with2(code, memory, first + u32::from(number))?)?;
        }
        for Used { number, .. } in renamed.opmasks.iter().copied().filter(|used| used.is_written) {
            let code = if self.host.has_wide_opmasks {
                Code::VEX_Kmovq_m64_kr
            } else {
                Code::VEX_Kmovw_m16_kr
            };
            let memory = at(TEMPORARY, offset::OPMASK + 8 * i32::from(number));
            self.emit(Instruction::with2(code, memory, Register::K0 + u32::from(number))?)?;
        }
        self.leave_mxcsr()?;
        self.store_image()?;
        self.leave()
    }

    fn store_image(&mut self) -> Emit {
        if self.plan.uses_x87 {
            self.load_pointer(TEMPORARY, offset::IMAGE)?;
            self.emit(Instruction::with1(Code::Fxsave64_m512byte, at(TEMPORARY, 0))?)?;
        }
        Ok(())
    }

    /// Where SIGFPE sends the thunk: nothing is stored but MXCSR and x87 state, which may have gone
    /// to MMX operation.
    fn fault_exit(&mut self) -> Emit {
        self.leave_mxcsr()?;
        self.store_image()?;
        let faulted = at(FRAME, offset::FAULTED);
        self.emit(Instruction::with2(Code::Mov_rm32_imm32, faulted, 1)?)?;
        self.leave()
    }

    fn leave_mxcsr(&mut self) -> Emit {
        if self.plan.uses_mxcsr {
            self.emit(Instruction::with1(Code::Stmxcsr_m32, at(FRAME, offset::MXCSR))?)?;
        }
        if self.plan.uses_mxcsr {
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, at(FRAME, offset::HOST_MXCSR))?)?;
        }
        Ok(())
    }

    /// What every way out does for Rust.
    fn leave(&mut self) -> Emit {
        if self.plan.uses_x87 {
            self.emit(Instruction::with(Code::Fninit))?;
        }
        if self.encoding != EncodingKind::Legacy {
            self.emit(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        self.emit(Instruction::with(Code::Retnq))
    }

    fn load_pointer(&mut self, register: Register, offset: i32) -> Emit {
        self.emit(Instruction::with2(Code::Mov_r64_rm64, register, at(FRAME, offset))?)
    }

    /// Loads as much as the encoding can read.
    fn vector_load(&self) -> (Code, Register) {
        match self.encoding {
            EncodingKind::Legacy => (Code::Movups_xmm_xmmm128, Register::XMM0),
            EncodingKind::EVEX => (Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512, Register::ZMM0),
            _ => (Code::VEX_Vmovdqu_ymm_ymmm256, Register::YMM0),
        }
    }

    /// Stores as much as the encoding writes: legacy forms keep the upper part of a register, VEX
    /// and EVEX forms zero it up to the host's (and so the guest's) longest vector.
    fn vector_store(&self) -> (Code, Register) {
        match self.encoding {
            EncodingKind::Legacy => (Code::Movups_xmmm128_xmm, Register::XMM0),
            _ if self.host.has_zmm => (Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm, Register::ZMM0),
            _ => (Code::VEX_Vmovdqu_ymmm256_ymm, Register::YMM0),
        }
    }
}

fn at(base: Register, displacement: i32) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, i64::from(displacement))
}
