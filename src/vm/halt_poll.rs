//! How long the thread of a halted CPU looks out for what wakes it before it sleeps.
//!
//! To wake a sleeping thread takes the host tens of microseconds; guests whose CPUs wait for each
//! other pay that at each turn. The policy is that of KVM's `halt_poll_ns`: the window opens while
//! wake-ups come soon, and closes with the first that does not, so that a guest with nothing to do
//! costs nothing.

/// The window that the first early wake-up opens.
const FIRST_NS: u64 = 10_000;
/// The widest window: about what waking a thread takes, so that looking out costs at most as much
/// again as sleeping would have.
const WIDEST_NS: u64 = 50_000;
/// What counts as early. A sleeper's own waking is part of the time measured, hence twice.
const EARLY_NS: u64 = 2 * WIDEST_NS;

/// The window of one CPU.
#[derive(Debug, Default)]
pub(crate) struct HaltPoll {
    window_ns: u64,
}

impl HaltPoll {
    /// How long to look out.
    pub(crate) fn window_ns(&self) -> u64 {
        self.window_ns
    }

    /// Learns from a halt that ended `slept_ns` after it began.
    pub(crate) fn on_wake(&mut self, slept_ns: u64) {
        self.window_ns = match slept_ns {
            _ if slept_ns <= self.window_ns => self.window_ns,
            ..=EARLY_NS => self.window_ns.saturating_mul(2).clamp(FIRST_NS, WIDEST_NS),
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(halts_ns: &[u64]) -> Vec<u64> {
        let mut poll = HaltPoll::default();
        let after = |&slept_ns: &u64| {
            poll.on_wake(slept_ns);
            poll.window_ns()
        };
        halts_ns.iter().map(after).collect()
    }

    #[test]
    fn early_wake_ups_open_the_window_and_a_late_one_closes_it() {
        assert_eq!(windows(&[60_000; 5]), [10_000, 20_000, 40_000, 50_000, 50_000]);
        assert_eq!(windows(&[60_000, 9_000, 10_000]), [10_000; 3]);
        assert_eq!(windows(&[60_000, 11_000, EARLY_NS]), [10_000, 20_000, 40_000]);
        assert_eq!(windows(&[60_000, 60_000, EARLY_NS + 1, 60_000]), [10_000, 20_000, 0, 10_000]);
        assert_eq!(windows(&[u64::MAX, 0]), [0, 0]);
    }

    /// The share of its halts that a guest with these, again and again, is looked out for.
    fn share(halts_ns: &[u64]) -> f64 {
        let mut poll = HaltPoll::default();
        let (mut looked_ns, mut all_ns) = (0, 0);
        for &slept_ns in halts_ns.iter().cycle().take(1000 * halts_ns.len()) {
            looked_ns += slept_ns.min(poll.window_ns());
            all_ns += slept_ns;
            poll.on_wake(slept_ns);
        }
        looked_ns as f64 / all_ns as f64
    }

    #[test]
    fn a_quiet_guest_costs_less_than_two_hundredths_of_a_host_cpu() {
        const MS: u64 = 1_000_000;
        // A tick of 1000 Hz; one of 250 Hz; a tick that wakes another CPU once, and eight times.
        for halts_ns in [
            &[MS][..],
            &[4 * MS],
            &[5_000, MS],
            &[8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 8_000, 4 * MS],
            &[60_000, 60_000, 60_000, 60_000, 16 * MS],
        ] {
            assert!(share(halts_ns) < 0.02, "{halts_ns:?}: {}", share(halts_ns));
        }
    }
}
