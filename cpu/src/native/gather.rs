//! Gathers and scatters: element by element in Rust, because each has an address of its own.
//!
//! Elements complete in order, lowest first, and each clears its bit of the mask. A fault leaves
//! those before it complete, so the instruction can be restarted (SDM Vol. 2, "VPGATHERDD",
//! "VPSCATTERDD").

use iced_x86::{EncodingKind, OpCodeOperandKind as K};

use super::masked::{displaced, sign_bits};
use crate::Cpu;
use crate::exception::Exec;
use crate::interp::insn::Insn;

/// What a gather or scatter works on.
struct Indexed {
    /// Bytes of a data element.
    size: usize,
    /// Bytes of an index.
    index_size: usize,
    count: usize,
    /// Number of the data register.
    data: usize,
    /// Number of the index register.
    index: usize,
    mask: Mask,
    /// Elements still to do.
    active: u64,
}

/// Where the mask is.
#[derive(Clone, Copy)]
enum Mask {
    /// Sign bits of a vector register.
    Vector(usize),
    Opmask(usize),
}

impl Cpu {
    fn indexed(&self, insn: &Insn, data_operand: u32) -> Indexed {
        let iced = &insn.iced;
        let info = iced.code().op_code();
        let size = usize::from(decoder::row(iced.code()).memory.element).clamp(4, 8);
        let has_qword_index = info
            .op_kinds()
            .iter()
            .any(|kind| matches!(kind, K::mem_vsib64x | K::mem_vsib64y | K::mem_vsib64z));
        let index_size = if has_qword_index { 8 } else { 4 };
        let data = iced.op_register(data_operand);
        let index = iced.memory_index();
        let count = (index.size() / index_size).min(data.size() / size).clamp(1, 16);
        let (mask, active) = if info.encoding() == EncodingKind::EVEX {
            (Mask::Opmask(iced.op_mask().number() & 7), self.opmask(insn))
        } else {
            let number = iced.op2_register().number() & 31;
            (Mask::Vector(number), sign_bits(&self.state.fpu.zmm[number], size, count))
        };
        let active = active & (u64::MAX >> (64 - count));
        let (data, index) = (data.number() & 31, index.number() & 31);
        Indexed { size, index_size, count, data, index, mask, active }
    }

    /// The offset of element `element` in its segment.
    fn indexed_offset(&self, insn: &Insn, indexed: &Indexed, element: usize) -> u64 {
        let register = &self.state.fpu.zmm[indexed.index];
        let at = element * indexed.index_size;
        let index = match indexed.index_size {
            8 => u64::from_le_bytes(crate::fpu::get(register, at)),
            _ => i32::from_le_bytes(crate::fpu::get(register, at)) as i64 as u64,
        };
        let base = self.effective_address(&insn.mem);
        displaced(&insn.mem, base, index << insn.mem.scale)
    }

    /// Notes that `element` is done.
    fn complete_element(&mut self, indexed: &Indexed, element: usize) {
        match indexed.mask {
            Mask::Opmask(number) => self.state.fpu.opmask[number] &= !(1 << element),
            Mask::Vector(number) => {
                let at = element * indexed.size;
                self.state.fpu.zmm[number][at..at + indexed.size].fill(0);
            }
        }
    }

    /// Makes each element of a vector mask all ones or all zeroes, and the rest zero: what a fault
    /// leaves of the mask.
    fn widen_mask(&mut self, indexed: &Indexed) {
        let Mask::Vector(number) = indexed.mask else { return };
        let register = &mut self.state.fpu.zmm[number];
        for (element, bytes) in register.chunks_exact_mut(indexed.size).enumerate() {
            let is_active = element < indexed.count && indexed.active >> element & 1 != 0;
            bytes.fill(if is_active { 0xff } else { 0 });
        }
    }

    /// Clears the mask: all elements are done.
    fn clear_mask(&mut self, indexed: &Indexed) {
        match indexed.mask {
            Mask::Opmask(number) => self.state.fpu.opmask[number] = 0,
            Mask::Vector(number) => self.state.fpu.zmm[number] = [0; 64],
        }
    }
}

/// VGATHERxxx and VPGATHERxx.
pub(super) fn gather(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let indexed = cpu.indexed(insn, 0);
    cpu.widen_mask(&indexed);
    for element in (0..indexed.count).filter(|element| indexed.active >> element & 1 != 0) {
        let offset = cpu.indexed_offset(insn, &indexed, element);
        let mut bytes = [0; 8];
        let value = &mut bytes[..indexed.size];
        cpu.read_bytes(usize::from(insn.mem.segment), offset, value)?;
        let at = element * indexed.size;
        cpu.state.fpu.zmm[indexed.data][at..at + indexed.size].copy_from_slice(value);
        cpu.complete_element(&indexed, element);
    }
    cpu.clear_mask(&indexed);
    cpu.state.fpu.zmm[indexed.data][indexed.count * indexed.size..].fill(0);
    Ok(())
}

/// VSCATTERxxx and VPSCATTERxx.
pub(super) fn scatter(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let indexed = cpu.indexed(insn, 1);
    for element in (0..indexed.count).filter(|element| indexed.active >> element & 1 != 0) {
        let offset = cpu.indexed_offset(insn, &indexed, element);
        let at = element * indexed.size;
        let register = cpu.state.fpu.zmm[indexed.data];
        let value = &register[at..at + indexed.size];
        cpu.write_bytes(usize::from(insn.mem.segment), offset, value)?;
        cpu.complete_element(&indexed, element);
    }
    cpu.clear_mask(&indexed);
    Ok(())
}
