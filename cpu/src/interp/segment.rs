//! Segment registers and segment bases: MOV, PUSH, POP, LDS and its like, FSGSBASE, SWAPGS.
//!
//! Sources: SDM Vol. 2, "MOV", "POP", "LDS/LES/LFS/LGS/LSS", "RDFSBASE/RDGSBASE", "SWAPGS".

use iced_x86::Code;

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::{InterruptShadow, cr4, gpr, seg};

fn selector_of(cpu: &Cpu, register: u8) -> u64 {
    u64::from(cpu.state.segments[usize::from(register) % 6].selector)
}

/// A load of SS holds events back until the instruction behind it, which will load eSP.
fn load(cpu: &mut Cpu, register: u8, selector: u16) -> Exec {
    cpu.load_segment(usize::from(register), selector)?;
    if usize::from(register) == seg::SS {
        cpu.state.shadow = InterruptShadow::MovSs;
        cpu.break_block = true;
    }
    Ok(())
}

fn move_from<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = selector_of(cpu, insn.src);
    cpu.set_reg(insn.dst, T::from_u64(selector));
    Ok(())
}

/// A memory destination is 16 bits whatever the operand size is.
fn store_from(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = selector_of(cpu, insn.src) as u16;
    cpu.store(&insn.mem, selector)
}

fn move_to(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if usize::from(insn.dst) == seg::CS {
        return Err(Exception::UD);
    }
    load(cpu, insn.dst, cpu.reg(insn.src))
}

fn load_to(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if usize::from(insn.dst) == seg::CS {
        return Err(Exception::UD);
    }
    let selector = cpu.load(&insn.mem)?;
    load(cpu, insn.dst, selector)
}

fn push<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let selector = selector_of(cpu, insn.dst);
    cpu.push(T::from_u64(selector))
}

/// rSP moves in the width of the old stack, and goes back if the load faults.
fn pop<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let before = cpu.state.gpr[gpr::RSP];
    let selector = cpu.pop::<T>()?.to_u64() as u16;
    let loaded = load(cpu, insn.dst, selector);
    if loaded.is_err() {
        cpu.state.gpr[gpr::RSP] = before;
    }
    loaded
}

/// The offset goes to the register only once the segment is loaded.
fn load_far<T: Word, const SEGMENT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (offset, selector) = cpu.load_far_pointer::<T>(insn)?;
    cpu.load_segment(SEGMENT, selector)?;
    cpu.set_reg(insn.dst, offset);
    Ok(())
}

impl Cpu {
    /// Reads a far pointer in memory: an offset of `T`'s width, then a selector.
    pub(crate) fn load_far_pointer<T: Word>(&mut self, insn: &Insn) -> Exec<(T, u16)> {
        let at = self.effective_address(&insn.mem);
        let segment = usize::from(insn.mem.segment);
        let offset = self.read(segment, at)?;
        let mask = u64::MAX >> (64 - 8 * u32::from(insn.mem.address_size));
        let selector = self.read(segment, at.wrapping_add(T::BYTES) & mask)?;
        Ok((offset, selector))
    }

    fn check_fsgsbase(&self) -> Exec {
        if self.state.cr4 & cr4::FSGSBASE == 0 { Err(Exception::UD) } else { Ok(()) }
    }
}

fn read_base<T: Word, const SEGMENT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_fsgsbase()?;
    let base = cpu.state.segments[SEGMENT].base;
    cpu.set_reg(insn.dst, T::from_u64(base));
    Ok(())
}

fn write_base<T: Word, const SEGMENT: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_fsgsbase()?;
    let base = cpu.reg::<T>(insn.dst).to_u64();
    if !cpu.mode.is_canonical(base) {
        return Err(Exception::GP0);
    }
    cpu.state.segments[SEGMENT].base = base;
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Insn) -> Exec {
    let state = &mut cpu.state;
    std::mem::swap(&mut state.segments[seg::GS].base, &mut state.msrs.kernel_gs_base);
    Ok(())
}

#[rustfmt::skip]
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.forms(Mov_rm16_Sreg,    move_from::<u16>, store_from);
    table.forms(Mov_r32m16_Sreg,  move_from::<u32>, store_from);
    table.forms(Mov_r64m16_Sreg,  move_from::<u64>, store_from);
    for code in [Mov_Sreg_rm16, Mov_Sreg_r32m16, Mov_Sreg_r64m16] {
        table.forms(code, move_to, load_to);
    }
    for code in [Pushw_ES, Pushw_CS, Pushw_SS, Pushw_DS, Pushw_FS, Pushw_GS] {
        table.both(code, push::<u16>);
    }
    for code in [Pushd_ES, Pushd_CS, Pushd_SS, Pushd_DS, Pushd_FS, Pushd_GS] {
        table.both(code, push::<u32>);
    }
    for code in [Popw_ES, Popw_SS, Popw_DS, Popw_FS, Popw_GS] {
        table.both(code, pop::<u16>);
    }
    for code in [Popd_ES, Popd_SS, Popd_DS, Popd_FS, Popd_GS] {
        table.both(code, pop::<u32>);
    }
    for code in [Pushq_FS, Pushq_GS] {
        table.both(code, push::<u64>);
    }
    for code in [Popq_FS, Popq_GS] {
        table.both(code, pop::<u64>);
    }
    table.both(Lds_r16_m1616, load_far::<u16, { seg::DS }>);
    table.both(Lds_r32_m1632, load_far::<u32, { seg::DS }>);
    table.both(Les_r16_m1616, load_far::<u16, { seg::ES }>);
    table.both(Les_r32_m1632, load_far::<u32, { seg::ES }>);
    table.both(Lfs_r16_m1616, load_far::<u16, { seg::FS }>);
    table.both(Lfs_r32_m1632, load_far::<u32, { seg::FS }>);
    table.both(Lfs_r64_m1664, load_far::<u64, { seg::FS }>);
    table.both(Lgs_r16_m1616, load_far::<u16, { seg::GS }>);
    table.both(Lgs_r32_m1632, load_far::<u32, { seg::GS }>);
    table.both(Lgs_r64_m1664, load_far::<u64, { seg::GS }>);
    table.both(Lss_r16_m1616, load_far::<u16, { seg::SS }>);
    table.both(Lss_r32_m1632, load_far::<u32, { seg::SS }>);
    table.both(Lss_r64_m1664, load_far::<u64, { seg::SS }>);
    table.both(Rdfsbase_r32,  read_base::<u32, { seg::FS }>);
    table.both(Rdfsbase_r64,  read_base::<u64, { seg::FS }>);
    table.both(Rdgsbase_r32,  read_base::<u32, { seg::GS }>);
    table.both(Rdgsbase_r64,  read_base::<u64, { seg::GS }>);
    table.both(Wrfsbase_r32,  write_base::<u32, { seg::FS }>);
    table.both(Wrfsbase_r64,  write_base::<u64, { seg::FS }>);
    table.both(Wrgsbase_r32,  write_base::<u32, { seg::GS }>);
    table.both(Wrgsbase_r64,  write_base::<u64, { seg::GS }>);
    table.both(Swapgs,        swapgs);
}
