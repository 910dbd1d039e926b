//! Model-specific registers: storage, and the table that says what may be read and written.

/// The MSRs with a meaning of their own to the CPU; the rest is in the table's plain storage.
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
}

impl Msrs {
    /// The values after RESET.
    pub fn at_reset() -> Self {
        Self { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Self::default() }
    }
}
