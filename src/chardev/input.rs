//! Input at the pace of the guest's port.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use machine::uart16550::Uart16550;

/// Where input goes: a serial port, once there is one.
#[derive(Default)]
pub(crate) struct Inlet {
    port: Mutex<Option<Arc<Uart16550>>>,
    /// Signalled when the port has room or the inlet is connected or closed.
    changed: Condvar,
    closed: Mutex<bool>,
}

impl Inlet {
    /// Connects the inlet to `port`.
    pub(crate) fn connect(self: &Arc<Self>, port: &Arc<Uart16550>) {
        let inlet = Arc::downgrade(self);
        port.set_room_hook(Arc::new(move || {
            if let Some(inlet) = inlet.upgrade() {
                inlet.notify();
            }
        }));
        *self.lock_port() = Some(Arc::clone(port));
        self.notify();
    }

    /// Lets waiting senders go; their bytes are dropped.
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Hands `bytes` to the port, waiting for room as long as it takes.
    pub(crate) fn send(&self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.lock_port().as_ref().map(Arc::clone) {
                Some(port) => port.receive(rest),
                None => 0,
            };
            rest = rest.get(taken..).unwrap_or_default();
            if !rest.is_empty() && !self.wait_for_room() {
                return;
            }
        }
    }

    /// Waits until there may be room. False if the inlet is closed.
    fn wait_for_room(&self) -> bool {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        while !*closed && !self.has_room() {
            closed = self.changed.wait(closed).unwrap_or_else(PoisonError::into_inner);
        }
        !*closed
    }

    fn has_room(&self) -> bool {
        self.lock_port().as_ref().is_some_and(|port| port.room() > 0)
    }

    fn lock_port(&self) -> MutexGuard<'_, Option<Arc<Uart16550>>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock that waiters hold is taken, so that no notice falls between look and wait.
    fn notify(&self) {
        drop(self.closed.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}
