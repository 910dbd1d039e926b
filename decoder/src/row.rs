//! The row of the instruction table.

use crate::{Code, FeatureSet, Memory};

/// Who executes an instruction in the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// A semantic function of ours.
    Interpreter,
    /// The host's own instruction on the guest's state (`cpu::native`).
    Native,
    /// Nobody: the instruction raises #UD.
    Undefined,
}

/// The processor state that an instruction works on, which decides the gates it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General registers: no gate.
    General,
    /// System state: what [`Privilege`] says, and what the semantic function checks itself.
    System,
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// MMX registers: #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// XMM registers by legacy encodings: #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// XMM and MMX registers together: as [`Unit::Sse`].
    SseMmx,
    /// VEX: #UD if not CR4.OSXSAVE or XCR0\[2:1\] is not 11b, #NM if CR0.TS. CR0.EM is ignored.
    Avx,
    /// EVEX and opmask: as [`Unit::Avx`], and #UD if XCR0\[7:5\] is not 111b.
    Avx512,
}

/// Who may execute an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Everybody.
    Any,
    /// CPL 0, else #GP(0).
    Cpl0,
    /// CPL 0, else #UD.
    Cpl0Undefined,
    /// CPL not above IOPL, else #GP(0); with the CR4.VME and CR4.PVI rules (CLI, STI).
    Iopl,
    /// In virtual-8086 mode IOPL 3, else #GP(0) (PUSHF, POPF, INT n, IRET).
    V86Iopl,
    /// CPL not above IOPL, else as the I/O permission bitmap of the TSS says (IN, OUT).
    IoPermission,
    /// CPL 0 if CR4.UMIP, else #GP(0).
    Umip,
    /// CPL 0 if CR4.TSD, else #GP(0), or #UD for RDPRU.
    Tsd,
    /// CPL 0 unless CR4.PCE, else #GP(0).
    Pce,
}

/// The modes in which an instruction exists; elsewhere it is #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes(u8);

impl Modes {
    /// 16-bit code segments.
    pub const BITS16: Self = Self(1);
    /// 32-bit code segments.
    pub const BITS32: Self = Self(2);
    /// 64-bit mode.
    pub const BITS64: Self = Self(4);
    /// Real-address and virtual-8086 mode.
    pub const REAL_V86: Self = Self(8);

    /// The modes of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn none() -> Self {
        Self(0)
    }

    pub(crate) const fn with_if(self, mode: Self, is_valid: bool) -> Self {
        if is_valid { self.union(mode) } else { self }
    }

    /// True if every mode of `other` is among these.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What kind of work an instruction does; the interpreter dispatches on it, the coverage page and
/// the tests group by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Addition, subtraction, comparison, logic, increment, negation.
    Alu,
    /// Decimal adjustment.
    Bcd,
    /// Bit tests, scans, counts, bit-field instructions of BMI.
    Bit,
    /// Jumps, calls and returns in the same code segment.
    Branch,
    /// Caches and memory ordering.
    Cache,
    /// CMOVcc and SETcc.
    Condition,
    /// Control and debug registers, INVLPG and INVPCID.
    ControlRegister,
    /// Descriptor tables, LDT, TR, LAR, LSL, VERR, VERW, ARPL.
    Descriptor,
    /// XCHG, XADD, CMPXCHG and their wide forms.
    Exchange,
    /// Far jumps, calls and returns, IRET, SYSCALL, SYSENTER and their returns.
    FarTransfer,
    /// The flags register.
    Flag,
    /// VMCALL and VMMCALL.
    Hypercall,
    /// INT, INT3, INTO, INT1, BOUND, UD.
    Interrupt,
    /// IN and OUT (their string forms are [`Class::String`]).
    Io,
    /// Moves and extensions between general registers and memory, LEA, BSWAP, MOVBE.
    Mov,
    /// Model-specific registers, XCR0, PKRU, performance counters.
    Msr,
    /// Multiplication and division.
    MulDiv,
    /// No operation, hints included.
    Nop,
    /// RDRAND and RDSEED.
    Random,
    /// Segment registers and bases.
    Segment,
    /// Shifts and rotates.
    Shift,
    /// PUSH, POP, ENTER, LEAVE and PUSHF, POPF.
    Stack,
    /// String instructions, those of I/O included.
    String,
    /// HLT, MWAIT, CPUID, RDTSC and other processor control.
    System,
    /// XSAVE and FXSAVE families, MXCSR, and the x87 environment in memory.
    StateImage,
    /// x87 arithmetic and control.
    X87,
    /// Integer vectors, MMX included.
    SimdInteger,
    /// Floating-point vectors and scalars.
    SimdFloat,
    /// AVX-512 mask registers.
    Opmask,
    /// AES, SHA, PCLMULQDQ, GFNI, SM3, SM4.
    Crypto,
    /// Not an instruction here.
    Undefined,
}

/// What the engines must know of one instruction form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The form, iced's name.
    pub code: Code,
    /// The kind of work.
    pub class: Class,
    /// Who executes it in the interpreter.
    pub executor: Executor,
    /// The state gate.
    pub unit: Unit,
    /// The CPUID features it needs, all of them.
    pub features: FeatureSet,
    /// Who may execute it.
    pub privilege: Privilege,
    /// Where it exists.
    pub modes: Modes,
    /// LOCK is legal if the destination is memory; elsewhere it does not decode. (On AMD a LOCK
    /// before MOV CR0 decodes too: it is the fourth bit of the register, CR8.)
    pub lock: bool,
    /// RFLAGS bits it reads.
    pub flags_read: u32,
    /// RFLAGS bits it may write, sets and clears included, with a defined result.
    pub flags_written: u32,
    /// RFLAGS bits it leaves undefined. For shifts by a register or immediate count: with a masked
    /// count above 1; a count of 1 defines OF, a count of 0 changes nothing.
    pub flags_undefined: u32,
    /// #MF if an unmasked x87 exception waits (after the unit's #UD and #NM). WAIT itself has the
    /// gate of its own, #NM if both CR0.MP and CR0.TS.
    pub waits_for_x87: bool,
    /// With a memory operand it leaves the x87 unit alone, and does not wait for it (SDM Vol. 2A,
    /// "CVTPI2PS").
    pub loads_past_x87: bool,
    /// The memory operand.
    pub memory: Memory,
    /// It pushes or pops too (the delivery of an interrupt apart).
    pub stack: bool,
    /// No instruction may follow it in a basic block: control leaves, or what was decoded or
    /// checked ahead (mode, mapping, pending events) may have changed.
    pub ends_block: bool,
}
