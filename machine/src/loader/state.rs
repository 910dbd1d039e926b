//! The state in which CPU 0 starts, as plain data for whoever owns the CPU.

/// A descriptor-table register: where the table is and its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// General registers at an entry; those not named are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlatRegisters {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RSI.
    pub rsi: u64,
    /// RSP.
    pub rsp: u64,
}

/// The state in which CPU 0 starts. Interrupts are off (RFLAGS is 2) in all but the reset state,
/// and every register that is not named has its value after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    /// As after a reset: CS:IP is F000:FFF0 with base FFFF_0000.
    RealModeReset,
    /// Real mode at `segment:offset`, all other segments 0: where a firmware hands over on a wake
    /// from S3.
    RealMode {
        /// CS selector; its base is 16 times this.
        segment: u16,
        /// IP.
        offset: u16,
    },
    /// 32-bit protected mode without paging: CR0.PE=1, CR0.PG=0, CR4=0, flat 4 GiB segments (code
    /// execute/read accessed, data read/write accessed, DPL 0), a busy 32-bit TSS of limit 67h.
    Protected32 {
        /// EIP.
        entry: u32,
        /// Registers; only their low 32 bits count.
        registers: FlatRegisters,
        /// GDTR, where the entry's protocol promises one. Selectors are then
        /// [`Self::CODE_SELECTOR`] and [`Self::DATA_SELECTOR`].
        gdt: Option<TableRegister>,
    },
    /// 64-bit mode at CPL 0: CR0.PE=PG=1, CR4.PAE=1, EFER.LME=LMA=1, flat segments, CS.L=1.
    Long64 {
        /// RIP.
        entry: u64,
        /// Registers.
        registers: FlatRegisters,
        /// CR3: page tables that map at least the first 4 GiB to themselves.
        cr3: u64,
        /// GDTR; selectors are [`Self::CODE_SELECTOR`] and [`Self::DATA_SELECTOR`].
        gdt: TableRegister,
    },
}

impl BootState {
    /// CS at the protected and long mode entries (Linux's `__BOOT_CS`).
    pub const CODE_SELECTOR: u16 = 0x10;
    /// All data segments at the protected and long mode entries (Linux's `__BOOT_DS`).
    pub const DATA_SELECTOR: u16 = 0x18;
    /// TR at the protected and long mode entries, where there is a GDT.
    pub const TASK_SELECTOR: u16 = 0x20;
}
