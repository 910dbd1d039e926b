//! Figures about one CPU's run on KVM.

use std::fmt;

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Entries of the guest.
    pub entries: u64,
    /// Port accesses, accesses to devices, RDMSR and WRMSR that left it.
    pub ports: u64,
    /// See [`Statistics::ports`].
    pub devices: u64,
    /// See [`Statistics::ports`].
    pub msrs: u64,
    /// HLT.
    pub halts: u64,
    /// The guest takes interrupts again, or has lowered its task priority.
    pub windows: u64,
    /// Level-triggered interrupts that ended.
    pub ends: u64,
    /// Somebody wanted the CPU.
    pub kicks: u64,
    /// Interrupts that KVM delivered for us.
    pub interrupts: u64,
    /// The state was moved out of KVM.
    pub moves: u64,
    /// Instructions that KVM could not execute, and that were interpreted.
    pub refused: u64,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entries, ports, devices, msrs, halts, windows, ends, kicks, .. } = self;
        writeln!(
            f,
            "entries {entries}, exits: ports {ports} devices {devices} MSRs {msrs} HLT {halts} \
             windows {windows} EOI {ends} kicks {kicks}"
        )?;
        let Self { interrupts, moves, refused, .. } = self;
        write!(f, "interrupts {interrupts}, state moved {moves}, instructions refused {refused}")
    }
}
