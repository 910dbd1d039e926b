//! What chips tell CPUs, and what they ask the board to do.

/// Wires from the interrupt controllers to the CPUs. Implemented by the program that owns the
/// vCPU threads; every call also wakes a sleeping CPU. Called with no chip lock held.
pub trait CpuSignals: Send + Sync {
    /// CPU `cpu` has a maskable interrupt to look at: it polls its local APIC when it can.
    fn interrupt(&self, cpu: u32);
    /// CPU `cpu` gets an NMI.
    fn nmi(&self, cpu: u32);
    /// CPU `cpu` gets INIT.
    fn init(&self, cpu: u32);
    /// CPU `cpu` gets a start-up IPI; it starts at `vector << 12` if it waits for one.
    fn startup(&self, cpu: u32, vector: u8);
}

/// What the guest asked of the board as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// ACPI S5: power off.
    PowerOff,
    /// A reset through port CF9h, port 92h, the i8042, or the ACPI reset register.
    Reset,
    /// ACPI S3: suspend to RAM until a wake event.
    Suspend,
    /// A wake event came while suspended.
    Wake,
    /// isa-debug-exit was written; the process ends with `value << 1 | 1`.
    DebugExit(u32),
    /// The guest told the panic device that it panicked.
    Panicked,
}

/// Takes the board's power events. Called from a vCPU thread with no chip lock held.
pub trait PowerSink: Send + Sync {
    /// The guest asked for `event`.
    fn power(&self, event: PowerEvent);
}
