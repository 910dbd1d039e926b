//! A program with the state that it starts from.

use cpu::fpu::FpuState;
use cpu::state::{Activity, Segment, State, attr, seg};
use cpu::testing::random::Random;
use cpu::testing::special::{EXPONENTS, SINGLES, x87_register};

use crate::pool::STORES_X87_POINTERS;
use crate::program::{Assembled, Program};
use crate::quirk::Quirk;
use crate::world::{COUNTER, Mode, PAGE, PAGES, Rights, TABLE, World};

/// Everything that a program starts from.
#[derive(Clone, Debug)]
pub struct Start {
    /// General registers.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// Vector and x87 registers.
    pub fpu: FpuState,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// Outside 64-bit mode FS and GS end below 4 GiB.
    pub is_limited: bool,
    /// Whose pages are whose.
    pub rights: Rights,
    /// What is not as usual.
    pub quirk: Quirk,
    /// The address of the first instruction.
    pub base: u64,
    /// What memory's contents are made of.
    pub memory_seed: u64,
    /// Turns of the program's own loop.
    pub turns: u8,
    /// How often the program is run.
    pub runs: u32,
}

/// A program and its start.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it was made of.
    pub seed: u64,
    /// How it is executed.
    pub mode: Mode,
    /// The program.
    pub program: Program,
    /// The start.
    pub start: Start,
}

/// A case ready to be run.
pub struct Ready {
    /// Contents of [`PAGES`].
    pub pages: Vec<u8>,
    /// The state.
    pub state: State,
    /// The program's bytes.
    pub assembled: Assembled,
}

impl Case {
    /// True if it stores the pointers of the x87 unit.
    pub fn stores_x87_pointers(&self) -> bool {
        let items = &self.program.items;
        items.iter().any(|item| STORES_X87_POINTERS.contains(&item.instruction.mnemonic()))
    }

    /// The bytes and the state for `world`; `None` if the program cannot be encoded.
    pub fn ready(&self, world: &World) -> Option<Ready> {
        let assembled = self.program.assemble(self.mode.bits(), self.start.base)?;
        let mut pages = self.memory();
        put(&mut pages, self.start.base, &assembled.bytes);
        for (slot, item) in (0..).zip(&self.program.table) {
            let address = assembled.addresses.get(*item)?;
            let bytes = self.mode.bits() as usize / 8;
            put(&mut pages, TABLE + 8 * slot, &address.to_le_bytes()[..bytes]);
        }
        put(&mut pages, COUNTER, &u32::from(self.start.turns).to_le_bytes());
        Some(Ready { pages, state: self.state(world), assembled })
    }

    fn memory(&self) -> Vec<u8> {
        let mut random = Random::new(self.start.memory_seed);
        let mut pages = vec![0xcc; PAGES.len() * PAGE as usize];
        for chunk in pages[2 * PAGE as usize..].chunks_exact_mut(8) {
            let value = match random.below(8) {
                0 => random.operand(),
                1 => (random.below(0x3000) as f64 - 6000.5).to_bits(),
                _ => random.bits(),
            };
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        pages
    }

    fn state(&self, world: &World) -> State {
        let start = &self.start;
        let mut state = world.template.clone();
        state.gpr = start.gpr;
        state.rip = start.base;
        state.rflags = start.rflags;
        state.fpu = start.fpu.clone();
        state.activity = Activity::Active;
        state.cr0 = world.cr0(start.rights);
        state.cr4 = world.cr4(start.rights);
        state.cr2 = 0;
        for (number, base) in [seg::FS, seg::GS].into_iter().zip(start.bases) {
            let limit = if start.is_limited { 0x2f_ffff } else { u32::MAX };
            state.segments[number] = Segment { limit, base, ..state.segments[number] };
            if self.mode.bits() == 64 {
                // As if loaded with a null selector, its base by WRMSR.
                state.segments[number].selector = 0;
                state.segments[number].attributes |= attr::P;
            }
        }
        start.quirk.apply(&mut state);
        state
    }
}

fn put(pages: &mut [u8], linear: u64, bytes: &[u8]) {
    for (address, byte) in (linear..).zip(bytes) {
        if let Some(offset) = crate::world::offset_of(address) {
            pages[offset] = *byte;
        }
    }
}

fn lane(random: &mut Random) -> u64 {
    let single = |random: &mut Random| match random.below(2) {
        0 => random.pick(&SINGLES),
        _ => (random.below(0x3000) as f32 / 7.0 - 500.0).to_bits(),
    };
    match random.below(5) {
        0 => u64::from(single(random)) << 32 | u64::from(single(random)),
        1 => f64::from(f32::from_bits(single(random))).to_bits(),
        2 => (random.below(0x3000) as f64 - 6000.5).to_bits(),
        3 => random.below(256) * 0x0101_0101_0101_0101,
        _ => random.bits(),
    }
}

fn extended(random: &mut Random) -> [u8; 16] {
    let significand = match random.below(4) {
        0 => 0,
        1 => 1 << 63,
        2 => random.bits() | 1 << 63,
        _ => random.bits(),
    };
    let exponent = match random.below(3) {
        0 => random.pick(&EXPONENTS),
        1 => 0x3fe0 + random.below(64) as u16,
        _ => random.bits() as u16,
    };
    x87_register(exponent, significand)
}

/// Random vector and x87 registers; most exceptions are masked.
pub fn random_fpu(random: &mut Random) -> FpuState {
    let mut fpu = FpuState::default();
    let has_avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let (registers, bytes) = if has_avx512 { (32, 64) } else { (16, 32) };
    for register in fpu.zmm.iter_mut().take(registers) {
        for chunk in register[..bytes].chunks_exact_mut(8) {
            chunk.copy_from_slice(&lane(random).to_le_bytes());
        }
    }
    // Small indices for gathers.
    for register in &mut fpu.zmm[12..15] {
        for chunk in register[..bytes].chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.below(0x200).to_le_bytes());
        }
    }
    if has_avx512 {
        fpu.opmask = std::array::from_fn(|_| random.bits());
    }
    fpu.x87 = std::array::from_fn(|_| extended(random));
    fpu.ftw = random.pick(&[0, 0, 0xff, random.clone().bits() as u8]);
    fpu.fsw = random.bits() as u16 & 0x7f00;
    fpu.fcw = random.bits() as u16 & 0x0f00 | 0x7f;
    fpu.mxcsr = random.bits() as u32 & 0xe07f | 0x1f80;
    if random.chance(8) {
        fpu.mxcsr &= !0x1f80 | random.bits() as u32;
    }
    if random.chance(8) {
        fpu.fcw &= !0x3f | random.bits() as u16;
    }
    fpu
}
