//! The counting element of one 8254 channel as a function of time.
//!
//! Problem: a counter runs at 1.193182 MHz, far too fast to be stepped. Strategy: a channel keeps
//! the clock tick at which its count was loaded (`origin`), and value and output at any later tick
//! follow by arithmetic; ticks are absolute, so nothing drifts. Invariant: methods are called with
//! ticks that never go back, and [`CountingElement::advance`] has been called for the tick in hand.

use serde::{Deserialize, Serialize};

/// The six modes of a channel (82C54 data sheet, "Mode Definitions").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    /// Mode 0.
    #[default]
    InterruptOnTerminalCount,
    /// Mode 1.
    HardwareOneShot,
    /// Mode 2.
    RateGenerator,
    /// Mode 3.
    SquareWave,
    /// Mode 4.
    SoftwareStrobe,
    /// Mode 5.
    HardwareStrobe,
}

use Mode::{
    HardwareOneShot, HardwareStrobe, InterruptOnTerminalCount, RateGenerator, SoftwareStrobe,
    SquareWave,
};

impl Mode {
    /// The mode in bits 3 to 1 of a control word; 6 and 7 are 2 and 3.
    pub(super) fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => InterruptOnTerminalCount,
            1 => HardwareOneShot,
            2 | 6 => RateGenerator,
            3 | 7 => SquareWave,
            4 => SoftwareStrobe,
            _ => HardwareStrobe,
        }
    }

    /// The mode as a status byte shows it.
    pub(super) fn bits(self) -> u8 {
        self as u8
    }

    /// Loaded by a rising gate only.
    fn is_triggered(self) -> bool {
        matches!(self, HardwareOneShot | HardwareStrobe)
    }

    fn is_periodic(self) -> bool {
        matches!(self, RateGenerator | SquareWave)
    }
}

/// How far the count has gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Progress {
    /// Nothing was loaded since the mode was set.
    #[default]
    Unloaded,
    /// Counting since this tick.
    Running { origin: u64 },
    /// Held by the gate, or by half a count, after this many ticks.
    Held { elapsed: u64 },
}

/// A count that replaces the present one at the end of its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Successor {
    at: u64,
    count: u32,
    /// In mode 3: the period goes on with its low half.
    is_low_half: bool,
}

/// One channel's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CountingElement {
    mode: Mode,
    is_bcd: bool,
    gate: bool,
    /// The count written last, 1 to 65536 (10000 in BCD).
    written: Option<u32>,
    /// The count in effect.
    count: u32,
    progress: Progress,
    successor: Option<Successor>,
}

impl CountingElement {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: InterruptOnTerminalCount,
            is_bcd: false,
            gate,
            written: None,
            count: 1 << 16,
            progress: Progress::Unloaded,
            successor: None,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn is_bcd(&self) -> bool {
        self.is_bcd
    }

    /// Takes a control word: the channel waits for a count.
    pub(super) fn set_mode(&mut self, mode: Mode, is_bcd: bool) {
        *self = Self { mode, is_bcd, ..Self::new(self.gate) };
    }

    /// How many values the counter has before it wraps.
    fn modulus(&self) -> u64 {
        if self.is_bcd { 10_000 } else { 1 << 16 }
    }

    /// Brings in what fell due up to `now`.
    pub(super) fn advance(&mut self, now: u64) {
        let Some(next) = self.successor.filter(|next| next.at <= now) else { return };
        self.successor = None;
        self.count = next.count;
        let lead = if next.is_low_half { self.high_ticks() } else { 0 };
        self.progress = Progress::Running { origin: next.at.saturating_sub(lead) };
    }

    /// Like [`CountingElement::advance`] from `from`; how often OUT rose on the way.
    pub(super) fn advance_counting_rises(&mut self, from: u64, now: u64) -> u64 {
        let Some(next) = self.successor.filter(|next| next.at <= now) else {
            return self.rises(from, now);
        };
        // A count that takes over at the end of a period divides the time in two.
        let before = self.rises(from, next.at);
        self.advance(now);
        before.saturating_add(self.rises(next.at, now))
    }

    /// A complete count was written at `now`.
    pub(super) fn write_count(&mut self, raw: u16, now: u64) {
        let count = self.count_of(raw);
        let was_loaded = self.progress != Progress::Unloaded;
        self.written = Some(count);
        if self.mode.is_triggered() {
            return;
        }
        if self.mode.is_periodic() && was_loaded {
            if let Progress::Running { origin } = self.progress {
                self.successor = Some(self.successor_of(count, origin, now));
            }
            // Held by the gate: the gate's rise loads what was written.
            return;
        }
        self.load(now);
    }

    fn count_of(&self, raw: u16) -> u32 {
        let count = if self.is_bcd { from_bcd(raw) } else { u32::from(raw) };
        if count == 0 { self.modulus() as u32 } else { count }
    }

    /// In modes 2 and 3 a new count waits for the end of the period, or of the half of a square.
    fn successor_of(&self, count: u32, origin: u64, now: u64) -> Successor {
        let period = u64::from(self.count);
        let position = now.wrapping_sub(origin) % period;
        let start = now.wrapping_sub(position);
        let is_high_half = self.mode == SquareWave && position < self.high_ticks();
        let length = if is_high_half { self.high_ticks() } else { period };
        let has_low_half = self.mode == SquareWave && period > 1;
        Successor {
            at: start.wrapping_add(length),
            count,
            is_low_half: is_high_half && has_low_half,
        }
    }

    /// Loads the count written last; it is in the counter one tick later.
    fn load(&mut self, now: u64) {
        let Some(count) = self.written else { return };
        self.count = count;
        self.successor = None;
        self.progress = if self.gate || self.mode.is_triggered() {
            Progress::Running { origin: now.wrapping_add(1) }
        } else {
            Progress::Held { elapsed: 0 }
        };
    }

    /// The first half of a two-byte count was written: mode 0 stops and lowers its output.
    pub(super) fn half_written(&mut self) {
        if self.mode == InterruptOnTerminalCount {
            self.progress = Progress::Unloaded;
        }
    }

    /// Sets the gate input.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (self.mode, self.progress) {
            (HardwareOneShot | HardwareStrobe, _) if gate => self.load(now),
            (HardwareOneShot | HardwareStrobe, _) | (_, Progress::Unloaded) => {}
            (RateGenerator | SquareWave, _) if gate => self.load(now),
            (_, Progress::Held { elapsed }) if gate => {
                let origin = now.wrapping_add(1).wrapping_sub(elapsed);
                self.progress = Progress::Running { origin };
            }
            (_, Progress::Running { origin }) if !gate => {
                self.progress = Progress::Held { elapsed: now.saturating_sub(origin) };
                self.successor = None;
            }
            _ => {}
        }
    }

    /// Ticks counted at `now`; none before anything was loaded.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.progress {
            Progress::Unloaded => None,
            Progress::Running { origin } => Some(now.saturating_sub(origin)),
            Progress::Held { elapsed } => Some(elapsed),
        }
    }

    /// True until the count written last is the one in the counter.
    pub(super) fn is_null_count(&self, now: u64) -> bool {
        match self.progress {
            Progress::Unloaded => true,
            Progress::Running { origin } => {
                now < origin || self.successor.is_some() || self.written != Some(self.count)
            }
            Progress::Held { .. } => self.written != Some(self.count),
        }
    }

    /// Ticks of a square wave's high half; the odd tick is in it.
    fn high_ticks(&self) -> u64 {
        u64::from(self.count.div_ceil(2))
    }

    /// The counter's value as it reads, in BCD if it counts so.
    pub(super) fn value(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let elapsed = self.elapsed(now).unwrap_or(0);
        let value = match self.mode {
            RateGenerator => count - elapsed % count,
            SquareWave => self.square_value(elapsed % count),
            _ => (count + self.modulus() - elapsed % self.modulus()) % self.modulus(),
        } % self.modulus();
        if self.is_bcd { to_bcd(value) } else { value as u16 }
    }

    /// In mode 3 the even part of the count goes down by two, once in each half.
    fn square_value(&self, position: u64) -> u64 {
        let even = u64::from(self.count & !1);
        let high = self.high_ticks();
        let in_half = if position < high { position } else { position - high };
        even.saturating_sub(2 * in_half)
    }

    /// The OUT pin.
    pub(super) fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else {
            return self.mode != InterruptOnTerminalCount;
        };
        let count = u64::from(self.count);
        match self.mode {
            InterruptOnTerminalCount | HardwareOneShot => elapsed >= count,
            RateGenerator => !self.gate || elapsed % count != count - 1,
            SquareWave => !self.gate || elapsed % count < self.high_ticks(),
            SoftwareStrobe | HardwareStrobe => elapsed != count,
        }
    }

    /// The next tick after `now` at which OUT rises, or falls in mode 3, if nothing is written.
    /// The low tick of modes 2, 4 and 5 is not an event of its own.
    pub(super) fn next_event(&self, now: u64) -> Option<u64> {
        let Progress::Running { origin } = self.progress else { return None };
        let count = u64::from(self.count);
        let once = |at: u64| (at > now).then_some(at);
        let event = match self.mode {
            InterruptOnTerminalCount | HardwareOneShot => once(origin.wrapping_add(count)),
            SoftwareStrobe | HardwareStrobe => once(origin.wrapping_add(count + 1)),
            // A period of one tick is illegal; the output never moves.
            RateGenerator | SquareWave if count == 1 => None,
            RateGenerator => Some(next_in_series(origin.wrapping_add(count), count, now)),
            SquareWave => {
                let falls = origin.wrapping_add(self.high_ticks());
                let rises = origin.wrapping_add(count);
                Some(next_in_series(rises, count, now).min(next_in_series(falls, count, now)))
            }
        };
        match self.successor {
            Some(next) => Some(event.map_or(next.at, |at| at.min(next.at))),
            None => event,
        }
    }

    /// The ticks between two rises of OUT, if it goes on rising.
    pub(super) fn period(&self) -> Option<u64> {
        let is_running = matches!(self.progress, Progress::Running { .. });
        (is_running && self.mode.is_periodic() && self.count > 1).then_some(u64::from(self.count))
    }

    /// How often OUT rose in `after < tick <= now`, as an edge detector would count.
    fn rises(&self, after: u64, now: u64) -> u64 {
        let Progress::Running { origin } = self.progress else { return 0 };
        let count = u64::from(self.count);
        let until = |tick: u64| tick.saturating_sub(origin);
        let once = |at: u64| u64::from(until(after) < at && at <= until(now));
        match self.mode {
            InterruptOnTerminalCount | HardwareOneShot => once(count),
            SoftwareStrobe | HardwareStrobe => once(count + 1),
            RateGenerator | SquareWave if count == 1 => 0,
            RateGenerator | SquareWave => (until(now) / count).saturating_sub(until(after) / count),
        }
    }

    /// The field that is impossible in a state from outside, if any is.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let limit = self.modulus() as u32;
        let is_count = |count: u32| (1..=limit).contains(&count);
        let has_count = is_count(self.count) || self.progress == Progress::Unloaded;
        let rules = [
            ("count", has_count && (1..=1 << 16).contains(&self.count)),
            ("written", self.written.is_none_or(is_count)),
            ("successor", self.successor.is_none_or(|next| is_count(next.count))),
        ];
        rules.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(field, _)| Err(field))
    }
}

/// The first tick after `now` that is `start` or a number of periods behind it.
fn next_in_series(start: u64, period: u64, now: u64) -> u64 {
    let Some(passed) = now.checked_sub(start) else { return start };
    start.saturating_add((passed / period + 1).saturating_mul(period))
}

fn from_bcd(raw: u16) -> u32 {
    let digits = (0..4).rev().map(|digit| u32::from(raw >> (4 * digit) & 0xf));
    // Digits above 9 are illegal; they count as the value they have.
    digits.fold(0, |value, digit| 10 * value + digit) % 10_000
}

fn to_bcd(value: u64) -> u16 {
    let digit = |weight: u64| (value / weight % 10) as u16;
    digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
}
