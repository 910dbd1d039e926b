//! Whether this host's KVM can run guests, and fast enough that they should.
//!
//! Problem: /dev/kvm says little. Some hosts have it without virtualization in the processor: what
//! answers there emulates kernel code slowly, and not all of it. Strategy: a small guest does in
//! long mode what every kernel and its programs do ([`Program`]), each part under its name, and a
//! loop at last whose time is compared with that of the same loop here. KVM is good if the guest
//! gets through in [`LIMIT`], by this thread's processor time, so that a busy host does not count.
//!
//! Invariant: the probe ends. A second thread gets the CPU out of the guest after [`PATIENCE`],
//! whatever it does there.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use cpu::events::Doorbell;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_EXIT_IO, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind};
use rustix::time::{ClockId, clock_gettime};

use crate::kick::Kick;
use crate::run_page::RunPage;
use crate::slots::Slots;
use crate::vm::{create_vcpu, create_vm, open};
use crate::{KvmError, Weakness};

/// Processor time that the guest may take.
const LIMIT: Duration = Duration::from_millis(50);
/// After this long it is taken out of the guest: a host's other work counts.
const PATIENCE: Duration = Duration::from_millis(500);

/// The guest's memory, mapped to itself by one large page, and what is where in it.
const RAM_BYTES: u64 = 0x20_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
/// The part that the guest is at.
const PART: u64 = 0x7000;
/// What the loop has computed.
const RESULT: u64 = 0x7008;
/// CR2 of the page fault.
const FAULT: u64 = 0x7010;
/// Sixteen bytes, and an area for XSAVE.
const DATA: u64 = 0x7040;
const XSAVE_AREA: u64 = 0x8000;
const KERNEL_STACK: u64 = 0xa000;
const USER_STACK: u64 = 0xb000;
const CODE: u64 = 0x1_0000;
/// An address that nothing is mapped at.
const UNMAPPED: u64 = 0x40_0000;

const CODE64: u16 = 0x08;
const DATA64: u16 = 0x10;
const USER_DATA: u16 = 0x23;
const TASK: u16 = 0x30;
/// Null, code and data of ring 0, a base for SYSRET, data and code of ring 3, the task's two words.
const DESCRIPTORS: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_0000_0067 | TSS << 16,
    0,
];
/// The stack for ring 0 in a 64-bit TSS.
const RSP0: u64 = 4;
/// A 64-bit interrupt gate to ring 0, from ring 0 and from ring 3.
const GATE: u64 = 0x8e00;
const USER_GATE: u64 = 0xee00;
const PAGE_FAULT: u64 = 14;
const USER_VECTOR: u64 = 0x80;

const STAR: u32 = 0xc000_0081;
const STAR_VALUE: u64 = ((USER_DATA - 8) as u64) << 48 | (CODE64 as u64) << 32;
const LSTAR: u32 = 0xc000_0082;
const CR0: u64 = 0x8000_0033;
/// PAE, OSFXSR, OSXMMEXCPT; OSXSAVE where the processor has XSAVE.
const CR4: u64 = 0x620;
const CR4_OSXSAVE: u64 = 1 << 18;
/// SCE, LME, LMA.
const EFER: u64 = 0x501;
const CPUID_1_ECX_XSAVE: u32 = 1 << 26;

/// The port that the guest leaves by, twice: before the loop and behind it.
const PORT: u32 = 0x80;
/// Rounds of the loop: each waits for the multiplication of the last.
const ROUNDS: u64 = 1 << 18;
const FACTOR: u64 = 0x5851_f42d_4c95_7f2d;
/// How many times the host's own time the loop may take.
const SLOWEST: u32 = 4;
/// What a measurement of the loop may be wrong by.
const SLACK: Duration = Duration::from_millis(1);

/// The parts, in their order; the first is what comes before the guest says anything.
const PARTS: [&str; 9] = [
    "its first instruction",
    "a 64-bit IDIV",
    "CMPXCHG16B",
    "XSAVE and XRSTOR",
    "a page fault",
    "SYSRET to CPL 3",
    "INT n at CPL 3",
    "SYSCALL",
    "a loop of multiplications",
];

/// Runs the probe guest.
pub fn probe() -> Result<(), Weakness> {
    let kvm = open().map_err(KvmError::from)?;
    let mut guest = Guest::new(&kvm)?;
    let kick = Kick::default();
    std::thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let kick = &kick;
        let watch = move || {
            let mut pause = PATIENCE;
            while is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                kick.ring();
                pause = LIMIT;
            }
        };
        std::thread::Builder::new()
            .name("kvm-probe".into())
            .spawn_scoped(scope, watch)
            .map_err(Weakness::NoThread)?;
        kick.begin(guest.page.immediate_exit());
        kick.enter();
        fence(Ordering::SeqCst);
        let outcome = guest.play();
        kick.leave();
        kick.end();
        drop(done);
        outcome
    })
}

/// Fields are dropped in their order: the kernel's view of memory goes before the memory.
struct Guest {
    page: RunPage,
    fd: VcpuFd,
    _vm: VmFd,
    space: PhysicalSpace,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Self, KvmError> {
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 1);
        let has_xsave = leaf.is_some_and(|entry| entry.ecx & CPUID_1_ECX_XSAVE != 0);
        let space = space(has_xsave).ok_or(KvmError::Lacks("memory for the probe guest"))?;
        let vm = create_vm(kvm)?;
        Slots::default().update(&vm, &space);
        let mut fd = create_vcpu(&vm, 0)?;
        fd.set_cpuid2(&cpuid).map_err(KvmError::of("KVM_SET_CPUID2"))?;
        set_up(&fd, has_xsave)?;
        Ok(Self { page: RunPage::of(&mut fd), fd, _vm: vm, space })
    }

    fn play(&mut self) -> Result<(), Weakness> {
        let start = processor_time();
        self.run_to_port(start)?;
        let before = processor_time();
        self.run_to_port(start)?;
        let guest = processor_time().saturating_sub(before);
        let result = self.word(RESULT);
        if self.word(FAULT) != UNMAPPED || result != multiplications() {
            return Err(Weakness::Wrong { part: self.part() });
        }
        let native = native_time();
        if guest > native * SLOWEST + SLACK {
            return Err(Weakness::Slow { guest, native });
        }
        Ok(())
    }

    /// Runs the guest, which began at `start`, to its next OUT.
    fn run_to_port(&mut self, start: Duration) -> Result<(), Weakness> {
        let outcome = self.fd.run().map(drop);
        match outcome.map_err(|error| error.errno()) {
            Err(libc::EINTR | libc::EAGAIN) => return Err(self.late()),
            Err(errno) => Err(KvmError::of("KVM_RUN")(kvm_ioctls::Error::new(errno)))?,
            Ok(()) if self.page.reason() != KVM_EXIT_IO => {
                return Err(Weakness::Part { part: self.part(), exit: self.page.reason() });
            }
            Ok(()) => {}
        }
        if processor_time().saturating_sub(start) > LIMIT { Err(self.late()) } else { Ok(()) }
    }

    fn late(&self) -> Weakness {
        Weakness::Late { part: self.part(), limit: LIMIT }
    }

    fn part(&self) -> &'static str {
        PARTS.get(self.word(PART) as usize).copied().unwrap_or("its end")
    }

    fn word(&self, address: u64) -> u64 {
        self.space.ram().load(address)
    }
}

/// The guest's memory as it begins.
fn space(has_xsave: bool) -> Option<PhysicalSpace> {
    const OPEN: u64 = 0b111;
    const LARGE: u64 = 1 << 7;
    let ram = Ram::new(RAM_BYTES).ok()?;
    let Program { code, handlers } = Program::assemble(has_xsave).ok()?;
    for (address, word) in
        [(PML4, PDPT | OPEN), (PDPT, PD | OPEN), (PD, LARGE | OPEN), (TSS + RSP0, KERNEL_STACK)]
    {
        ram.store(address, word);
    }
    for (address, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        ram.store(address, descriptor);
    }
    for (vector, kind, handler) in handlers {
        let offset = handler & 0xffff | (handler >> 16) << 48;
        ram.store(IDT + 16 * vector, offset | u64::from(CODE64) << 16 | kind << 32);
    }
    ram.write_bytes(CODE, &code);
    let space = PhysicalSpace::new(Arc::new(ram));
    space.map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0)).ok()?;
    Some(space)
}

/// Puts the CPU to the program's beginning, in long mode.
fn set_up(fd: &VcpuFd, has_xsave: bool) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    let flat = |selector: u16, kind: u8, is_code: bool| kvm_segment {
        selector,
        limit: u32::MAX,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(is_code),
        db: u8::from(!is_code),
        ..Default::default()
    };
    sregs.cs = flat(CODE64, 0xb, true);
    let data = flat(DATA64, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TASK,
        base: TSS,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable { base: GDT, limit: 0x3f, ..Default::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 0xfff, ..Default::default() };
    let osxsave = if has_xsave { CR4_OSXSAVE } else { 0 };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4 | osxsave, EFER);
    fd.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE, rsp: KERNEL_STACK, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))?;
    let entry = kvm_msr_entry { index: STAR, data: STAR_VALUE, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| KvmError::Lacks("room for an MSR"))?;
    fd.set_msrs(&msrs).map_err(KvmError::of("KVM_SET_MSRS")).map(drop)
}

/// The guest's code, and its handlers: vector, kind of gate, address.
struct Program {
    code: Vec<u8>,
    handlers: [(u64, u64, u64); 2],
}

impl Program {
    fn assemble(has_xsave: bool) -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut part = 0;
        let mut begin = |a: &mut CodeAssembler| {
            part += 1;
            a.mov(qword_ptr(PART), part)
        };
        begin(&mut a)?;
        divide(&mut a)?;
        begin(&mut a)?;
        exchange(&mut a)?;
        begin(&mut a)?;
        if has_xsave {
            save_and_restore(&mut a)?;
        }
        begin(&mut a)?;
        a.mov(rbx, qword_ptr(UNMAPPED))?;
        let mut user = a.create_label();
        let mut kernel = a.create_label();
        begin(&mut a)?;
        a.lea(rax, qword_ptr(kernel))?;
        a.xor(edx, edx)?;
        a.mov(ecx, LSTAR)?;
        a.wrmsr()?;
        a.lea(rcx, qword_ptr(user))?;
        a.mov(r11d, 2u32)?;
        a.mov(esp, USER_STACK as u32)?;
        a.sysretq()?;
        a.set_label(&mut user)?;
        begin(&mut a)?;
        a.int(USER_VECTOR as u32)?;
        begin(&mut a)?;
        a.syscall()?;
        a.set_label(&mut kernel)?;
        a.mov(esp, KERNEL_STACK as u32)?;
        a.out(PORT as i32, al)?;
        begin(&mut a)?;
        multiply(&mut a)?;
        a.out(PORT as i32, al)?;
        a.hlt()?;
        let mut fault = a.create_label();
        a.set_label(&mut fault)?;
        // The instruction that faulted is not executed again.
        a.mov(rax, cr2)?;
        a.mov(qword_ptr(FAULT), rax)?;
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), FAULTING_BYTES)?;
        a.iretq()?;
        let mut interrupt = a.create_label();
        a.set_label(&mut interrupt)?;
        a.iretq()?;
        let block = a.assemble_options(
            CODE,
            iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
        )?;
        let handlers = [
            (PAGE_FAULT, GATE, block.label_ip(&fault)?),
            (USER_VECTOR, USER_GATE, block.label_ip(&interrupt)?),
        ];
        Ok(Self { code: block.inner.code_buffer, handlers })
    }
}

/// Bytes of the MOV that faults: its address has a SIB byte and 32 bits.
const FAULTING_BYTES: i32 = 8;

/// -7 through 2; a wrong result ends in HLT.
fn divide(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, -7i64)?;
    a.mov(rcx, 2i64)?;
    a.cqo()?;
    a.idiv(rcx)?;
    a.lea(rax, qword_ptr(rax + 2 * rdx + 5))?;
    halt_unless_zero(a)
}

fn exchange(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(ebx, 1u32)?;
    a.mov(ecx, 2u32)?;
    a.cmpxchg16b(xmmword_ptr(DATA))?;
    a.mov(rax, qword_ptr(DATA + 8))?;
    a.sub(rax, 2)?;
    halt_unless_zero(a)
}

fn save_and_restore(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.mov(eax, 3u32)?;
    a.xsetbv()?;
    a.mov(ebx, 5u32)?;
    a.movd(xmm0, ebx)?;
    a.xsave(ptr(XSAVE_AREA))?;
    a.pxor(xmm0, xmm0)?;
    a.xrstor(ptr(XSAVE_AREA))?;
    a.movq(rax, xmm0)?;
    a.sub(rax, 5)?;
    halt_unless_zero(a)
}

fn halt_unless_zero(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut right = a.create_label();
    a.test(rax, rax)?;
    a.je(right)?;
    a.hlt()?;
    a.set_label(&mut right)
}

fn multiply(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rax, 1i64)?;
    a.mov(rbx, FACTOR)?;
    a.mov(rcx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.imul_2(rax, rbx)?;
    a.add(rax, rcx)?;
    a.dec(rcx)?;
    a.jne(again)?;
    a.mov(qword_ptr(RESULT), rax)
}

/// What the guest's loop computes.
fn multiplications() -> u64 {
    let step = |value: u64, round: u64| value.wrapping_mul(FACTOR).wrapping_add(round);
    (1..=black_box(ROUNDS)).rev().fold(1, step)
}

/// The processor time that the same takes here, at its best.
fn native_time() -> Duration {
    let once = |_| {
        let start = processor_time();
        black_box(multiplications());
        processor_time().saturating_sub(start)
    };
    (0..3).map(once).min().unwrap_or_default()
}

/// What this thread has used, the guest included.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cpu::engine::{Vcpu, VmExit};
    use cpu::state::{Segment, TableRegister, cr4, efer, gpr, seg};
    use cpu::testing::Bench;

    use super::*;

    #[test]
    fn the_instruction_that_faults_is_as_long_as_its_handler_thinks() {
        let mut a = CodeAssembler::new(64).expect("an assembler");
        a.mov(rbx, qword_ptr(UNMAPPED)).expect("an instruction");
        assert_eq!(a.assemble(CODE).expect("code").len(), FAULTING_BYTES as usize);
    }

    #[test]
    fn the_interpreter_passes_the_probe() {
        let mut bench = Bench::with_cpu("x86-64-v2,+xsave").expect("a model").in_long64();
        let space = space(true).expect("memory");
        let mut image = vec![0; RAM_BYTES as usize];
        space.ram().read_bytes(0, &mut image);
        bench.poke(0, &image);
        let state = &mut bench.cpu.state;
        (state.cr0, state.cr3, state.cr4) = (CR0, PML4, CR4 | cr4::OSXSAVE);
        state.msrs.efer = EFER;
        assert_eq!(EFER, efer::SCE | efer::LME | efer::LMA);
        state.gdtr = TableRegister { base: GDT, limit: 0x3f };
        state.idtr = TableRegister { base: IDT, limit: 0xfff };
        state.segments[seg::CS].selector = CODE64;
        state.segments[seg::SS].selector = DATA64;
        state.tr = Segment { selector: TASK, base: TSS, limit: 0x67, attributes: 0x8b };
        state.msrs.star = STAR_VALUE;
        (state.rip, state.gpr[gpr::RSP]) = (CODE, KERNEL_STACK);
        bench.control_changed();
        let exit = bench.cpu.run(100 + 5 * ROUNDS);
        let part = PARTS[bench.peek::<1>(PART)[0] as usize];
        assert!(matches!(exit, VmExit::Halt { .. }), "{exit:?} in {part}");
        assert_eq!(part, PARTS[PARTS.len() - 1]);
        assert_eq!(u64::from_le_bytes(bench.peek(FAULT)), UNMAPPED);
        assert_eq!(u64::from_le_bytes(bench.peek(RESULT)), multiplications());
    }
}
