//! Small guests for benches and whole-machine tests. Each is a ROM like [`crate::IMAGE`] that comes
//! to 64-bit mode and does one thing; what it prints goes to COM1.

/// Halts for ever under a 100 Hz tick of the 8254 through the 8259A and LINT0. Prints `idle`, and
/// `ticking` after ten ticks.
pub const IDLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/idle.rom"));

/// Prints `triple fault` and causes one: UD2 with an IDT that has no entries.
pub const TRIPLE_FAULT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/triple_fault.rom"));

/// Prints `0 1 2 3 4 5 6 7 8 9 ` and a line end, then answers the input `ab` with `1:a 2:b `, and
/// powers off at Ctrl-D (04h). It polls. Input that arrives before the line may be lost.
pub const ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.rom"));

const INTEGER_LOOP_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/integer_loop_64.rom"));
const INTEGER_LOOP_16: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/integer_loop_16.rom"));

/// ROM offset of the number of iterations (u64, little-endian).
const PARAMETER: usize = 0xCFF8;

/// Width of the integer loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopWidth {
    /// Real mode, 16-bit registers and addresses.
    Bits16,
    /// 64-bit mode.
    Bits64,
}

/// What an integer loop shall come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOutcome {
    /// The guest prints it in hexadecimal: `checksum 1A2B`.
    pub checksum: u64,
    /// Instructions of the loop alone; a few thousand more lead to it and away.
    pub instructions: u64,
}

/// A guest that runs `iterations` of an integer loop (add, xor, shifts, load, store, branch, call),
/// prints `checksum`, and writes 0 to isa-debug-exit; without that device it powers off. No
/// iterations count as one.
pub fn integer_loop(width: LoopWidth, iterations: u32) -> Vec<u8> {
    let image = match width {
        LoopWidth::Bits16 => INTEGER_LOOP_16,
        LoopWidth::Bits64 => INTEGER_LOOP_64,
    };
    let mut image = image.to_vec();
    let parameter = u64::from(iterations.max(1)).to_le_bytes();
    for (byte, value) in image.iter_mut().skip(PARAMETER).zip(parameter) {
        *byte = value;
    }
    image
}

/// The same loop in Rust.
pub fn integer_loop_outcome(width: LoopWidth, iterations: u32) -> LoopOutcome {
    const EVERY_TIME: u64 = 15;
    const WHEN_ODD: u64 = 4;
    let (mask, bits) = match width {
        LoopWidth::Bits16 => (u64::from(u16::MAX), 16),
        LoopWidth::Bits64 => (u64::MAX, 64),
    };
    let (mut ax, mut si, mut instructions) = (0_u64, 0_u64, 0);
    // One element every eight bytes, whatever the width.
    let mut table = vec![0; 0x1000 / 8];
    for cx in (1..=u64::from(iterations.max(1))).rev() {
        ax = ax.wrapping_add(cx) & mask;
        ax ^= ax << 7 & mask;
        ax ^= ax >> 9;
        if let Some(element) = table.get_mut((ax & 0xFF8) as usize / 8) {
            ax = ax.wrapping_add(*element) & mask;
            *element = ax;
        }
        instructions += EVERY_TIME;
        if ax & 1 != 0 {
            si = si.wrapping_add(ax) & mask;
            si = (si << 5 | si >> (bits - 5)) & mask;
            instructions += WHEN_ODD;
        }
    }
    LoopOutcome { checksum: si, instructions }
}
