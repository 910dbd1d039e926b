//! Debug registers: which breakpoints an access or an instruction meets.
//!
//! Source: SDM Vol. 3B, "Debug Registers".

use crate::Cpu;
use crate::mmu::Access;

/// DR6.BS: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6.BD: debug-register access detected.
pub const DR6_BD: u64 = 1 << 13;
/// DR6.BT: task switch.
pub const DR6_BT: u64 = 1 << 15;
/// DR7.GD: MOV to or from a debug register is #DB.
pub const DR7_GD: u64 = 1 << 13;

/// What a breakpoint watches: DR7's R/W fields.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;
const READ_WRITE: u64 = 3;

/// Bytes a breakpoint covers, by DR7's LEN field.
const LENGTHS: [u64; 4] = [1, 2, 8, 4];

/// Which kinds of breakpoints DR7 enables; derived when it is written, because every block and
/// every access asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Breakpoints {
    /// Some on instructions.
    pub(crate) has_instruction: bool,
    /// Some on data.
    pub(crate) has_data: bool,
}

impl Breakpoints {
    /// The kinds that `dr7` enables.
    pub(crate) fn of(dr7: u64) -> Self {
        let has = |kinds: &[u64]| {
            (0..4).any(|n| dr7 >> (2 * n) & 3 != 0 && kinds.contains(&(dr7 >> (16 + 4 * n) & 3)))
        };
        Self { has_instruction: has(&[EXECUTE]), has_data: has(&[WRITE, READ_WRITE]) }
    }
}

impl Cpu {
    /// The DR6 bits of enabled breakpoints of a kind in `kinds` that overlap the access.
    fn matching(&self, address: u64, bytes: u64, kinds: &[u64]) -> u64 {
        let dr7 = self.state.dr[7];
        (0..4).fold(0, |hits, n| {
            let kind = dr7 >> (16 + 4 * n) & 3;
            let length = LENGTHS[(dr7 >> (18 + 4 * n) & 3) as usize];
            let start = self.state.dr[n as usize] & !(length - 1);
            let is_enabled = dr7 >> (2 * n) & 3 != 0 && kinds.contains(&kind);
            let overlaps =
                address.wrapping_sub(start) < length || start.wrapping_sub(address) < bytes;
            if is_enabled && overlaps { hits | 1 << n } else { hits }
        })
    }

    /// Notes the data breakpoints that an access meets; the trap comes behind the instruction.
    #[inline]
    pub(crate) fn check_data_breakpoints(&mut self, linear: u64, bytes: u64, access: Access) {
        if !self.mmu.breakpoints().has_data {
            return;
        }
        let kinds: &[u64] =
            if access == Access::Write { &[WRITE, READ_WRITE] } else { &[READ_WRITE] };
        let hits = self.matching(linear, bytes, kinds);
        if hits != 0 {
            self.pending_dr6 |= hits;
            self.break_block = true;
        }
    }

    /// Notes the I/O breakpoints that an access to `port` meets (CR4.DE).
    pub(crate) fn check_io_breakpoints(&mut self, port: u16, bytes: u64) {
        if self.state.cr4 & crate::state::cr4::DE == 0 || self.state.dr[7] & 0xff == 0 {
            return;
        }
        let hits = self.matching(u64::from(port), bytes, &[IO]);
        if hits != 0 {
            self.pending_dr6 |= hits;
            self.break_block = true;
        }
    }

    /// The DR6 bits of instruction breakpoints at `linear`.
    pub(crate) fn instruction_breakpoints(&self, linear: u64) -> u64 {
        self.matching(linear, 1, &[EXECUTE])
    }
}
