//! What now and then is not as usual where a program starts: control bits and debug registers with
//! which some or all instructions are the interpreter's.

use cpu::state::{State, cr0, cr4, rflags, seg};
use cpu::testing::random::Random;

use crate::world::Mode;

/// One such thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quirk {
    /// Nothing.
    #[default]
    None,
    /// CR0.TS: vector and x87 instructions raise #NM.
    TaskSwitched,
    /// CR0.EM: x87 instructions raise #NM, SSE ones #UD.
    Emulated,
    /// CR0.NE clear: x87 exceptions are an interrupt.
    ExternalNumerics,
    /// CR4.OSXSAVE clear: AVX does not exist.
    WithoutAvx,
    /// CR4.UMIP.
    Umip,
    /// CR0.AM: with RFLAGS.AC, CPL 3 may not access what is misaligned.
    AlignmentChecks,
    /// RFLAGS.TF.
    SingleStep,
    /// A data breakpoint of eight bytes.
    DataBreakpoint(u64),
    /// An instruction breakpoint.
    CodeBreakpoint(u64),
    /// DS does not begin at 0 (outside 64-bit mode).
    DataBase,
    /// CS ends below 4 GiB (outside 64-bit mode).
    CodeLimit,
}

impl Quirk {
    /// Mostly nothing.
    pub fn random(random: &mut Random, mode: Mode, data: u64, code: u64) -> Self {
        if random.chance(80) {
            return Self::None;
        }
        match random.below(13) {
            0 => Self::TaskSwitched,
            1 => Self::Emulated,
            2 => Self::ExternalNumerics,
            3 => Self::WithoutAvx,
            4 => Self::Umip,
            5 | 6 => Self::AlignmentChecks,
            7 => Self::SingleStep,
            8 => Self::DataBreakpoint(data & !7),
            9 => Self::CodeBreakpoint(code),
            10 if mode.bits() == 32 => Self::DataBase,
            11 if mode.bits() == 32 => Self::CodeLimit,
            _ => Self::None,
        }
    }

    /// Makes `state` so.
    pub fn apply(self, state: &mut State) {
        const ENABLED: u64 = 0x401;
        match self {
            Self::None => {}
            Self::TaskSwitched => state.cr0 |= cr0::TS,
            Self::Emulated => state.cr0 |= cr0::EM,
            Self::ExternalNumerics => state.cr0 &= !cr0::NE,
            Self::WithoutAvx => state.cr4 &= !cr4::OSXSAVE,
            Self::Umip => state.cr4 |= cr4::UMIP,
            Self::AlignmentChecks => state.cr0 |= cr0::AM,
            Self::SingleStep => state.rflags |= rflags::TF,
            Self::DataBreakpoint(address) => {
                state.dr[0] = address;
                // Eight bytes, reads and writes.
                state.dr[7] = ENABLED | 0b1011 << 16;
            }
            Self::CodeBreakpoint(address) => {
                state.dr[0] = address;
                state.dr[7] = ENABLED;
            }
            Self::DataBase => state.segments[seg::DS].base = 0x10,
            Self::CodeLimit => state.segments[seg::CS].limit = 0x1f_ffff,
        }
    }
}
