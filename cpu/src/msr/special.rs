//! MSRs that are more than storage: reads that are computed, writes that do something.

use crate::Cpu;
use crate::exception::{Exception, Exec};
use crate::msr::MC_BANKS;

fn require(condition: bool) -> Exec {
    if condition { Ok(()) } else { Err(Exception::GP0) }
}

pub(super) fn is_canonical(cpu: &Cpu, _: u32, value: u64) -> bool {
    cpu.is_canonical_base(value)
}

/// True if no bit of `value` is above MAXPHYADDR.
fn is_physical(cpu: &Cpu, value: u64) -> bool {
    value & cpu.env.cpuid.reserved_physical() == 0
}

pub(super) fn is_mtrr_fixed(_: &Cpu, _: u32, value: u64) -> bool {
    super::mtrr::are_memory_types(value)
}

pub(super) fn is_pat(_: &Cpu, _: u32, value: u64) -> bool {
    super::mtrr::are_pat_types(value)
}

pub(super) fn is_mtrr_default(_: &Cpu, _: u32, value: u64) -> bool {
    super::mtrr::is_memory_type(value & 0xff)
}

/// IA32_MTRR_PHYSBASEn have even numbers, the masks odd ones.
pub(super) fn is_mtrr_variable(cpu: &Cpu, number: u32, value: u64) -> bool {
    let is_valid = if number & 1 == 0 {
        value & 0xf00 == 0 && super::mtrr::is_memory_type(value & 0xff)
    } else {
        value & 0x7ff == 0
    };
    is_valid && is_physical(cpu, value)
}

/// IA32_MCG_CTL: the switches go all together here.
pub(super) fn is_all_or_nothing(_: &Cpu, _: u32, value: u64) -> bool {
    value == 0 || value == u64::MAX
}

/// IA32_MCi_CTL: all or nothing too, but for the two switches that systems are known to turn off on
/// whatever processor they find: GART table walk errors (bank 4 bit 10), by Linux on every AMD of
/// family 15, and corrected errors (bit 0), by UnixWare. KVM accepts the same.
fn is_mc_control(value: u64) -> bool {
    const LEFT_TO_THE_GUEST: u64 = 1 << 10 | 1;
    value == 0 || value | LEFT_TO_THE_GUEST == u64::MAX
}

/// True for the numbers of IA32_MCi_STATUS, which takes only zero (SDM Vol. 3B, "IA32_MCi_STATUS
/// MSRS"); IA32_MCi_CTL, _ADDR and _MISC lie around it.
pub(super) fn is_mc_bank(_: &Cpu, number: u32, value: u64) -> bool {
    match number & 3 {
        0 => is_mc_control(value),
        1 => value == 0,
        _ => true,
    }
}

/// The value that IA32_MCG_CAP has: MCG_CTL_P and the number of banks.
pub(super) fn mcg_cap(_: &Cpu, _: u32) -> u64 {
    1 << 8 | MC_BANKS as u64
}

pub(super) fn mtrr_cap(_: &Cpu, _: u32) -> u64 {
    super::mtrr::MTRRCAP
}

/// OSVW_ID_LENGTH: how many errata OSVW_STATUS tells of, all that AMD has numbered. A guest that
/// finds fewer judges by family and model, and idles as on a processor with erratum 400.
pub(super) fn osvw_id_length(_: &Cpu, _: u32) -> u64 {
    const NUMBERED_ERRATA: u64 = 5;
    NUMBERED_ERRATA
}

pub(super) fn zero(_: &Cpu, _: u32) -> u64 {
    0
}

/// IA32_BIOS_SIGN_ID: a microcode revision in the upper half on Intel, in the lower on AMD.
pub(super) fn microcode_revision(cpu: &Cpu, _: u32) -> u64 {
    match cpu.env.cpuid.vendor() {
        decoder::Vendor::Intel => 1 << 32,
        decoder::Vendor::Amd => 0x0100_0065,
    }
}

/// MSR_PLATFORM_INFO: the ratio of the TSC to a 100 MHz bus, in bits 15 to 8.
pub(super) fn platform_info(cpu: &Cpu, _: u32) -> u64 {
    ((cpu.env.cpuid.tsc_hz() / 100_000_000) & 0xff) << 8
}

pub(super) fn ignore(_: &mut Cpu, _: u32, _: u64) -> Exec {
    Ok(())
}

pub(super) fn read_tsc(cpu: &Cpu, _: u32) -> u64 {
    cpu.tsc()
}

/// WRMSR to IA32_TIME_STAMP_COUNTER moves IA32_TSC_ADJUST by as much (SDM Vol. 3B, "Time-Stamp
/// Counter Adjustment").
pub(super) fn write_tsc(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    let offset = value.wrapping_sub(cpu.machine_tsc());
    let moved = offset.wrapping_sub(cpu.state.msrs.tsc_offset);
    cpu.state.msrs.tsc_adjust = cpu.state.msrs.tsc_adjust.wrapping_add(moved);
    cpu.set_tsc_offset(offset);
    Ok(())
}

pub(super) fn read_tsc_adjust(cpu: &Cpu, _: u32) -> u64 {
    cpu.state.msrs.tsc_adjust
}

/// WRMSR to IA32_TSC_ADJUST moves the TSC by as much.
pub(super) fn write_tsc_adjust(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    let moved = value.wrapping_sub(cpu.state.msrs.tsc_adjust);
    cpu.state.msrs.tsc_adjust = value;
    cpu.set_tsc_offset(cpu.state.msrs.tsc_offset.wrapping_add(moved));
    Ok(())
}

impl Cpu {
    fn set_tsc_offset(&mut self, offset: u64) {
        self.state.msrs.tsc_offset = offset;
        self.env.lapic.set_tsc_offset(offset);
        self.publish_clock();
        self.break_block = true;
    }
}

pub(super) fn read_apic_base(cpu: &Cpu, _: u32) -> u64 {
    cpu.env.lapic.base()
}

pub(super) fn write_apic_base(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    cpu.sync_pv_eoi();
    require(is_physical(cpu, value) && cpu.set_apic_base(value))?;
    Ok(())
}

pub(super) fn read_tsc_deadline(cpu: &Cpu, _: u32) -> u64 {
    cpu.env.lapic.tsc_deadline()
}

pub(super) fn write_tsc_deadline(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    cpu.env.lapic.set_tsc_deadline(value);
    cpu.break_block = true;
    Ok(())
}

pub(super) fn write_x2apic(cpu: &mut Cpu, number: u32, value: u64) -> Exec {
    cpu.sync_pv_eoi();
    // The write may have raised an interrupt of this CPU's own.
    cpu.break_block = true;
    require(cpu.env.lapic.msr_write(number, value))
}

/// What a segment base, PKRS or the like changes for decoded code and cached translations.
pub(super) fn translations_changed(cpu: &mut Cpu) {
    cpu.flush_translations();
}
