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

/// FSW: an unmasked exception waits (ES), and its copy (B).
pub const FSW_ES: u16 = 1 << 7;
/// FSW: the copy of ES.
pub const FSW_B: u16 = 1 << 15;
/// FSW: the number of ST0's register.
pub const FSW_TOP: u16 = 7 << 11;
/// FOP has 11 bits.
pub const FOP_BITS: u16 = 0x7ff;
/// The bits of FCW that can be written.
pub const FCW_BITS: u16 = 0x1f3f;
/// The bit of FCW that is always set.
pub const FCW_ONE: u16 = 0x40;
/// FSW and FCW: the six exceptions and their masks.
pub const X87_EXCEPTIONS: u16 = 0x3f;

/// Offsets in the 512-byte FXSAVE image and the legacy area of XSAVE (SDM Vol. 1, "x87 State").
pub mod fxsave {
    /// FCW; FSW, the abridged tag, FOP, FIP and FDP follow.
    pub const FCW: usize = 0;
    /// FSW.
    pub const FSW: usize = 2;
    /// Abridged tag.
    pub const FTW: usize = 4;
    /// FOP.
    pub const FOP: usize = 6;
    /// FIP: 64 bits, or 32 with FCS behind.
    pub const FIP: usize = 8;
    /// FDP: 64 bits, or 32 with FDS behind.
    pub const FDP: usize = 16;
    /// MXCSR.
    pub const MXCSR: usize = 24;
    /// MXCSR_MASK.
    pub const MXCSR_MASK: usize = 28;
    /// ST0 to ST7, 16 bytes each.
    pub const ST: usize = 32;
    /// XMM0 to XMM15, 16 bytes each.
    pub const XMM: usize = 160;
    /// Bytes of the image.
    pub const BYTES: usize = 512;
}

impl FpuState {
    /// TOP: the physical number of ST0.
    #[inline]
    pub fn top(&self) -> usize {
        usize::from(self.fsw >> 11 & 7)
    }

    /// Writes the x87 part of an FXSAVE image but for the pointers.
    #[inline]
    pub fn write_x87(&self, image: &mut [u8; fxsave::BYTES]) {
        put(image, fxsave::FCW, self.fcw.to_le_bytes());
        put(image, fxsave::FSW, self.fsw.to_le_bytes());
        put(image, fxsave::FTW, [self.ftw, 0]);
        for stack in 0..8 {
            let register = self.x87[(self.top() + stack) & 7];
            put(image, fxsave::ST + 16 * stack, register);
        }
    }

    /// Takes over the x87 part of an FXSAVE image but for the pointers. The control word's reserved
    /// bits have values of their own.
    #[inline]
    pub fn read_x87(&mut self, image: &[u8; fxsave::BYTES]) {
        self.fcw = u16::from_le_bytes(get(image, fxsave::FCW)) & FCW_BITS | FCW_ONE;
        self.fsw = u16::from_le_bytes(get(image, fxsave::FSW));
        self.ftw = image[fxsave::FTW];
        for stack in 0..8 {
            let [low @ .., _, _, _, _, _, _]: [u8; 16] = get(image, fxsave::ST + 16 * stack);
            let mut register = [0; 16];
            register[..10].copy_from_slice(&low);
            self.x87[(self.top() + stack) & 7] = register;
        }
    }

    /// Writes the pointers as images with 64-bit ones have them.
    pub fn write_wide_pointers(&self, image: &mut [u8; fxsave::BYTES]) {
        put(image, fxsave::FOP, self.fop.to_le_bytes());
        put(image, fxsave::FIP, self.fip.to_le_bytes());
        put(image, fxsave::FDP, self.fdp.to_le_bytes());
    }

    /// Takes the pointers over from such an image, which has no selectors.
    pub fn read_wide_pointers(&mut self, image: &[u8; fxsave::BYTES]) {
        self.fop = u16::from_le_bytes(get(image, fxsave::FOP)) & FOP_BITS;
        self.fip = u64::from_le_bytes(get(image, fxsave::FIP));
        self.fdp = u64::from_le_bytes(get(image, fxsave::FDP));
        (self.fcs, self.fds) = (0, 0);
    }

    /// Writes MXCSR and the XMM registers.
    pub fn write_sse(&self, image: &mut [u8; fxsave::BYTES]) {
        put(image, fxsave::MXCSR, self.mxcsr.to_le_bytes());
        for (index, register) in self.zmm.iter().take(16).enumerate() {
            put::<16>(image, fxsave::XMM + 16 * index, get(register, 0));
        }
    }

    /// Takes the first `count` XMM registers over.
    pub fn read_xmm(&mut self, image: &[u8; fxsave::BYTES], count: usize) {
        for (index, register) in self.zmm.iter_mut().take(count).enumerate() {
            put::<16>(register, 0, get(image, fxsave::XMM + 16 * index));
        }
    }

    /// What is known of the last instruction: FIP, FCS and FOP.
    pub fn instruction_pointer(&self) -> (u64, u16, u16) {
        (self.fip, self.fcs, self.fop)
    }

    /// What is known of the last operand: FDP and FDS.
    pub fn data_pointer(&self) -> (u64, u16) {
        (self.fdp, self.fds)
    }

    /// Makes ES and B what the exceptions and their masks say, as every load of the control or
    /// status word does (SDM Vol. 1, "x87 FPU Status Register").
    #[inline]
    pub fn summarize_exceptions(&mut self) {
        self.fsw &= !(FSW_ES | FSW_B);
        if self.fsw & !self.fcw & X87_EXCEPTIONS != 0 {
            self.fsw |= FSW_ES | FSW_B;
        }
    }

    /// The tag word with two bits a register: 0 valid, 1 zero, 2 special, 3 empty (SDM Vol. 1,
    /// "x87 FPU Tag Word").
    pub fn full_tag(&self) -> u16 {
        (0..8).fold(0, |tags, number| tags | self.tag(number) << (2 * number))
    }

    fn tag(&self, number: usize) -> u16 {
        if self.ftw >> number & 1 == 0 {
            return 3;
        }
        let significand = u64::from_le_bytes(get(&self.x87[number], 0));
        let exponent = u16::from_le_bytes(get(&self.x87[number], 8)) & 0x7fff;
        match (exponent, significand >> 63) {
            (0, _) if significand == 0 => 1,
            (0 | 0x7fff, _) | (_, 0) => 2,
            _ => 0,
        }
    }

    /// FNINIT.
    pub fn initialize_x87(&mut self) {
        self.fcw = 0x37f;
        self.fsw = 0;
        self.ftw = 0;
        self.fop = 0;
        (self.fip, self.fcs, self.fdp, self.fds) = (0, 0, 0, 0);
    }
}

/// Copies `bytes` into `image` at `at`, which lies inside it, and tells how many they are.
#[inline]
pub fn put<const N: usize>(image: &mut [u8], at: usize, bytes: [u8; N]) -> usize {
    if let Some(target) = image.get_mut(at..at + N) {
        target.copy_from_slice(&bytes);
    }
    N
}

/// The bytes of `image` at `at`; zeroes outside.
#[inline]
pub fn get<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    image.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
