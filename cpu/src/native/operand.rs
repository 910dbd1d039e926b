//! Memory operands without a mask: through the guest's MMU into the scratch buffer and back.

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::fpu::{get, put};
use crate::interp::insn::Insn;
use crate::mmu::Access;

/// MXCSR.MM (AMD): legacy load-and-execute forms take misaligned operands.
const MXCSR_MM: u32 = 1 << 17;

/// A memory operand after segmentation.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub(super) offset: u64,
    pub(super) linear: u64,
    pub(super) bytes: usize,
}

/// Executes an instruction that reads memory.
pub(super) fn execute_read(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let operand = cpu.operand(insn, Access::Read)?;
    cpu.load_scratch(operand.linear, operand.bytes)?;
    super::execute(cpu, insn)
}

/// Executes an instruction that writes memory: the page first, then the instruction, then bytes.
pub(super) fn execute_write(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let operand = cpu.operand(insn, Access::Write)?;
    cpu.check_writable(insn, operand)?;
    let thunk = cpu.native.thunk(insn)?;
    let outputs = cpu.run_thunk(&thunk);
    if !outputs.has_faulted {
        cpu.store_scratch(operand.linear, operand.bytes)?;
    }
    cpu.finish_thunk(&thunk, &outputs)
}

/// Executes an instruction that reads and writes memory.
pub(super) fn execute_read_write(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let operand = cpu.operand(insn, Access::Write)?;
    cpu.check_writable(insn, operand)?;
    cpu.load_scratch(operand.linear, operand.bytes)?;
    execute_write(cpu, insn)
}

impl Cpu {
    /// The memory operand of `insn`, segmentation and alignment checked.
    #[inline]
    pub(super) fn operand(&self, insn: &Insn, access: Access) -> Exec<Operand> {
        let memory = &decoder::row(insn.iced.code()).memory;
        let bytes = if insn.iced.is_broadcast() {
            usize::from(memory.element)
        } else {
            usize::from(memory.size)
        };
        let bytes = bytes.clamp(1, 64);
        let offset = self.effective_address(&insn.mem);
        let linear = self.linear(usize::from(insn.mem.segment), offset, bytes as u64, access)?;
        let is_misaligned = memory.is_aligned && linear & (bytes as u64 - 1) != 0;
        if is_misaligned && !self.tolerates_misalignment(insn) {
            return Err(Exception::GP0);
        }
        Ok(Operand { offset, linear, bytes })
    }

    /// APM Vol. 1, "Misaligned Exception Mask": for all legacy forms but the aligned moves.
    fn tolerates_misalignment(&self, insn: &Insn) -> bool {
        use iced_x86::Mnemonic as M;
        let is_sha = decoder::row(insn.iced.code()).features.contains(decoder::Feature::Sha);
        if is_sha && !self.native.host.aligns_sha {
            return true;
        }
        let is_aligned_move = matches!(
            insn.iced.mnemonic(),
            M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa
        );
        let is_legacy = insn.iced.code().op_code().encoding() == iced_x86::EncodingKind::Legacy;
        self.state.fpu.mxcsr & MXCSR_MM != 0 && is_legacy && !is_aligned_move
    }

    /// Raises what a write of `operand` would.
    #[inline]
    pub(super) fn check_writable(&mut self, insn: &Insn, operand: Operand) -> Exec {
        let is_in_page = operand.linear & 0xfff <= 0x1000 - operand.bytes as u64;
        if is_in_page && self.mmu.lookup_write(operand.linear).is_some() {
            return Ok(());
        }
        let segment = usize::from(insn.mem.segment);
        self.check_access(segment, operand.offset, operand.bytes as u64, Access::Write)
    }

    /// Reads `bytes` bytes (at most 64) into the scratch buffer.
    #[inline]
    pub(super) fn load_scratch(&mut self, linear: u64, bytes: usize) -> Exec {
        let is_in_page = linear & 0xfff <= 0x1000 - bytes as u64;
        let Some(at) = self.mmu.lookup_read(linear).filter(|_| is_in_page) else {
            let mut buffer = [0; 64];
            let buffer = &mut buffer[..bytes.min(64)];
            self.read_linear_bytes(linear, buffer, self.mmu.view())?;
            self.native.scratch.memory[..buffer.len()].copy_from_slice(buffer);
            return Ok(());
        };
        let memory = &mut self.native.scratch.memory;
        let mut done = 0;
        while done < bytes {
            let at = at + done as u64;
            done += match bytes - done {
                8.. => put(memory, done, self.ram.load::<u64>(at).to_le_bytes()),
                4.. => put(memory, done, self.ram.load::<u32>(at).to_le_bytes()),
                2.. => put(memory, done, self.ram.load::<u16>(at).to_le_bytes()),
                _ => put(memory, done, [self.ram.load::<u8>(at)]),
            };
        }
        Ok(())
    }

    /// Writes the first `bytes` bytes (at most 64) of the scratch buffer.
    #[inline]
    pub(super) fn store_scratch(&mut self, linear: u64, bytes: usize) -> Exec {
        let is_in_page = linear & 0xfff <= 0x1000 - bytes as u64;
        let Some(at) = self.mmu.lookup_write(linear).filter(|_| is_in_page) else {
            let data = self.native.scratch.memory;
            return self.write_linear_bytes(linear, &data[..bytes.min(64)], self.mmu.view());
        };
        let memory = &self.native.scratch.memory;
        let (mut done, mut is_code) = (0, false);
        while done < bytes {
            let at = at + done as u64;
            let (stored, width) = match bytes - done {
                8.. => (self.ram.store(at, u64::from_le_bytes(get(memory, done))), 8),
                4.. => (self.ram.store(at, u32::from_le_bytes(get(memory, done))), 4),
                2.. => (self.ram.store(at, u16::from_le_bytes(get(memory, done))), 2),
                _ => (self.ram.store(at, u8::from_le_bytes(get(memory, done))), 1),
            };
            (done, is_code) = (done + width, is_code | stored);
        }
        self.break_block |= is_code;
        Ok(())
    }
}
