//! kvmclock: guest time as a linear function of the TSC, in memory.
//!
//! Guest time, and with it the TSC, is one clock for all CPUs and never goes back. So the function
//! of each CPU starts at guest time 0, where its TSC was its offset, and is written again only if
//! that offset moves; all CPUs read the same time from it, which is what `TSC_STABLE` promises.
//!
//! The multiplier has 32 bits: the clock runs slow by less than one part in 2^31, and is exact for
//! TSC frequencies of 10^9 Hz times a power of two.

use super::ENABLED;
use crate::Cpu;
use crate::cpuid::Feature;

/// `pvclock_vcpu_time_info.flags`: the clocks of all CPUs agree.
const TSC_STABLE: u32 = 1;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Ticks to nanoseconds: `((ticks << shift) * multiplier) >> 32`, a negative shift to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// In units of 2^-32, at least one half.
    pub multiplier: u32,
    /// The power of two to multiply ticks by first.
    pub shift: i8,
}

impl Scale {
    /// The scale of a counter of `hz`.
    pub fn of(hz: u64) -> Self {
        let hz = hz.max(1);
        // The ratio 10^9 / hz as m * 2^shift with m in [1/2, 1): double or halve until it fits.
        let (mut ns, mut ticks, mut shift) = (u128::from(NS_PER_SECOND), u128::from(hz), 0i8);
        while ns >= ticks {
            ticks <<= 1;
            shift += 1;
        }
        while ns << 1 < ticks {
            ns <<= 1;
            shift -= 1;
        }
        Self { multiplier: ((ns << 32) / ticks) as u32, shift }
    }

    /// Nanoseconds in `ticks`, as a guest computes them.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let scaled = if self.shift < 0 {
            ticks >> -self.shift
        } else {
            ticks.wrapping_shl(self.shift as u32)
        };
        ((u128::from(scaled) * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// WRMSR to KVM_SYSTEM_TIME or KVM_SYSTEM_TIME_NEW.
pub(crate) fn system_time_written(cpu: &mut Cpu) {
    cpu.publish_clock();
}

/// WRMSR to KVM_WALL_CLOCK or KVM_WALL_CLOCK_NEW: writes the wall time at guest time 0.
pub(crate) fn wall_clock_written(cpu: &mut Cpu) {
    let epoch = u64::try_from(cpu.env.platform.epoch_unix_ns()).unwrap_or(0);
    let words = [(1, (epoch / NS_PER_SECOND) as u32), (2, (epoch % NS_PER_SECOND) as u32)];
    cpu.write_versioned(cpu.state.msrs.kvm.wall_clock & !3, 0, &words);
}

impl Cpu {
    /// Writes `pvclock_vcpu_time_info`, if the guest has told where. Call after the TSC's offset
    /// has changed.
    pub(crate) fn publish_clock(&mut self) {
        let address = self.state.msrs.kvm.system_time;
        if address & ENABLED == 0 {
            return;
        }
        let scale = Scale::of(self.env.cpuid.tsc_hz());
        let is_stable = self.env.cpuid.has(Feature::KvmClockStable);
        let flags = if is_stable { TSC_STABLE } else { 0 };
        let tsc_at_0 = self.state.msrs.tsc_offset;
        let words = [
            (2, tsc_at_0 as u32),
            (3, (tsc_at_0 >> 32) as u32),
            (4, 0),
            (5, 0),
            (6, scale.multiplier),
            (7, u32::from(scale.shift as u8) | flags << 8),
        ];
        self.write_versioned(address & !3, 0, &words);
    }
}
