//! The image as bytes: what a decoder that did not assemble it reads in it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firmware::{IMAGE, STEPS};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind};

/// ROM offset of the reset vector.
const RESET_VECTOR: usize = 0xFFF0;

/// Where each stage lies in the ROM, its width, and the base of the addresses in its branches.
const STAGES: [(usize, u32, u64); 6] = [
    (0x0000, 16, 0),
    (0x0100, 32, 0xF_0000),
    (0x0200, 64, 0xF_0000),
    (0x1000, 16, 0),
    (0x3000, 32, 0xF_0000),
    (0x5000, 64, 0xF_0000),
];

/// First ROM offset that is no code.
const TABLES: usize = 0xD000;

fn end_of_stage(start: usize) -> usize {
    STAGES.iter().map(|stage| stage.0).find(|next| *next > start).unwrap_or(TABLES)
}

/// The instructions of a stage. Text follows each CALL to the print routine and is skipped.
fn instructions(start: usize, bits: u32, base: u64) -> Vec<Instruction> {
    let end = end_of_stage(start);
    let bytes = &IMAGE[start..end];
    let mut decoder = Decoder::with_ip(bits, bytes, base + start as u64, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let position = decoder.position();
        if bytes[position..].iter().all(|byte| *byte == 0) {
            break;
        }
        let instruction = decoder.decode();
        found.push(instruction);
        if instruction.flow_control() == FlowControl::Call && is_text(&bytes[decoder.position()..])
        {
            let length = bytes[decoder.position()..].iter().position(|byte| *byte == 0).unwrap();
            let after = decoder.position() + length + 1;
            decoder.set_position(after).unwrap();
            decoder.set_ip(base + (start + after) as u64);
        }
    }
    found
}

/// Whether a printed text of at least two characters starts here.
fn is_text(bytes: &[u8]) -> bool {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    length >= 2
        && bytes[..length]
            .iter()
            .all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n'))
}

#[test]
fn the_image_fills_the_last_64_kib() {
    assert_eq!(IMAGE.len(), 0x1_0000);
}

#[test]
fn the_reset_vector_jumps_far_to_the_real_mode_stage() {
    let decoder = Decoder::with_ip(16, &IMAGE[RESET_VECTOR..], 0xFFF0, DecoderOptions::NONE);
    let jump = { decoder }.decode();
    assert_eq!(jump.code(), Code::Jmp_ptr1616);
    assert_eq!((jump.far_branch_selector(), jump.far_branch16()), (0xF000, 0x1000));
}

#[test]
fn every_near_branch_stays_in_its_stage() {
    for (start, bits, base) in STAGES {
        let range = base + start as u64..base + end_of_stage(start) as u64;
        let mut branches = 0;
        for instruction in instructions(start, bits, base) {
            let kind = instruction.op0_kind();
            if matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
                let target = instruction.near_branch_target();
                let at = instruction.ip();
                assert!(range.contains(&target), "{bits}-bit branch at {at:#x} to {target:#x}");
                branches += 1;
            }
        }
        assert!(branches > 0 || start < 0x200, "no branches found at {start:#x}");
    }
}

#[test]
fn every_far_jump_enters_a_stage() {
    let mut far_jumps = 0;
    for (start, bits, base) in STAGES {
        for instruction in instructions(start, bits, base) {
            if instruction.op0_kind() == OpKind::FarBranch32 {
                let target = u64::from(instruction.far_branch32());
                assert!(
                    STAGES.iter().any(|(offset, _, base)| base + *offset as u64 == target),
                    "far jump to {target:#x}"
                );
                far_jumps += 1;
            }
        }
    }
    assert_eq!(far_jumps, 4, "two processors from 16 to 32 and from 32 to 64 bits");
}

#[test]
fn all_bytes_of_the_stages_decode() {
    for (start, bits, base) in STAGES {
        for instruction in instructions(start, bits, base) {
            // LOCK ADD EAX,EAX is there to be refused, and the decoder refuses it too.
            let refused =
                IMAGE[(instruction.ip() & 0xFFFF) as usize..].starts_with(&[0xF0, 1, 0xC0]);
            assert!(
                !instruction.is_invalid() || refused,
                "{bits}-bit code at {:#x} does not decode",
                instruction.ip()
            );
        }
    }
}

#[test]
fn every_gate_points_at_an_instruction_of_its_stage() {
    let starts = |start, bits| -> Vec<u64> {
        instructions(start, bits, 0xF_0000).iter().map(Instruction::ip).collect()
    };
    let (code32, code64) = (starts(0x3000, 32), starts(0x5000, 64));
    let mut present = 0;
    for (table, entries, width, code) in [(0xD500, 32, 8, &code32), (0xD600, 0x81, 16, &code64)] {
        for entry in IMAGE[table..table + entries * width].chunks(width) {
            if entry[5] & 0x80 != 0 {
                let low = u64::from(u16::from_le_bytes([entry[0], entry[1]]));
                let high = u64::from(u16::from_le_bytes([entry[6], entry[7]]));
                let target = high << 16 | low;
                assert!(code.contains(&target), "a gate to {target:#x}");
                present += 1;
            }
        }
    }
    assert_eq!(present, 32 + 32 + 3, "exceptions twice, timer, spurious, INT 80h");
}

#[test]
fn every_listed_step_is_in_the_image_in_order_and_no_other() {
    let text = String::from_utf8_lossy(IMAGE);
    let mut passed: Vec<&str> = text
        .match_indices("volvelle: [")
        .filter_map(|(at, head)| text[at + head.len()..].split("] \0").next())
        .filter(|name| name.len() < 40)
        .collect();
    // A step that can be left early has its line twice.
    passed.dedup();
    let listed: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    assert_eq!(passed, listed);
}
