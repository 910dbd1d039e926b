//! Input: how it is read, and how it is given at the pace of the guest's port.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use machine::uart16550::Uart16550;

/// Reads `source` to its end, and gives each piece to `take` when it comes.
pub(crate) fn read_pieces(
    mut source: impl Read,
    mut take: impl FnMut(&[u8]),
) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        match source.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => take(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

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

    /// Gives the port a break condition; without a port, or without room in it, it is lost.
    pub(crate) fn send_break(&self) {
        let port = self.lock_port().as_ref().map(Arc::clone);
        if !port.is_some_and(|port| port.receive_break()) {
            log::debug!("a break was lost");
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

#[cfg(test)]
mod tests {
    use super::*;
    use machine::clock::Clock;
    use machine::line::InterruptLine;
    use machine::serial_backend::Unplugged;
    use machine::timers::Timers;
    use memory::{Device, Width};

    fn port() -> Arc<Uart16550> {
        let timers = Timers::new(Arc::new(Clock::counted(0)));
        Uart16550::new("uart0", &timers, InterruptLine::unconnected(), Arc::new(Unplugged))
    }

    #[test]
    fn a_sender_waits_for_the_guest_to_read_and_loses_nothing() {
        let (inlet, port) = (Arc::<Inlet>::default(), port());
        let sender = Arc::clone(&inlet);
        let sent: Vec<u8> = (0..200u8).collect();
        let bytes = sent.clone();
        let thread = std::thread::spawn(move || sender.send(&bytes));
        inlet.connect(&port);
        let mut got = Vec::new();
        while got.len() < sent.len() {
            // LSR bit 0: data ready.
            if port.read(5, Width::Byte).unwrap_or(0) & 1 != 0 {
                got.push(port.read(0, Width::Byte).unwrap_or(0) as u8);
            } else {
                std::thread::yield_now();
            }
        }
        thread.join().expect("the sender ends");
        assert_eq!(got, sent);
    }

    #[test]
    fn closing_lets_a_waiting_sender_go() {
        let inlet = Arc::<Inlet>::default();
        let sender = Arc::clone(&inlet);
        let thread = std::thread::spawn(move || sender.send(b"nobody reads this"));
        inlet.close();
        thread.join().expect("the sender ends");
    }
}
