//! Basic blocks.

use decoder::{
    BlockEnd, BlockScanner, Executor, Feature, FeatureSet, MAX_INSTRUCTION_BYTES, Vendor, row,
};
use iced_x86::{Code, FlowControl};
use proptest::prelude::*;

fn intel() -> BlockScanner {
    BlockScanner::new(Vendor::Intel, FeatureSet::all())
}

fn codes(scanner: BlockScanner, bytes: &[u8], bitness: u32) -> Vec<Code> {
    let block = scanner.scan(bytes, 0, bitness, 64);
    block.instructions.iter().map(|instruction| instruction.code()).collect()
}

#[test]
fn a_block_ends_with_its_branch() {
    // inc eax; jmp $+2; inc eax
    let block = intel().scan(&[0xff, 0xc0, 0xeb, 0x00, 0xff, 0xc0], 0x7000, 32, 64);
    assert_eq!((block.instructions.len(), block.length_bytes), (2, 4));
    assert_eq!(block.end, BlockEnd::Instruction);
    assert_eq!(block.instructions[1].near_branch_target(), 0x7004);
}

#[test]
fn a_block_ends_at_its_limit_and_at_the_windows_end() {
    let nops = [0x90; 10];
    let limited = intel().scan(&nops, 0, 64, 4);
    assert_eq!((limited.length_bytes, limited.end), (4, BlockEnd::Limit));
    let whole = intel().scan(&nops, 0, 64, 64);
    assert_eq!((whole.length_bytes, whole.end), (10, BlockEnd::Window));
    assert_eq!(intel().scan(&[], 0, 64, 64).end, BlockEnd::Window);
    assert_eq!(intel().scan(&nops, 0, 64, 0).end, BlockEnd::Limit);
}

#[test]
fn an_instruction_cut_by_the_window_is_left_out() {
    // nop; mov eax, imm32 without its last byte
    let block = intel().scan(&[0x90, 0xb8, 1, 2, 3], 0, 32, 64);
    assert_eq!((block.length_bytes, block.end), (1, BlockEnd::Window));
}

#[test]
fn an_invalid_instruction_is_left_out() {
    // nop; lock nop
    let block = intel().scan(&[0x90, 0xf0, 0x90], 0, 32, 64);
    assert_eq!((block.length_bytes, block.end), (1, BlockEnd::Invalid));
}

#[test]
fn what_no_byte_can_make_valid_needs_no_more_bytes() {
    // POP SS and a segment-prefixed DAA in 64-bit mode, SWAPGS outside it.
    for (bytes, bitness) in [(&[0x17][..], 64), (&[0x2e, 0x27], 64), (&[0x0f, 0x01, 0xf8], 32)] {
        assert_eq!(intel().scan(bytes, 0, bitness, 64).end, BlockEnd::Invalid, "{bytes:x?}");
    }
    // VEX and EVEX prefixes, which other bytes do complete.
    for bytes in [&[0xc4][..], &[0xc5], &[0x62], &[0xc4, 0xe2], &[0x0f, 0x38], &[0xf0]] {
        assert_eq!(intel().scan(bytes, 0, 64, 64).end, BlockEnd::Window, "{bytes:x?}");
    }
}

#[test]
fn an_instruction_of_sixteen_bytes_is_too_long_wherever_it_stands() {
    let mut bytes = vec![0x90];
    bytes.extend([0x66; 20]);
    assert_eq!(intel().scan(&bytes, 0, 32, 64).end, BlockEnd::TooLong);
    // Fifteen prefixes and the end of the window: no matter what follows, it is too long.
    assert_eq!(intel().scan(&[0x66; 15], 0, 32, 64).end, BlockEnd::TooLong);
    assert_eq!(intel().scan(&[0x66; 14], 0, 32, 64).end, BlockEnd::Window);
}

#[test]
fn the_vendor_decides_the_size_of_a_prefixed_near_branch() {
    // 66 e9: jmp rel32 for Intel in 64-bit mode, jmp rel16 for AMD.
    let bytes = [0x66, 0xe9, 0, 0, 0, 0];
    let amd = BlockScanner::new(Vendor::Amd, FeatureSet::all());
    assert_eq!(codes(intel(), &bytes, 64), [Code::Jmp_rel32_64]);
    assert_eq!(codes(amd, &bytes, 64), [Code::Jmp_rel16]);
    // 0f ff: UD0 takes a ModRM byte on Intel only.
    assert_eq!(codes(intel(), &[0x0f, 0xff, 0xc0], 64), [Code::Ud0_r32_rm32]);
    assert_eq!(codes(amd, &[0x0f, 0xff, 0xc0], 64), [Code::Ud0]);
    // f0 0f 20: CR8 by LOCK MOV CR0 on AMD only.
    assert_eq!(codes(intel(), &[0xf0, 0x0f, 0x20, 0xc0], 32), []);
    assert_eq!(codes(amd, &[0xf0, 0x0f, 0x20, 0xc0], 32), [Code::Mov_r32_cr]);
}

#[test]
fn count_instructions_without_their_feature_are_scans() {
    let bytes = [0xf3, 0x0f, 0xbc, 0xc1, 0xf3, 0x0f, 0xbd, 0xc1];
    assert_eq!(codes(intel(), &bytes, 64), [Code::Tzcnt_r32_rm32, Code::Lzcnt_r32_rm32]);
    let old = FeatureSet::all().without(Feature::Bmi1).without(Feature::Lzcnt);
    let old = BlockScanner::new(Vendor::Intel, old);
    assert_eq!(codes(old, &bytes, 64), [Code::Bsf_r32_rm32, Code::Bsr_r32_rm32]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_make_a_consistent_block(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ip in any::<u64>(),
        bitness in prop_oneof![Just(16u32), Just(32), Just(64), any::<u32>()],
        max in 0usize..20,
        is_amd in any::<bool>(),
    ) {
        let vendor = if is_amd { Vendor::Amd } else { Vendor::Intel };
        let block = BlockScanner::new(vendor, FeatureSet::all()).scan(&bytes, ip, bitness, max);
        let lengths: usize = block.instructions.iter().map(|i| i.len()).sum();
        prop_assert_eq!(lengths, block.length_bytes);
        prop_assert!(block.length_bytes <= bytes.len() && block.instructions.len() <= max);
        let mut next = ip;
        for (index, instruction) in block.instructions.iter().enumerate() {
            prop_assert!((1..=MAX_INSTRUCTION_BYTES).contains(&instruction.len()));
            prop_assert_eq!(instruction.ip(), next);
            next = next.wrapping_add(instruction.len() as u64);
            let is_last = index + 1 == block.instructions.len();
            let ends = row(instruction.code()).ends_block;
            prop_assert_eq!(ends, is_last && block.end == BlockEnd::Instruction);
            prop_assert!(ends || instruction.flow_control() == FlowControl::Next);
        }
        let is_cut = block.end == BlockEnd::Window;
        prop_assert!(!is_cut || bytes.len() - block.length_bytes < MAX_INSTRUCTION_BYTES);
    }

    #[test]
    fn a_longer_window_only_adds_to_a_block(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        cut in 0usize..40,
        bitness in prop_oneof![Just(16u32), Just(32), Just(64)],
    ) {
        let short = intel().scan(&bytes[..cut.min(bytes.len())], 0, bitness, 64);
        let long = intel().scan(&bytes, 0, bitness, 64);
        prop_assert!(long.instructions.starts_with(&short.instructions));
        if !matches!(short.end, BlockEnd::Window) {
            prop_assert_eq!(long, short);
        }
    }

    #[test]
    fn nothing_undefined_is_followed(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let block = intel().scan(&bytes, 0, 64, 64);
        let (_, body) = block.instructions.split_last().unzip();
        let body: &[_] = body.unwrap_or_default();
        prop_assert!(body.iter().all(|i| row(i.code()).executor != Executor::Undefined));
    }
}
