//! CR0, CR2, CR3, CR4 and CR8: MOV, SMSW, LMSW, CLTS, and what a change of each bit entails.
//!
//! Sources: SDM Vol. 2B, "MOV-Move to/from Control Registers"; SDM Vol. 3A, "Control Registers",
//! "Mode Switching", "Operations that Invalidate TLBs and Paging-Structure Caches".

use decoder::Feature as Gate;
use iced_x86::Code;

use crate::Cpu;
use crate::cpuid::{CpuidPolicy, Feature};
use crate::debugger::Caught;
use crate::exception::{Exception, Exec};
use crate::flags::Word;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mmu::Flush;
use crate::state::{attr, cr0, cr4, efer, seg};

/// Every CR0 bit that exists; the reserved ones below bit 32 read as zero and ignore writes.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// With PAE paging a change of any of these loads the PDPTE registers.
const CR0_LOADS_PDPTES: u64 = cr0::PG | cr0::CD | cr0::NW;
const CR4_LOADS_PDPTES: u64 = cr4::PGE | cr4::PSE | cr4::PAE | cr4::SMEP;
/// A change of any of these drops every translation. The architecture asks for it at PG, PGE,
/// PCIDE (falling), SMEP (rising) and what changes the paging mode; the others decide about rights,
/// which our translations remember.
const CR0_FLUSHES: u64 = cr0::PG | cr0::WP | cr0::PE;
const CR4_FLUSHES: u64 = cr4::PSE
    | cr4::PAE
    | cr4::PGE
    | cr4::LA57
    | cr4::PCIDE
    | cr4::SMEP
    | cr4::SMAP
    | cr4::PKE
    | cr4::PKS;
/// CR3 bit 63 with CR4.PCIDE: keep the translations. Never stored.
const CR3_KEEP: u64 = 1 << 63;

/// What CPUID must offer for a CR4 bit to exist.
enum Needs {
    Nothing,
    Instructions(Gate),
    Feature(Feature),
}

#[rustfmt::skip]
const CR4_BITS: [(u64, Needs); 20] = [
    (cr4::VME,        Needs::Feature(Feature::Vme)),
    (cr4::PVI,        Needs::Feature(Feature::Vme)),
    (cr4::TSD,        Needs::Nothing),
    (cr4::DE,         Needs::Feature(Feature::De)),
    (cr4::PSE,        Needs::Feature(Feature::Pse)),
    (cr4::PAE,        Needs::Feature(Feature::Pae)),
    (cr4::MCE,        Needs::Feature(Feature::Mce)),
    (cr4::PGE,        Needs::Feature(Feature::Pge)),
    (cr4::PCE,        Needs::Nothing),
    (cr4::OSFXSR,     Needs::Instructions(Gate::Fxsr)),
    (cr4::OSXMMEXCPT, Needs::Instructions(Gate::Sse)),
    (cr4::UMIP,       Needs::Feature(Feature::Umip)),
    (cr4::LA57,       Needs::Feature(Feature::La57)),
    (cr4::FSGSBASE,   Needs::Instructions(Gate::Fsgsbase)),
    (cr4::PCIDE,      Needs::Feature(Feature::Pcid)),
    (cr4::OSXSAVE,    Needs::Instructions(Gate::Xsave)),
    (cr4::SMEP,       Needs::Feature(Feature::Smep)),
    (cr4::SMAP,       Needs::Instructions(Gate::Smap)),
    (cr4::PKE,        Needs::Instructions(Gate::Pku)),
    (cr4::PKS,        Needs::Feature(Feature::Pks)),
];

/// The CR4 bits that a processor with these features has.
pub(crate) fn cr4_bits(policy: &CpuidPolicy) -> u64 {
    let exists = |needs: &Needs| match needs {
        Needs::Nothing => true,
        Needs::Instructions(gate) => policy.features().contains(*gate),
        Needs::Feature(feature) => policy.has(*feature),
    };
    CR4_BITS.iter().filter(|(_, needs)| exists(needs)).fold(0, |bits, (bit, _)| bits | bit)
}

impl Cpu {
    /// Control register `number`, if it exists.
    pub fn control_register(&self, number: u8) -> Option<u64> {
        Some(match number {
            0 => self.state.cr0,
            2 => self.state.cr2,
            3 => self.state.cr3,
            4 => self.state.cr4,
            8 => u64::from(self.env.lapic.cr8()),
            _ => return None,
        })
    }

    /// Replaces a control register with all consequences and the checks of MOV.
    pub fn set_control_register(&mut self, number: u8, value: u64) -> Exec {
        self.break_block = true;
        match number {
            0 => self.write_cr0(value),
            2 => {
                self.state.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value > 0xf => Err(Exception::GP0),
            8 => {
                self.env.lapic.set_cr8(value as u8);
                self.record_control(8, value);
                Ok(())
            }
            _ => Err(Exception::UD),
        }
    }

    /// MOV CR0 with all its consequences.
    pub(crate) fn write_cr0(&mut self, value: u64) -> Exec {
        let old = self.state.cr0;
        let new = value & CR0_BITS | cr0::ET;
        let is_consistent = value >> 32 == 0
            && (new & cr0::PG == 0 || new & cr0::PE != 0)
            && (new & cr0::NW == 0 || new & cr0::CD != 0);
        if !is_consistent {
            return Err(Exception::GP0);
        }
        let changed = old ^ new;
        if changed & cr0::PG != 0 {
            self.check_paging_switch(new)?;
        }
        let is_long = self.state.msrs.efer & efer::LME != 0;
        let has_pdptes = new & cr0::PG != 0 && self.state.cr4 & cr4::PAE != 0 && !is_long;
        if has_pdptes && changed & CR0_LOADS_PDPTES != 0 {
            self.load_pdptes(self.state.cr3)?;
        }
        // Nothing faults from here on.
        self.state.cr0 = new;
        self.record_control(0, new);
        if new & cr0::PE == 0 {
            self.state.cpl = 0;
        }
        self.update_long_mode_active();
        if changed & CR0_FLUSHES != 0 {
            self.flush_translations();
        }
        self.mode_changed();
        Ok(())
    }

    /// Whether CR0.PG may change as things are (SDM Vol. 3A, "Initializing IA-32e Mode").
    fn check_paging_switch(&self, new: u64) -> Exec {
        let state = &self.state;
        let cs_is_long = state.segments[seg::CS].has(attr::L);
        let is_allowed = if new & cr0::PG == 0 {
            !(self.mode.is_long() && cs_is_long) && state.cr4 & cr4::PCIDE == 0
        } else if state.msrs.efer & efer::LME != 0 {
            let tr_is_wide = state.tr.attributes & 8 != 0;
            state.cr4 & cr4::PAE != 0 && !cs_is_long && tr_is_wide
        } else {
            true
        };
        if is_allowed { Ok(()) } else { Err(Exception::GP0) }
    }

    /// EFER.LMA is EFER.LME and CR0.PG.
    pub(crate) fn update_long_mode_active(&mut self) {
        let is_paging = self.state.cr0 & cr0::PG != 0;
        let registers = &mut self.state.msrs;
        if is_paging && registers.efer & efer::LME != 0 {
            registers.efer |= efer::LMA;
        } else {
            registers.efer &= !efer::LMA;
        }
    }

    /// MOV CR3.
    pub(crate) fn write_cr3(&mut self, value: u64) -> Exec {
        let has_pcids = self.state.cr4 & cr4::PCIDE != 0;
        let new = if has_pcids { value & !CR3_KEEP } else { value };
        if self.mode.is_long() {
            let reserved = self.mmu_limits.reserved_physical | 0xfff0_0000_0000_0000;
            if new & reserved != 0 {
                return Err(Exception::GP0);
            }
        } else if self.state.cr0 & cr0::PG != 0 && self.state.cr4 & cr4::PAE != 0 {
            self.load_pdptes(new)?;
        }
        self.state.cr3 = new;
        self.record_control(3, new);
        if has_pcids && value & CR3_KEEP != 0 {
            self.keep_pcid();
        } else {
            self.flush(Flush::Pcid(if has_pcids { value as u16 & 0xfff } else { 0 }));
        }
        Ok(())
    }

    /// MOV CR4.
    pub(crate) fn write_cr4(&mut self, value: u64) -> Exec {
        if value & !cr4_bits(&self.env.cpuid) != 0 {
            return Err(Exception::GP0);
        }
        let old = self.state.cr4;
        let changed = old ^ value;
        let is_long = self.mode.is_long();
        let rises = |bit: u64| changed & value & bit != 0;
        let changes_walk = value & cr4::PAE == 0 || changed & cr4::LA57 != 0;
        let is_forbidden = is_long && changes_walk
            || rises(cr4::PCIDE) && (!is_long || self.state.cr3 & 0xfff != 0);
        if is_forbidden {
            return Err(Exception::GP0);
        }
        let has_pdptes = self.state.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !is_long;
        if has_pdptes && changed & CR4_LOADS_PDPTES != 0 {
            self.load_pdptes(self.state.cr3)?;
        }
        // Nothing faults from here on.
        self.state.cr4 = value;
        self.record_control(4, value);
        if changed & CR4_FLUSHES != 0 {
            self.flush_translations();
        }
        self.mode_changed();
        Ok(())
    }
}

fn move_from<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.control_register(insn.src).ok_or(Exception::UD)?;
    cpu.set_reg(insn.dst, T::from_u64(value));
    Ok(())
}

fn move_to<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let value = cpu.reg::<T>(insn.src).to_u64();
    let old = cpu.state.cr3;
    cpu.set_control_register(insn.dst, value)?;
    if insn.dst == 3 {
        let new = cpu.state.cr3;
        cpu.catch(|| Caught::Cr3 { old, new });
    }
    Ok(())
}

fn smsw<T: Word>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, T::from_u64(cpu.state.cr0));
    Ok(())
}

fn smsw_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let word = cpu.state.cr0 as u16;
    cpu.store(&insn.mem, word)
}

/// LMSW loads PE, MP, EM and TS, and cannot clear PE.
fn load_machine_status(cpu: &mut Cpu, word: u16) -> Exec {
    const LOADED: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let old = cpu.state.cr0;
    cpu.write_cr0(old & (!LOADED | cr0::PE) | u64::from(word) & LOADED)
}

fn lmsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    load_machine_status(cpu, cpu.reg(insn.dst))
}

fn lmsw_memory(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let word = cpu.load(&insn.mem)?;
    load_machine_status(cpu, word)
}

fn clts(cpu: &mut Cpu, _: &Insn) -> Exec {
    cpu.state.cr0 &= !cr0::TS;
    cpu.mode_changed();
    Ok(())
}

#[rustfmt::skip]
pub(crate) fn register(table: &mut Table) {
    use Code::*;
    table.both(Mov_r32_cr, move_from::<u32>);
    table.both(Mov_r64_cr, move_from::<u64>);
    table.both(Mov_cr_r32, move_to::<u32>);
    table.both(Mov_cr_r64, move_to::<u64>);
    table.forms(Smsw_rm16,   smsw::<u16>, smsw_memory);
    table.forms(Smsw_r32m16, smsw::<u32>, smsw_memory);
    table.forms(Smsw_r64m16, smsw::<u64>, smsw_memory);
    for code in [Lmsw_rm16, Lmsw_r32m16, Lmsw_r64m16] {
        table.forms(code, lmsw, lmsw_memory);
    }
    table.both(Clts, clts);
}
