//! One decoded instruction, ready to execute.

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use crate::Cpu;
use crate::exception::Exec;
use crate::interp::string;
use crate::state::seg;

/// Executes one instruction. [`Cpu::next_rip`] holds the address behind it and is what branches
/// change. On an exception nothing of the instruction may be visible but what the manual says.
pub type Handler = fn(&mut Cpu, &Insn) -> Exec;

/// No base or index register.
pub const NO_REGISTER: u8 = 0xff;

/// A memory operand.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    /// Base register number, or [`NO_REGISTER`]. RIP-relative operands have the address in
    /// `displacement`.
    pub base: u8,
    /// Index register number, or [`NO_REGISTER`].
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment register number, see [`crate::state::seg`].
    pub segment: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub address_size: u8,
    /// Displacement, sign-extended.
    pub displacement: u64,
}

/// A decoded instruction with what handlers need at hand.
#[derive(Clone, Debug)]
pub struct Insn {
    /// Executes it.
    pub handler: Handler,
    /// RIP behind it.
    pub next_ip: u64,
    /// The memory operand, if it has one.
    pub mem: Mem,
    /// Register number of operand 0 ([`register_number`]), or of operand 1 where 0 is memory or
    /// there is none; see [`Insn::new`].
    pub dst: u8,
    /// Register number of operand 1 (of operand 2, if there is a third register operand, it is to
    /// be asked of `iced`).
    pub src: u8,
    /// Immediate, sign-extended as the encoding says; near branch target.
    pub imm: u64,
    /// What executes it on the host's own unit, if that is how it is executed.
    pub thunk: crate::native::ThunkRef,
    /// Everything else.
    pub iced: Instruction,
}

/// The number of a register in its file. 8-bit high registers AH, CH, DH, BH are 16 to 19, so that
/// [`Cpu::reg`] can tell them from SPL to DIL.
pub fn register_number(register: Register) -> u8 {
    match register {
        Register::None => NO_REGISTER,
        Register::AH | Register::CH | Register::DH | Register::BH => {
            16 + (register as u8 - Register::AH as u8)
        }
        _ if register.is_gpr() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

impl Insn {
    /// Prepares `iced` for `handler`. `dst` is operand 0's register and `src` operand 1's, each
    /// [`NO_REGISTER`] where that operand is no register.
    pub fn new(iced: Instruction, handler: Handler) -> Self {
        let register = |operand: u32| {
            if operand < iced.op_count() && iced.op_kind(operand) == OpKind::Register {
                register_number(iced.op_register(operand))
            } else {
                NO_REGISTER
            }
        };
        Self {
            handler,
            next_ip: iced.next_ip(),
            mem: memory_operand(&iced),
            dst: register(0),
            src: register(1),
            imm: immediate(&iced),
            thunk: crate::native::ThunkRef::default(),
            iced,
        }
    }

    /// True if the memory operand carries LOCK or is XCHG's, which locks by itself.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.iced.has_lock_prefix()
    }
}

/// True if any operand is memory addressed by ModRM, moffs, or a string's registers.
pub fn has_memory_operand(iced: &Instruction) -> bool {
    memory_operand_number(iced).is_some()
}

/// Which operand that is.
fn memory_operand_number(iced: &Instruction) -> Option<u32> {
    (0..iced.op_count()).find(|&operand| iced.op_kind(operand) == OpKind::Memory)
}

/// The offset of the memory operand in its segment, by these general registers; `None` if there is
/// none.
pub fn operand_offset(iced: &Instruction, gpr: &[u64; 16]) -> Option<u64> {
    iced.virtual_address(memory_operand_number(iced)?, 0, |register, _, _| {
        let is_general = register.is_gpr();
        Some(gpr.get(register.number()).filter(|_| is_general).copied().unwrap_or(0))
    })
}

fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

/// The segment of the memory operand. 64-bit mode ignores the overrides of ES, CS, SS and DS, which
/// shows in the vector of a non-canonical address: #SS through rSP and rBP, else #GP.
pub fn operand_segment(iced: &Instruction) -> u8 {
    let segment = segment_number(iced.memory_segment());
    if iced.code_size() != CodeSize::Code64 || usize::from(segment) >= seg::FS {
        return segment;
    }
    match iced.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => seg::SS as u8,
        _ => seg::DS as u8,
    }
}

fn memory_operand(iced: &Instruction) -> Mem {
    let base = iced.memory_base();
    let is_ip_relative = matches!(base, Register::RIP | Register::EIP);
    let index = iced.memory_index();
    // A VSIB index is a vector register: its handler asks `iced` for it.
    let is_gpr_index = index.is_gpr();
    let of_string =
        (0..iced.op_count()).find_map(|operand| string::address_size(iced.op_kind(operand)));
    let address_size = if let Some(size) = of_string {
        usize::from(size)
    } else if base != Register::None {
        base.size()
    } else if is_gpr_index {
        index.size()
    } else {
        match iced.memory_displ_size() {
            2 => 2,
            4 => 4,
            _ => 8,
        }
    };
    Mem {
        base: if is_ip_relative { NO_REGISTER } else { register_number(base) },
        index: if is_gpr_index { register_number(index) } else { NO_REGISTER },
        scale: iced.memory_index_scale().trailing_zeros() as u8,
        segment: operand_segment(iced),
        address_size: address_size as u8,
        displacement: iced.memory_displacement64(),
    }
}

fn immediate(iced: &Instruction) -> u64 {
    (0..iced.op_count())
        .find_map(|operand| match iced.op_kind(operand) {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                Some(iced.near_branch_target())
            }
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Some(iced.immediate(operand)),
            _ => None,
        })
        .unwrap_or(0)
}
