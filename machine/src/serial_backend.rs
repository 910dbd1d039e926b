//! Where a serial port's or debug console's output goes.

/// Takes the bytes that a guest sends. Called from vCPU threads with no chip lock held.
pub trait SerialBackend: Send + Sync {
    /// Takes `bytes`, all of them; queues or drops what the outside is too slow for, and never
    /// blocks for long, for the guest's CPU waits.
    fn write(&self, bytes: &[u8]);
}

/// A back-end that drops everything: a port with nothing plugged in.
pub struct Unplugged;

impl SerialBackend for Unplugged {
    fn write(&self, _bytes: &[u8]) {}
}
