//! PUSHF, POPF, CLI, STI, STAC and CLAC, with the rules of IOPL, virtual-8086 mode, VME and PVI.
//!
//! Sources: SDM Vol. 2, "PUSHF", "POPF", "CLI", "STI"; SDM Vol. 3B, "Virtual-8086 Mode Extensions"
//! and "Protected-Mode Virtual Interrupts".

use iced_x86::Code;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mode::OperatingMode;
use crate::state::{InterruptShadow, cr4, rflags};

/// Who governs maskable interrupts for the current code.
enum Authority {
    /// IF.
    Real,
    /// VIF stands for IF (VME, PVI).
    Virtual,
    /// #GP(0).
    None,
}

impl Cpu {
    fn iopl(&self) -> u8 {
        ((self.state.rflags & rflags::IOPL) >> 12) as u8
    }

    fn is_v86(&self) -> bool {
        self.mode.operating == OperatingMode::Virtual8086
    }

    fn interrupt_authority(&self) -> Authority {
        let extension = if self.is_v86() { cr4::VME } else { cr4::PVI };
        if self.state.cpl <= self.iopl() {
            Authority::Real
        } else if self.state.cpl == 3 && self.state.cr4 & extension != 0 {
            Authority::Virtual
        } else {
            Authority::None
        }
    }
}

fn cli(cpu: &mut Cpu, _: &Insn) -> Exec {
    match cpu.interrupt_authority() {
        Authority::Real => cpu.set_flags(rflags::IF, 0),
        Authority::Virtual => cpu.set_flags(rflags::VIF, 0),
        Authority::None => return Err(Exception::GP0),
    }
    Ok(())
}

fn sti(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.break_block = true;
    match cpu.interrupt_authority() {
        Authority::Real => {
            if !cpu.flag(rflags::IF) {
                cpu.state.shadow = InterruptShadow::Sti;
            }
            cpu.set_flags(rflags::IF, rflags::IF);
        }
        Authority::Virtual if cpu.flag(rflags::VIP) => return Err(Exception::GP0),
        Authority::Virtual => cpu.set_flags(rflags::VIF, rflags::VIF),
        Authority::None => return Err(Exception::GP0),
    }
    Ok(())
}

fn pushf<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    let image = if cpu.is_v86() && cpu.iopl() < 3 {
        if T::BYTES != 2 || cpu.state.cr4 & cr4::VME == 0 {
            return Err(Exception::GP0);
        }
        cpu.virtual_flags_image()
    } else {
        cpu.state.rflags & !(rflags::RF | rflags::VM)
    };
    cpu.push(T::from_u64(image))
}

/// The flags that POPF loads, of all widths.
const POPPED: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

fn popf<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.is_v86() && cpu.iopl() < 3 {
        return popf_virtual::<T>(cpu, insn);
    }
    let value = cpu.pop::<T>()?.to_u64();
    let mut loaded = POPPED;
    if cpu.state.cpl <= cpu.iopl() {
        loaded |= rflags::IF;
    }
    if cpu.state.cpl == 0 {
        loaded |= rflags::IOPL;
    }
    let before = cpu.state.rflags;
    cpu.set_flags(loaded & T::MASK, value);
    if T::BYTES > 2 {
        cpu.set_flags(rflags::RF, 0);
    }
    // IF and TF count from the next boundary on.
    cpu.break_block = true;
    if (before ^ cpu.state.rflags) & (rflags::IOPL | rflags::AC) != 0 {
        cpu.mode_changed();
    }
    Ok(())
}

/// In virtual-8086 mode with IOPL < 3 and VME: IF goes to VIF.
fn popf_virtual<T: Word>(cpu: &mut Cpu, _: &Insn) -> Exec {
    if T::BYTES != 2 || cpu.state.cr4 & cr4::VME == 0 {
        return Err(Exception::GP0);
    }
    let pointer = cpu.stack_pointer();
    let value = u64::from(cpu.read::<u16>(crate::state::seg::SS, pointer)?);
    let opens_with_pending = value & rflags::IF != 0 && cpu.flag(rflags::VIP);
    if opens_with_pending || value & rflags::TF != 0 {
        return Err(Exception::GP0);
    }
    cpu.set_stack_pointer(pointer.wrapping_add(2));
    cpu.set_flags(POPPED & 0xffff, value);
    let vif = if value & rflags::IF != 0 { rflags::VIF } else { 0 };
    cpu.set_flags(rflags::VIF, vif);
    cpu.mode_changed();
    Ok(())
}

fn stac(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(rflags::AC, rflags::AC);
    cpu.mode_changed();
    Ok(())
}

fn clac(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.set_flags(rflags::AC, 0);
    cpu.mode_changed();
    Ok(())
}

pub(crate) fn register(table: &mut Table) {
    table.both(Code::Cli, cli);
    table.both(Code::Sti, sti);
    table.both(Code::Pushfw, pushf::<u16>);
    table.both(Code::Pushfd, pushf::<u32>);
    table.both(Code::Pushfq, pushf::<u64>);
    table.both(Code::Popfw, popf::<u16>);
    table.both(Code::Popfd, popf::<u32>);
    table.both(Code::Popfq, popf::<u64>);
    table.both(Code::Stac, stac);
    table.both(Code::Clac, clac);
}
