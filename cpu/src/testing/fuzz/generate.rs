//! Inputs made by chance alone, shaped so that chance reaches the depths of the opcode maps.

use crate::testing::random::Random;

/// Bytes in front of the code: more than a start ever reads is only code that begins earlier.
const HEADER_BYTES: usize = 480;
/// Instructions of the code at most.
const INSTRUCTIONS_MAX: u64 = 60;

/// An input for [`super::guest_code`].
pub fn guest(random: &mut Random) -> Vec<u8> {
    let mut input = header(random);
    for _ in 0..=random.below(INSTRUCTIONS_MAX) {
        instruction(random, &mut input);
    }
    input
}

/// What a guest of any input starts with.
pub fn header(random: &mut Random) -> Vec<u8> {
    (0..HEADER_BYTES).map(|_| random.byte()).collect()
}

/// Appends something like an instruction: prefixes, an opcode of any map, ModRM and what follows.
pub fn instruction(random: &mut Random, code: &mut Vec<u8>) {
    const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];
    for _ in 0..random.below(4).saturating_sub(1) {
        code.push(PREFIXES[random.below(11) as usize]);
    }
    if random.below(3) == 0 {
        code.push(0x40 | random.byte() & 15);
    }
    match random.below(16) {
        0..=4 => {}
        5..=8 => code.push(0x0f),
        9 => code.extend([0x0f, 0x38]),
        10 => code.extend([0x0f, 0x3a]),
        11 => code.extend([0xc5, random.byte()]),
        12 => code.extend([0xc4, random.byte() & 0xe3 | 1, random.byte()]),
        13 => {
            // The fixed bits of EVEX, or nearly all of it would be #UD.
            let [p0, p1, p2] = [random.byte() & 0xf3 | 1, random.byte() | 4, random.byte()];
            code.extend([0x62, p0, p1, p2]);
        }
        14 => {
            code.push(0xd8 | random.byte() & 7);
            return operands(random, code);
        }
        _ => {
            // System instructions: groups 6, 7 and 9, MOV CR and DR, MSRs, CPUID.
            const SYSTEM: [u8; 14] = [
                0x00, 0x01, 0x01, 0x01, 0x02, 0x03, 0x05, 0x07, 0x20, 0x22, 0x23, 0x30, 0xae, 0xc7,
            ];
            code.extend([0x0f, SYSTEM[random.below(14) as usize]]);
            return operands(random, code);
        }
    }
    code.push(random.byte());
    operands(random, code);
}

/// ModRM, and up to nine bytes of SIB, displacement and immediate.
fn operands(random: &mut Random, code: &mut Vec<u8>) {
    code.push(random.byte());
    for _ in 0..random.below(10) {
        // Small numbers make near branches and displacements that land somewhere.
        let byte = random.byte();
        code.push(if random.below(2) == 0 { byte & 0x0f } else { byte });
    }
}
