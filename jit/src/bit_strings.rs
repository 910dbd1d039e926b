//! BT, BTS, BTR, BTC on a bit string in memory: the bit offset in a register is signed and also
//! moves the address, by whole elements of the operand's size.
//!
//! The host's instruction gets the very element and a bit offset in it. Its own form of bit strings
//! would find the element by itself, but only where guest and host addresses are apart by the same
//! distance on both sides of a page's end.

use iced_x86::{Instruction, Mnemonic, Register};

use crate::asm::{Alu, Mem, Rm};
use crate::emit::{Emitter, context};
use crate::plan::{Step, is_based};
use crate::registers::{Number, S0, S1, host};

/// True if the bit string of `iced` can be addressed: by a sum as wide as addresses are, so that
/// what the bit offset adds to it wraps as the sum does. A segment's base is added before the bit
/// offset, too early to find the segment's end.
pub(crate) fn can_address(is_64: bool, iced: &Instruction) -> bool {
    let (base, index) = (iced.memory_base(), iced.memory_index());
    let is_narrow = base.size() == 4
        || index.size() == 4
        || base == Register::None && index == Register::None && iced.memory_displ_size() == 4;
    if is_64 { !is_narrow } else { !is_based(iced) }
}

impl Emitter<'_> {
    pub(crate) fn bit_string(&mut self, step: &Step) {
        let register = step.iced.op1_register();
        let (size, number) = (register.size() as u8, register.number() as Number);
        let opcode = match step.iced.mnemonic() {
            Mnemonic::Bt => 0xa3,
            Mnemonic::Bts => 0xab,
            Mnemonic::Btr => 0xb3,
            _ => 0xbb,
        };
        self.free_flags();
        self.effective_address(step, u32::from(size));
        self.add_elements(number, size);
        let is_write = opcode != 0xa3;
        self.check(u32::from(size), is_write);
        let is_locked = step.iced.has_lock_prefix();
        match host(number) {
            Some(offset) if !is_locked => self.bit_of_pinned(opcode, size, offset),
            None if !is_write => {
                self.want_flags();
                self.sized_load(size, S0, Mem::at(S0));
                let offset = self.read(number, S1);
                self.bit_op(size, opcode, offset, Rm::Reg(S0));
            }
            _ => self.bit_in_memory(opcode, size, number, is_locked),
        }
        self.delta_in_s0 = None;
        self.flags_produced();
    }

    /// Moves the address in S0 by the elements that guest register `number` goes past.
    fn add_elements(&mut self, number: Number, size: u8) {
        let offset = self.read(number, S1);
        match size {
            2 => self.asm.op(true, &[0x0f, 0xbf], S1, Rm::Reg(offset)), // movsx
            4 => self.asm.op(true, &[0x63], S1, Rm::Reg(offset)),       // movsxd
            _ => self.asm.mov(S1, offset),
        }
        self.asm.op(true, &[0xc1], 7, Rm::Reg(S1)); // sar
        let scale = size.trailing_zeros() as u8;
        self.asm.byte(scale + 3);
        let moved = Mem { base: Some(S0), index: Some((S1, scale)), disp: 0, is_gs: false };
        if self.around.is_64 { self.asm.lea(S0, moved) } else { self.asm.lea32(S0, moved) }
    }

    /// On the element in a register: there the host masks the bit offset.
    fn bit_of_pinned(&mut self, opcode: u8, size: u8, offset: Number) {
        self.want_flags();
        self.sized_load(size, S1, Mem::at(S0));
        self.bit_op(size, opcode, offset, Rm::Reg(S1));
        if opcode != 0xa3 {
            self.sized_memory(size, 0x88, S1, Mem::at(S0));
        }
    }

    /// On the element in memory: a bit offset inside it.
    fn bit_in_memory(&mut self, opcode: u8, size: u8, number: Number, is_locked: bool) {
        let offset = self.read(number, S1);
        self.asm.mov32(S1, offset);
        self.asm.alu_imm(false, Alu::And, Rm::Reg(S1), i32::from(size) * 8 - 1);
        self.asm.store(context!(spare), S1);
        self.want_flags();
        self.asm.load(S1, context!(spare));
        if is_locked {
            self.asm.byte(0xf0);
        }
        self.bit_op(size, opcode, S1, Rm::Mem(Mem::at(S0)));
    }

    fn bit_op(&mut self, size: u8, opcode: u8, offset: Number, rm: Rm) {
        if size == 2 {
            self.asm.byte(0x66);
        }
        self.asm.op(size == 8, &[0x0f, opcode], offset, rm);
    }
}
