//! Where everything is: in the ROM, in low memory, in the descriptor table and on the ports.

/// Size of the ROM in bytes.
pub const ROM_BYTES: usize = 0x1_0000;
/// Linear address of the ROM's copy below 1 MiB, where all of it runs.
pub const ROM_BASE: u32 = 0xF_0000;
/// Real-mode segment of [`ROM_BASE`].
pub const ROM_SEGMENT: u16 = 0xF000;

// ROM offsets of the stages.
/// Where a SIPI with vector F0h starts a processor (CS=F000h, IP=0).
pub const SECOND_CPU_REAL: usize = 0x0000;
/// The second processor's 32-bit part.
pub const SECOND_CPU_PROTECTED: usize = 0x0100;
/// The second processor's 64-bit part.
pub const SECOND_CPU_LONG: usize = 0x0200;
/// The real-mode stage and its 16-bit protected tail.
pub const REAL_MODE: usize = 0x1000;
/// The 32-bit stage.
pub const PROTECTED_MODE: usize = 0x3000;
/// The 64-bit stage.
pub const LONG_MODE: usize = 0x5000;

// ROM offsets of the tables.
/// A number that whoever runs a small guest may write into its image (u64).
pub const PARAMETER: usize = 0xCFF8;
/// Pseudo-descriptor of the GDT.
pub const GDTR: usize = 0xD000;
/// Pseudo-descriptor of the 32-bit IDT.
pub const IDTR32: usize = 0xD010;
/// Pseudo-descriptor of the 64-bit IDT.
pub const IDTR64: usize = 0xD020;
/// Template of the GDT; the processor writes the TSS's busy bit, so a copy in RAM is used.
pub const GDT_TEMPLATE: usize = 0xD040;
/// Template of the real-mode interrupt vector table.
pub const IVT_TEMPLATE: usize = 0xD100;
/// The IDT of the 32-bit stage.
pub const IDT32: usize = 0xD500;
/// The IDT of the 64-bit stage.
pub const IDT64: usize = 0xD600;
/// The first 16 bytes below 4 GiB's end.
pub const RESET_VECTOR: usize = 0xFFF0;

// Low memory. The mailbox is what handlers and steps tell each other.
/// First byte of the mailbox, TSS and GDT, cleared at the start.
pub const MAILBOX: u32 = 0x500;
/// Bytes cleared from [`MAILBOX`].
pub const MAILBOX_BYTES: u32 = 0xB00;
/// Steps passed (u32).
pub const STEPS: u32 = 0x500;
/// Vector of the exception caught last (u64), or [`NOTHING_CAUGHT`].
pub const CAUGHT_VECTOR: u32 = 0x508;
/// Its error code (u64; 0 where the exception has none).
pub const CAUGHT_ERROR: u32 = 0x510;
/// Its saved instruction pointer (u64).
pub const CAUGHT_IP: u32 = 0x518;
/// CR2 at that time (u64).
pub const CAUGHT_CR2: u32 = 0x520;
/// Where a handler shall return to instead (u64); 0 means that no exception is expected.
pub const RESUME: u32 = 0x528;
/// Page-table entry that the #PF handler shall write before it retries (u64); 0 means none.
pub const MAP_ON_FAULT: u32 = 0x530;
/// Page faults answered by mapping (u64).
pub const PAGES_MAPPED: u32 = 0x538;
/// Timer interrupts taken (u32).
pub const TICKS: u32 = 0x540;
/// Ring 0's stack pointer while ring 3 runs (u64).
pub const KERNEL_STACK: u32 = 0x548;
/// Other processors that reached long mode (u32).
pub const CPUS_ARRIVED: u32 = 0x550;
/// Set when all processors shall start counting (u32).
pub const COUNT_NOW: u32 = 0x554;
/// The counter that all processors increment (u32).
pub const SHARED_COUNTER: u32 = 0x558;
/// Processors that finished counting (u32).
pub const CPUS_DONE: u32 = 0x55C;
/// Number of processors as fw_cfg tells it (u32).
pub const CPU_COUNT: u32 = 0x560;
/// Result of the integer loop (u64).
pub const CHECKSUM: u32 = 0x568;
/// Text that CPUID returned: vendor, hypervisor, brand string.
pub const CPUID_TEXT: u32 = 0x580;
/// The 64-bit task state segment.
pub const TSS: u32 = 0x600;
/// The GDT in use.
pub const GDT: u32 = 0x700;
/// Top of the stack that interrupts from ring 3 switch to.
pub const RING0_STACK_TOP: u32 = 0x6000;
/// Top of the stack of every stage.
pub const STACK_TOP: u32 = 0x7000;
/// Top of ring 3's stack.
pub const RING3_STACK_TOP: u32 = 0x8000;
/// Memory that steps may write as they like.
pub const SCRATCH: u32 = 0x8000;
/// Base of the 256-byte data segment.
pub const SMALL_SEGMENT: u32 = 0x9000;
/// First page table; all of them are cleared before use.
pub const PAGE_TABLES: u32 = 0x1_0000;
/// 4-level paging: the root.
pub const PML4: u32 = 0x1_0000;
/// 4-level paging: directory pointers.
pub const PDPT: u32 = 0x1_1000;
/// 4-level paging: four directories that map 4 GiB onto themselves.
pub const PD: u32 = 0x1_2000;
/// 4-level paging: directory of the demonstration page.
pub const DEMO_PD: u32 = 0x1_6000;
/// 4-level paging: page table of the demonstration page.
pub const DEMO_PT: u32 = 0x1_7000;
/// 32-bit paging: the page directory.
pub const PD32: u32 = 0x1_8000;
/// 32-bit paging: the table that maps 4 MiB onto themselves.
pub const PT32: u32 = 0x1_9000;
/// 32-bit paging: the table of the alias page.
pub const ALIAS_PT32: u32 = 0x1_A000;
/// End of the page tables.
pub const PAGE_TABLES_END: u32 = 0x1_B000;
/// The frame behind the alias and the demonstration page.
pub const DEMO_FRAME: u32 = 0x1_B000;
/// Linear address of the demonstration page, above the 4 GiB that are mapped.
pub const DEMO_PAGE: u64 = 0x1_4000_0000;
/// Linear address of the alias page under 32-bit paging.
pub const ALIAS_PAGE: u32 = 0x40_0000;
/// A linear address that only the supervisor may touch.
pub const SUPERVISOR_PAGE: u32 = 0x20_0000;

/// What [`CAUGHT_VECTOR`] holds before an exception is provoked.
pub const NOTHING_CAUGHT: u32 = 0xFFFF;

/// Selectors of the GDT, in table order.
pub mod selector {
    /// 16-bit code with the ROM's base.
    pub const CODE16: u16 = 0x08;
    /// 16-bit data from 0 to FFFFh.
    pub const DATA16: u16 = 0x10;
    /// Flat 32-bit code.
    pub const CODE32: u16 = 0x18;
    /// Flat 32-bit data.
    pub const DATA32: u16 = 0x20;
    /// 256 bytes of data at `SMALL_SEGMENT`.
    pub const SMALL: u16 = 0x28;
    /// 64-bit code; SYSCALL's CS.
    pub const CODE64: u16 = 0x30;
    /// Data beside it; SYSCALL's SS.
    pub const DATA64: u16 = 0x38;
    /// 32-bit code for ring 3: SYSRET's base.
    pub const USER_CODE32: u16 = 0x40;
    /// Data for ring 3: SYSRET's SS.
    pub const USER_DATA: u16 = 0x48;
    /// 64-bit code for ring 3: SYSRET's CS.
    pub const USER_CODE64: u16 = 0x50;
    /// The TSS's descriptor, of two entries.
    pub const TSS: u16 = 0x58;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x68;
    /// First selector beyond the table.
    pub const BEYOND: u16 = 0x70;
}

/// Vectors that are no exceptions.
pub mod vector {
    /// The real-mode software interrupt.
    pub const REAL_MODE_CALL: u8 = 0x60;
    /// The local APIC's timer.
    pub const TIMER: u8 = 0x40;
    /// The local APIC's spurious interrupt.
    pub const SPURIOUS: u8 = 0x4F;
    /// Ring 3's software interrupt.
    pub const RING3_CALL: u8 = 0x80;
    /// Entries of the 64-bit IDT.
    pub const IDT64_ENTRIES: usize = 0x81;
}

/// I/O ports.
pub mod port {
    /// COM1, a 16550: the transmitter holding register.
    pub const COM1: u16 = 0x3F8;
    /// 8259A, first: ICW1 and OCW2.
    pub const PIC1_COMMAND: u16 = 0x20;
    /// 8259A, first: OCW1, the mask.
    pub const PIC1_MASK: u16 = 0x21;
    /// 8259A, second: OCW1, the mask.
    pub const PIC2_MASK: u16 = 0xA1;
    /// 8254: control word.
    pub const PIT_CONTROL: u16 = 0x43;
    /// 8254: counter 0.
    pub const PIT_COUNTER0: u16 = 0x40;
    /// System control port A: bit 1 opens A20, bit 0 resets.
    pub const SYSTEM_CONTROL_A: u16 = 0x92;
    /// fw_cfg: selector.
    pub const FW_CFG_SELECTOR: u16 = 0x510;
    /// fw_cfg: data.
    pub const FW_CFG_DATA: u16 = 0x511;
    /// PCI mechanism 1: CONFIG_ADDRESS.
    pub const PCI_ADDRESS: u16 = 0xCF8;
    /// PCI mechanism 1: CONFIG_DATA.
    pub const PCI_DATA: u16 = 0xCFC;
    /// Base of the ACPI power-management block.
    pub const PM_BASE: u16 = 0x600;
    /// PM1a_CNT.
    pub const PM1A_CONTROL: u16 = PM_BASE + 4;
    /// isa-debug-exit.
    pub const DEBUG_EXIT: u16 = 0xF4;
}
