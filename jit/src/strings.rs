//! Instructions whose operands are implied: MOVS, STOS, LODS, SCAS, CMPS with and without REP,
//! XLAT, and MOV with an absolute address.
//!
//! A REP whose elements all lie in one page of each of its operands is the host's own REP on host
//! addresses. Everything else — pages crossed, DF set — is the interpreter's handler, from the same
//! place in the block: whatever precedes the first element changes nothing of the guest's.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::asm::{Alu, Mem, Patch, Rm, cc};
use crate::emit::{Emitter, context};
use crate::flow::Flags;
use crate::plan::{Step, is_based};
use crate::registers::{Number, RAX, RBX, RCX, RDI, RSI, S0, S1};

/// What a string instruction does with each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// MOVS.
    Move,
    /// STOS.
    Store,
    /// LODS.
    Load,
    /// SCAS.
    Scan,
    /// CMPS.
    Compare,
}

/// A string instruction with 64-bit addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StringOperation {
    kind: Kind,
    /// Bytes of an element.
    size: u8,
    /// The REP prefix, or 0.
    repeat: u8,
}

impl Kind {
    fn compares(self) -> bool {
        matches!(self, Self::Scan | Self::Compare)
    }
    fn has_source(self) -> bool {
        matches!(self, Self::Move | Self::Compare)
    }
    /// Of elements that are bytes.
    fn opcode(self) -> u8 {
        match self {
            Self::Move => 0xa4,
            Self::Compare => 0xa6,
            Self::Store => 0xaa,
            Self::Load => 0xac,
            Self::Scan => 0xae,
        }
    }
}

impl StringOperation {
    /// True with a REP prefix.
    pub(crate) fn is_repeated(self) -> bool {
        self.repeat != 0
    }

    /// `iced` in 64-bit mode, if it is one that is translated.
    pub(crate) fn of(iced: &Instruction) -> Option<Self> {
        let (kind, size) = kind_and_size(iced.code())?;
        let has_long_addresses = (0..iced.op_count()).all(|operand| {
            matches!(
                iced.op_kind(operand),
                OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::Register
            )
        });
        // ES, which RDI goes by, has no base.
        let is_based = kind != Kind::Store && kind != Kind::Scan && is_based(iced);
        let repeat = match (iced.has_rep_prefix(), iced.has_repne_prefix()) {
            (false, false) => 0,
            (_, true) if kind.compares() => 0xf2,
            _ => 0xf3,
        };
        let is_known = has_long_addresses && !is_based && (repeat == 0 || kind != Kind::Load);
        is_known.then_some(Self { kind, size, repeat })
    }
}

fn kind_and_size(code: Code) -> Option<(Kind, u8)> {
    Some(match code {
        Code::Movsb_m8_m8 => (Kind::Move, 1),
        Code::Movsw_m16_m16 => (Kind::Move, 2),
        Code::Movsd_m32_m32 => (Kind::Move, 4),
        Code::Movsq_m64_m64 => (Kind::Move, 8),
        Code::Stosb_m8_AL => (Kind::Store, 1),
        Code::Stosw_m16_AX => (Kind::Store, 2),
        Code::Stosd_m32_EAX => (Kind::Store, 4),
        Code::Stosq_m64_RAX => (Kind::Store, 8),
        Code::Lodsb_AL_m8 => (Kind::Load, 1),
        Code::Lodsw_AX_m16 => (Kind::Load, 2),
        Code::Lodsd_EAX_m32 => (Kind::Load, 4),
        Code::Lodsq_RAX_m64 => (Kind::Load, 8),
        Code::Scasb_AL_m8 => (Kind::Scan, 1),
        Code::Scasw_AX_m16 => (Kind::Scan, 2),
        Code::Scasd_EAX_m32 => (Kind::Scan, 4),
        Code::Scasq_RAX_m64 => (Kind::Scan, 8),
        Code::Cmpsb_m8_m8 => (Kind::Compare, 1),
        Code::Cmpsw_m16_m16 => (Kind::Compare, 2),
        Code::Cmpsd_m32_m32 => (Kind::Compare, 4),
        Code::Cmpsq_m64_m64 => (Kind::Compare, 8),
        _ => return None,
    })
}

/// True for MOV between the accumulator and an address that is in the instruction.
pub(crate) fn is_absolute_mov(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}

impl Emitter<'_> {
    pub(crate) fn string(&mut self, operation: StringOperation) {
        self.free_flags();
        self.delta_in_s0 = None;
        let mut others = Vec::new();
        let mut nothing = None;
        if operation.repeat != 0 {
            self.asm.op(true, &[0x85], RCX, Rm::Reg(RCX)); // test rcx, rcx
            nothing = Some(self.asm.jcc(cc::E));
        }
        self.asm.alu_imm(false, Alu::Cmp, Rm::Mem(context!(direction_flag)), 0);
        others.push(self.asm.jcc(cc::NE));
        if operation.repeat == 0 {
            self.string_element(operation);
        } else {
            others.extend(self.check_run(operation));
            self.string_run(operation);
        }
        self.finish_string(operation, others, nothing);
    }

    /// What is not the expected path: `others` to the handler, `nothing` past it.
    fn finish_string(
        &mut self,
        operation: StringOperation,
        others: Vec<Patch>,
        nothing: Option<Patch>,
    ) {
        let done = self.asm.jmp();
        for other in others {
            self.asm.patch_here(other);
        }
        self.flags = Flags::Spilled;
        self.handler();
        if let Some(nothing) = nothing {
            self.asm.patch_here(nothing);
        }
        if operation.kind.compares() {
            self.want_flags();
            self.flags_produced();
        }
        self.asm.patch_here(done);
    }

    /// One element, upwards.
    fn string_element(&mut self, operation: StringOperation) {
        let StringOperation { kind, size, .. } = operation;
        if kind.has_source() {
            let source = self.by_base(None, RSI, 0, u32::from(size), false);
            self.sized_load(size, S1, source);
            self.asm.store(context!(spare), S1);
        }
        let (index, is_write) = match kind {
            Kind::Load => (RSI, false),
            Kind::Scan | Kind::Compare => (RDI, false),
            Kind::Move | Kind::Store => (RDI, true),
        };
        let memory = self.by_base(None, index, 0, u32::from(size), is_write);
        if kind.has_source() {
            self.asm.load(S1, context!(spare));
        }
        let (opcode, register) = match kind {
            Kind::Move => (0x88, S1),
            Kind::Store => (0x88, RAX),
            Kind::Load => (0x8a, RAX),
            Kind::Scan => (0x3a, RAX),
            Kind::Compare => (0x3a, S1),
        };
        self.sized_memory(size, opcode, register, memory);
        self.advance_index(index, size);
        if kind.has_source() {
            self.advance_index(RSI, size);
        }
    }

    fn advance_index(&mut self, index: Number, size: u8) {
        self.asm.lea(index, Mem::at(index).with_disp(i32::from(size)));
    }

    /// Finds out whether the run ends in the pages that it begins in; gives the jumps of those that
    /// do not.
    fn check_run(&mut self, operation: StringOperation) -> [Patch; 2] {
        let StringOperation { kind, size, .. } = operation;
        // Of so many the bytes are no number that wraps.
        let most = 4096 / i32::from(size);
        self.asm.alu_imm(true, Alu::Cmp, Rm::Reg(RCX), most);
        let many = self.asm.jcc(cc::A);
        self.page_offset(S1, RDI);
        if kind.has_source() {
            self.page_offset(S0, RSI);
            self.asm.alu32(Alu::Cmp, S1, Rm::Reg(S0));
            self.asm.op(false, &[0x0f, 0x42], S1, Rm::Reg(S0)); // cmovb
        }
        self.asm.lea(S1, run_end(S1, size));
        self.asm.alu_imm(false, Alu::Cmp, Rm::Reg(S1), 4096);
        [many, self.asm.jcc(cc::A)]
    }

    fn page_offset(&mut self, to: Number, from: Number) {
        self.asm.mov32(to, from);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(to), 0xfff);
    }

    /// The host's REP on the run, which [`Emitter::check_run`] has found to stay in its pages. What
    /// is written is checked last: its page must not become one of code meanwhile.
    fn string_run(&mut self, operation: StringOperation) {
        let StringOperation { kind, size, .. } = operation;
        if kind.has_source() {
            self.by_base(None, RSI, 0, u32::from(size), false);
            self.asm.store(context!(spare), S0);
        }
        self.by_base(None, RDI, 0, u32::from(size), !kind.compares());
        if kind.compares() {
            self.comparing_run(operation);
            self.flags_produced();
            return;
        }
        self.asm.lea(S1, run_end(RDI, size));
        self.asm.mov(RDI, S0);
        if kind == Kind::Move {
            self.asm.lea(S0, run_end(RSI, size));
            self.asm.load(RSI, context!(spare));
        }
        self.host_string(operation);
        self.asm.mov(RDI, S1);
        if kind == Kind::Move {
            self.asm.mov(RSI, S0);
        }
    }

    /// REPE or REPNE on the host addresses in S0 and the spare slot: the registers end where the
    /// host's do.
    fn comparing_run(&mut self, operation: StringOperation) {
        let is_compare = operation.kind == Kind::Compare;
        if is_compare {
            // S1: from host addresses to the guest's.
            self.asm.mov(S1, RSI);
            self.asm.load(RSI, context!(spare));
            self.asm.alu(Alu::Sub, S1, Rm::Reg(RSI));
        }
        self.asm.op(true, &[0x87], RDI, Rm::Reg(S0)); // xchg
        self.asm.alu(Alu::Sub, S0, Rm::Reg(RDI));
        self.host_string(operation);
        self.asm.lea(RDI, sum(RDI, S0));
        if is_compare {
            self.asm.lea(RSI, sum(RSI, S1));
        }
    }

    fn host_string(&mut self, operation: StringOperation) {
        let StringOperation { kind, size, repeat } = operation;
        self.asm.byte(repeat);
        match size {
            2 => self.asm.byte(0x66),
            8 => self.asm.byte(0x48),
            _ => {}
        }
        self.asm.byte(kind.opcode() | u8::from(size > 1));
    }

    /// `opcode register, memory` of `size` bytes; `opcode` is that of bytes.
    pub(crate) fn sized_memory(&mut self, size: u8, opcode: u8, register: Number, memory: Mem) {
        if size == 2 {
            self.asm.byte(0x66);
        }
        self.asm.op(size == 8, &[opcode | u8::from(size > 1)], register, Rm::Mem(memory));
    }

    /// Loads `size` bytes, zero-extended.
    pub(crate) fn sized_load(&mut self, size: u8, to: Number, from: Mem) {
        match size {
            1 => self.asm.movzx8(to, Rm::Mem(from)),
            2 => self.asm.op(false, &[0x0f, 0xb7], to, Rm::Mem(from)),
            4 => self.asm.load32(to, from),
            _ => self.asm.load(to, from),
        }
    }

    /// MOV between the accumulator and an absolute address.
    pub(crate) fn absolute_mov(&mut self, step: &Step) {
        let size = step.iced.memory_size().size();
        let is_write = step.iced.op0_kind() != OpKind::Register;
        let memory = self.operand(step, size as u32, is_write);
        let opcode = if is_write { 0x88 } else { 0x8a };
        self.sized_memory(size as u8, opcode, RAX, memory);
    }

    /// XLAT, by a segment without base.
    pub(crate) fn translate_byte(&mut self, step: &Step) {
        self.free_flags();
        self.delta_in_s0 = None;
        self.asm.movzx8(S1, Rm::Reg(RAX));
        if step.iced.memory_base() == Register::RBX {
            self.asm.lea(S0, sum(RBX, S1));
        } else {
            self.asm.lea32(S0, sum(RBX, S1));
        }
        self.check(1, false);
        self.sized_memory(1, 0x8a, RAX, Mem::at(S0));
    }
}

/// `[base + rcx * size]`.
fn run_end(base: Number, size: u8) -> Mem {
    let scale = size.trailing_zeros() as u8;
    Mem { base: Some(base), index: Some((RCX, scale)), disp: 0, is_gs: false }
}

/// `[base + index]`.
fn sum(base: Number, index: Number) -> Mem {
    Mem { base: Some(base), index: Some((index, 0)), disp: 0, is_gs: false }
}
