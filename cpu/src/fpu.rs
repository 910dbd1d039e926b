//! x87, MMX and vector registers.

/// x87, MMX, SSE, AVX and AVX-512 registers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    /// ZMM0 to ZMM31; XMM and YMM are their low 16 and 32 bytes.
    pub zmm: [[u8; 64]; 32],
    /// K0 to K7.
    pub opmask: [u64; 8],
    /// The physical x87 registers R0 to R7 (not ST order), ten bytes used of each sixteen.
    pub x87: [[u8; 16]; 8],
    /// The x87 control word.
    pub fcw: u16,
    /// The x87 status word, TOP included.
    pub fsw: u16,
    /// One bit per physical register, set if it is *not* empty (FXSAVE's abridged tag).
    pub ftw: u8,
    /// The last x87 opcode, 11 bits.
    pub fop: u16,
    /// The last x87 instruction pointer: offset (64 bits, or 32 with `fcs`).
    pub fip: u64,
    /// The last x87 data pointer.
    pub fdp: u64,
    /// Selector of the last x87 instruction.
    pub fcs: u16,
    /// Selector of the last x87 operand.
    pub fds: u16,
    /// MXCSR.
    pub mxcsr: u32,
}

impl Default for FpuState {
    /// The state after power-up (SDM Vol. 3A, "Processor State After Reset"): x87 as after reset,
    /// vector registers zero.
    fn default() -> Self {
        Self {
            zmm: [[0; 64]; 32],
            opmask: [0; 8],
            x87: [[0; 16]; 8],
            fcw: 0x40,
            fsw: 0,
            ftw: 0xff,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            mxcsr: 0x1f80,
        }
    }
}
