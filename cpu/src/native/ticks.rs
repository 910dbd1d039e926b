//! The host's time-stamp counter, where it can be a clock.
// UNSAFETY: RDTSC and LFENCE, which every x86-64 processor has, are unsafe in `std::arch`.
#![expect(unsafe_code, reason = "unsafe island 2: reads the host's time-stamp counter")]

use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use std::fs;

/// A function that reads the host's time-stamp counter, if that runs at one rate on all processors
/// and whatever they sleep: the processor must say so (SDM Vol. 3, "Invariant TSC") and Linux must
/// trust it.
pub fn host_ticks() -> Option<fn() -> u64> {
    const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    const POWER_LEAF: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    let is_invariant =
        __cpuid(0x8000_0000).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT != 0;
    let is_trusted = || fs::read_to_string(CLOCK_SOURCE).is_ok_and(|name| name.trim() == "tsc");
    (is_invariant && is_trusted()).then_some(now as fn() -> u64)
}

/// The counter, not before all that comes before in the program.
pub fn now() -> u64 {
    // SAFETY: 1. both instructions are part of x86-64; 2. they touch no memory; 3. Linux leaves
    // CR4.TSD clear unless the process asked for it by prctl(PR_SET_TSC), which nothing here does.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}
