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

/// Has COM1 raise a level-triggered interrupt at the I/O APIC, whose line stays up over two of its
/// three EOIs, and once more. Prints what [`LEVEL_REPORT`] is, and ends as the integer loop does.
pub const LEVEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/level.rom"));

/// What [`LEVEL`] prints where each interrupt comes as often as it should.
pub const LEVEL_REPORT: &str = "level interrupts 3 with remote IRR 0, then 4 with remote IRR 0";

const RELAY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/relay.rom"));

const CLOCKS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clocks.rom"));

/// The HPET's.
const TICKS_A_MILLISECOND: u64 = 100_000;

/// ROM offset of the number of iterations, or of the time (u64, little-endian).
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
    with_parameter(image, u64::from(iterations.max(1)))
}

fn with_parameter(image: &[u8], parameter: u64) -> Vec<u8> {
    let mut image = image.to_vec();
    for (byte, value) in image.iter_mut().skip(PARAMETER).zip(parameter.to_le_bytes()) {
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

/// A guest that computes and looks at its clocks (time stamp, kvmclock, HPET) on all processors for
/// `milliseconds` of the HPET's time. It prints a line for each, which [`ClocksReport`] reads, and
/// ends as the integer loop does. It needs KVM's clock.
pub fn clocks(milliseconds: u32) -> Vec<u8> {
    with_parameter(CLOCKS, u64::from(milliseconds) * TICKS_A_MILLISECOND)
}

/// What one processor of [`clocks`] has computed and seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClocksReport {
    /// How often it went round.
    pub iterations: u64,
    /// What it computed with general registers and memory.
    pub checksum: u64,
    /// What it computed with a vector register.
    pub vector: u64,
    /// What it counted on the x87 stack.
    pub x87: u64,
    /// How often a clock showed less than before, on this processor or on another.
    pub backwards: u64,
    /// What passed on the time stamp, in ticks.
    pub tsc: u64,
    /// What passed on kvmclock, in nanoseconds.
    pub kvmclock: u64,
    /// What passed on the HPET, in ticks of 10 ns.
    pub hpet: u64,
    /// Ticks of the time stamp a second.
    pub hz: u64,
}

impl ClocksReport {
    /// The reports in what the guest has printed, in the order of its processors.
    pub fn read(console: &str) -> Vec<Self> {
        console
            .lines()
            .filter_map(|line| line.trim_end().strip_prefix("cpu "))
            .map(Self::of)
            .collect()
    }

    fn of(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            u64::from_str_radix(words.get(at + 1)?, 16).ok()
        };
        let value = |name| value(name).unwrap_or_default();
        Self {
            iterations: value("iterations"),
            checksum: value("checksum"),
            vector: value("vector"),
            x87: value("x87"),
            backwards: value("backwards"),
            tsc: value("tsc"),
            kvmclock: value("kvmclock"),
            hpet: value("hpet"),
            hz: value("hz"),
        }
    }

    /// What is wrong: a result that is not that of so many iterations, a clock that went back, or
    /// clocks that are apart by more than `tolerance_ns`.
    pub fn check(&self, tolerance_ns: u64) -> Result<(), String> {
        let expected = Self::computed(self.iterations);
        let results = |report: &Self| (report.checksum, report.vector, report.x87);
        if self.iterations == 0 || results(self) != results(&expected) {
            return Err(format!("wrong results: {self:x?} instead of {expected:x?}"));
        }
        if self.backwards != 0 {
            return Err(format!("a clock went back {} times", self.backwards));
        }
        let hpet_ns = self.hpet * 10;
        let scaled = u128::from(self.tsc) * 1_000_000_000 / u128::from(self.hz.max(1));
        let tsc_ns = u64::try_from(scaled).unwrap_or(u64::MAX);
        let apart = tsc_ns.abs_diff(hpet_ns).max(self.kvmclock.abs_diff(hpet_ns));
        if apart > tolerance_ns {
            let kvmclock_ns = self.kvmclock;
            return Err(format!("clocks differ: {tsc_ns} {kvmclock_ns} {hpet_ns} ns passed"));
        }
        Ok(())
    }

    /// The same computation in Rust.
    fn computed(iterations: u64) -> Self {
        const FACTOR: u64 = 0x5851_F42D_4C95_7F2D;
        const BETWEEN_LOOKS: u64 = 64;
        let (mut checksum, mut vector) = (1_u64, 0_u64);
        let mut table = [0_u64; 256];
        for round in 1..=iterations {
            checksum = (checksum.rotate_left(5) ^ round).wrapping_mul(FACTOR);
            if let Some(element) = table.get_mut((checksum >> 56) as usize) {
                checksum = checksum.wrapping_add(*element);
                *element = checksum;
            }
            vector = vector.wrapping_add(checksum);
        }
        Self { iterations, checksum, vector, x87: iterations / BETWEEN_LOOKS, ..Self::default() }
    }
}

/// A guest of one or two processors that sleep until the other's interrupt, then until a one-shot
/// of their own timer, for `milliseconds` of the HPET's time. It prints a line, which
/// [`RelayReport`] reads, and ends as the integer loop does. An interrupt that is lost stops it.
pub fn relay(milliseconds: u32) -> Vec<u8> {
    with_parameter(RELAY, u64::from(milliseconds) * TICKS_A_MILLISECOND)
}

/// What [`relay`] has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayReport {
    /// How often each processor was to get either interrupt.
    pub rounds: u64,
    /// How often it did: the interrupts of the other and the timer's, for each processor.
    pub counts: Vec<u64>,
}

impl RelayReport {
    /// The report in what the guest has printed.
    pub fn read(console: &str) -> Option<Self> {
        let line = console.lines().find_map(|line| line.strip_prefix("relay "))?;
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        Some(Self { rounds: numbers.next()?, counts: numbers.collect() })
    }

    /// What is wrong with it for so many processors.
    pub fn check(&self, cpus: usize) -> Result<(), String> {
        let is_right = self.rounds != 0 && self.counts == vec![self.rounds; 2 * cpus];
        if is_right { Ok(()) } else { Err(format!("interrupts too many or too few: {self:?}")) }
    }
}
