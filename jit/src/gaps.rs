//! Accesses to pages with watchpoints that meet none of them.
//!
//! Such pages are in no TLB, so each access to them comes to the thunk of the slow path. A *gap* is
//! a run of bytes of such a page that no watchpoint meets, found when the first access to it is
//! made; the thunk looks for the access in the last few gaps, before it calls anybody, and goes on
//! in translated code. Only what meets a watchpoint, or may, leaves to the interpreter, which
//! decides. A group of accesses that meets one goes on in code that checks them one by one, which
//! the thunk says by the carry flag if it knows the watchpoint.
//!
//! Invariant: a gap lives no longer than an entry of the TLB would: whatever drops one of those
//! drops all gaps of its context (`Context::forget_shortcuts`). The emitted code is the same
//! whether or not there are watchpoints.

use std::mem::offset_of;

use cpu::mmu::View;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use crate::context::{Context, view_index};
use crate::wanted::Wanted;

type Ops = VecAssembler<X64Relocation>;

/// Gaps that are kept of each view and kind of access.
const KEPT: usize = 4;

/// Bytes that may be accessed without a look at the watchpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Gap {
    /// Their first linear address.
    pub(crate) start: u64,
    /// How many there are; 0 in a gap that is none.
    pub(crate) length: u64,
    /// What to add to a linear address for the host address.
    pub(crate) delta: u64,
}

/// The gap that no access is in.
const NO_GAP: Gap = Gap { start: 0, length: 0, delta: 0 };

/// Bytes of a watchpoint that a group met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Met {
    /// The first one.
    pub(crate) start: u64,
    /// How many; 0 for none.
    pub(crate) length: u64,
}

/// No bytes.
const NOTHING_MET: Met = Met { start: 0, length: 0 };

/// The gaps of one context.
#[repr(C)]
pub(crate) struct Gaps {
    /// Not zero if there is one.
    is_any: u32,
    /// The one that is replaced next.
    next: u32,
    /// Room for two registers of translated code, and a number.
    kept: [u64; 3],
    /// By view, for reads and for writes.
    gaps: [[[Gap; KEPT]; 2]; 3],
    met: [Met; KEPT],
}

impl Gaps {
    /// Adds a gap in place of the oldest.
    pub(crate) fn keep(&mut self, view: View, is_write: bool, gap: Gap) {
        self.next = self.next.wrapping_add(1);
        self.is_any = 1;
        self.gaps[view_index(view)][usize::from(is_write)][self.next as usize % KEPT] = gap;
    }

    /// Has groups that meet these bytes checked one by one from now on.
    pub(crate) fn note_met(&mut self, met: Met) {
        self.next = self.next.wrapping_add(1);
        self.is_any = 1;
        self.met[self.next as usize % KEPT] = met;
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self) {
        if self.is_any != 0 {
            self.is_any = 0;
            self.gaps = [[[NO_GAP; KEPT]; 2]; 3];
            self.met = [NOTHING_MET; KEPT];
        }
    }

    /// The linear page that `view` reaches by a gap at a host page whose address ends in `host`.
    pub(crate) fn page_at(&self, view: View, host: u32) -> Option<u64> {
        let mut kept = self.gaps[view_index(view)].iter().flatten().filter(|gap| gap.length != 0);
        let page = |gap: &Gap| gap.start & !0xfff;
        kept.find(|gap| page(gap).wrapping_add(gap.delta) as u32 == host).map(page)
    }
}

/// Where a field of the context is.
const fn at(field: usize) -> i32 {
    (offset_of!(Context, gaps) + field) as i32
}

const IS_ANY: i32 = at(offset_of!(Gaps, is_any));
const SAVED_RAX: i32 = at(offset_of!(Gaps, kept));
const SAVED_RCX: i32 = SAVED_RAX + 8;
const SAVED_BOUND: i32 = SAVED_RCX + 8;

/// What the thunk gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The host address of the access.
    Host,
    /// What to add to its linear address.
    Delta,
}

/// Looks for the access at the address in S0 that S1 describes among the gaps of `view`: returns
/// to the translated code if it is in one, else goes to `other` with S0 and S1 as they were. The
/// status flags are lost.
pub(crate) fn emit_search(ops: &mut Ops, view: View, found: Found, other: DynamicLabel) {
    let [writes, in_gap, in_none, may_be] = [(); 4].map(|()| ops.new_dynamic_label());
    dynasm!(ops ; .arch x64
        ; gs cmp DWORD [IS_ANY], 0
        ; je =>other
        ; test r15d, Wanted::RUN as i32
        ; jnz =>other
        ; gs mov [SAVED_RAX], rax
        ; gs mov [SAVED_RCX], rcx
        ; movzx ecx, r15w
        ; test r15d, Wanted::ALIGNED as i32
        ; jz =>may_be
        ; lea eax, [rcx - 1]
        ; test rax, r14
        ; jnz =>in_none
        ; =>may_be
        ; test r15d, Wanted::WRITES as i32
        ; jnz =>writes
    );
    emit_compare(ops, view, false, in_gap);
    dynasm!(ops ; .arch x64 ; jmp =>in_none ; =>writes);
    emit_compare(ops, view, true, in_gap);
    dynasm!(ops ; .arch x64 ; =>in_none);
    if found == Found::Delta {
        emit_refusal(ops);
    }
    emit_restore(ops);
    dynasm!(ops ; .arch x64 ; jmp =>other ; =>in_gap);
    match found {
        Found::Host => dynasm!(ops ; .arch x64 ; add r14, rax),
        Found::Delta => dynasm!(ops ; .arch x64 ; mov r14, rax),
    }
    emit_restore(ops);
    dynasm!(ops ; .arch x64 ; clc ; ret);
}

/// Returns with the carry flag set if the RCX bytes at S0 meet a watchpoint that is known.
fn emit_refusal(ops: &mut Ops) {
    for number in 0..KEPT {
        let met = at(offset_of!(Gaps, met)) + (number * size_of::<Met>()) as i32;
        let [start, length] = [offset_of!(Met, start), offset_of!(Met, length)];
        let next = ops.new_dynamic_label();
        // The last byte of what overlaps is less than the bytes of both, less one, behind the first
        // one that is met.
        dynasm!(ops ; .arch x64
            ; gs mov rax, [met + length as i32]
            ; test rax, rax
            ; jz =>next
            ; lea rax, [rax + rcx - 1]
            ; gs mov [SAVED_BOUND], rax
            ; lea rax, [r14 + rcx - 1]
            ; gs sub rax, [met + start as i32]
            ; gs cmp rax, [SAVED_BOUND]
            ; jae =>next
        );
        emit_restore(ops);
        dynasm!(ops ; .arch x64 ; stc ; ret ; =>next);
    }
}

fn emit_restore(ops: &mut Ops) {
    dynasm!(ops ; .arch x64 ; gs mov rax, [SAVED_RAX] ; gs mov rcx, [SAVED_RCX]);
}

/// Compares the RCX bytes at S0 with each gap, and goes to `in_gap` with its delta in RAX.
fn emit_compare(ops: &mut Ops, view: View, is_write: bool, in_gap: DynamicLabel) {
    for number in 0..KEPT {
        let index = (view_index(view) * 2 + usize::from(is_write)) * KEPT + number;
        let gap = at(offset_of!(Gaps, gaps)) + (index * size_of::<Gap>()) as i32;
        let field = |offset: usize| gap + offset as i32;
        let (start, length) = (field(offset_of!(Gap, start)), field(offset_of!(Gap, length)));
        let delta = field(offset_of!(Gap, delta));
        let next = ops.new_dynamic_label();
        // An address may be any number, and neither step may wrap.
        dynasm!(ops ; .arch x64
            ; mov rax, r14
            ; gs sub rax, [start]
            ; jb =>next
            ; add rax, rcx
            ; jc =>next
            ; gs cmp rax, [length]
            ; ja =>next
            ; gs mov rax, [delta]
            ; jmp =>in_gap
            ; =>next
        );
    }
}
