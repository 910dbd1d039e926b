//! Model-specific registers.
//!
//! [`Msrs`] is their storage, [`table`] lists every register that can be read or written and what
//! may be written to it, `special` has those that are more than storage. RDMSR and WRMSR of
//! anything else are #GP(0).

mod efer;
pub(crate) mod mtrr;
mod special;
pub mod table;

pub use mtrr::Mtrrs;

/// Machine-check banks.
pub const MC_BANKS: usize = 10;

/// One machine-check bank: IA32_MCi_CTL, _STATUS, _ADDR, _MISC.
pub type McBank = [u64; 4];

/// What the guest set up of KVM's paravirtual interface; values as written.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are the interface's")]
pub struct KvmMsrs {
    pub wall_clock: u64,
    pub system_time: u64,
    pub steal_time: u64,
    pub pv_eoi: u64,
    pub poll_control: u64,
}

/// The storage of the MSRs. FS.base and GS.base are with the segments, IA32_APIC_BASE,
/// IA32_TSC_DEADLINE and the x2APIC's with the local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// What is added to the machine's time stamp: WRMSR to IA32_TIME_STAMP_COUNTER moves it.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub xss: u64,
    pub pkrs: u64,
    pub misc_enable: u64,
    pub debugctl: u64,
    pub mtrrs: Mtrrs,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub mc_banks: [McBank; MC_BANKS],
    pub kvm: KvmMsrs,
    /// AMD's HWCR.
    pub hwcr: u64,
    /// AMD's DE_CFG.
    pub de_cfg: u64,
}

/// HWCR.TscFreqSel: the TSC counts at the frequency of P0, as it does here.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// IA32_MISC_ENABLE: fast strings.
const MISC_FAST_STRINGS: u64 = 1;
/// IA32_MISC_ENABLE: no branch trace store, no precise event sampling.
const MISC_NO_BTS_PEBS: u64 = 1 << 11 | 1 << 12;
/// Write-back, write-through, uncached minus, uncached, twice.
const PAT_AT_RESET: u64 = 0x0007_0406_0007_0406;

impl Msrs {
    /// The values after RESET.
    pub fn at_reset() -> Self {
        Self {
            pat: PAT_AT_RESET,
            misc_enable: MISC_FAST_STRINGS | MISC_NO_BTS_PEBS,
            hwcr: HWCR_TSC_FREQ_SEL,
            mcg_ctl: u64::MAX,
            kvm: KvmMsrs { poll_control: 1, ..KvmMsrs::default() },
            ..Self::default()
        }
    }
}
