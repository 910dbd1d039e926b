//! The guest programs: a row each, and the code of each.
//!
//! A program runs its loop as often as [`COUNTER`] says and halts. What it does before the loop,
//! and its handlers behind it, is its own.

use std::ops::{Deref, DerefMut};

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::native;

/// Where in guest memory, which is mapped at its own address, programs find what.
pub(super) mod memory {
    /// The code.
    pub(in crate::bench) const CODE: u64 = 0x10_0000;
    /// Where the stack ends.
    pub(in crate::bench) const STACK: u64 = 0x30_0000;
    /// The page-table entries of all RAM, 8 bytes for each page.
    pub(in crate::bench) const PAGE_TABLE: u64 = 0x1_0000;
    /// The HPET's registers, mapped too.
    pub(in crate::bench) const HPET: u64 = machine::layout::HPET_BASE;
    /// Data; each program has it for itself.
    pub(super) const DATA: u32 = 0x80_0000;
    /// What is read and written again and again.
    pub(in crate::bench) const WINDOW_BYTES: u32 = 32 << 10;
    /// What is read with a page between one access and the next.
    pub(in crate::bench) const FAR_BYTES: u32 = 8 << 20;
    /// From one such access to the next.
    pub(in crate::bench) const FAR_STRIDE: u32 = 4096 + 64;
    /// What is copied at a time.
    pub(in crate::bench) const COPY_BYTES: u32 = 4096;
}

/// The register that counts iterations, R15.
pub(super) const COUNTER: usize = 15;

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Million guest instructions a second.
    Mips,
    /// Nanoseconds for each time.
    Nanoseconds,
}

/// A row of the table.
pub(super) struct Program {
    /// Its name.
    pub(super) name: &'static str,
    /// What its figures count.
    pub(super) unit: Unit,
    /// How often that happens in an iteration; for [`Unit::Mips`] the iteration's instructions.
    pub(super) events: u32,
    /// Emits the guest's code.
    emit: fn(&mut Guest) -> Emit,
    /// The same work for the host.
    pub(super) native: Option<fn(u64)>,
}

/// Every program, in the table's order.
#[rustfmt::skip]
pub(super) const PROGRAMS: &[Program] = &[
    row("loop",           Unit::Mips,        13, integer,        Some(native::integer)),
    row("branch",         Unit::Nanoseconds,  4, branches,       Some(native::branches)),
    row("call",           Unit::Nanoseconds,  4, calls,          Some(native::calls)),
    row("indirect-jump",  Unit::Nanoseconds,  1, indirect_jumps, Some(native::indirect)),
    row("read",           Unit::Nanoseconds,  8, reads,          Some(native::reads)),
    row("write",          Unit::Nanoseconds,  8, writes,         Some(native::writes)),
    row("read-far",       Unit::Nanoseconds,  1, far_reads,      Some(native::far_reads)),
    row("locked-add",     Unit::Nanoseconds,  1, locked,         Some(native::locked)),
    row("copy-4k",        Unit::Nanoseconds,  1, copies,         Some(native::copies)),
    row("sse",            Unit::Nanoseconds,  4, sse,            None),
    row("x87",            Unit::Nanoseconds,  3, x87,            None),
    row("syscall",        Unit::Nanoseconds,  1, syscalls,       None),
    row("page-fault",     Unit::Nanoseconds,  1, page_faults,    None),
    row("undefined",      Unit::Nanoseconds,  1, undefined,      None),
    row("breakpoint",     Unit::Nanoseconds,  1, breakpoints,    None),
    row("cr3-reload",     Unit::Nanoseconds,  1, cr3_reloads,    None),
    row("code-write",     Unit::Nanoseconds,  1, code_writes,    None),
    row("cpuid",          Unit::Nanoseconds,  1, cpuid,          None),
    row("rdtsc",          Unit::Nanoseconds,  1, rdtsc,          None),
    row("port-read",      Unit::Nanoseconds,  1, port_reads,     None),
    row("port-write",     Unit::Nanoseconds,  1, port_writes,    None),
    row("mmio-read",      Unit::Nanoseconds,  1, mmio_reads,     None),
];

const fn row(
    name: &'static str,
    unit: Unit,
    events: u32,
    emit: fn(&mut Guest) -> Emit,
    native: Option<fn(u64)>,
) -> Program {
    Program { name, unit, events, emit, native }
}

/// What every function that emits code returns.
type Emit = Result<(), IcedError>;

/// A handler of an exception.
pub(super) struct Gate {
    /// Its vector.
    pub(super) vector: u8,
    /// Its address.
    pub(super) entry: u64,
}

/// A program as bytes, for [`memory::CODE`].
pub(super) struct Assembled {
    pub(super) bytes: Vec<u8>,
    pub(super) gates: Vec<Gate>,
    /// Where SYSCALL goes; 0 in a program without.
    pub(super) syscall_entry: u64,
}

/// Assembles a program.
pub(super) fn assemble(program: &Program) -> Result<Assembled, IcedError> {
    let mut guest = Guest { code: CodeAssembler::new(64)?, handlers: Vec::new(), syscall: None };
    (program.emit)(&mut guest)?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = guest.code.assemble_options(memory::CODE, options)?;
    let gates = guest
        .handlers
        .iter()
        .map(|(vector, label)| Ok(Gate { vector: *vector, entry: result.label_ip(label)? }))
        .collect::<Result<_, IcedError>>()?;
    let syscall_entry = guest.syscall.map_or(Ok(0), |label| result.label_ip(&label))?;
    Ok(Assembled { bytes: result.inner.code_buffer, gates, syscall_entry })
}

/// A program being written, through the assembler it derefs to.
struct Guest {
    code: CodeAssembler,
    handlers: Vec<(u8, CodeLabel)>,
    syscall: Option<CodeLabel>,
}

impl Deref for Guest {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.code
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.code
    }
}

impl Guest {
    /// The loop.
    fn repeat(&mut self, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        let mut top = self.create_label();
        self.set_label(&mut top)?;
        body(self)?;
        self.dec(r15)?;
        self.jnz(top)
    }

    /// The loop, and the program's end at CPL 0.
    fn repeat_and_halt(&mut self, body: impl FnOnce(&mut Self) -> Emit) -> Emit {
        self.repeat(body)?;
        self.hlt()
    }

    /// The code that follows handles exception `vector`.
    fn handler(&mut self, vector: u8) -> Emit {
        let mut entry = self.create_label();
        self.set_label(&mut entry)?;
        self.handlers.push((vector, entry));
        Ok(())
    }
}

fn integer(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| {
        g.add(rax, r15)?;
        g.mov(rdx, rax)?;
        g.shl(rdx, 7)?;
        g.xor(rax, rdx)?;
        g.mov(rdx, rax)?;
        g.shr(rdx, 9)?;
        g.xor(rax, rdx)?;
        g.lea(rbx, rax + r15 * 2 + 5)?;
        g.test(rbx, rbx)?;
        g.cmovns(rbx, r15)?;
        g.mov(rcx, rbx)
    })
}

/// Forward branches on the low bits of the counter.
fn branches(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| {
        for bit in [1, 2, 4, 8] {
            let mut over = g.create_label();
            g.test(r15d, bit)?;
            g.jz(over)?;
            g.add(rax, bit)?;
            g.set_label(&mut over)?;
            g.zero_bytes()?;
        }
        Ok(())
    })
}

fn calls(g: &mut Guest) -> Emit {
    let mut function = g.create_label();
    g.repeat_and_halt(|g| (0..4).try_for_each(|_| g.call(function)))?;
    g.set_label(&mut function)?;
    g.add(rax, r15)?;
    g.ret()
}

/// A switch with eight cases, which come in turn.
fn indirect_jumps(g: &mut Guest) -> Emit {
    let mut cases = [(); 8].map(|()| g.create_label());
    let mut join = g.create_label();
    g.mov(ebx, memory::DATA)?;
    for (index, case) in (0..).zip(cases) {
        g.lea(rax, ptr(case))?;
        g.mov(qword_ptr(rbx + 8 * index), rax)?;
    }
    g.xor(edx, edx)?;
    g.repeat_and_halt(|g| {
        g.mov(eax, r15d)?;
        g.and(eax, 7)?;
        g.jmp(qword_ptr(rbx + rax * 8))?;
        for (number, case) in (1..).zip(&mut cases) {
            g.set_label(case)?;
            g.add(rdx, number)?;
            g.jmp(join)?;
        }
        g.set_label(&mut join)?;
        g.zero_bytes()
    })
}

/// Eight accesses of a word each, and on to the next eight.
fn in_window(g: &mut Guest, access: fn(&mut Guest, AsmMemoryOperand) -> Emit) -> Emit {
    g.mov(esi, memory::DATA)?;
    g.xor(ebx, ebx)?;
    g.repeat_and_halt(|g| {
        (0..8).try_for_each(|word| access(g, qword_ptr(rsi + rbx + 8 * word)))?;
        g.add(ebx, 64)?;
        g.and(ebx, memory::WINDOW_BYTES as i32 - 1)
    })
}

fn reads(g: &mut Guest) -> Emit {
    in_window(g, |g, word| g.add(rax, word))
}

fn writes(g: &mut Guest) -> Emit {
    in_window(g, |g, word| g.mov(word, r15))
}

/// Each access is on another page than the last.
fn far_reads(g: &mut Guest) -> Emit {
    g.mov(esi, memory::DATA)?;
    g.xor(ebx, ebx)?;
    g.repeat_and_halt(|g| {
        g.add(rax, qword_ptr(rsi + rbx))?;
        g.add(ebx, memory::FAR_STRIDE)?;
        g.and(ebx, memory::FAR_BYTES as i32 - 1)
    })
}

fn locked(g: &mut Guest) -> Emit {
    g.mov(esi, memory::DATA)?;
    g.repeat_and_halt(|g| {
        g.mov(eax, 1)?;
        g.lock().xadd(qword_ptr(rsi), rax)
    })
}

fn copies(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| {
        g.mov(esi, memory::DATA)?;
        g.mov(edi, memory::DATA + memory::COPY_BYTES)?;
        g.mov(ecx, memory::COPY_BYTES)?;
        g.rep().movsb()
    })
}

fn sse(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| {
        g.paddd(xmm0, xmm1)?;
        g.mulps(xmm2, xmm3)?;
        g.pxor(xmm4, xmm5)?;
        g.addpd(xmm6, xmm7)
    })
}

fn x87(g: &mut Guest) -> Emit {
    g.fninit()?;
    g.repeat_and_halt(|g| {
        g.fld1()?;
        g.fadd_2(st0, st0)?;
        g.fstp(st0)
    })
}

/// The loop is CPL 3's; the kernel returns at once, and halts when RAX says so.
fn syscalls(g: &mut Guest) -> Emit {
    const FLAGS: u32 = 2;
    let (mut user, mut kernel, mut end) = (g.create_label(), g.create_label(), g.create_label());
    g.lea(rcx, ptr(user))?;
    g.mov(r11d, FLAGS)?;
    g.xor(eax, eax)?;
    g.sysretq()?;
    g.set_label(&mut user)?;
    g.zero_bytes()?;
    g.repeat(|g| g.syscall())?;
    g.mov(eax, 1)?;
    g.syscall()?;
    g.set_label(&mut kernel)?;
    g.test(eax, eax)?;
    g.jnz(end)?;
    g.sysretq()?;
    g.set_label(&mut end)?;
    g.hlt()?;
    g.syscall = Some(kernel);
    Ok(())
}

/// The page is taken away, written to, and given by the handler.
fn page_faults(g: &mut Guest) -> Emit {
    const ENTRY: u32 = memory::PAGE_TABLE as u32 + (memory::DATA >> 12) * 8;
    g.mov(ebx, ENTRY)?;
    g.mov(edi, memory::DATA)?;
    g.mov(rsi, qword_ptr(rbx))?;
    g.repeat_and_halt(|g| {
        g.mov(qword_ptr(rbx), 0)?;
        g.invlpg(byte_ptr(rdi))?;
        g.mov(dword_ptr(rdi), eax)
    })?;
    g.handler(14)?;
    g.mov(qword_ptr(rbx), rsi)?;
    g.add(rsp, 8)?;
    g.iretq()
}

/// The handler goes on behind the instruction.
fn undefined(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| g.ud2())?;
    g.handler(6)?;
    g.add(qword_ptr(rsp), 2)?;
    g.iretq()
}

fn breakpoints(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| g.int3())?;
    g.handler(3)?;
    g.iretq()
}

/// A new address space, and the first access in it.
fn cr3_reloads(g: &mut Guest) -> Emit {
    g.mov(esi, memory::DATA)?;
    g.mov(rax, cr3)?;
    g.repeat_and_halt(|g| {
        g.mov(cr3, rax)?;
        g.add(rdx, qword_ptr(rsi))
    })
}

/// `mov eax, COUNTER; ret` with a new number each time.
fn code_writes(g: &mut Guest) -> Emit {
    const MOV_EAX: i32 = 0xb8;
    const RET: i32 = 0xc3;
    g.mov(ebx, memory::DATA)?;
    g.mov(byte_ptr(rbx), MOV_EAX)?;
    g.mov(byte_ptr(rbx + 5), RET)?;
    g.repeat_and_halt(|g| {
        g.mov(dword_ptr(rbx + 1), r15d)?;
        g.call(rbx)
    })
}

fn cpuid(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| {
        g.xor(eax, eax)?;
        g.cpuid()
    })
}

fn rdtsc(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| g.rdtsc())
}

/// The keyboard controller's status.
fn port_reads(g: &mut Guest) -> Emit {
    g.repeat_and_halt(|g| g.in_(al, 0x64))
}

/// The RTC's index.
fn port_writes(g: &mut Guest) -> Emit {
    g.mov(al, 0xf)?;
    g.repeat_and_halt(|g| g.out(0x70, al))
}

/// The HPET's capabilities.
fn mmio_reads(g: &mut Guest) -> Emit {
    g.mov(esi, memory::HPET as u32)?;
    g.repeat_and_halt(|g| g.mov(eax, dword_ptr(rsi)))
}
