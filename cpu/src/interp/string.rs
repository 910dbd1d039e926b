//! MOVS, CMPS, SCAS, LODS, STOS, INS, OUTS and their REP prefixes.
//!
//! Each element is an instruction to the guest: it may fault or be interrupted between any two, and
//! then rCX, rSI and rDI tell how far it got. Upwards in RAM, REP MOVS and REP STOS go a page at a
//! time, REP CMPS and REP SCAS a [`WINDOW`]; everything else goes an element at a time. All go in
//! bounded parts, so that interrupts and the instruction budget are seen.

use decoder::{MAX_INSTRUCTION_BYTES, Vendor};
use iced_x86::{Code, OpKind};

use memory::{PAGE_SIZE, Ram};

use crate::Cpu;
use crate::exception::Exec;
use crate::flags::{self, Word};
use crate::interp::dispatch::Table;
use crate::interp::insn::{Handler, Insn};
use crate::mmu::Access;
use crate::state::gpr::{RAX, RCX, RDI, RDX, RSI};
use crate::state::rflags::{DF, RF, STATUS, TF, ZF};
use crate::state::seg;

/// Elements of one part of a REP: the instruction is left and entered again behind it.
const PART: u64 = 4096;

/// Bytes that REP CMPS and REP SCAS look at together: most searches end within so many, and reading
/// far ahead of the end would be for nothing.
const WINDOW: usize = 256;

/// A string instruction.
trait StringOp {
    /// REPE and REPNE end on ZF.
    const COMPARES: bool = false;
    /// It stores at ES:rDI.
    const STORES: bool = false;
    /// The index registers whose upper halves a REP with 32-bit addresses clears on Intel's
    /// processors, whatever the count.
    const CLEARED: &'static [usize] = &[];
    /// One element.
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec;
    /// As many as `limit` elements at once, if they can be done so; how many were.
    fn bulk<T: Word>(_: &mut Cpu, _: &Insn, _limit: u64) -> u64 {
        0
    }
}

impl Cpu {
    /// An index or count register in the address size.
    #[inline(always)]
    fn index(&self, insn: &Insn, register: usize) -> u64 {
        self.state.gpr[register] & index_mask(insn)
    }

    /// Writes an index or count register in the address size.
    #[inline(always)]
    fn set_index(&mut self, insn: &Insn, register: usize, value: u64) {
        match insn.mem.address_size {
            2 => self.set_reg(register as u8, value as u16),
            4 => self.set_reg(register as u8, value as u32),
            _ => self.state.gpr[register] = value,
        }
    }

    /// Moves an index register by one element of `T`, down if DF is set.
    #[inline(always)]
    fn step<T: Word>(&mut self, insn: &Insn, register: usize) {
        let bytes = if self.flag(DF) { T::BYTES.wrapping_neg() } else { T::BYTES };
        let value = self.state.gpr[register].wrapping_add(bytes);
        self.set_index(insn, register, value);
    }

    /// How many elements of `T` at `offset` of `segment` can be touched at once, upwards from
    /// there: to the end of the page, of the index register's range and of the segment, if the page
    /// is RAM. Gives the RAM offset too. Whether the translation is cached makes no difference: a
    /// REP that overwrites itself stops behind a run, the same one on every engine.
    fn run_of<T: Word>(
        &mut self,
        insn: &Insn,
        segment: usize,
        offset: u64,
        access: Access,
    ) -> Option<(u64, u64)> {
        let linear = self.linear(segment, offset, T::BYTES, access).ok()?;
        let to_page_end = PAGE_SIZE - (linear & (PAGE_SIZE - 1));
        let to_index_end = (index_mask(insn) - offset).saturating_add(1);
        let bytes = to_page_end.min(to_index_end) / T::BYTES * T::BYTES;
        if bytes == 0 || self.linear(segment, offset, bytes, access).ok()? != linear {
            return None;
        }
        let at = match self.cached(linear, access) {
            Some(at) => at,
            None => {
                self.check_access(segment, offset, T::BYTES, access).ok()?;
                self.cached(linear, access)?
            }
        };
        Some((at, bytes / T::BYTES))
    }

    /// The RAM offset of a linear address whose translation is cached.
    fn cached(&self, linear: u64, access: Access) -> Option<u64> {
        match access {
            Access::Write => self.mmu.lookup_write(linear),
            Access::Read | Access::Execute => self.mmu.lookup_read(linear),
        }
    }
}

impl Cpu {
    /// The RAM offsets of the elements at rSI and at ES:rDI, and how many of them, up to `limit`,
    /// can be touched at once at both; `access` is what happens at ES:rDI. Both are translated in
    /// the order of an element: CMPS begins at ES:rDI.
    fn run_of_both<T: Word>(
        &mut self,
        insn: &Insn,
        limit: u64,
        access: Access,
    ) -> Option<(u64, u64, u64)> {
        let (from, to) = (self.index(insn, RSI), self.index(insn, RDI));
        let segment = usize::from(insn.mem.segment);
        let source_of = |cpu: &mut Self| cpu.run_of::<T>(insn, segment, from, Access::Read);
        let target_of = |cpu: &mut Self| cpu.run_of::<T>(insn, seg::ES, to, access);
        let ((target, reachable), (source, readable)) = if access == Access::Read {
            (target_of(self)?, source_of(self)?)
        } else {
            let source = source_of(self)?;
            (target_of(self)?, source)
        };
        Some((source, target, limit.min(readable).min(reachable)))
    }

    /// Clears the upper halves of the count, and of indices, that Intel's processors clear in a REP
    /// with 32-bit addresses also if the count is 0 or the first element faults.
    fn clear_unused_halves<S: StringOp>(&mut self, insn: &Insn) {
        if insn.mem.address_size == 4 {
            for &register in [RCX].iter().chain(S::CLEARED) {
                self.set_index(insn, register, self.state.gpr[register]);
            }
        }
    }

    /// Moves an index register up by `count` elements of `T`.
    fn advance<T: Word>(&mut self, insn: &Insn, register: usize, count: u64) {
        let value = self.index(insn, register).wrapping_add(count * T::BYTES);
        self.set_index(insn, register, value);
    }
}

/// A copy of up to [`WINDOW`] bytes of RAM, as elements.
struct Window([u8; WINDOW]);

impl Window {
    /// The elements from RAM offset `at`: `limit` of them, or as many as fit.
    fn read<'w, T: Word>(
        &'w mut self,
        ram: &Ram,
        at: u64,
        limit: u64,
    ) -> impl Iterator<Item = T> + use<'w, T> {
        let count = limit.min(WINDOW as u64 / T::BYTES);
        let bytes = &mut self.0[..(count * T::BYTES) as usize % (WINDOW + 1)];
        ram.read_bytes(at, bytes);
        bytes.chunks_exact(T::BYTES as usize).map(|element| {
            T::from_u64(element.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
        })
    }
}

/// Compares pairs up to the one that ends the REP, leaves the flags of the last one compared, and
/// tells how many were.
fn compare_run<T: Word>(cpu: &mut Cpu, insn: &Insn, pairs: impl Iterator<Item = (T, T)>) -> u64 {
    let is_repe = insn.iced.has_rep_prefix();
    let (mut count, mut last) = (0, None);
    for (a, b) in pairs {
        count += 1;
        last = Some((a, b));
        if (a == b) != is_repe {
            break;
        }
    }
    if let Some((a, b)) = last {
        cpu.set_status_flags(flags::sub(a, b, 0).1);
    }
    count
}

#[inline(always)]
fn index_mask(insn: &Insn) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(insn.mem.address_size))
}

struct Movs;
impl StringOp for Movs {
    const STORES: bool = true;
    const CLEARED: &'static [usize] = &[RSI, RDI];
    #[inline(always)]
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let from = cpu.index(insn, RSI);
        let to = cpu.index(insn, RDI);
        let value = cpu.read::<T>(usize::from(insn.mem.segment), from)?;
        cpu.write(seg::ES, to, value)?;
        cpu.step::<T>(insn, RSI);
        cpu.step::<T>(insn, RDI);
        Ok(())
    }

    fn bulk<T: Word>(cpu: &mut Cpu, insn: &Insn, limit: u64) -> u64 {
        let Some((source, target, count)) = cpu.run_of_both::<T>(insn, limit, Access::Write) else {
            return 0;
        };
        // A copy upwards onto itself repeats a pattern: byte by byte only if elements are bytes,
        // or do not overlap themselves.
        let distance = target.wrapping_sub(source);
        if distance < T::BYTES && distance != 0 {
            return 0;
        }
        cpu.break_block |= cpu.ram.copy_forward(target, source, count * T::BYTES);
        cpu.advance::<T>(insn, RSI, count);
        cpu.advance::<T>(insn, RDI, count);
        count
    }
}

struct Stos;
impl StringOp for Stos {
    const STORES: bool = true;
    const CLEARED: &'static [usize] = &[RDI];
    #[inline(always)]
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let to = cpu.index(insn, RDI);
        cpu.write(seg::ES, to, cpu.reg::<T>(RAX as u8))?;
        cpu.step::<T>(insn, RDI);
        Ok(())
    }

    fn bulk<T: Word>(cpu: &mut Cpu, insn: &Insn, limit: u64) -> u64 {
        let to = cpu.index(insn, RDI);
        let Some((target, writable)) = cpu.run_of::<T>(insn, seg::ES, to, Access::Write) else {
            return 0;
        };
        let count = limit.min(writable);
        let value = cpu.reg::<T>(RAX as u8);
        cpu.break_block |= cpu.ram.fill(target, value, count);
        cpu.advance::<T>(insn, RDI, count);
        count
    }
}

struct Lods;
impl StringOp for Lods {
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let from = cpu.index(insn, RSI);
        let value = cpu.read::<T>(usize::from(insn.mem.segment), from)?;
        cpu.set_reg(RAX as u8, value);
        cpu.step::<T>(insn, RSI);
        Ok(())
    }
}

struct Scas;
impl StringOp for Scas {
    const COMPARES: bool = true;
    #[inline(always)]
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let to = cpu.index(insn, RDI);
        let value = cpu.read::<T>(seg::ES, to)?;
        cpu.set_status_flags(flags::sub(cpu.reg::<T>(RAX as u8), value, 0).1);
        cpu.step::<T>(insn, RDI);
        Ok(())
    }

    fn bulk<T: Word>(cpu: &mut Cpu, insn: &Insn, limit: u64) -> u64 {
        let to = cpu.index(insn, RDI);
        let Some((at, readable)) = cpu.run_of::<T>(insn, seg::ES, to, Access::Read) else {
            return 0;
        };
        let sought = cpu.reg::<T>(RAX as u8);
        let mut window = Window([0; WINDOW]);
        let found = window.read::<T>(&cpu.ram, at, limit.min(readable));
        let count = compare_run(cpu, insn, found.map(|value| (sought, value)));
        cpu.advance::<T>(insn, RDI, count);
        count
    }
}

struct Cmps;
impl StringOp for Cmps {
    const COMPARES: bool = true;
    #[inline(always)]
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let from = cpu.index(insn, RSI);
        let to = cpu.index(insn, RDI);
        // ES:rDI first, as CPUs do: it shows where both operands fault.
        let b = cpu.read::<T>(seg::ES, to)?;
        let a = cpu.read::<T>(usize::from(insn.mem.segment), from)?;
        cpu.set_status_flags(flags::sub(a, b, 0).1);
        cpu.step::<T>(insn, RSI);
        cpu.step::<T>(insn, RDI);
        Ok(())
    }

    fn bulk<T: Word>(cpu: &mut Cpu, insn: &Insn, limit: u64) -> u64 {
        let Some((left, right, limit)) = cpu.run_of_both::<T>(insn, limit, Access::Read) else {
            return 0;
        };
        let (mut a, mut b) = (Window([0; WINDOW]), Window([0; WINDOW]));
        let pairs = a.read::<T>(&cpu.ram, left, limit).zip(b.read::<T>(&cpu.ram, right, limit));
        let count = compare_run(cpu, insn, pairs);
        cpu.advance::<T>(insn, RSI, count);
        cpu.advance::<T>(insn, RDI, count);
        count
    }
}

struct Ins;
impl StringOp for Ins {
    const STORES: bool = true;
    /// The store is checked before the port is read: reading has side effects.
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let port = cpu.state.gpr[RDX] as u16;
        cpu.check_io_permission(port, T::BYTES)?;
        let to = cpu.index(insn, RDI);
        cpu.check_access(seg::ES, to, T::BYTES, Access::Write)?;
        let value = cpu.port_read::<T>(port);
        cpu.write(seg::ES, to, value)?;
        cpu.step::<T>(insn, RDI);
        Ok(())
    }
}

struct Outs;
impl StringOp for Outs {
    fn element<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
        let port = cpu.state.gpr[RDX] as u16;
        cpu.check_io_permission(port, T::BYTES)?;
        let from = cpu.index(insn, RSI);
        let value = cpu.read::<T>(usize::from(insn.mem.segment), from)?;
        cpu.port_write(port, value);
        cpu.step::<T>(insn, RSI);
        cpu.device_written = true;
        Ok(())
    }
}

/// The bytes of a REP that stores. One that overwrites itself is decoded again behind the run in
/// which it did, whatever else is known of its page: the same on every engine.
struct Own {
    linear: u64,
    count: usize,
    bytes: [u8; MAX_INSTRUCTION_BYTES],
}

impl Own {
    fn of<S: StringOp>(cpu: &mut Cpu, insn: &Insn) -> Option<Self> {
        if !S::STORES {
            return None;
        }
        let (linear, count) = (cpu.linear_ip(), insn.iced.len());
        Some(Self { linear, count, bytes: cpu.code_bytes(linear, count)? })
    }

    /// True if it is not the same behind a run of `elements`. Only stores at its own place in a
    /// page can have changed it, by whichever mapping.
    #[inline(always)]
    fn is_changed<T: Word>(&self, cpu: &mut Cpu, insn: &Insn, elements: u64) -> bool {
        let stored = elements * T::BYTES;
        let end = cpu.state.segments[seg::ES].base.wrapping_add(cpu.index(insn, RDI));
        let first =
            if cpu.flag(DF) { end.wrapping_add(T::BYTES) } else { end.wrapping_sub(stored) };
        let ahead = self.linear.wrapping_sub(first) & (PAGE_SIZE - 1);
        let behind = first.wrapping_sub(self.linear) & (PAGE_SIZE - 1);
        (ahead < stored || behind < self.count as u64)
            && cpu.code_bytes(self.linear, self.count).is_some_and(|now| now != self.bytes)
    }
}

fn execute<S: StringOp, T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let is_repe = insn.iced.has_rep_prefix();
    let is_repne = insn.iced.has_repne_prefix();
    if !is_repe && !is_repne {
        return S::element::<T>(cpu, insn);
    }
    let is_intel = cpu.env.cpuid.vendor() == Vendor::Intel;
    if is_intel {
        cpu.clear_unused_halves::<S>(insn);
    }
    let before = cpu.state.rflags;
    let own = Own::of::<S>(cpu, insn);
    let mut is_changed = false;
    let mut left = cpu.index(insn, RCX);
    // Under TF every element is a step of its own.
    let part = if cpu.flag(TF) { 1 } else { PART };
    let mut done = 0;
    while left != 0 {
        // What waited before, behind MOV SS, waits for an element.
        let waits = done != 0 && (cpu.device_written || cpu.pending_dr6 != 0);
        if done >= part || is_changed || waits {
            // Not finished: the same instruction comes again, after whatever waits. RF keeps an
            // instruction breakpoint on it from firing anew, also if an event comes between and
            // pushes the flags (SDM Vol. 3B, "Instruction-Breakpoint Exception Condition").
            cpu.next_rip = cpu.state.rip;
            cpu.state.rflags |= RF;
            cpu.break_block = true;
            return Ok(());
        }
        let in_bulk = if cpu.flag(DF) { 0 } else { S::bulk::<T>(cpu, insn, left.min(part - done)) };
        if in_bulk == 0
            && let Err(exception) = S::element::<T>(cpu, insn)
        {
            // Intel's processors show no flags of the elements before (SDM Vol. 2B, "REP").
            cpu.set_flags(if S::COMPARES && is_intel { STATUS } else { 0 }, before);
            return Err(exception);
        }
        let count = in_bulk.max(1);
        is_changed = own.as_ref().is_some_and(|own| own.is_changed::<T>(cpu, insn, count));
        left -= count;
        done += count;
        cpu.set_index(insn, RCX, left);
        if S::COMPARES && cpu.flag(ZF) != is_repe {
            break;
        }
    }
    Ok(())
}

/// True if `insn` is addressed by rSI or rDI; gives the address size in bytes.
pub(crate) fn address_size(kind: OpKind) -> Option<u8> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    }
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    let rows: [(Code, Handler); 26] = [
        (Movsb_m8_m8, execute::<Movs, u8>),
        (Movsw_m16_m16, execute::<Movs, u16>),
        (Movsd_m32_m32, execute::<Movs, u32>),
        (Movsq_m64_m64, execute::<Movs, u64>),
        (Cmpsb_m8_m8, execute::<Cmps, u8>),
        (Cmpsw_m16_m16, execute::<Cmps, u16>),
        (Cmpsd_m32_m32, execute::<Cmps, u32>),
        (Cmpsq_m64_m64, execute::<Cmps, u64>),
        (Stosb_m8_AL, execute::<Stos, u8>),
        (Stosw_m16_AX, execute::<Stos, u16>),
        (Stosd_m32_EAX, execute::<Stos, u32>),
        (Stosq_m64_RAX, execute::<Stos, u64>),
        (Lodsb_AL_m8, execute::<Lods, u8>),
        (Lodsw_AX_m16, execute::<Lods, u16>),
        (Lodsd_EAX_m32, execute::<Lods, u32>),
        (Lodsq_RAX_m64, execute::<Lods, u64>),
        (Scasb_AL_m8, execute::<Scas, u8>),
        (Scasw_AX_m16, execute::<Scas, u16>),
        (Scasd_EAX_m32, execute::<Scas, u32>),
        (Scasq_RAX_m64, execute::<Scas, u64>),
        (Insb_m8_DX, execute::<Ins, u8>),
        (Insw_m16_DX, execute::<Ins, u16>),
        (Insd_m32_DX, execute::<Ins, u32>),
        (Outsb_DX_m8, execute::<Outs, u8>),
        (Outsw_DX_m16, execute::<Outs, u16>),
        (Outsd_DX_m32, execute::<Outs, u32>),
    ];
    for (code, handler) in rows {
        table.both(code, handler);
    }
}
