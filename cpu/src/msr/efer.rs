//! IA32_EFER (SDM Vol. 3A, "Extended Feature Enable Register"; APM Vol. 2, "EFER").

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::state::{cr0, efer};

/// WRMSR to IA32_EFER. LMA is the processor's: what is written to it is ignored.
pub(super) fn write(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    let old = cpu.state.msrs.efer;
    let is_reserved = value & cpu.env.cpuid.efer_reserved() != 0;
    let toggles_lme = (value ^ old) & efer::LME != 0;
    if is_reserved || toggles_lme && cpu.state.cr0 & cr0::PG != 0 {
        return Err(Exception::GP0);
    }
    let new = value & !efer::LMA | old & efer::LMA;
    cpu.state.msrs.efer = new;
    // NXE makes bit 63 of every entry a right or a reserved bit.
    if (new ^ old) & efer::NXE != 0 {
        cpu.flush_translations();
    }
    cpu.mode_changed();
    Ok(())
}
