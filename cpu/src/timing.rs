//! Guest time in the units that CPUs show it: ticks of the time-stamp counter.
//!
//! The machine's clocks are nanoseconds; a tick count is always computed from them, so that no
//! rounding adds up.

/// Ticks of `hz` in `ns` nanoseconds, rounded down, modulo 2^64.
pub fn ns_to_ticks(ns: u64, hz: u64) -> u64 {
    (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64
}
