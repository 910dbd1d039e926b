//! The APIC timer (SDM Vol. 3A, "APIC Timer" and "TSC-Deadline Mode").
//!
//! Nothing counts: the current count is computed from guest time, so it is exact at every read and
//! costs nothing in between. [`ApicTimer::advance`] catches up with guest time and says whether the
//! timer expired; every access to a timer register calls it first, so that an expiry is never lost
//! to a write that comes just before the wake-up.
//!
//! Known departure: a periodic timer faster than [`MIN_INTERRUPT_NS`] interrupts only at every n-th
//! expiry, so that a guest cannot keep the host busy with a timer of period 1. Its count is exact.

use serde::{Deserialize, Serialize};

use super::lvt::LVT_MASKED;
use crate::clock::{ns_to_ticks, ticks_to_ns};

/// The shortest time between two interrupts of a periodic timer.
pub(super) const MIN_INTERRUPT_NS: u64 = 20_000;

/// Bits 3, 1 and 0 of the divide configuration register.
pub(super) const DCR_BITS: u32 = 0b1011;

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl TimerMode {
    pub(super) fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// A count that runs down: `from` ticks left at `start_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Countdown {
    start_ns: u64,
    from: u32,
    /// The expiry to interrupt at, in ticks after `start_ns`.
    next_ticks: u64,
}

/// Rates that never change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) tsc_hz: u64,
    /// The input of the divider.
    pub(super) timer_hz: u64,
}

/// The timer's registers. The LVT entry is passed in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApicTimer {
    initial: u32,
    divide: u32,
    countdown: Option<Countdown>,
    /// IA32_TSC_DEADLINE; zero is disarmed.
    tsc_deadline: u64,
    /// Guest TSC less the machine's.
    tsc_offset: u64,
}

impl ApicTimer {
    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide_register(&self) -> u32 {
        self.divide
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    pub(super) fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    pub(super) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    /// Puts the timer to its reset state; the TSC is not part of it.
    pub(super) fn reset(&mut self) {
        *self = Self { tsc_offset: self.tsc_offset, ..Self::default() };
    }

    /// True if a saved state can be one of this timer's.
    pub(super) fn is_valid(&self) -> bool {
        self.divide & !DCR_BITS == 0
            && self.countdown.is_none_or(|c| c.from != 0 && c.next_ticks >= u64::from(c.from))
    }

    /// The divider: 2 to 128 in the order of the encoding, then 1.
    fn divider(&self) -> u64 {
        let encoding = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((encoding + 1) & 7)
    }

    /// Whole ticks of the divided clock since `start_ns`.
    fn elapsed(&self, start_ns: u64, now_ns: u64, rates: Rates) -> u64 {
        ns_to_ticks(now_ns.saturating_sub(start_ns), rates.timer_hz) / self.divider()
    }

    fn expiry_ns(&self, countdown: Countdown, rates: Rates) -> u64 {
        let ticks = countdown.next_ticks.saturating_mul(self.divider());
        countdown.start_ns.saturating_add(ticks_to_ns(ticks, rates.timer_hz))
    }

    /// Ticks between two interrupts in periodic mode: the period, or as many of them as it takes.
    fn stride(&self, rates: Rates) -> u64 {
        let period = u64::from(self.initial.max(1));
        let period_ns = ticks_to_ns(period.saturating_mul(self.divider()), rates.timer_hz);
        period.saturating_mul(MIN_INTERRUPT_NS.div_ceil(period_ns.max(1)))
    }

    /// The current count.
    pub(super) fn current(&self, lvt: u32, now_ns: u64, rates: Rates) -> u32 {
        let Some(countdown) = self.countdown else { return 0 };
        let elapsed = self.elapsed(countdown.start_ns, now_ns, rates);
        let left = match u64::from(countdown.from).checked_sub(elapsed) {
            Some(left) if left > 0 => left,
            _ if TimerMode::of(lvt) == TimerMode::Periodic => {
                let initial = u64::from(self.initial.max(1));
                initial - (elapsed - u64::from(countdown.from)) % initial
            }
            _ => 0,
        };
        left as u32
    }

    /// Writes the initial count, which starts the timer; zero stops it. Ignored in TSC-deadline
    /// mode.
    pub(super) fn set_initial(&mut self, initial: u32, lvt: u32, now_ns: u64) {
        if TimerMode::of(lvt) != TimerMode::TscDeadline {
            self.initial = initial;
            self.start(initial, now_ns);
        }
    }

    fn start(&mut self, from: u32, start_ns: u64) {
        let next_ticks = u64::from(from);
        self.countdown = (from != 0).then_some(Countdown { start_ns, from, next_ticks });
    }

    /// Nothing counts and nothing is armed.
    pub(super) fn stop(&mut self) {
        self.countdown = None;
        self.tsc_deadline = 0;
    }

    /// Takes over the values of its registers: initial and current count, divide configuration.
    /// A count of zero has run out, but for a periodic timer, which is about to reload.
    pub(super) fn load(
        &mut self,
        lvt: u32,
        (initial, current, divide): (u32, u32, u32),
        tsc_deadline: u64,
        now_ns: u64,
    ) {
        self.stop();
        self.divide = divide & DCR_BITS;
        self.initial = initial;
        match TimerMode::of(lvt) {
            TimerMode::TscDeadline => self.tsc_deadline = tsc_deadline,
            TimerMode::Periodic if current == 0 => self.start(initial, now_ns),
            _ => self.start(current, now_ns),
        }
    }

    /// Writes the divide configuration; a running count goes on at the new rate.
    pub(super) fn set_divide(&mut self, divide: u32, lvt: u32, now_ns: u64, rates: Rates) {
        let left = self.current(lvt, now_ns, rates);
        self.divide = divide & DCR_BITS;
        self.start(left, now_ns);
    }

    /// Before the LVT entry goes from `old` to `new`: what is left of the period becomes all that
    /// is left, or a timer that had reloaded would have expired long ago as a one-shot one.
    pub(super) fn rebase(&mut self, old: u32, new: u32, now_ns: u64, rates: Rates) {
        if self.countdown.is_some() && TimerMode::of(old) != TimerMode::of(new) {
            let left = self.current(old, now_ns, rates);
            self.start(left, now_ns);
        }
    }

    /// The mode changed with the LVT entry from `old` to `new`: to or from TSC-deadline mode
    /// disarms, between one-shot and periodic the count goes on.
    pub(super) fn change_mode(&mut self, old: u32, new: u32) {
        let (old, new) = (TimerMode::of(old), TimerMode::of(new));
        let keeps = |mode| matches!(mode, TimerMode::OneShot | TimerMode::Periodic);
        if old != new && !(keeps(old) && keeps(new)) {
            self.stop();
            self.initial = 0;
        }
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other modes.
    pub(super) fn set_tsc_deadline(&mut self, deadline: u64, lvt: u32) {
        if TimerMode::of(lvt) == TimerMode::TscDeadline {
            self.tsc_deadline = deadline;
        }
    }

    /// Guest TSC at `now_ns`.
    pub(super) fn tsc(&self, now_ns: u64, rates: Rates) -> u64 {
        ns_to_ticks(now_ns, rates.tsc_hz).wrapping_add(self.tsc_offset)
    }

    /// Catches up with `now_ns`; true if the timer expired since the last call, once however
    /// often it did.
    pub(super) fn advance(&mut self, lvt: u32, now_ns: u64, rates: Rates) -> bool {
        match TimerMode::of(lvt) {
            TimerMode::TscDeadline => {
                let is_due = self.tsc_deadline != 0 && self.tsc(now_ns, rates) >= self.tsc_deadline;
                if is_due {
                    self.tsc_deadline = 0;
                }
                is_due
            }
            TimerMode::OneShot | TimerMode::Periodic => self.advance_count(lvt, now_ns, rates),
            TimerMode::Reserved => false,
        }
    }

    fn advance_count(&mut self, lvt: u32, now_ns: u64, rates: Rates) -> bool {
        let Some(mut countdown) = self.countdown else { return false };
        let elapsed = self.elapsed(countdown.start_ns, now_ns, rates);
        if elapsed < countdown.next_ticks {
            return false;
        }
        // A periodic timer without initial count has nothing to reload from.
        if TimerMode::of(lvt) == TimerMode::Periodic && self.initial != 0 {
            let stride = self.stride(rates);
            let missed = (elapsed - countdown.next_ticks) / stride;
            let step = stride.saturating_mul(missed.saturating_add(1));
            countdown.next_ticks = countdown.next_ticks.saturating_add(step);
            self.countdown = Some(countdown);
        } else {
            self.countdown = None;
        }
        true
    }

    /// When to call [`Self::advance`] next. A masked entry needs no wake-up: what it would change
    /// is computed when it is read.
    pub(super) fn deadline_ns(&self, lvt: u32, now_ns: u64, rates: Rates) -> Option<u64> {
        if lvt & LVT_MASKED != 0 {
            return None;
        }
        match TimerMode::of(lvt) {
            TimerMode::Reserved => None,
            TimerMode::TscDeadline if self.tsc_deadline == 0 => None,
            TimerMode::TscDeadline => {
                let left = self.tsc_deadline.saturating_sub(self.tsc(now_ns, rates));
                let machine_ticks = ns_to_ticks(now_ns, rates.tsc_hz).saturating_add(left);
                Some(ticks_to_ns(machine_ticks, rates.tsc_hz))
            }
            _ => self.countdown.map(|countdown| self.expiry_ns(countdown, rates)),
        }
    }
}
