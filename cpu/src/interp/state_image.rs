//! FXSAVE and FXRSTOR, MXCSR, and WAIT.
//!
//! Source: SDM Vol. 2, "FXSAVE", "FXRSTOR", "LDMXCSR"; APM Vol. 2, "Fast FXSAVE/FXRSTOR" (FFXSR).

use iced_x86::Code;

use super::dispatch::Table;
use super::insn::Insn;
use super::xsave::is_wide;
use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::fpu::{FOP_BITS, FSW_ES, FpuState, fxsave, get, put};
use crate::mmu::Access;
use crate::state::{cr0, efer};

#[rustfmt::skip]
pub(super) fn register(table: &mut Table) {
    table.both(Code::Fxsave_m512byte,    fxsave);
    table.both(Code::Fxsave64_m512byte,  fxsave);
    table.both(Code::Fxrstor_m512byte,   fxrstor);
    table.both(Code::Fxrstor64_m512byte, fxrstor);
    table.both(Code::Ldmxcsr_m32,        ldmxcsr);
    table.both(Code::VEX_Vldmxcsr_m32,   ldmxcsr);
    table.both(Code::Stmxcsr_m32,        stmxcsr);
    table.both(Code::VEX_Vstmxcsr_m32,   stmxcsr);
    table.both(Code::Wait,               wait);
}

fn ldmxcsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let mxcsr = cpu.load::<u32>(&insn.mem)?;
    cpu.check_mxcsr(mxcsr)?;
    cpu.state.fpu.mxcsr = mxcsr;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.store::<u32>(&insn.mem, cpu.state.fpu.mxcsr)
}

/// WAIT and FWAIT: TS counts only together with MP.
fn wait(cpu: &mut Cpu, _: &Insn) -> Exec {
    if cpu.state.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(Exception::NM);
    }
    cpu.x87_may_proceed().map(|_| ())
}

fn fxsave(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (segment, offset) = cpu.fxsave_area(insn, Access::Write)?;
    let mut image = [0; fxsave::BYTES];
    cpu.write_image(&mut image, is_wide(insn));
    // What lies behind the registers of the mode is left as it is.
    let registers = if cpu.is_fast_fxsave() { 0 } else { cpu.xmm_count() };
    cpu.write_bytes(segment, offset, &image[..fxsave::XMM + 16 * registers])
}

fn fxrstor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (segment, offset) = cpu.fxsave_area(insn, Access::Read)?;
    let mut image = [0; fxsave::BYTES];
    cpu.read_bytes(segment, offset, &mut image)?;
    let mxcsr = u32::from_le_bytes(get(&image, fxsave::MXCSR));
    cpu.check_mxcsr(mxcsr)?;
    cpu.state.fpu.mxcsr = mxcsr;
    cpu.read_image_x87(&image, is_wide(insn));
    if !cpu.is_fast_fxsave() {
        cpu.read_image_xmm(&image);
    }
    Ok(())
}

impl Cpu {
    /// The gates of FXSAVE and FXRSTOR and where their image is; it is checked as a whole.
    fn fxsave_area(&mut self, insn: &Insn, access: Access) -> Exec<(usize, u64)> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::NM);
        }
        let (segment, offset) = (usize::from(insn.mem.segment), self.effective_address(&insn.mem));
        let linear = self.linear(segment, offset, fxsave::BYTES as u64, access)?;
        if linear & 15 != 0 {
            return Err(Exception::GP0);
        }
        self.check_access(segment, offset, fxsave::BYTES as u64, access)?;
        Ok((segment, offset))
    }

    /// EFER.FFXSR: in 64-bit mode at CPL 0, XMM registers stay out of FXSAVE and FXRSTOR.
    fn is_fast_fxsave(&self) -> bool {
        self.state.msrs.efer & efer::FFXSR != 0 && self.mode.is_64() && self.mode.cpl == 0
    }

    /// How many XMM registers the mode has.
    pub(super) fn xmm_count(&self) -> usize {
        if self.mode.is_64() { 16 } else { 8 }
    }

    /// #GP(0) if `mxcsr` has bits that do not exist.
    pub(super) fn check_mxcsr(&self, mxcsr: u32) -> Exec {
        if mxcsr & !self.native.mxcsr_mask() != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    /// Writes the whole FXSAVE image; `is_wide` is for 64-bit pointers.
    pub(super) fn write_image(&self, image: &mut [u8; fxsave::BYTES], is_wide: bool) {
        let fpu = &self.state.fpu;
        fpu.write_x87(image);
        if self.native.pointers().are_always_saved || fpu.fsw & FSW_ES != 0 {
            self.write_pointers(image, is_wide);
        }
        fpu.write_sse(image);
        put(image, fxsave::MXCSR_MASK, self.native.mxcsr_mask().to_le_bytes());
    }

    fn write_pointers(&self, image: &mut [u8; fxsave::BYTES], is_wide: bool) {
        let fpu = &self.state.fpu;
        if is_wide {
            return fpu.write_wide_pointers(image);
        }
        put(image, fxsave::FOP, fpu.fop.to_le_bytes());
        put(image, fxsave::FIP, (fpu.fip as u32).to_le_bytes());
        put(image, fxsave::FDP, (fpu.fdp as u32).to_le_bytes());
        if self.native.pointers().have_selectors {
            put(image, fxsave::FIP + 4, fpu.fcs.to_le_bytes());
            put(image, fxsave::FDP + 4, fpu.fds.to_le_bytes());
        }
    }

    /// Takes over the x87 part of an FXSAVE image.
    pub(super) fn read_image_x87(&mut self, image: &[u8; fxsave::BYTES], is_wide: bool) {
        let rules = self.native.pointers();
        self.change_x87(|fpu| {
            fpu.read_x87(image);
            fpu.summarize_exceptions();
            if rules.are_always_saved || fpu.fsw & FSW_ES != 0 {
                read_pointers(fpu, image, is_wide);
            }
        });
    }

    /// Takes over the XMM registers of an FXSAVE image, those that the mode has.
    pub(super) fn read_image_xmm(&mut self, image: &[u8; fxsave::BYTES]) {
        let count = self.xmm_count();
        self.state.fpu.read_xmm(image, count);
    }
}

fn read_pointers(fpu: &mut FpuState, image: &[u8; fxsave::BYTES], is_wide: bool) {
    if is_wide {
        return fpu.read_wide_pointers(image);
    }
    fpu.fop = u16::from_le_bytes(get(image, fxsave::FOP)) & FOP_BITS;
    fpu.fip = u64::from(u32::from_le_bytes(get(image, fxsave::FIP)));
    fpu.fdp = u64::from(u32::from_le_bytes(get(image, fxsave::FDP)));
    fpu.fcs = u16::from_le_bytes(get(image, fxsave::FIP + 4));
    fpu.fds = u16::from_le_bytes(get(image, fxsave::FDP + 4));
}
