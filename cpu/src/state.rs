//! The architectural state of one CPU: what every engine shares, saves and compares.

use crate::fpu::FpuState;

/// Segment register numbers, in the encoding's order.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// General-purpose register numbers, in the encoding's order.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// RFLAGS bits (SDM Vol. 1, "EFLAGS Register").
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod rflags {
    pub const CF: u64 = 1;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that exists.
    pub const ALL: u64 = STATUS | FIXED | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// CR0 bits.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod cr0 {
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod cr4 {
    pub const VME: u64 = 1;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const PKS: u64 = 1 << 24;
}

/// EFER bits.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod efer {
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const FFXSR: u64 = 1 << 14;
}

/// Segment attribute bits: bits 8 to 23 of a descriptor's high doubleword, shifted down by 8, with
/// the limit's nibble left out, and `UNUSABLE` for a register loaded with a null selector.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod attr {
    /// Code: conforming is bit 2, readable bit 1. Data: expand-down is bit 2, writable bit 1.
    pub const TYPE: u16 = 0xf;
    pub const ACCESSED: u16 = 1;
    /// Data: writable. Code: readable.
    pub const RW: u16 = 1 << 1;
    /// Data: expand-down. Code: conforming.
    pub const DC: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data, not a system descriptor.
    pub const S: u16 = 1 << 4;
    pub const DPL: u16 = 3 << 5;
    pub const DPL_SHIFT: u32 = 5;
    pub const P: u16 = 1 << 7;
    pub const AVL: u16 = 1 << 12;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;
    /// Not in any descriptor: nothing may be accessed through the register.
    pub const UNUSABLE: u16 = 1 << 8;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Attributes, see [`attr`].
    pub attributes: u16,
    /// The limit in bytes, granularity applied: the last offset (expand-up), or the last one that
    /// is *not* in the segment (expand-down).
    pub limit: u32,
    /// The base, 64 bits for FS, GS and system segments in long mode.
    pub base: u64,
}

impl Segment {
    /// The segment a real-mode load of `selector` gives after reset.
    pub const fn real(selector: u16) -> Self {
        let attributes = attr::P | attr::S | attr::RW | attr::ACCESSED;
        Self { selector, attributes, limit: 0xffff, base: (selector as u64) << 4 }
    }
    /// The descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.attributes & attr::DPL) >> attr::DPL_SHIFT) as u8
    }
    /// True if every bit of `mask` is set in the attributes.
    #[inline]
    pub const fn has(&self, mask: u16) -> bool {
        self.attributes & mask == mask
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TableRegister {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, the last valid offset.
    pub limit: u16,
}

/// What the CPU is doing (SDM Vol. 3C, "Guest Non-Register State", activity state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activity {
    /// Executing.
    #[default]
    Active,
    /// In HLT (or MWAIT): waits for an interrupt, NMI or INIT.
    Halted,
    /// Shut down by a triple fault; only INIT or reset ends it.
    Shutdown,
    /// After INIT on an application processor: waits for a start-up IPI.
    WaitForSipi,
}

/// Events held back until after the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum InterruptShadow {
    /// None.
    #[default]
    None,
    /// After STI: maskable interrupts.
    Sti,
    /// After MOV SS or POP SS: maskable interrupts, NMI and debug traps.
    MovSs,
}

/// Everything the architecture says one CPU remembers, but for its local APIC.
#[derive(Clone, Debug)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15; see [`gpr`].
    pub gpr: [u64; 16],
    /// The offset of the next instruction in CS.
    pub rip: u64,
    /// RFLAGS, always consistent.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS; see [`seg`].
    pub segments: [Segment; 6],
    /// The local descriptor table register.
    pub ldtr: Segment,
    /// The task register.
    pub tr: Segment,
    /// The global descriptor table register.
    pub gdtr: TableRegister,
    /// The interrupt descriptor table register.
    pub idtr: TableRegister,
    /// The current privilege level. 0 in real mode, 3 in virtual-8086 mode.
    pub cpl: u8,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4. (CR8 is the local APIC's.)
    pub cr4: u64,
    /// The PDPTE registers of PAE paging, loaded by MOV CR3 and friends.
    pub pdpte: [u64; 4],
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3, two unused, DR6, DR7.
    pub dr: [u64; 8],
    /// The model-specific registers.
    pub msrs: crate::msr::Msrs,
    /// PKRU.
    pub pkru: u32,
    /// x87, MMX, SSE, AVX and AVX-512 state with MXCSR.
    pub fpu: FpuState,
    /// What the CPU is doing.
    pub activity: Activity,
    /// Events held back until after the next instruction.
    pub shadow: InterruptShadow,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// How many NMIs wait: one at most while NMIs are blocked, else two.
    pub nmis_pending: u8,
}
