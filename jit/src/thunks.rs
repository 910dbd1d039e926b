//! The code between Rust and translated code.
//!
//! *Enter* is a System V function: it saves what that ABI keeps, loads the guest's registers and
//! jumps into a block. The *leave* thunks undo it. The *call* thunks let a block call a helper and
//! come back: they save all guest registers to the context, so that a helper sees the whole state
//! and may change it, run the helper on Rust's own stack, and load everything again.
//!
//! Guest vector registers and MXCSR stay in the host's while translated code runs; every thunk that
//! goes to Rust saves them, since Rust may use any of them. The x87 unit stays as it is: Rust code
//! does not touch it, and whoever needs its contents asks [`crate::runtime`].

use std::mem::offset_of;

use cpu::fpu::FpuState;
use cpu::mmu::View;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use crate::context::{Context, JUMP_HASH, JUMP_SHIFT, JUMP_UNITS, VIEWS, view_index, view_offsets};
use crate::exit::Exit;
use crate::gaps::{self, Found};

type Ops = VecAssembler<X64Relocation>;

/// Positions of the thunks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Thunks {
    /// Enters: context in RDI, code address in RSI.
    pub(crate) enter: usize,
    /// Leaves by the link in S1, flags in EFLAGS.
    pub(crate) leave_live: usize,
    /// Leaves by the link in S1, flags in the context.
    pub(crate) leave_spilled: usize,
    /// Leaves to the address in S0 by the link in S1.
    pub(crate) leave_indirect: usize,
    /// Leaves at the step that a signal handler has noted in the context, flags in EFLAGS.
    pub(crate) leave_signal_live: usize,
    /// The same with the flags in the context.
    pub(crate) leave_signal_spilled: usize,
    /// Calls the helper for an access: address in S0, size and kind in S1; the host address comes
    /// back in S0. By view.
    access: [usize; 3],
    /// Calls the helper for a group: as access; the delta comes back in S0. By view.
    group: [usize; 3],
    /// Calls the helper that runs the handler with number S1.
    pub(crate) handler: usize,
    /// Where host returns go whose return site does not match, by view.
    mispredicted: [usize; 3],
    /// Where a host return goes when the stack of predictions is empty: as `mispredicted`, for
    /// whoever executes.
    pub(crate) sentinel: usize,
    /// One past the last byte.
    pub(crate) end: usize,
}

impl Thunks {
    /// The thunk for accesses that `view` makes.
    pub(crate) fn access(&self, view: View) -> usize {
        self.access[view_index(view)]
    }

    /// The thunk for groups of them.
    pub(crate) fn group(&self, view: View) -> usize {
        self.group[view_index(view)]
    }

    /// Where code of `view` goes with a return address in S0 that no host return leads to.
    pub(crate) fn mispredicted(&self, view: View) -> usize {
        self.mispredicted[view_index(view)]
    }
}

/// Addresses of the helpers in Rust.
#[derive(Clone, Copy)]
pub(crate) struct Helpers {
    pub(crate) access: usize,
    pub(crate) group: usize,
    pub(crate) handler: usize,
}

/// What of the vector registers the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorUnit {
    Sse,
    Avx,
    Avx512,
}

impl VectorUnit {
    pub(crate) fn of_host() -> Self {
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
        {
            Self::Avx512
        } else if std::arch::is_x86_feature_detected!("avx") {
            Self::Avx
        } else {
            Self::Sse
        }
    }
}

/// Offset of a field of the context, as `dynasm!` wants it.
macro_rules! at {
    ($($field:tt)+) => { offset_of!(Context, $($field)+) as i32 };
}

const GPR: i32 = offset_of!(Context, gpr) as i32;
const MXCSR: i32 = offset_of!(FpuState, mxcsr) as i32;
const OPMASK: i32 = offset_of!(FpuState, opmask) as i32;

/// Returns to elsewhere than the host's stack says until it is given up: it may be another task's.
const PATIENCE: i32 = 16;

/// Emits all thunks, to be put at position 0.
pub(crate) fn emit(unit: VectorUnit, helpers: Helpers) -> (Vec<u8>, Thunks) {
    let mut ops = Ops::new(0);
    let mut thunks = Thunks { enter: ops.offset().0, ..Thunks::default() };
    emit_enter(&mut ops, unit);
    thunks.leave_signal_live = ops.offset().0;
    spill(&mut ops);
    thunks.leave_signal_spilled = ops.offset().0;
    leave_as(&mut ops, Exit::Signal);
    thunks.leave_live = ops.offset().0;
    spill(&mut ops);
    thunks.leave_spilled = ops.offset().0;
    dynasm!(ops ; .arch x64 ; gs mov [at!(exit_link)], r15d);
    leave_as(&mut ops, Exit::Link);
    thunks.leave_indirect = ops.offset().0;
    dynasm!(ops ; .arch x64 ; gs mov [at!(exit_link)], r15d);
    let indirect = ops.new_dynamic_label();
    dynasm!(ops ; .arch x64 ; =>indirect ; gs mov [at!(rip)], r14);
    leave_as(&mut ops, Exit::Indirect);
    thunks.access = emit_access(&mut ops, unit, Found::Host, helpers.access);
    thunks.group = emit_access(&mut ops, unit, Found::Delta, helpers.group);
    thunks.handler = ops.offset().0;
    emit_call(&mut ops, unit, helpers.handler);
    let supervisor = ops.new_dynamic_label();
    thunks.sentinel = ops.offset().0;
    // An empty stack is one that nothing is lost with: it begins anew.
    dynasm!(ops ; .arch x64
        ; gs mov DWORD [at!(patience)], 0
        ; gs cmp DWORD [at!(cpl)], 3
        ; jne =>supervisor
    );
    thunks.mispredicted[0] = ops.offset().0;
    emit_mispredicted(&mut ops, View::User, indirect);
    // A return may come from code with another EFLAGS.AC than its call's: the flag itself decides.
    let with_ac = ops.new_dynamic_label();
    thunks.mispredicted[1] = ops.offset().0;
    thunks.mispredicted[2] = ops.offset().0;
    dynasm!(ops ; .arch x64
        ; =>supervisor
        ; gs cmp DWORD [at!(alignment_flag)], 0
        ; jne =>with_ac
    );
    emit_mispredicted(&mut ops, View::Supervisor, indirect);
    dynasm!(ops ; .arch x64 ; =>with_ac);
    emit_mispredicted(&mut ops, View::SupervisorAc, indirect);
    emit_leave(&mut ops, unit);
    thunks.end = ops.offset().0;
    let bytes = ops.finalize().unwrap_or_default();
    (bytes, thunks)
}

/// EFLAGS to the context.
fn spill(ops: &mut Ops) {
    dynasm!(ops ; .arch x64
        ; gs mov [at!(spare)], rax
        ; lahf
        ; seto al
        ; gs mov [at!(flags)], eax
        ; gs mov rax, [at!(spare)]
    );
}

fn leave_as(ops: &mut Ops, exit: Exit) {
    dynasm!(ops ; .arch x64
        ; gs mov DWORD [at!(exit_kind)], exit as i32
        ; jmp ->leave
    );
}

/// Guest registers to the context.
fn save_gprs(ops: &mut Ops) {
    dynasm!(ops ; .arch x64
        ; gs mov [GPR], rax
        ; gs mov [GPR + 8], rcx
        ; gs mov [GPR + 16], rdx
        ; gs mov [GPR + 24], rbx
        ; gs mov [GPR + 32], r13
        ; gs mov [GPR + 40], rbp
        ; gs mov [GPR + 48], rsi
        ; gs mov [GPR + 56], rdi
        ; gs mov [GPR + 64], r8
        ; gs mov [GPR + 72], r9
        ; gs mov [GPR + 80], r10
        ; gs mov [GPR + 88], r11
        ; gs mov [GPR + 96], r12
    );
}

fn load_gprs(ops: &mut Ops) {
    dynasm!(ops ; .arch x64
        ; gs mov rax, [GPR]
        ; gs mov rcx, [GPR + 8]
        ; gs mov rdx, [GPR + 16]
        ; gs mov rbx, [GPR + 24]
        ; gs mov r13, [GPR + 32]
        ; gs mov rbp, [GPR + 40]
        ; gs mov rsi, [GPR + 48]
        ; gs mov rdi, [GPR + 56]
        ; gs mov r8, [GPR + 64]
        ; gs mov r9, [GPR + 72]
        ; gs mov r10, [GPR + 80]
        ; gs mov r11, [GPR + 88]
        ; gs mov r12, [GPR + 96]
    );
}

/// Vector registers to the state that RAX points to. MXCSR becomes Rust's.
#[expect(clippy::useless_conversion, reason = "dynasm! converts every register number")]
fn save_vectors(ops: &mut Ops, unit: VectorUnit) {
    dynasm!(ops ; .arch x64 ; gs mov rax, [at!(fpu)]);
    for number in 0..16 {
        let offset = 64 * i32::from(number);
        match unit {
            VectorUnit::Sse => dynasm!(ops ; .arch x64 ; movups [rax + offset], Rx(number)),
            VectorUnit::Avx => dynasm!(ops ; .arch x64 ; vmovups [rax + offset], Ry(number)),
            VectorUnit::Avx512 => {}
        }
    }
    if unit == VectorUnit::Avx512 {
        (0..32).for_each(|number| zmm(ops, 0x11, number));
        (0..8).for_each(|number| opmask(ops, 0x91, number));
    }
    if unit != VectorUnit::Sse {
        dynasm!(ops ; .arch x64 ; vzeroupper);
    }
    dynasm!(ops ; .arch x64
        ; stmxcsr [rax + MXCSR]
        ; gs ldmxcsr [at!(host_mxcsr)]
        ; cld
    );
}

#[expect(clippy::useless_conversion, reason = "dynasm! converts every register number")]
fn load_vectors(ops: &mut Ops, unit: VectorUnit) {
    dynasm!(ops ; .arch x64 ; gs mov rax, [at!(fpu)] ; ldmxcsr [rax + MXCSR]);
    for number in 0..16 {
        let offset = 64 * i32::from(number);
        match unit {
            VectorUnit::Sse => dynasm!(ops ; .arch x64 ; movups Rx(number), [rax + offset]),
            VectorUnit::Avx => dynasm!(ops ; .arch x64 ; vmovups Ry(number), [rax + offset]),
            VectorUnit::Avx512 => {}
        }
    }
    if unit == VectorUnit::Avx512 {
        (0..32).for_each(|number| zmm(ops, 0x10, number));
        (0..8).for_each(|number| opmask(ops, 0x90, number));
    }
}

/// `vmovups` between ZMM `number` and its place behind RAX: dynasm has no EVEX.
fn zmm(ops: &mut Ops, opcode: u8, number: u8) {
    let extensions = 0xf1 ^ (number >> 3 & 1) << 7 ^ (number >> 4 & 1) << 4;
    ops.extend([0x62, extensions, 0x7c, 0x48, opcode, 0x80 | (number & 7) << 3]);
    ops.extend((64 * u32::from(number)).to_le_bytes());
}

/// `kmovq` between mask register `number` and its place behind RAX.
fn opmask(ops: &mut Ops, opcode: u8, number: u8) {
    ops.extend([0xc4, 0xe1, 0xf8, opcode, 0x80 | number << 3]);
    ops.extend((OPMASK + 8 * i32::from(number)).to_le_bytes());
}

fn emit_enter(ops: &mut Ops, unit: VectorUnit) {
    dynasm!(ops ; .arch x64
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        // Helpers are called with this RSP: a multiple of 16.
        ; sub rsp, 8
        ; mov [rdi + at!(host_rsp)], rsp
        ; mov [rdi + at!(spare)], rsi
        ; mov rsp, [rdi + at!(stack_bottom)]
    );
    load_vectors(ops, unit);
    load_gprs(ops);
    dynasm!(ops ; .arch x64 ; gs jmp QWORD [at!(spare)]);
}

fn emit_leave(ops: &mut Ops, unit: VectorUnit) {
    dynasm!(ops ; .arch x64 ; ->leave:);
    save_gprs(ops);
    save_vectors(ops, unit);
    dynasm!(ops ; .arch x64 ; ->left: ; gs mov rsp, [at!(host_rsp)]
        ; add rsp, 8
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
    );
}

/// For each view a thunk that looks among the gaps between watchpoints, and else calls `helper`.
fn emit_access(ops: &mut Ops, unit: VectorUnit, found: Found, helper: usize) -> [usize; 3] {
    let other = ops.new_dynamic_label();
    let entries = VIEWS.map(|view| {
        let entry = ops.offset().0;
        gaps::emit_search(ops, view, found, other);
        entry
    });
    dynasm!(ops ; .arch x64 ; =>other);
    emit_call(ops, unit, helper);
    entries
}

/// A helper is `fn(owner, S0, S1, return address) -> S0`; zero is to leave.
fn emit_call(ops: &mut Ops, unit: VectorUnit, helper: usize) {
    save_gprs(ops);
    save_vectors(ops, unit);
    dynasm!(ops ; .arch x64
        ; gs mov rdi, [at!(owner)]
        ; mov rsi, r14
        ; mov rdx, r15
        ; mov rcx, [rsp]
        ; gs mov [at!(code_rsp)], rsp
        ; gs mov rsp, [at!(host_rsp)]
        ; mov rax, QWORD helper as i64
        ; call rax
        ; test rax, rax
        ; jz ->left
        ; gs mov rsp, [at!(code_rsp)]
        ; mov r14, rax
    );
    load_vectors(ops, unit);
    load_gprs(ops);
    dynasm!(ops ; .arch x64 ; ret);
}

/// The guest's return address, in S0, is not that of the call which the host's stack remembers, and
/// is looked up as any computed one. Most such calls are retpolines, whose callers' callers will be
/// returned to: only behind [`PATIENCE`] of them the stack is given up.
fn emit_mispredicted(ops: &mut Ops, view: View, indirect: dynasmrt::DynamicLabel) {
    let offsets = view_offsets(view);
    let keep = ops.new_dynamic_label();
    dynasm!(ops ; .arch x64
        ; gs sub DWORD [at!(patience)], 1
        ; jns =>keep
        ; gs mov DWORD [at!(patience)], PATIENCE
    );
    match view {
        View::SupervisorAc => dynasm!(ops ; .arch x64 ; gs mov rsp, [at!(ac_stack_bottom)]),
        _ => dynasm!(ops ; .arch x64 ; gs mov rsp, [at!(stack_bottom)]),
    }
    dynasm!(ops ; .arch x64
        ; =>keep
        ; gs mov [at!(exit_link)], r15d
        ; gs cmp DWORD [at!(poll)], 0
        ; jne =>indirect
        ; imul r15d, r14d, JUMP_HASH as i32
        ; shr r15d, (JUMP_SHIFT - JUMP_UNITS) as i8
        ; and r15d, -1 << JUMP_UNITS
        ; gs cmp r14, [r15 * 8 + offsets.jump_rips]
        ; jne =>indirect
        ; gs jmp QWORD [r15 * 8 + offsets.jump_codes]
    );
}
