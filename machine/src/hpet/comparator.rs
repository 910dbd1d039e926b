//! One timer of the HPET: its configuration and its comparator.
//!
//! Nothing counts. [`Comparator::advance`] is told how far the main counter came since the last
//! call and finds out with one division how often it matched, so any period takes the same time.

use serde::{Deserialize, Serialize};

pub(super) const INT_TYPE_LEVEL: u64 = 1 << 1;
pub(super) const INT_ENB: u64 = 1 << 2;
pub(super) const TYPE_PERIODIC: u64 = 1 << 3;
const PER_INT_CAP: u64 = 1 << 4;
const SIZE_CAP: u64 = 1 << 5;
pub(super) const VAL_SET: u64 = 1 << 6;
pub(super) const MODE_32: u64 = 1 << 8;
const INT_ROUTE: u64 = 0x1F << 9;
pub(super) const FSB_EN: u64 = 1 << 14;
const FSB_INT_DEL_CAP: u64 = 1 << 15;

const CAPABILITIES: u64 = PER_INT_CAP | SIZE_CAP | FSB_INT_DEL_CAP;
pub(super) const WRITABLE: u64 =
    INT_TYPE_LEVEL | INT_ENB | TYPE_PERIODIC | VAL_SET | MODE_32 | INT_ROUTE | FSB_EN;

/// The shortest time between two interrupts of one timer with a shorter period.
pub(super) const MIN_INTERRUPT_NS: u64 = 20_000;

/// The registers of a timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Comparator {
    /// The writable bits of the configuration.
    pub(super) config: u64,
    pub(super) value: u64,
    pub(super) period: u64,
    /// The FSB route register: MSI data in bits 31:0, address in bits 63:32.
    pub(super) fsb_route: u64,
    /// A match that did not interrupt yet.
    is_due: bool,
    /// No interrupt before this guest time.
    not_before_ns: u64,
}

impl Comparator {
    pub(super) fn power_up() -> Self {
        Self {
            config: 0,
            value: u64::MAX,
            period: 0,
            fsb_route: 0,
            is_due: false,
            not_before_ns: 0,
        }
    }

    pub(super) fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// The configuration register, with the inputs it can be routed to.
    pub(super) fn config_register(&self, route_capability: u32) -> u64 {
        self.config | CAPABILITIES | u64::from(route_capability) << 32
    }

    pub(super) fn route(&self) -> u32 {
        ((self.config & INT_ROUTE) >> 9) as u32
    }

    /// The width of the comparison as a mask.
    fn mask(&self) -> u64 {
        if self.has(MODE_32) { u32::MAX.into() } else { u64::MAX }
    }

    pub(super) fn set_config(&mut self, config: u64) {
        self.config = config & WRITABLE;
        self.value &= self.mask();
        self.period &= self.mask();
        if !self.has(INT_ENB) {
            self.is_due = false;
        }
    }

    /// Writes the comparator. A periodic timer takes the value as its period, and with VAL_SET as
    /// its next match too, once.
    pub(super) fn set_value(&mut self, value: u64) {
        let value = value & self.mask();
        let is_periodic = self.has(TYPE_PERIODIC);
        if !is_periodic || self.has(VAL_SET) {
            self.value = value;
        }
        if is_periodic {
            self.period = value;
        }
        self.config &= !VAL_SET;
    }

    /// Ticks from counter value `counter` to the next match: at least one, since a match is the
    /// step to the value.
    fn distance(&self, counter: u64) -> u128 {
        match self.value.wrapping_sub(counter) & self.mask() {
            0 => u128::from(self.mask()) + 1,
            distance => distance.into(),
        }
    }

    /// The main counter went `ticks` on from `counter`. True if the timer interrupts now.
    pub(super) fn advance(&mut self, counter: u64, ticks: u64, now_ns: u64) -> bool {
        if let Some(beyond) = u128::from(ticks).checked_sub(self.distance(counter)) {
            if self.has(TYPE_PERIODIC) && self.period != 0 {
                let matches = (beyond / u128::from(self.period)) as u64;
                let step = self.period.wrapping_mul(matches.wrapping_add(1));
                self.value = self.value.wrapping_add(step) & self.mask();
            }
            self.is_due = self.has(INT_ENB);
        }
        self.take_due(now_ns)
    }

    fn take_due(&mut self, now_ns: u64) -> bool {
        if !self.is_due || now_ns < self.not_before_ns {
            return false;
        }
        self.is_due = false;
        let period_ns = self.period.saturating_mul(super::TICK_NS);
        let is_fast = self.has(TYPE_PERIODIC) && period_ns < MIN_INTERRUPT_NS;
        self.not_before_ns = if is_fast { now_ns.saturating_add(MIN_INTERRUPT_NS) } else { 0 };
        true
    }

    /// When to call [`Self::advance`] next, with the main counter at `counter` since `since_ns`.
    pub(super) fn deadline_ns(&self, counter: u64, since_ns: u64) -> Option<u64> {
        if !self.has(INT_ENB) {
            return None;
        }
        if self.is_due {
            return Some(self.not_before_ns);
        }
        let wait_ns = self.distance(counter).saturating_mul(super::TICK_NS.into());
        let at_ns = u64::try_from(wait_ns.saturating_add(since_ns.into())).ok()?;
        Some(at_ns.max(self.not_before_ns))
    }

    pub(super) fn is_valid(&self) -> bool {
        self.config & !WRITABLE == 0 && (self.value | self.period) & !self.mask() == 0
    }
}
