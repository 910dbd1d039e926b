//! Memory operands under a mask: only the elements that the mask selects are accessed, so only they
//! can fault. All are checked before any register or memory changes.

use iced_x86::{EncodingKind, Mnemonic, OpKind};

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::insn::{Insn, Mem};
use crate::mmu::Access;

/// The elements of a memory operand.
struct Elements {
    /// Bytes of one.
    size: usize,
    /// One bit for each element that is accessed, the lowest address first.
    active: u64,
    count: usize,
}

impl Elements {
    /// The runs of neighbouring active elements, as byte ranges of the operand.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let (mut rest, size) = (self.active, self.size);
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let start = rest.trailing_zeros();
            let length = (rest >> start).trailing_ones();
            let taken = u64::MAX.checked_shr(64 - length).unwrap_or(0) << start;
            rest &= !taken;
            Some((start as usize * size, (start + length) as usize * size))
        })
    }
}

/// The lowest `count` bits.
fn low_bits(count: usize) -> u64 {
    u64::MAX.checked_shr(64 - count.min(64) as u32).unwrap_or(0)
}

/// Adds to an offset as the address size wraps it.
pub(super) fn displaced(mem: &Mem, offset: u64, bytes: u64) -> u64 {
    let sum = offset.wrapping_add(bytes);
    match mem.address_size {
        8 => sum,
        4 => sum & 0xffff_ffff,
        _ => sum & 0xffff,
    }
}

/// True for VBROADCASTx and VPBROADCASTx, whose mask covers the destination's elements.
fn repeats_operand(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vbroadcastss
            | M::Vbroadcastsd
            | M::Vpbroadcastb
            | M::Vpbroadcastw
            | M::Vpbroadcastd
            | M::Vpbroadcastq
            | M::Vbroadcastf32x2
            | M::Vbroadcastf32x4
            | M::Vbroadcastf32x8
            | M::Vbroadcastf64x2
            | M::Vbroadcastf64x4
            | M::Vbroadcasti32x2
            | M::Vbroadcasti32x4
            | M::Vbroadcasti32x8
            | M::Vbroadcasti64x2
            | M::Vbroadcasti64x4
    )
}

impl Cpu {
    fn elements(&self, insn: &Insn) -> Elements {
        let memory = &decoder::row(insn.iced.code()).memory;
        let size = usize::from(memory.element).max(1);
        let full = (usize::from(memory.size) / size).clamp(1, 64);
        if insn.iced.code().op_code().encoding() != EncodingKind::EVEX {
            return Elements { size, active: self.sign_mask(insn, size, full), count: full };
        }
        let mask = self.opmask(insn);
        if insn.iced.is_broadcast() {
            let active = u64::from(mask & low_bits(full) != 0);
            return Elements { size, active, count: 1 };
        }
        if repeats_operand(insn.iced.mnemonic()) {
            let covered = insn.iced.op0_register().size() / size;
            let selected = (0..covered).filter(|bit| mask >> bit & 1 != 0);
            let active = selected.fold(0, |active, bit| active | 1 << (bit % full));
            return Elements { size, active, count: full };
        }
        Elements { size, active: mask & low_bits(full), count: full }
    }

    /// The value of the mask register that `insn` names; all ones for k0.
    pub(super) fn opmask(&self, insn: &Insn) -> u64 {
        if !insn.iced.has_op_mask() {
            return u64::MAX;
        }
        self.state.fpu.opmask[insn.iced.op_mask().number() & 7]
    }

    /// The sign bits of VMASKMOV's and VPMASKMOV's mask, which is operand 1 both ways.
    fn sign_mask(&self, insn: &Insn, size: usize, count: usize) -> u64 {
        let register = &self.state.fpu.zmm[insn.iced.op1_register().number() & 31];
        sign_bits(register, size, count)
    }

    /// Raises what the active elements would.
    fn check_elements(&mut self, insn: &Insn, elements: &Elements, access: Access) -> Exec {
        let offset = self.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        self.check_element_alignment(insn, offset)?;
        for (start, end) in elements.runs() {
            let at = displaced(&insn.mem, offset, start as u64);
            self.check_access(segment, at, (end - start) as u64, access)?;
        }
        Ok(())
    }

    /// VMOVAPS and its like want the whole operand aligned, whatever the mask is.
    fn check_element_alignment(&self, insn: &Insn, offset: u64) -> Exec {
        let memory = &decoder::row(insn.iced.code()).memory;
        let segment = &self.state.segments[usize::from(insn.mem.segment) % 6];
        let base = if self.mode.is_64() && insn.mem.segment < 4 { 0 } else { segment.base };
        let linear = base.wrapping_add(offset);
        if memory.is_aligned && linear & (u64::from(memory.size.max(1)) - 1) != 0 {
            return Err(Exception::GP0);
        }
        Ok(())
    }

    /// Reads the active elements into the scratch buffer; the others read as zero.
    fn load_elements(&mut self, insn: &Insn, elements: &Elements) -> Exec {
        let offset = self.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        let mut buffer = [0; 64];
        for (start, end) in elements.runs() {
            let at = displaced(&insn.mem, offset, start as u64);
            if let Some(target) = buffer.get_mut(start..end) {
                self.read_bytes(segment, at, target)?;
            }
        }
        self.native.scratch.memory = buffer;
        Ok(())
    }

    /// Writes the active elements from the scratch buffer.
    fn store_elements(&mut self, insn: &Insn, elements: &Elements) -> Exec {
        let offset = self.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        let buffer = self.native.scratch.memory;
        for (start, end) in elements.runs() {
            let at = displaced(&insn.mem, offset, start as u64);
            if let Some(data) = buffer.get(start..end) {
                self.write_bytes(segment, at, data)?;
            }
        }
        Ok(())
    }
}

/// The sign bits of the first `count` elements of `size` bytes.
pub(super) fn sign_bits(register: &[u8], size: usize, count: usize) -> u64 {
    let last_bytes = register.chunks_exact(size.max(1)).take(count).map(|element| element.last());
    (0..).zip(last_bytes).fold(0, |bits, (index, last)| match last {
        Some(last) => bits | u64::from(last >> 7) << index,
        None => bits,
    })
}

/// Executes an instruction that reads the elements that its mask selects.
pub(super) fn execute_read(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let elements = cpu.elements(insn);
    if elements.active == low_bits(elements.count) {
        return super::operand::execute_read(cpu, insn);
    }
    cpu.check_elements(insn, &elements, Access::Read)?;
    cpu.load_elements(insn, &elements)?;
    super::execute(cpu, insn)
}

/// Executes an instruction that writes the elements that its mask selects.
pub(super) fn execute_write(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let elements = cpu.elements(insn);
    if elements.active == low_bits(elements.count) {
        return super::operand::execute_write(cpu, insn);
    }
    cpu.write_elements(insn, &elements)
}

/// Executes VPEXPAND: as many elements are read as the mask has bits.
pub(super) fn execute_expand(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let elements = cpu.packed_elements(insn);
    cpu.check_elements(insn, &elements, Access::Read)?;
    cpu.load_elements(insn, &elements)?;
    super::execute(cpu, insn)
}

/// Executes VPCOMPRESS: as many elements are written as the mask has bits.
pub(super) fn execute_compress(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let elements = cpu.packed_elements(insn);
    cpu.write_elements(insn, &elements)
}

impl Cpu {
    fn packed_elements(&self, insn: &Insn) -> Elements {
        let elements = self.elements(insn);
        let active = low_bits(elements.active.count_ones() as usize);
        Elements { active, ..elements }
    }

    fn write_elements(&mut self, insn: &Insn, elements: &Elements) -> Exec {
        self.check_elements(insn, elements, Access::Write)?;
        let thunk = self.native.thunk(insn)?;
        let outputs = self.run_thunk(&thunk);
        if !outputs.has_faulted {
            self.store_elements(insn, elements)?;
        }
        self.finish_thunk(&thunk, &outputs)
    }
}

/// MASKMOVQ, MASKMOVDQU, VMASKMOVDQU: bytes at DS:rDI whose mask byte has its sign bit set.
pub(super) fn mask_move(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let is_mmx = insn.iced.mnemonic() == Mnemonic::Maskmovq;
    if is_mmx && !cpu.x87_may_proceed()? {
        return Ok(());
    }
    let count = if is_mmx { 8 } else { 16 };
    let (data, mask) = (cpu.narrow_register(insn, 1), cpu.narrow_register(insn, 2));
    let elements = Elements { size: 1, active: sign_bits(&mask, 1, count), count };
    let address_size = match insn.iced.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    let destination = Insn { mem: Mem { base: 7, address_size, ..insn.mem }, ..insn.clone() };
    cpu.native.scratch.memory[..16].copy_from_slice(&data);
    let offset = cpu.effective_address(&destination.mem);
    for (start, end) in elements.runs() {
        let at = displaced(&destination.mem, offset, start as u64);
        let segment = usize::from(destination.mem.segment);
        cpu.check_access(segment, at, (end - start) as u64, Access::Write)?;
    }
    cpu.store_elements(&destination, &elements)?;
    if is_mmx {
        cpu.enter_mmx();
    }
    Ok(())
}

impl Cpu {
    /// An MMX or XMM register operand, in 16 bytes.
    fn narrow_register(&self, insn: &Insn, operand: u32) -> [u8; 16] {
        let register = insn.iced.op_register(operand);
        if register.is_mm() {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&self.state.fpu.x87[register.number() & 7][..8]);
            return value;
        }
        crate::fpu::get(&self.state.fpu.zmm[register.number() & 31], 0)
    }
}
