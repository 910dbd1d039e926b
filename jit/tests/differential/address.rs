//! Where memory operands point to.

use cpu::testing::random::Random;
use cpu::testing::{CODE, STACK};
use decoder::Row;
use iced_x86::{MemoryOperand, Register};

use crate::world::{A, A_AGAIN, ABSENT, CODE_AGAIN, E, FOREIGN, HIGH, HOLE, LOW};
use crate::world::{PAGE, READ_ONLY, TABLE, TOP};

/// What is known of the registers while a program is made: right for as long as control falls
/// through.
#[derive(Clone, Debug)]
pub struct Knowledge {
    /// Width of code.
    pub bits: u32,
    /// Operands may be where accesses fault.
    pub is_risky: bool,
    /// Values.
    pub known: [Option<u64>; 16],
    /// Registers that point to memory.
    pub pointers: u16,
    /// Registers with small numbers.
    pub indices: u16,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// The half that code is in.
    pub half: u64,
}

/// A lower half address, mostly where accesses succeed: `size` bytes.
fn low_place(random: &mut Random, is_risky: bool, size: u64, is_write: bool) -> u64 {
    let near = |random: &mut Random, edge: u64| {
        (edge - size).wrapping_sub(4).wrapping_add(random.below(size + 8))
    };
    if is_risky && random.chance(25) {
        return match random.below(12) {
            0 => ABSENT + random.below(PAGE),
            1 | 2 => near(random, ABSENT),
            3 => READ_ONLY + random.below(PAGE - size),
            4 => near(random, READ_ONLY + PAGE),
            5 => FOREIGN + random.below(PAGE - size),
            6 => near(random, HOLE),
            7 => near(random, HOLE + PAGE),
            8 => near(random, STACK),
            9 => CODE + random.below(2 * PAGE),
            10 => CODE_AGAIN + random.below(PAGE),
            _ => near(random, A),
        };
    }
    match random.below(100) {
        0..=54 => A + random.below(2 * PAGE - size),
        55..=69 => near(random, A + PAGE),
        70..=77 => A_AGAIN + random.below(PAGE - size),
        78..=85 => E + random.below(PAGE - size),
        86..=89 => STACK - 3 * PAGE + random.below(3 * PAGE - size),
        90..=94 => HOLE + random.below(PAGE - size),
        _ if is_write => A + random.below(2 * PAGE - size),
        95..=97 => TABLE + random.below(PAGE - size),
        _ => READ_ONLY + random.below(PAGE - size),
    }
}

impl Knowledge {
    /// A linear address for an operand of `size` bytes, in `half` of the address space.
    pub fn place(&self, random: &mut Random, half: u64, size: u64, is_write: bool) -> u64 {
        let size = size.clamp(1, 64);
        if self.is_risky && random.chance(2) {
            return match (self.bits, random.below(4)) {
                (64, 0) => 0x8000_0000_0000 - random.below(16),
                (64, 1) => random.bits() & 0x7fff_ffff_ffff_ffff | 1 << 62,
                (64, _) => random.below(16).wrapping_sub(8),
                _ => random.below(16).wrapping_sub(8) & 0xffff_ffff,
            };
        }
        half.wrapping_add(low_place(random, self.is_risky, size, is_write))
    }

    /// One of the halves that memory is seen in.
    pub fn any_half(&self, random: &mut Random) -> u64 {
        if self.bits == 64 { random.pick(&[0, 0, 0, HIGH, TOP]) } else { 0 }
    }

    /// Some set bit of `mask`.
    fn pick(random: &mut Random, mask: u16) -> Option<u32> {
        let numbers: Vec<u32> = (0..16).filter(|n| mask >> n & 1 != 0).collect();
        (!numbers.is_empty()).then(|| random.pick(&numbers))
    }

    fn register(&self, number: u32, bytes: u32) -> Register {
        (if bytes == 8 { Register::RAX } else { Register::EAX }) + number
    }

    /// The operand of an instruction of form `row`.
    pub fn operand(
        &self,
        random: &mut Random,
        row: &Row,
        vector: Option<Register>,
    ) -> MemoryOperand {
        let size = u64::from(row.memory.size).clamp(1, 64);
        let aligned = row.memory.is_aligned && random.chance(90);
        let mask = if aligned { size.next_power_of_two() - 1 } else { 0 };
        let is_write = crate::pool::writes(row);
        let full = self.bits / 8;
        match random.below(100) {
            _ if vector.is_some() => {}
            0..=9 => return self.absolute(random, size, is_write, mask),
            10..=15 => return self.by_segment(random, size, is_write, mask),
            _ => {}
        }
        let is_narrow = full == 8 && random.chance(6);
        let bytes = if is_narrow { 4 } else { full };
        let Some(base) = Self::pick(random, self.pointers) else {
            return self.absolute(random, size, is_write, mask);
        };
        let mut operand = plain(self.register(base, bytes), full);
        let mut sum = self.known[base as usize];
        if let Some(first) = vector {
            let number = if random.chance(80) { 12 + random.below(3) as u32 } else { 3 };
            operand.index = first + if self.bits == 64 { number } else { number & 7 };
            operand.scale = random.pick(&[1, 2, 4, 8]);
        } else if random.chance(25)
            && let Some(index) = Self::pick(random, self.indices).filter(|index| *index != 4)
        {
            operand.index = self.register(index, bytes);
            operand.scale = random.pick(&[1, 2, 4, 8]);
            let scaled =
                self.known[index as usize].map(|v| v.wrapping_mul(u64::from(operand.scale)));
            sum = sum.zip(scaled).map(|(a, b)| a.wrapping_add(b));
        }
        operand.displacement = match sum {
            Some(sum) if random.chance(35) => self.aimed(random, sum, size, is_write, mask),
            _ if random.chance(25) => 0,
            _ => {
                let step = if mask != 0 { mask as i64 + 1 } else { random.pick(&[1, 4, 8, 8, 8]) };
                (random.below(32) as i64 - 12) * step
            }
        };
        if is_narrow && sum.is_some_and(|sum| sum >> 31 != 0) {
            // Its upper half is lost; what is left mostly is in memory too.
            operand.displacement &= 0xfff;
        }
        self.finish(operand, random)
    }

    fn aimed(&self, random: &mut Random, sum: u64, size: u64, is_write: bool, mask: u64) -> i64 {
        let half = match sum {
            _ if sum >> 31 == TOP >> 31 => TOP,
            _ if sum >> 40 == HIGH >> 40 => HIGH,
            _ => 0,
        };
        let target = self.place(random, half, size, is_write) & !mask;
        let displacement = target.wrapping_sub(sum) as i64;
        i64::from(displacement as i32)
    }

    /// Encoders want to know how long the displacement is.
    fn finish(&self, mut operand: MemoryOperand, random: &mut Random) -> MemoryOperand {
        let short = i8::try_from(operand.displacement).is_ok();
        operand.displ_size = match operand.displacement {
            0 if random.chance(80) => 0,
            _ if short && random.chance(90) => 1,
            _ => self.bits / 8,
        };
        if self.bits == 32 {
            operand.displacement &= 0xffff_ffff;
        }
        let is_32 = operand.base.size() == 4 || operand.index.size() == 4;
        if self.bits == 64 && is_32 && operand.displ_size == 8 {
            operand.displ_size = 4;
            operand.displacement &= 0xffff_ffff;
        }
        if random.chance(5) {
            operand.segment_prefix =
                random.pick(&[Register::ES, Register::SS, Register::DS, Register::CS]);
        }
        operand
    }

    /// By RIP, or by a displacement alone.
    fn absolute(&self, random: &mut Random, size: u64, is_write: bool, mask: u64) -> MemoryOperand {
        if self.bits == 64 && random.chance(60) {
            let target = self.place(random, self.half, size, is_write) & !mask;
            return MemoryOperand { displacement: target as i64, ..plain(Register::RIP, 8) };
        }
        let half = if self.bits == 64 { random.pick(&[0, TOP]) } else { 0 };
        let target = self.place(random, half, size, is_write) & !mask;
        let target = if self.bits == 64 { target as i32 as i64 } else { target as i64 };
        MemoryOperand { displacement: target, ..plain(Register::None, self.bits / 8) }
    }

    /// By FS or GS.
    fn by_segment(
        &self,
        random: &mut Random,
        size: u64,
        is_write: bool,
        mask: u64,
    ) -> MemoryOperand {
        let number = random.below(2) as usize;
        let segment_prefix = [Register::FS, Register::GS][number];
        let base = self.bases[number];
        let half = if base >> 31 == TOP >> 31 { TOP } else { 0 };
        let target = self.place(random, half, size, is_write) & !mask;
        let offset = target.wrapping_sub(base);
        let known = Self::pick(random, self.pointers)
            .and_then(|number| Some((number, self.known[number as usize]?)));
        if let Some((number, value)) = known.filter(|_| random.chance(30)) {
            let displacement = i64::from(offset.wrapping_sub(value) as i32);
            let base = self.register(number, self.bits / 8);
            let operand =
                MemoryOperand { displacement, segment_prefix, ..plain(base, self.bits / 8) };
            let operand = self.finish(operand, random);
            return MemoryOperand { segment_prefix, ..operand };
        }
        let displacement =
            if self.bits == 64 { i64::from(offset as i32) } else { offset as u32 as i64 };
        MemoryOperand { displacement, segment_prefix, ..plain(Register::None, self.bits / 8) }
    }
}

fn plain(base: Register, displ_size: u32) -> MemoryOperand {
    MemoryOperand {
        segment_prefix: Register::None,
        base,
        index: Register::None,
        scale: 1,
        displacement: 0,
        displ_size,
        is_broadcast: false,
    }
}

/// A 16-bit address in 32-bit code.
pub fn short(random: &mut Random) -> MemoryOperand {
    MemoryOperand {
        displacement: (LOW + random.below(PAGE - 64)) as i64,
        ..plain(Register::None, 2)
    }
}
