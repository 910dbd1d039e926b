//! MOV to and from the debug registers.
//!
//! Source: SDM Vol. 2B, "MOV-Move to/from Debug Registers"; SDM Vol. 3B, "Debug Registers".

use iced_x86::Code;

use crate::Cpu;
use crate::debug::{DR6_BD, DR7_GD};
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::cr4;

/// The bits of DR6 that can be written, and those that always read as one.
const DR6_WRITABLE: u64 = 0xe00f;
const DR6_ONES: u64 = 0xffff_0ff0;
/// Likewise of DR7.
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_ONES: u64 = 0x400;

/// The register that `number` means, after the checks that come before any access: DR4 and DR5
/// are DR6 and DR7 unless CR4.DE, and general detect.
fn select(cpu: &mut Cpu, number: u8) -> Exec<usize> {
    let register = match number {
        4 | 5 if cpu.state.cr4 & cr4::DE != 0 => return Err(Exception::UD),
        4 => 6,
        5 => 7,
        0..=7 => usize::from(number),
        _ => return Err(Exception::UD),
    };
    if cpu.state.dr[7] & DR7_GD != 0 {
        cpu.pending_dr6 |= DR6_BD;
        return Err(Exception::DB);
    }
    Ok(register)
}

fn move_from<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = select(cpu, insn.src)?;
    cpu.set_reg(insn.dst, T::from_u64(cpu.state.dr[register]));
    Ok(())
}

fn move_to<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let register = select(cpu, insn.dst)?;
    let value = cpu.reg::<T>(insn.src).to_u64();
    cpu.set_debug_register(register, value)
}

impl Cpu {
    /// Replaces DR0 to DR3, DR6 or DR7.
    pub fn set_debug_register(&mut self, number: usize, value: u64) -> Exec {
        if number >= 6 && value >> 32 != 0 {
            return Err(Exception::GP0);
        }
        let register = self.state.dr.get_mut(number).ok_or(Exception::UD)?;
        *register = match number {
            6 => value & DR6_WRITABLE | DR6_ONES,
            7 => value & DR7_WRITABLE | DR7_ONES,
            _ => value,
        };
        self.mode_changed();
        Ok(())
    }
}

pub(crate) fn register(table: &mut Table) {
    table.both(Code::Mov_r32_dr, move_from::<u32>);
    table.both(Code::Mov_r64_dr, move_from::<u64>);
    table.both(Code::Mov_dr_r32, move_to::<u32>);
    table.both(Code::Mov_dr_r64, move_to::<u64>);
}
