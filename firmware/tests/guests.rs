//! The small guests as bytes and numbers.

use firmware::guests::{
    ECHO, IDLE, LEVEL, LoopOutcome, LoopWidth, TRIPLE_FAULT, integer_loop, integer_loop_outcome,
};
use iced_x86::{Code, Decoder, DecoderOptions};

#[test]
fn every_guest_is_a_rom_that_starts_at_the_reset_vector() {
    let loops = [integer_loop(LoopWidth::Bits16, 1), integer_loop(LoopWidth::Bits64, 1)];
    for image in [IDLE, TRIPLE_FAULT, ECHO, LEVEL, loops[0].as_slice(), loops[1].as_slice()] {
        assert_eq!(image.len(), 0x1_0000);
        let jump = Decoder::new(16, &image[0xFFF0..], DecoderOptions::NONE).decode();
        assert_eq!(jump.code(), Code::Jmp_ptr1616);
        let start = usize::from(jump.far_branch16());
        assert_eq!(jump.far_branch_selector(), 0xF000);
        let first = Decoder::new(16, &image[start..], DecoderOptions::NONE).decode();
        assert_eq!(first.code(), Code::Cli);
    }
}

#[test]
fn iterations_are_written_where_the_loop_reads_them() {
    for width in [LoopWidth::Bits16, LoopWidth::Bits64] {
        let (one, many) = (integer_loop(width, 1), integer_loop(width, 0x0102_0304));
        let differing: Vec<usize> = (0..one.len()).filter(|at| one[*at] != many[*at]).collect();
        assert_eq!(differing, [0xCFF8, 0xCFF9, 0xCFFA, 0xCFFB]);
        let read = u64::from_le_bytes(*many[0xCFF8..].first_chunk().unwrap_or(&[0; 8]));
        assert_eq!(read, 0x0102_0304);
        assert_eq!(integer_loop(width, 0), one);
    }
}

/// Checksums as QEMU's TCG printed them (`tests/qemu.rs` asks it again where it is installed).
#[test]
fn the_model_agrees_with_qemu() {
    let rows = [(LoopWidth::Bits16, 0x61B9), (LoopWidth::Bits64, 0x13BF_6B1E_8C11_2DFD)];
    for (width, checksum) in rows {
        let LoopOutcome { checksum: found, instructions } = integer_loop_outcome(width, 100_001);
        assert_eq!(found, checksum, "{width:?}");
        // 15 instructions, and 4 more in about half of the rounds.
        assert!((16_500..17_500).contains(&(instructions / 100)), "{instructions}");
    }
}
