//! Stores of a whole cache line: CLZERO and MOVDIR64B.

use iced_x86::Mnemonic;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::Table;
use crate::interp::insn::{Insn, register_number};
use crate::interp::shape::for_each_form;
use crate::mmu::Access;
use crate::state::gpr::RAX;
use crate::state::seg;

/// CLZERO: the 64-byte line that holds rAX.
fn clzero(cpu: &mut Cpu, insn: &Insn) -> Exec {
    // The address is no operand to iced: its size is the opcode's.
    let bits = insn.iced.code().op_code().address_size().clamp(16, 64);
    let address = cpu.state.gpr[RAX] & u64::MAX >> (64 - bits) & !63;
    let segment = match insn.iced.segment_prefix() {
        iced_x86::Register::FS => seg::FS,
        iced_x86::Register::GS => seg::GS,
        _ => seg::DS,
    };
    cpu.write_bytes(segment, address, &[0; 64])
}

/// MOVDIR64B: 64 bytes from the operand to ES:reg, which must be aligned. The read comes first: it
/// shows where both fault.
fn movdir64b(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = insn.iced.op0_register();
    let mask = u64::MAX >> (64 - 8 * register.size() as u32);
    let target = cpu.state.gpr[usize::from(register_number(register) & 15)] & mask;
    let mut line = [0; 64];
    let offset = cpu.effective_address(&insn.mem);
    cpu.read_bytes(usize::from(insn.mem.segment), offset, &mut line)?;
    let linear = cpu.linear(seg::ES, target, 64, Access::Write)?;
    if linear & 63 != 0 {
        return Err(Exception::GP0);
    }
    cpu.write_bytes(seg::ES, target, &line)
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    for_each_form(table, |table, form| {
        let handler = match form.mnemonic {
            Mnemonic::Clzero => clzero,
            Mnemonic::Movdir64b => movdir64b,
            _ => return,
        };
        table.both(form.code, handler);
    });
}
