//! General, segment, control and debug registers, and what a CPU is in the middle of.

use cpu::Cpu;
use cpu::debug::DR7_GD;
use cpu::exception::Vector;
use cpu::state::{Activity, InterruptShadow, Segment, State, attr, cr0, rflags, seg};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
    kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use crate::KvmError;

/// DR6: which breakpoints were met.
pub(crate) const DR6_HITS: u64 = 0xf;
/// KVM_X86_SHADOW_INT_MOV_SS and _STI.
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;

/// Takes over general registers, RIP and RFLAGS.
pub(crate) fn fetch_general(fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
    let r = fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?;
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
    Ok(())
}

pub(crate) fn put_general(fd: &VcpuFd, state: &State) -> Result<(), KvmError> {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    };
    fd.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))
}

fn segment_of(from: &kvm_segment) -> Segment {
    let bits = [
        (from.present, 7),
        (from.s, 4),
        (from.avl, 12),
        (from.l, 13),
        (from.db, 14),
        (from.g, 15),
        (from.unusable, 8),
    ];
    let attributes = bits.iter().fold(
        u16::from(from.type_ & 0xf) | u16::from(from.dpl & 3) << attr::DPL_SHIFT,
        |all, &(bit, shift)| all | u16::from(bit & 1) << shift,
    );
    Segment { selector: from.selector, attributes, limit: from.limit, base: from.base }
}

/// The task register `tr`, as processors have it: behind INIT it is a 32-bit TSS, and KVM's is a
/// 16-bit one, with which nobody gets into long mode elsewhere.
fn behind_init(tr: Segment) -> Segment {
    const OF_KVM: Segment =
        Segment { selector: 0, attributes: attr::P | 0x3, limit: 0xffff, base: 0 };
    if tr == OF_KVM { Segment { attributes: attr::P | 0xb, ..tr } } else { tr }
}

fn segment_to(from: &Segment) -> kvm_segment {
    let bit = |mask: u16| u8::from(from.attributes & mask != 0);
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.attributes & attr::TYPE) as u8,
        present: bit(attr::P),
        dpl: from.dpl(),
        db: bit(attr::DB),
        s: bit(attr::S),
        l: bit(attr::L),
        g: bit(attr::G),
        avl: bit(attr::AVL),
        unusable: bit(attr::UNUSABLE),
        padding: 0,
    }
}

/// Takes over segments, tables and control registers.
pub(crate) fn fetch_system(fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
    let from = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    let segments = [&from.es, &from.cs, &from.ss, &from.ds, &from.fs, &from.gs];
    state.segments = segments.map(segment_of);
    (state.ldtr, state.tr) = (segment_of(&from.ldt), behind_init(segment_of(&from.tr)));
    (state.gdtr.base, state.gdtr.limit) = (from.gdt.base, from.gdt.limit);
    (state.idtr.base, state.idtr.limit) = (from.idt.base, from.idt.limit);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (from.cr0, from.cr2, from.cr3, from.cr4);
    state.msrs.efer = from.efer;
    state.cpl = if from.cr0 & cr0::PE == 0 {
        0
    } else if state.rflags & rflags::VM != 0 {
        3
    } else {
        state.segments[seg::SS].dpl()
    };
    Ok(())
}

/// Gives them, with `changed` bits of CR0 changed: if that is undone at once, it makes the kernel
/// flush the CPU's translations.
pub(crate) fn put_system(fd: &VcpuFd, cpu: &Cpu, changed: u64) -> Result<(), KvmError> {
    let state = &cpu.state;
    let [es, cs, ss, ds, fs, gs] = [0, 1, 2, 3, 4, 5].map(|n| segment_to(&state.segments[n]));
    let table = |register: &cpu::state::TableRegister| kvm_dtable {
        base: register.base,
        limit: register.limit,
        padding: [0; 3],
    };
    let sregs = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment_to(&state.tr),
        ldt: segment_to(&state.ldtr),
        gdt: table(&state.gdtr),
        idt: table(&state.idtr),
        cr0: state.cr0 ^ changed,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: u64::from(cpu.env.lapic.cr8()),
        efer: state.msrs.efer,
        apic_base: cpu.env.lapic.base(),
        interrupt_bitmap: [0; 4],
    };
    fd.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))
}

/// Takes over the debug registers and XCR0.
pub(crate) fn fetch_debug(fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
    let from = fd.get_debug_regs().map_err(KvmError::of("KVM_GET_DEBUGREGS"))?;
    state.dr[..4].copy_from_slice(&from.db);
    (state.dr[6], state.dr[7]) = (from.dr6, from.dr7);
    let xcrs = fd.get_xcrs().map_err(KvmError::of("KVM_GET_XCRS"))?;
    let known = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    if let Some(xcr0) = known.into_iter().find(|register| register.xcr == 0) {
        state.xcr0 = xcr0.value;
    }
    Ok(())
}

pub(crate) fn put_debug(fd: &VcpuFd, state: &State) -> Result<(), KvmError> {
    let [db0, db1, db2, db3, _, _, dr6, dr7] = state.dr;
    let registers = kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..Default::default() };
    fd.set_debug_regs(&registers).map_err(KvmError::of("KVM_SET_DEBUGREGS"))?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.xcr0, ..Default::default() };
    fd.set_xcrs(&xcrs).map_err(KvmError::of("KVM_SET_XCRS"))
}

/// Takes over what the CPU is doing, and has KVM act on INIT and start-up IPIs first: the other
/// registers are to be read behind this.
pub(crate) fn fetch_activity(fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
    let from = fd.get_mp_state().map_err(KvmError::of("KVM_GET_MP_STATE"))?;
    state.activity = match from.mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
        _ => Activity::Active,
    };
    Ok(())
}

pub(crate) fn put_activity(fd: &VcpuFd, activity: Activity) -> Result<(), KvmError> {
    let mp_state = match activity {
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        Activity::Active | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
    };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(KvmError::of("KVM_SET_MP_STATE"))
}

/// Something that KVM was about to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undelivered {
    /// An exception with its error code; CR2's part is done, and that of DR6 if this is #DB.
    Exception(u8, Option<u16>),
    /// An interrupt that the local APIC has handed out.
    Interrupt(u8),
}

/// Has KVM deliver #DB to the guest before anything else, with `hits` in DR6.
pub(crate) fn queue_debug(fd: &VcpuFd, hits: u64) -> Result<(), KvmError> {
    let mut registers = fd.get_debug_regs().map_err(KvmError::of("KVM_GET_DEBUGREGS"))?;
    registers.dr6 = registers.dr6 & !DR6_HITS | hits;
    registers.dr7 &= !DR7_GD;
    fd.set_debug_regs(&registers).map_err(KvmError::of("KVM_SET_DEBUGREGS"))?;
    let mut events = fd.get_vcpu_events().map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?;
    // More NMIs may come meanwhile.
    events.flags &= !KVM_VCPUEVENT_VALID_NMI_PENDING;
    events.exception.injected = 1;
    (events.exception.nr, events.exception.has_error_code) = (Vector::Debug as u8, 0);
    fd.set_vcpu_events(&events).map_err(KvmError::of("KVM_SET_VCPU_EVENTS"))
}

/// True if KVM has an exception to deliver.
pub(crate) fn has_exception(fd: &VcpuFd) -> Result<bool, KvmError> {
    let from = fd.get_vcpu_events().map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?;
    Ok(from.exception.injected != 0 || from.exception.pending != 0)
}

/// Takes over the shadow of STI and MOV SS and the state of NMIs; gives what waits to be delivered,
/// and how many NMIs wait in the kernel as they are.
pub(crate) fn fetch_events(
    fd: &VcpuFd,
    state: &mut State,
) -> Result<(Option<Undelivered>, u8), KvmError> {
    let from = fd.get_vcpu_events().map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?;
    state.shadow = match from.interrupt.shadow {
        0 => InterruptShadow::None,
        SHADOW_STI => InterruptShadow::Sti,
        _ => InterruptShadow::MovSs,
    };
    state.nmi_blocked = from.nmi.masked != 0;
    // One that is being delivered is delivered again from its beginning; others wait beside it.
    state.nmis_pending = from.nmi.pending.saturating_add(from.nmi.injected).min(2);
    if from.nmi.injected != 0 {
        state.nmi_blocked = false;
    }
    let nmis = if from.nmi.injected == 0 { from.nmi.pending } else { u8::MAX };
    let exception = from.exception;
    if exception.injected != 0 || exception.pending != 0 {
        let code = (exception.has_error_code != 0).then_some(exception.error_code as u16);
        return Ok((Some(Undelivered::Exception(exception.nr, code)), nmis));
    }
    // INT n that was being delivered is executed again: RIP is still at it.
    let is_interrupt = from.interrupt.injected != 0 && from.interrupt.soft == 0;
    Ok((is_interrupt.then_some(Undelivered::Interrupt(from.interrupt.nr)), nmis))
}

/// KVM has nothing to deliver behind this but NMIs, which stay as they are if there were as many as
/// there are now (`kernel_nmis`): more of them may have come.
pub(crate) fn put_events(
    fd: &VcpuFd,
    state: &State,
    kernel_nmis: Option<u8>,
) -> Result<(), KvmError> {
    let keeps_nmis = kernel_nmis == Some(state.nmis_pending);
    let nmis = if keeps_nmis { 0 } else { KVM_VCPUEVENT_VALID_NMI_PENDING };
    let mut events =
        kvm_vcpu_events { flags: nmis | KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
    events.interrupt.shadow = match state.shadow {
        InterruptShadow::None => 0,
        InterruptShadow::Sti => SHADOW_STI,
        InterruptShadow::MovSs => SHADOW_MOV_SS,
    };
    events.nmi.masked = u8::from(state.nmi_blocked);
    events.nmi.pending = state.nmis_pending;
    fd.set_vcpu_events(&events).map_err(KvmError::of("KVM_SET_VCPU_EVENTS"))
}
