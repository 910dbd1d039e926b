//! Exceptions: what an instruction raises instead of completing.

/// Exception vectors (SDM Vol. 3A, "Exception and Interrupt Reference").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the manual's")]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    StackFault = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87FloatingPoint = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    SimdFloatingPoint = 19,
}

impl Vector {
    /// All of them.
    const ALL: [Self; 18] = [
        Self::DivideError,
        Self::Debug,
        Self::Nmi,
        Self::Breakpoint,
        Self::Overflow,
        Self::BoundRange,
        Self::InvalidOpcode,
        Self::DeviceNotAvailable,
        Self::DoubleFault,
        Self::InvalidTss,
        Self::SegmentNotPresent,
        Self::StackFault,
        Self::GeneralProtection,
        Self::PageFault,
        Self::X87FloatingPoint,
        Self::AlignmentCheck,
        Self::MachineCheck,
        Self::SimdFloatingPoint,
    ];
}

/// Names of exceptions by their vectors (SDM Vol. 3A, "Exception and Interrupt Vectors").
const NAMES: [&str; 32] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#9", "#TS", "#NP", "#SS",
    "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "#22", "#23", "#24", "#25",
    "#26", "#27", "#28", "#29", "#30", "#31",
];

/// What the manual calls the exception with this vector.
pub fn name(vector: u8) -> &'static str {
    NAMES.get(usize::from(vector)).copied().unwrap_or("exception")
}

/// An exception raised by an instruction, before delivery.
///
/// For a page fault CR2 has been written by whoever raised it; for a debug exception the DR6 bits
/// wait in [`crate::Cpu::pending_dr6`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector.
    pub vector: Vector,
    /// The error code, for the vectors that push one (in real mode nobody pushes it).
    pub error_code: Option<u16>,
}

/// The outcome of executing something: a value, or the exception it raised.
pub type Exec<T = ()> = Result<T, Exception>;

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: Vector) -> Self {
        Self { vector, error_code: None }
    }
    /// An exception with an error code.
    pub const fn with_code(vector: Vector, code: u16) -> Self {
        Self { vector, error_code: Some(code) }
    }
    /// #UD.
    pub const UD: Self = Self::plain(Vector::InvalidOpcode);
    /// #DE.
    pub const DE: Self = Self::plain(Vector::DivideError);
    /// #NM.
    pub const NM: Self = Self::plain(Vector::DeviceNotAvailable);
    /// #BR.
    pub const BR: Self = Self::plain(Vector::BoundRange);
    /// #DB; the DR6 bits are in [`crate::Cpu::pending_dr6`].
    pub const DB: Self = Self::plain(Vector::Debug);
    /// #MF.
    pub const MF: Self = Self::plain(Vector::X87FloatingPoint);
    /// #XM.
    pub const XM: Self = Self::plain(Vector::SimdFloatingPoint);
    /// #AC(0).
    pub const AC: Self = Self::with_code(Vector::AlignmentCheck, 0);
    /// #GP(0).
    pub const GP0: Self = Self::gp(0);
    /// #SS(0).
    pub const SS0: Self = Self::ss(0);
    /// #GP(code).
    pub const fn gp(code: u16) -> Self {
        Self::with_code(Vector::GeneralProtection, code)
    }
    /// #SS(code).
    pub const fn ss(code: u16) -> Self {
        Self::with_code(Vector::StackFault, code)
    }
    /// #NP(code).
    pub const fn np(code: u16) -> Self {
        Self::with_code(Vector::SegmentNotPresent, code)
    }
    /// #TS(code).
    pub const fn ts(code: u16) -> Self {
        Self::with_code(Vector::InvalidTss, code)
    }
    /// #PF(code); the caller has written CR2.
    pub const fn pf(code: u16) -> Self {
        Self::with_code(Vector::PageFault, code)
    }

    /// The exception of vector number `vector`, if there is one.
    pub fn from_parts(vector: u8, error_code: Option<u16>) -> Option<Self> {
        let vector = Vector::ALL.into_iter().find(|&known| known as u8 == vector)?;
        Some(Self { vector, error_code })
    }

    /// True for faults that save RF = 1 in the pushed flags (SDM Vol. 3A, "Resume Flag"): all
    /// faults but #DB; traps (#BP, #OF) do not.
    pub const fn sets_resume_flag(self) -> bool {
        !matches!(self.vector, Vector::Debug | Vector::Breakpoint | Vector::Overflow | Vector::Nmi)
    }
}
