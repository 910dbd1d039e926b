//! The table of MSRs: number, name, presence, storage, and what may be written.
//!
//! Sources: SDM Vol. 4, "Architectural MSRs"; APM Vol. 2, "MSR Cross-Reference"; Linux,
//! Documentation/virt/kvm/x86/msr.rst. Where nothing is said, a register is as KVM has it for its
//! guests.
//!
//! Known departures from hardware: of IA32_MISC_ENABLE only bit 0 means anything; there are no
//! performance counters, no branch records, and no speculation controls.

use decoder::{Feature as I, Vendor};

use super::special as s;
use super::{MC_BANKS, efer, mtrr};
use crate::Cpu;
use crate::cpuid::Feature as S;
use crate::exception::{Exception, Exec};
use crate::pv;
use crate::state::{State, seg};

/// When a register exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Always.
    Always,
    /// With a feature that gates no instruction.
    System(S),
    /// With a feature that gates instructions.
    Instructions(I),
    /// With either of two.
    Either(I, I),
    /// On processors of one vendor.
    Vendor(Vendor),
}

type Slot = fn(&mut State, u32) -> Option<&mut u64>;

#[derive(Clone, Copy)]
enum Kind {
    /// A value that stays as it was written.
    Stored {
        slot: Slot,
        /// #GP if any of these is set.
        reserved: u64,
        /// Writes leave these as they are.
        ignored: u64,
        /// #GP if this says no to the value.
        accepts: fn(&Cpu, u32, u64) -> bool,
        /// What a changed value calls for.
        after: fn(&mut Cpu),
    },
    /// #GP if written.
    ReadOnly { read: fn(&Cpu, u32) -> u64 },
    /// Both directions are functions.
    Special { read: fn(&Cpu, u32) -> u64, write: fn(&mut Cpu, u32, u64) -> Exec },
    /// 800H to 8FFH: the local APIC's own.
    X2apic,
}

/// One register, or a run of them.
#[derive(Clone, Copy)]
pub struct Row {
    /// The number of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The manual's name.
    pub name: &'static str,
    /// When it exists.
    pub gate: Gate,
    kind: Kind,
}

impl Row {
    const fn new(first: u32, name: &'static str, kind: Kind) -> Self {
        Self { first, count: 1, name, gate: Gate::Always, kind }
    }
    const fn many(mut self, count: u32) -> Self {
        self.count = count;
        self
    }
    const fn with(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }
    const fn reserved(mut self, bits: u64) -> Self {
        if let Kind::Stored { reserved, .. } = &mut self.kind {
            *reserved = bits;
        }
        self
    }
    const fn ignored(mut self, bits: u64) -> Self {
        if let Kind::Stored { ignored, .. } = &mut self.kind {
            *ignored = bits;
        }
        self
    }
    const fn accepts(mut self, check: fn(&Cpu, u32, u64) -> bool) -> Self {
        if let Kind::Stored { accepts, .. } = &mut self.kind {
            *accepts = check;
        }
        self
    }
    const fn after(mut self, effect: fn(&mut Cpu)) -> Self {
        if let Kind::Stored { after, .. } = &mut self.kind {
            *after = effect;
        }
        self
    }
    /// Bits of which a write is #GP, where the register is mere storage.
    pub const fn reserved_bits(&self) -> Option<u64> {
        match self.kind {
            Kind::Stored { reserved, .. } => Some(reserved),
            _ => None,
        }
    }
    /// Bits that a write leaves alone, where the register is mere storage.
    pub const fn ignored_bits(&self) -> Option<u64> {
        match self.kind {
            Kind::Stored { ignored, .. } => Some(ignored),
            _ => None,
        }
    }
    /// True if every write is #GP.
    pub const fn is_read_only(&self) -> bool {
        matches!(self.kind, Kind::ReadOnly { .. })
    }
}

const fn stored(first: u32, name: &'static str, slot: Slot) -> Row {
    let kind =
        Kind::Stored { slot, reserved: 0, ignored: 0, accepts: |_, _, _| true, after: |_| () };
    Row::new(first, name, kind)
}
const fn fixed(first: u32, name: &'static str, read: fn(&Cpu, u32) -> u64) -> Row {
    Row::new(first, name, Kind::ReadOnly { read })
}
const fn special(
    first: u32,
    name: &'static str,
    read: fn(&Cpu, u32) -> u64,
    write: fn(&mut Cpu, u32, u64) -> Exec,
) -> Row {
    Row::new(first, name, Kind::Special { read, write })
}

const LONG: Gate = Gate::Instructions(I::Lm);
const AMD: Gate = Gate::Vendor(Vendor::Amd);
const OSVW: Gate = Gate::System(S::Osvw);
const INTEL: Gate = Gate::Vendor(Vendor::Intel);
const HIGH_HALF: u64 = 0xffff_ffff_0000_0000;

/// IA32_MISC_ENABLE: fast strings, thermal control, performance monitoring (read-only), branch
/// trace and event sampling unavailable (read-only), SpeedStep, MONITOR, CPUID limit, xTPR, XD.
const MISC_ENABLE_READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12;
const MISC_ENABLE_BITS: u64 =
    1 | 1 << 3 | MISC_ENABLE_READ_ONLY | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// HWCR bits that systems write and that mean nothing here: SMMLOCK, TLBCACHEDIS, FFDIS, IGNNE.
const HWCR_WITHOUT_EFFECT: u64 = 1 | 1 << 3 | 1 << 6 | 1 << 8;
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// IA32_DEBUGCTL.BTF: single-step on branches.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// DE_CFG: LFENCE is serializing.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// Every register there is, by number.
pub static MSRS: &[Row] = &[
    fixed(0x0000_0000, "IA32_P5_MC_ADDR", s::zero).many(2),
    special(0x0000_0010, "IA32_TIME_STAMP_COUNTER", s::read_tsc, s::write_tsc)
        .with(Gate::Instructions(I::Tsc)),
    stored(0x0000_0011, "KVM_WALL_CLOCK", |st, _| Some(&mut st.msrs.kvm.wall_clock))
        .after(pv::wall_clock_written)
        .with(Gate::System(S::KvmClock)),
    stored(0x0000_0012, "KVM_SYSTEM_TIME", |st, _| Some(&mut st.msrs.kvm.system_time))
        .after(pv::system_time_written)
        .with(Gate::System(S::KvmClock)),
    fixed(0x0000_0017, "IA32_PLATFORM_ID", s::zero).with(INTEL),
    special(0x0000_001b, "IA32_APIC_BASE", s::read_apic_base, s::write_apic_base)
        .with(Gate::System(S::Apic)),
    fixed(0x0000_002a, "MSR_EBL_CR_POWERON", s::zero).with(INTEL),
    special(0x0000_003b, "IA32_TSC_ADJUST", s::read_tsc_adjust, s::write_tsc_adjust)
        .with(Gate::System(S::TscAdjust)),
    special(0x0000_0079, "IA32_BIOS_UPDT_TRIG", s::zero, s::ignore).with(INTEL),
    special(0x0000_008b, "IA32_BIOS_SIGN_ID", s::microcode_revision, s::ignore),
    fixed(0x0000_00ce, "MSR_PLATFORM_INFO", s::platform_info).with(INTEL),
    fixed(0x0000_00fe, "IA32_MTRRCAP", s::mtrr_cap).with(Gate::System(S::Mtrr)),
    stored(0x0000_0174, "IA32_SYSENTER_CS", |st, _| Some(&mut st.msrs.sysenter_cs))
        .with(Gate::Instructions(I::Sep)),
    stored(0x0000_0175, "IA32_SYSENTER_ESP", |st, _| Some(&mut st.msrs.sysenter_esp))
        .accepts(s::is_canonical)
        .with(Gate::Instructions(I::Sep)),
    stored(0x0000_0176, "IA32_SYSENTER_EIP", |st, _| Some(&mut st.msrs.sysenter_eip))
        .accepts(s::is_canonical)
        .with(Gate::Instructions(I::Sep)),
    fixed(0x0000_0179, "IA32_MCG_CAP", s::mcg_cap).with(Gate::System(S::Mca)),
    stored(0x0000_017a, "IA32_MCG_STATUS", |st, _| Some(&mut st.msrs.mcg_status))
        .reserved(!7)
        .with(Gate::System(S::Mca)),
    stored(0x0000_017b, "IA32_MCG_CTL", |st, _| Some(&mut st.msrs.mcg_ctl))
        .accepts(s::is_all_or_nothing)
        .with(Gate::System(S::Mca)),
    stored(0x0000_01a0, "IA32_MISC_ENABLE", |st, _| Some(&mut st.msrs.misc_enable))
        .reserved(!MISC_ENABLE_BITS)
        .ignored(MISC_ENABLE_READ_ONLY),
    stored(0x0000_01d9, "IA32_DEBUGCTL", |st, _| Some(&mut st.msrs.debugctl))
        .reserved(!DEBUGCTL_BTF),
    stored(0x0000_0200, "IA32_MTRR_PHYSBASE0", mtrr_variable)
        .many(2 * mtrr::VARIABLE_RANGES as u32)
        .accepts(s::is_mtrr_variable)
        .with(Gate::System(S::Mtrr)),
    stored(0x0000_0250, "IA32_MTRR_FIX64K_00000", mtrr_fixed)
        .accepts(s::is_mtrr_fixed)
        .with(Gate::System(S::Mtrr)),
    stored(0x0000_0258, "IA32_MTRR_FIX16K_80000", mtrr_fixed)
        .many(2)
        .accepts(s::is_mtrr_fixed)
        .with(Gate::System(S::Mtrr)),
    stored(0x0000_0268, "IA32_MTRR_FIX4K_C0000", mtrr_fixed)
        .many(8)
        .accepts(s::is_mtrr_fixed)
        .with(Gate::System(S::Mtrr)),
    stored(0x0000_0277, "IA32_PAT", |st, _| Some(&mut st.msrs.pat))
        .accepts(s::is_pat)
        .with(Gate::System(S::Pat)),
    stored(0x0000_02ff, "IA32_MTRR_DEF_TYPE", |st, _| Some(&mut st.msrs.mtrrs.def_type))
        .reserved(!0xcff)
        .accepts(s::is_mtrr_default)
        .with(Gate::System(S::Mtrr)),
    stored(0x0000_0400, "IA32_MC0_CTL", mc_bank)
        .many(4 * MC_BANKS as u32)
        .accepts(s::is_mc_bank)
        .with(Gate::System(S::Mca)),
    special(0x0000_06e0, "IA32_TSC_DEADLINE", s::read_tsc_deadline, s::write_tsc_deadline)
        .with(Gate::System(S::TscDeadline)),
    stored(0x0000_06e1, "IA32_PKRS", |st, _| Some(&mut st.msrs.pkrs))
        .reserved(HIGH_HALF)
        .after(s::translations_changed)
        .with(Gate::System(S::Pks)),
    Row::new(0x0000_0800, "IA32_X2APIC", Kind::X2apic).many(0x100).with(Gate::System(S::X2apic)),
    stored(0x0000_0da0, "IA32_XSS", |st, _| Some(&mut st.msrs.xss))
        .reserved(!0)
        .with(Gate::Instructions(I::Xsaves)),
    stored(0x4b56_4d00, "KVM_WALL_CLOCK_NEW", |st, _| Some(&mut st.msrs.kvm.wall_clock))
        .after(pv::wall_clock_written)
        .with(Gate::System(S::KvmClock2)),
    stored(0x4b56_4d01, "KVM_SYSTEM_TIME_NEW", |st, _| Some(&mut st.msrs.kvm.system_time))
        .after(pv::system_time_written)
        .with(Gate::System(S::KvmClock2)),
    stored(0x4b56_4d03, "KVM_STEAL_TIME", |st, _| Some(&mut st.msrs.kvm.steal_time))
        .reserved(0x3e)
        .after(pv::steal_time_written)
        .with(Gate::System(S::KvmStealTime)),
    special(0x4b56_4d04, "KVM_EOI_EN", |cpu, _| cpu.state.msrs.kvm.pv_eoi, pv::write_eoi_enable)
        .with(Gate::System(S::KvmPvEoi)),
    stored(0x4b56_4d05, "KVM_POLL_CONTROL", |st, _| Some(&mut st.msrs.kvm.poll_control))
        .reserved(!1)
        .with(Gate::System(S::KvmPollControl)),
    special(0xc000_0080, "IA32_EFER", |cpu, _| cpu.state.msrs.efer, efer::write),
    stored(0xc000_0081, "IA32_STAR", |st, _| Some(&mut st.msrs.star))
        .with(Gate::Instructions(I::Syscall)),
    stored(0xc000_0082, "IA32_LSTAR", |st, _| Some(&mut st.msrs.lstar))
        .accepts(s::is_canonical)
        .with(LONG),
    stored(0xc000_0083, "IA32_CSTAR", |st, _| Some(&mut st.msrs.cstar))
        .accepts(s::is_canonical)
        .with(LONG),
    stored(0xc000_0084, "IA32_FMASK", |st, _| Some(&mut st.msrs.sfmask))
        .reserved(HIGH_HALF)
        .with(LONG),
    stored(0xc000_0100, "IA32_FS_BASE", |st, _| Some(&mut st.segments[seg::FS].base))
        .accepts(s::is_canonical)
        .with(LONG),
    stored(0xc000_0101, "IA32_GS_BASE", |st, _| Some(&mut st.segments[seg::GS].base))
        .accepts(s::is_canonical)
        .with(LONG),
    stored(0xc000_0102, "IA32_KERNEL_GS_BASE", |st, _| Some(&mut st.msrs.kernel_gs_base))
        .accepts(s::is_canonical)
        .with(LONG),
    stored(0xc000_0103, "IA32_TSC_AUX", |st, _| Some(&mut st.msrs.tsc_aux))
        .reserved(HIGH_HALF)
        .with(Gate::Either(I::Rdtscp, I::Rdpid)),
    special(0xc001_0000, "PERF_LEGACY_CTL0", s::zero, s::ignore).many(4).with(AMD),
    special(0xc001_0004, "PERF_LEGACY_CTR0", s::zero, s::ignore).many(4).with(AMD),
    special(0xc001_0010, "SYSCFG", s::zero, s::ignore).with(AMD),
    stored(0xc001_0015, "HWCR", |st, _| Some(&mut st.msrs.hwcr))
        .reserved(!(HWCR_WITHOUT_EFFECT | HWCR_TSC_FREQ_SEL))
        .ignored(HWCR_WITHOUT_EFFECT)
        .with(AMD),
    special(0xc001_0016, "IORR_BASE0", s::zero, s::ignore).many(4).with(AMD),
    special(0xc001_001a, "TOP_MEM", s::zero, s::ignore).with(AMD),
    special(0xc001_001d, "TOP_MEM2", s::zero, s::ignore).with(AMD),
    special(0xc001_001f, "NB_CFG", s::zero, s::ignore).with(AMD),
    special(0xc001_0020, "PATCH_LOADER", s::zero, s::ignore).with(AMD),
    special(0xc001_0055, "INT_PENDING", s::zero, s::ignore).with(AMD),
    special(0xc001_0058, "MMIO_CONFIGURATION_BASE", s::zero, s::ignore).with(AMD),
    special(0xc001_0112, "SMM_ADDR", s::zero, s::ignore).many(2).with(AMD),
    special(0xc001_0140, "OSVW_ID_LENGTH", s::osvw_id_length, s::ignore).with(OSVW),
    // A clear bit is an erratum that the processor does not have.
    special(0xc001_0141, "OSVW_STATUS", s::zero, s::ignore).with(OSVW),
    special(0xc001_1022, "DC_CFG", s::zero, s::ignore).with(AMD),
    special(0xc001_1023, "BU_CFG", s::zero, s::ignore).with(AMD),
    stored(0xc001_1029, "DE_CFG", |st, _| Some(&mut st.msrs.de_cfg))
        .reserved(!DE_CFG_LFENCE)
        .with(AMD),
    special(0xc001_102a, "BU_CFG2", s::zero, s::ignore).with(AMD),
];

fn mtrr_variable(state: &mut State, number: u32) -> Option<&mut u64> {
    state.msrs.mtrrs.variable.get_mut(number.checked_sub(0x200)? as usize)
}

fn mtrr_fixed(state: &mut State, number: u32) -> Option<&mut u64> {
    state.msrs.mtrrs.fixed.get_mut(mtrr::fixed_index(number)?)
}

fn mc_bank(state: &mut State, number: u32) -> Option<&mut u64> {
    let index = number.checked_sub(0x400)? as usize;
    state.msrs.mc_banks.get_mut(index / 4)?.get_mut(index % 4)
}

/// The row of `number`, present or not.
pub fn row(number: u32) -> Option<&'static Row> {
    let after = MSRS.partition_point(|row| row.first <= number);
    let row = MSRS.get(after.checked_sub(1)?)?;
    (number - row.first < row.count).then_some(row)
}

/// Where `state` keeps MSR `number`, if it is one that only remembers.
pub fn cell(state: &mut State, number: u32) -> Option<&mut u64> {
    match row(number)?.kind {
        Kind::Stored { slot, .. } => slot(state, number),
        _ => None,
    }
}

impl Cpu {
    fn msr_exists(&self, row: &Row) -> bool {
        let policy = &self.env.cpuid;
        match row.gate {
            Gate::Always => true,
            Gate::System(feature) => policy.has(feature),
            Gate::Instructions(feature) => policy.has_instructions(feature),
            Gate::Either(one, other) => {
                policy.has_instructions(one) || policy.has_instructions(other)
            }
            Gate::Vendor(vendor) => policy.vendor() == vendor,
        }
    }

    /// True if there is MSR `number`.
    pub fn has_msr(&self, number: u32) -> bool {
        row(number).is_some_and(|row| self.msr_exists(row))
    }

    /// Reads MSR `number`, as RDMSR at CPL 0 does.
    pub fn read_msr(&mut self, number: u32) -> Exec<u64> {
        let value = self.try_read_msr(number);
        if value.is_none() {
            log::debug!(target: "cpu::msr", "RDMSR of {number:#x}: #GP");
        }
        value.ok_or(Exception::GP0)
    }

    fn try_read_msr(&mut self, number: u32) -> Option<u64> {
        let row = row(number).filter(|row| self.msr_exists(row))?;
        match row.kind {
            Kind::Stored { slot, .. } => slot(&mut self.state, number).copied(),
            Kind::ReadOnly { read } | Kind::Special { read, .. } => Some(read(self, number)),
            Kind::X2apic => {
                self.sync_pv_eoi();
                self.env.lapic.msr_read(number)
            }
        }
    }

    /// Writes MSR `number`, as WRMSR at CPL 0 does.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Exec {
        let outcome = self.try_write_msr(number, value);
        if outcome.is_err() {
            log::debug!(target: "cpu::msr", "WRMSR of {value:#x} to {number:#x}: #GP");
        }
        outcome
    }

    fn try_write_msr(&mut self, number: u32, value: u64) -> Exec {
        let row = row(number).filter(|row| self.msr_exists(row)).ok_or(Exception::GP0)?;
        match row.kind {
            Kind::ReadOnly { .. } => Err(Exception::GP0),
            Kind::Special { write, .. } => write(self, number, value),
            Kind::X2apic => s::write_x2apic(self, number, value),
            Kind::Stored { slot, reserved, ignored, accepts, after } => {
                if value & reserved != 0 || !accepts(self, number, value) {
                    return Err(Exception::GP0);
                }
                let slot = slot(&mut self.state, number).ok_or(Exception::GP0)?;
                *slot = *slot & ignored | value & !ignored;
                after(self);
                Ok(())
            }
        }
    }
}
