//! The doors through which a CPU reaches the world outside memory and ports.

use memory::Width;

/// Time in nanoseconds as a function of the host's time-stamp counter: `start_ns` and, for each
/// tick since `start_ticks`, `multiplier` times 2^-32. All of it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearTime {
    /// A count that comes before any that will be read.
    pub start_ticks: u64,
    /// Nanoseconds of a tick, in units of 2^-32; never 0.
    pub multiplier: u64,
    /// The time at `start_ticks`.
    pub start_ns: u64,
}

/// What a CPU needs of the machine around it. Called from the CPU's own thread.
pub trait Platform: Send + Sync {
    /// Guest time in nanoseconds since the machine was made. `retired` is the calling CPU's count
    /// of retired instructions, for machines whose time is a function of it.
    fn now_ns(&self, retired: u64) -> u64;
    /// Guest time as a function of the host's time-stamp counter, if it is one now. It stays so
    /// until the machine is stopped.
    fn linear_time(&self) -> Option<LinearTime> {
        None
    }
    /// What to add to the host's time-stamp counter for the machine's, on machines whose CPUs may
    /// be executed by the host's virtualization, which knows no other way; else the machine's is
    /// made of guest time. It stays so as long as the machine.
    fn host_tsc_base(&self) -> Option<u64> {
        None
    }
    /// Wall time in nanoseconds since 1970 UTC at guest time 0.
    fn epoch_unix_ns(&self) -> i64;
    /// The next random number, for RDRAND and RDSEED.
    fn entropy(&self) -> u64;
    /// Nanoseconds for which CPU `cpu` was ready to run and did not (steal time), so far.
    fn steal_ns(&self, cpu: u32) -> u64;
    /// Wakes CPU `cpu` from HLT (KVM_HC_KICK_CPU).
    fn kick(&self, cpu: u32);
    /// Raises (true) or lowers the FERR# output (IRQ 13), for CR0.NE = 0.
    fn ferr(&self, level: bool);
    /// True if the IGNNE# input says to go on in spite of FERR#: from the write of port F0h until
    /// FERR# is lowered.
    fn ignne(&self) -> bool {
        false
    }
}

/// The registers of a local APIC on their way to an engine that has one of its own, and back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicImage {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The registers by their numbers, which are their offsets in xAPIC's page divided by 16. In
    /// x2APIC mode the ID has all its bits, and the destination of the ICR is in its high half.
    pub registers: [u32; 64],
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

/// The CPU's own local APIC. Called from the CPU's own thread, but for nothing else: the chip
/// itself takes interrupts from any thread.
pub trait Lapic: Send + Sync {
    /// Reads a register in the APIC page; anything but an aligned doubleword is the chip's to
    /// judge.
    fn mmio_read(&self, offset: u64, width: Width) -> u64;
    /// Writes a register in the APIC page.
    fn mmio_write(&self, offset: u64, width: Width, value: u64);
    /// Reads MSR 0x800 to 0x8ff; `None` is #GP.
    fn msr_read(&self, msr: u32) -> Option<u64>;
    /// Writes MSR 0x800 to 0x8ff; `false` is #GP.
    fn msr_write(&self, msr: u32, value: u64) -> bool;
    /// IA32_APIC_BASE.
    fn base(&self) -> u64;
    /// Writes IA32_APIC_BASE; `false` is #GP.
    fn set_base(&self, value: u64) -> bool;
    /// CR8: bits 7 to 4 of the task priority.
    fn cr8(&self) -> u8;
    /// Writes CR8; `value` is 0 to 15.
    fn set_cr8(&self, value: u8);
    /// True if [`Lapic::acknowledge`] would give a vector.
    fn has_interrupt(&self) -> bool;
    /// Takes the highest deliverable vector (or the PIC's, by ExtINT) into service.
    fn acknowledge(&self) -> Option<u8>;
    /// Ends the interrupt in service of highest priority, as a write to EOI does.
    fn eoi(&self);
    /// The vector in service of highest priority, if its EOI needs no broadcast and nothing else is
    /// in service or requested (for PV EOI).
    fn silent_eoi_vector(&self) -> Option<u8>;
    /// While armed, every request posts [`crate::events::Events::INTERRUPT`], deliverable or not:
    /// the CPU then looks whether the guest has ended its interrupt (PV EOI).
    fn set_pv_eoi_armed(&self, armed: bool);
    /// IA32_TSC_DEADLINE.
    fn tsc_deadline(&self) -> u64;
    /// Writes IA32_TSC_DEADLINE.
    fn set_tsc_deadline(&self, value: u64);
    /// Tells what to add to the machine's time stamp for this CPU's TSC.
    fn set_tsc_offset(&self, offset: u64);
    /// Resets the chip for INIT.
    fn init(&self);
    /// Sends a fixed or NMI IPI in ICR format, the APIC ID of the destination in bits 63 to 32
    /// whatever the mode (for PV IPI).
    fn send_icr(&self, icr: u64);
    /// The side of an engine that has local APICs of its own.
    fn lending(&self) -> Option<&dyn LapicLending> {
        None
    }
}

/// A local APIC whose registers an engine takes, to give the CPU's interrupts by itself. The pins
/// stay: an ExtINT is asked for here, and behind a rising LINT1 comes
/// [`crate::events::Events::NMI`], whatever LVT LINT1 says. Until the registers are back
/// [`Lapic`] has no interrupt to give, and of its registers only IA32_APIC_BASE and CR8 mean
/// anything.
pub trait LapicLending {
    /// Gives the registers.
    fn lend(&self) -> LapicImage;
    /// Takes them back.
    fn take_back(&self, image: &LapicImage);
    /// Has messages to all local APICs wait while registers are moved of CPUs that run.
    fn hold_messages(&self);
    /// Delivers them.
    fn release_messages(&self);
    /// True if the PIC has an interrupt, should LVT LINT0 let it through.
    fn has_extint(&self) -> bool;
    /// Takes the PIC's vector.
    fn acknowledge_extint(&self) -> Option<u8>;
    /// A level-triggered interrupt has ended.
    fn broadcast_eoi(&self, vector: u8);
}
