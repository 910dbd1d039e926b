//! Random accesses for any device, for property tests and for cargo-fuzz.
//!
//! Every device has to take any access at any offset in any order without a panic and in bounded
//! time; the bus never hands out an offset outside the mapped range, but a device must not rely on
//! that. Saved states are mutated too: a restored state is as hostile as a register write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{Device, Width};

use crate::chip::Chip;
use crate::clock::Clock;
use crate::timers::Timers;

/// Longer than any single access may take, with room for a loaded host.
const ACCESS_LIMIT: Duration = Duration::from_secs(30);

/// What one script drives.
pub struct Target<'a> {
    /// The register ranges of one chip, each with the number of bytes to aim at.
    pub ranges: &'a [(Arc<dyn Device>, u64)],
    /// The chip itself, for reset, save and restore.
    pub chip: &'a dyn Chip,
    /// The counted clock and timers it was made with.
    pub timers: &'a Arc<Timers>,
}

/// Why a script failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A read left bits above its width.
    WideValue,
    /// One step took longer than any step may.
    Slow,
    /// A state that the chip saved was refused by the same chip.
    OwnStateRefused,
    /// Saving after restoring gave something else.
    StateChanged,
    /// A refused state changed the chip.
    RefusedButChanged,
}

/// Runs `script` against `target`: each step takes up to 12 bytes of it.
pub fn drive(target: &Target<'_>, script: &[u8]) -> Result<(), Failure> {
    for step in script.chunks(12) {
        let mut bytes = [0; 12];
        for (to, from) in bytes.iter_mut().zip(step) {
            *to = *from;
        }
        let [action, range, low, high, value @ ..] = bytes;
        let started = Instant::now();
        run_step(target, action, range, u64::from(u16::from_le_bytes([low, high])), value)?;
        if started.elapsed() > ACCESS_LIMIT {
            return Err(Failure::Slow);
        }
    }
    round_trip(target.chip)
}

fn run_step(
    target: &Target<'_>,
    action: u8,
    range: u8,
    at: u64,
    value: [u8; 8],
) -> Result<(), Failure> {
    let count = target.ranges.len().max(1);
    let Some((device, size)) = target.ranges.get(usize::from(range) % count) else {
        return Ok(());
    };
    let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword]
        .get(usize::from(action >> 6))
        .copied()
        .unwrap_or(Width::Byte);
    // One access in eight is outside the range.
    let offset = if range & 0x70 == 0 { at.wrapping_mul(0x1_0001) } else { at % size.max(&1) };
    let value = u64::from_le_bytes(value);
    match action & 0x1f {
        0..=11 => {
            let read = device.read(offset, width).unwrap_or(0);
            if read & !width.mask() != 0 {
                return Err(Failure::WideValue);
            }
        }
        12..=26 => {
            // A refused access is as good as a done one.
            device.write(offset, width, value & width.mask()).ok();
        }
        27..=28 => advance(target.timers, value >> (value & 63)),
        29 => target.chip.reset(),
        30 => return round_trip(target.chip),
        _ => return damaged_state(target.chip, at, value),
    }
    Ok(())
}

/// Moves guest time on by up to a day and runs what is due, a bounded number of rounds.
fn advance(timers: &Arc<Timers>, by_ns: u64) {
    let clock = timers.clock();
    clock.advance_to(clock.now_ns().wrapping_add(by_ns % 86_400_000_000_000));
    for _ in 0..4 {
        timers.run_expired();
    }
}

fn round_trip(chip: &dyn Chip) -> Result<(), Failure> {
    let saved = chip.save();
    chip.restore(&saved).map_err(|_| Failure::OwnStateRefused)?;
    if chip.save() == saved { Ok(()) } else { Err(Failure::StateChanged) }
}

fn damaged_state(chip: &dyn Chip, at: u64, value: u64) -> Result<(), Failure> {
    let before = chip.save();
    let mut saved = before.clone();
    let index = at as usize % saved.len().max(1);
    if let Some(byte) = saved.get_mut(index) {
        *byte ^= value as u8;
    }
    if chip.restore(&saved).is_err() && chip.save() != before {
        return Err(Failure::RefusedButChanged);
    }
    round_trip(chip)
}

/// A counted clock that starts in 2026, and timers on it.
pub fn counted_timers() -> Arc<Timers> {
    Timers::new(Arc::new(Clock::counted(1_770_000_000_123_456_789)))
}

/// Checks a chip made by `build` from timers with random scripts.
#[cfg(test)]
pub(crate) fn check_chip<C: Chip>(
    build: impl Fn(&Arc<Timers>) -> (Arc<C>, Vec<(Arc<dyn Device>, u64)>),
) {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    // 256 scripts, or as many as PROPTEST_CASES says.
    let mut runner = TestRunner::new(Config::default());
    runner
        .run(&proptest::collection::vec(any::<u8>(), 0..1200), |script| {
            let timers = counted_timers();
            let (chip, ranges) = build(&timers);
            let target = Target { ranges: &ranges, chip: &*chip, timers: &timers };
            prop_assert_eq!(drive(&target, &script), Ok(()));
            Ok(())
        })
        .expect("no script breaks the chip");
}
