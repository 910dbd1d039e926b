//! What a block is to become: its instructions, each with the way it is translated.

use cpu::interp::insn::has_memory_operand;
use cpu::mode::Mode;
use cpu::state::cr4;
use decoder::{Class, MemoryShape, Row, Unit, row};
use iced_x86::{Code, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::bit_strings;
use crate::flow::{Effect, effect};
use crate::forms::{Form, form};
use crate::grouping::Access;
use crate::strings::{self, StringOperation};

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The same instruction with its operands renamed.
    Copy,
    /// Nothing to do.
    Nothing,
    /// LEA.
    Lea,
    /// A jump to a known address.
    Jump,
    /// A conditional jump, by condition code.
    Branch(u8),
    /// A jump whose target is the next step: a superblock's.
    FollowedJump,
    /// A conditional jump whose target is the next step, by the condition of not being taken.
    FollowedBranch(u8),
    /// LOOP, LOOPE, LOOPNE, JECXZ, JRCXZ, by opcode.
    Counted(u8),
    /// A call of a known address.
    Call,
    /// A jump to a computed address.
    JumpIndirect,
    /// A call of a computed address.
    CallIndirect,
    /// RET, with the bytes it releases besides the address.
    Return(u16),
    /// PUSH of a register, an immediate or memory.
    Push,
    /// POP into a register.
    Pop,
    /// LEAVE.
    Leave,
    /// PUSHF of the full width.
    PushFlags,
    /// POPF of the full width, at CPL 0.
    PopFlags,
    /// CLI and STI at CPL 0.
    SetInterruptFlag(bool),
    /// CLD and STD.
    SetDirectionFlag(bool),
    /// CLAC and STAC.
    SetAlignmentFlag(bool),
    /// A string instruction.
    String(StringOperation),
    /// BT, BTS, BTR, BTC on a bit string in memory.
    BitString,
    /// MOV between the accumulator and an absolute address.
    AbsoluteMov,
    /// XLAT.
    TranslateByte,
    /// SYSCALL at CPL 3 in 64-bit mode.
    SystemCall,
    /// SYSRETQ at CPL 0.
    SystemReturn,
    /// SWAPGS.
    SwapGs,
    /// RDFSBASE and RDGSBASE.
    ReadBase,
    /// WRFSBASE and WRGSBASE.
    WriteBase,
    /// MOV from CR2.
    ReadFaultAddress,
    /// MOV from ES, DS, FS or GS to a register.
    ReadSelector,
    /// SERIALIZE.
    Serialize,
    /// RDTSC and RDTSCP.
    ReadTime,
    /// RDPKRU.
    ReadProtectionKeys,
    /// Executed by the interpreter's handler, called from the block.
    Handler,
}

/// One guest instruction of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) iced: Instruction,
    pub(crate) row: &'static Row,
    pub(crate) form: &'static Form,
    pub(crate) action: Action,
    /// What it does to the status flags.
    pub(crate) effect: Effect,
    /// An operand is memory by ModRM or an absolute address.
    pub(crate) has_memory: bool,
    /// Offset of its first byte in the bytes that the block was decoded from.
    pub(crate) at: usize,
    /// Its accesses: by ModRM, and of the stack.
    pub(crate) accesses: [Option<Access>; 2],
}

impl Step {
    /// Where the path of the block goes on behind it.
    pub(crate) fn next(&self) -> u64 {
        match self.action {
            Action::FollowedJump | Action::FollowedBranch(_) => self.iced.near_branch_target(),
            _ => self.iced.next_ip(),
        }
    }

    /// Makes the path go on at `rip` behind the step, if it is a jump that can lead there.
    pub(crate) fn follow_to(&mut self, rip: u64) {
        self.action = match self.action {
            Action::Jump if rip == self.iced.near_branch_target() => Action::FollowedJump,
            Action::Branch(code) if rip != self.iced.next_ip() => Action::FollowedBranch(code ^ 1),
            action => action,
        };
    }
}

/// What an instruction may be translated for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) mode: &'a Mode,
    /// CR0.NE: x87 exceptions come as #MF.
    pub(crate) has_numeric_exceptions: bool,
    pub(crate) fs_is_whole: bool,
    pub(crate) gs_is_whole: bool,
}

/// The step for `iced`, whose first byte is `at`.
pub(crate) fn step(target: &Target<'_>, iced: Instruction, at: usize, is_gated: bool) -> Step {
    let row = row(iced.code());
    let form = form(iced.code());
    let has_memory = form.has_memory(&iced);
    let can_address = !has_memory || can_address(target, &iced);
    let action =
        if is_gated || !can_address { Action::Handler } else { action(target, row, &iced) };
    let effect = effect(row, &iced);
    Step { iced, row, form, action, effect, has_memory, at, accesses: [None; 2] }
}

fn action(target: &Target<'_>, row: &Row, iced: &Instruction) -> Action {
    match row.class {
        Class::Alu
        | Class::Condition
        | Class::MulDiv
        | Class::Shift
        | Class::Exchange
        | Class::SimdInteger
        | Class::SimdFloat
        | Class::Opmask
        | Class::Crypto
        | Class::X87
        | Class::Bit
        | Class::Mov => copied(target, row, iced),
        Class::Nop => match iced.mnemonic() {
            Mnemonic::Pause => Action::Copy,
            // Some forms of it are undefined on some processors.
            Mnemonic::Reservednop => Action::Handler,
            _ => Action::Nothing,
        },
        Class::Cache => match iced.mnemonic() {
            Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => Action::Copy,
            _ => Action::Handler,
        },
        Class::Branch => branch(target, iced),
        Class::Stack => stack(target, iced),
        Class::Flag => flag(target, iced),
        Class::String if target.mode.is_64() => {
            StringOperation::of(iced).map_or(Action::Handler, Action::String)
        }
        Class::FarTransfer
        | Class::Segment
        | Class::ControlRegister
        | Class::Msr
        | Class::System
            if target.mode.is_64() =>
        {
            system(target, iced)
        }
        _ => Action::Handler,
    }
}

/// Instructions of operating systems in 64-bit mode.
fn system(target: &Target<'_>, iced: &Instruction) -> Action {
    let is_base = iced.op0_kind() == OpKind::Register && target.mode.has_cr4(cr4::FSGSBASE);
    match iced.code() {
        Code::Syscall if target.mode.cpl == 3 => Action::SystemCall,
        Code::Sysretq if target.mode.cpl == 0 => Action::SystemReturn,
        Code::Swapgs => Action::SwapGs,
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Rdgsbase_r32 | Code::Rdgsbase_r64
            if is_base =>
        {
            Action::ReadBase
        }
        Code::Wrfsbase_r32 | Code::Wrfsbase_r64 | Code::Wrgsbase_r32 | Code::Wrgsbase_r64
            if is_base =>
        {
            Action::WriteBase
        }
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg
            if iced.op0_kind() == OpKind::Register
                && !matches!(iced.op1_register(), Register::CS | Register::SS) =>
        {
            Action::ReadSelector
        }
        Code::Serialize => Action::Serialize,
        Code::Rdtsc | Code::Rdtscp => Action::ReadTime,
        Code::Rdpkru if target.mode.has_cr4(cr4::PKE) => Action::ReadProtectionKeys,
        Code::Mov_r64_cr if iced.op1_register() == Register::CR2 => Action::ReadFaultAddress,
        _ => Action::Handler,
    }
}

/// True if the memory operand is in a segment that has a base in 64-bit mode too.
pub(crate) fn is_based(iced: &Instruction) -> bool {
    matches!(iced.memory_segment(), Register::FS | Register::GS)
}

/// True if the address of the memory operand can be computed by the emitter.
fn can_address(target: &Target<'_>, iced: &Instruction) -> bool {
    let segment_is_whole = match iced.memory_segment() {
        Register::FS => target.mode.is_64() || target.fs_is_whole,
        Register::GS => target.mode.is_64() || target.gs_is_whole,
        // A write by CS is a fault outside 64-bit mode.
        Register::CS => target.mode.is_64(),
        _ => true,
    };
    let base = iced.memory_base();
    let is_16 =
        base.size() == 2 || iced.memory_index().size() == 2 || iced.memory_displ_size() == 2;
    segment_is_whole && !is_16
}

fn copied(target: &Target<'_>, row: &Row, iced: &Instruction) -> Action {
    use MemoryShape as S;
    if !crate::host::FEATURES.contains_all(row.features) {
        return Action::Handler;
    }
    let uses_x87 = matches!(row.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx);
    if uses_x87 && !target.has_numeric_exceptions || iced.mnemonic() == Mnemonic::Wait {
        return Action::Handler;
    }
    if row.unit == Unit::X87 && hides_pointers(iced) {
        return Action::Handler;
    }
    if iced.mnemonic() == Mnemonic::Movsxd && iced.op0_register().size() == 2 {
        // How many bytes it reads differs between processors and the table.
        return Action::Handler;
    }
    let is_zeroing = matches!(iced.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper);
    if is_zeroing && !target.mode.is_64() {
        // Only the registers that the mode can name.
        return Action::Handler;
    }
    if iced.mnemonic() == Mnemonic::Lea {
        return if iced.op0_register().size() == 2 { Action::Handler } else { Action::Lea };
    }
    match row.memory.shape {
        S::None | S::Read | S::Write | S::ReadWrite | S::MaskedRead | S::ExpandRead => {}
        // A mask may leave no element to be stored: nothing is dirty then.
        S::MaskedWrite | S::CompressWrite if is_unmasked(iced) => {}
        S::BitString if iced.op0_kind() != OpKind::Memory => {}
        S::BitString if bit_strings::can_address(target.mode.is_64(), iced) => {
            return Action::BitString;
        }
        S::Table if !is_based(iced) => {
            return Action::TranslateByte;
        }
        _ => return Action::Handler,
    }
    if strings::is_absolute_mov(iced.code()) {
        return Action::AbsoluteMov;
    }
    if iced.mnemonic() == Mnemonic::Movdir64b { Action::Handler } else { Action::Copy }
}

/// True for an x87 instruction behind which the host's unit would not tell the guest's pointers: it
/// clears them, or its operand is no function of its linear address.
fn hides_pointers(iced: &Instruction) -> bool {
    iced.mnemonic() == Mnemonic::Fninit || has_memory_operand(iced) && is_based(iced)
}

/// True for an EVEX form that names no mask.
fn is_unmasked(iced: &Instruction) -> bool {
    iced.code().op_code().encoding() == EncodingKind::EVEX && !iced.has_op_mask()
}

fn branch(target: &Target<'_>, iced: &Instruction) -> Action {
    let is_near = matches!(iced.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
    let goes_far = is_near && !is_valid_target(target.mode, iced.near_branch_target());
    if goes_far || iced.op0_kind() == OpKind::NearBranch16 {
        return Action::Handler;
    }
    let width = if target.mode.is_64() { 8 } else { 4 };
    let is_full_width = match iced.op0_kind() {
        OpKind::Register => iced.op0_register().size() == width,
        OpKind::Memory => iced.memory_size().size() == width,
        _ => true,
    };
    match iced.flow_control() {
        FlowControl::UnconditionalBranch => Action::Jump,
        FlowControl::ConditionalBranch => conditional(iced),
        FlowControl::Call => Action::Call,
        FlowControl::IndirectBranch if is_full_width => Action::JumpIndirect,
        FlowControl::IndirectCall if is_full_width => Action::CallIndirect,
        FlowControl::Return => match iced.code() {
            Code::Retnq | Code::Retnd => Action::Return(0),
            Code::Retnq_imm16 | Code::Retnd_imm16 => Action::Return(iced.immediate16()),
            _ => Action::Handler,
        },
        _ => Action::Handler,
    }
}

/// True if control may be transferred to `rip` in `mode`.
pub(crate) fn is_valid_target(mode: &Mode, rip: u64) -> bool {
    if mode.is_64() { mode.is_canonical(rip) } else { rip >> 32 == 0 }
}

fn conditional(iced: &Instruction) -> Action {
    use Mnemonic as M;
    let opcode = match iced.mnemonic() {
        M::Loopne => 0xe0,
        M::Loope => 0xe1,
        M::Loop => 0xe2,
        M::Jecxz | M::Jrcxz => 0xe3,
        M::Jcxz => return Action::Handler,
        _ => {
            let code = iced.condition_code() as u8;
            return if code == 0 { Action::Handler } else { Action::Branch(code - 1) };
        }
    };
    let is_cx = matches!(
        iced.code(),
        Code::Loop_rel8_16_CX
            | Code::Loop_rel8_32_CX
            | Code::Loope_rel8_16_CX
            | Code::Loope_rel8_32_CX
            | Code::Loopne_rel8_16_CX
            | Code::Loopne_rel8_32_CX
    );
    if is_cx { Action::Handler } else { Action::Counted(opcode) }
}

fn stack(target: &Target<'_>, iced: &Instruction) -> Action {
    let width = if target.mode.is_64() { 8 } else { 4 };
    if iced.stack_pointer_increment().unsigned_abs() as usize != width {
        let is_leave = matches!(iced.code(), Code::Leaveq | Code::Leaved);
        return if is_leave && is_native_leave(target, iced) {
            Action::Leave
        } else {
            Action::Handler
        };
    }
    let is_segment =
        iced.op0_kind() == OpKind::Register && iced.op0_register().is_segment_register();
    match iced.mnemonic() {
        Mnemonic::Push if !is_segment => Action::Push,
        Mnemonic::Pop if !is_segment && iced.op0_kind() == OpKind::Register => Action::Pop,
        Mnemonic::Pushfq => Action::PushFlags,
        Mnemonic::Popfq if target.mode.cpl == 0 => Action::PopFlags,
        Mnemonic::Leave if is_native_leave(target, iced) => Action::Leave,
        _ => Action::Handler,
    }
}

fn is_native_leave(target: &Target<'_>, iced: &Instruction) -> bool {
    iced.code() == if target.mode.is_64() { Code::Leaveq } else { Code::Leaved }
}

fn flag(target: &Target<'_>, iced: &Instruction) -> Action {
    use Mnemonic as M;
    let is_supervisor = target.mode.cpl == 0;
    match iced.mnemonic() {
        M::Clc | M::Stc | M::Cmc | M::Lahf | M::Sahf => Action::Copy,
        M::Cld => Action::SetDirectionFlag(false),
        M::Std => Action::SetDirectionFlag(true),
        M::Cli if is_supervisor => Action::SetInterruptFlag(false),
        M::Sti if is_supervisor => Action::SetInterruptFlag(true),
        M::Clac => Action::SetAlignmentFlag(false),
        M::Stac => Action::SetAlignmentFlag(true),
        _ => Action::Handler,
    }
}

impl Action {
    /// True if it has no effect but on registers and memory, so that it may be executed twice.
    pub(crate) fn is_repeatable(self) -> bool {
        self.is_plain()
            || matches!(
                self,
                Self::Jump
                    | Self::Branch(_)
                    | Self::Counted(_)
                    | Self::Call
                    | Self::JumpIndirect
                    | Self::CallIndirect
                    | Self::Return(_)
                    | Self::PushFlags
                    | Self::SetAlignmentFlag(_)
            )
    }

    /// True if translated code goes from it to the next step whatever happens, faults apart.
    pub(crate) fn is_plain(self) -> bool {
        matches!(
            self,
            Self::Copy
                | Self::Nothing
                | Self::FollowedJump
                | Self::Lea
                | Self::Push
                | Self::Pop
                | Self::Leave
                | Self::SetDirectionFlag(_)
                | Self::Serialize
                | Self::SetInterruptFlag(false)
        )
    }

    /// True if it is emitted by itself with accesses of the stack, or with one to its target.
    pub(crate) fn accesses_by_itself(self) -> bool {
        matches!(
            self,
            Self::Push
                | Self::Pop
                | Self::Leave
                | Self::PushFlags
                | Self::PopFlags
                | Self::Call
                | Self::CallIndirect
                | Self::JumpIndirect
                | Self::Return(_)
        )
    }

    /// True if control never goes from it to the next instruction.
    pub(crate) fn is_transfer(self) -> bool {
        matches!(
            self,
            Self::Jump
                | Self::Counted(_)
                | Self::Call
                | Self::JumpIndirect
                | Self::CallIndirect
                | Self::Return(_)
        )
    }

    /// True if no instruction follows in the block.
    pub(crate) fn ends_block(self, row: &Row) -> bool {
        match self {
            Self::PopFlags
            | Self::SetAlignmentFlag(_)
            | Self::SystemCall
            | Self::SystemReturn
            | Self::Serialize
            | Self::SetInterruptFlag(true) => true,
            Self::Handler => row.ends_block,
            _ => self.is_transfer(),
        }
    }
}

/// The bytes of a step's access by ModRM; 0 if it has none.
pub(crate) fn access_bytes(step: &Step) -> u32 {
    let iced = &step.iced;
    match step.action {
        Action::Copy if step.row.memory.shape == MemoryShape::BitString => {
            iced.memory_size().size() as u32
        }
        Action::Copy if iced.is_broadcast() => u32::from(step.row.memory.element),
        Action::Copy => u32::from(step.row.memory.size),
        _ => iced.memory_size().size() as u32,
    }
}

/// True if a step's access by ModRM writes.
pub(crate) fn writes_memory(step: &Step) -> bool {
    use MemoryShape as S;
    matches!(step.row.memory.shape, S::Write | S::ReadWrite | S::MaskedWrite | S::CompressWrite)
        && step.action == Action::Copy
}
