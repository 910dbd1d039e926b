//! Output without system calls on the guest's path.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use machine::serial_backend::SerialBackend;

/// Bytes that may wait. A guest that sends more waits for the reader.
const CAPACITY: usize = 256 << 10;
/// How long [`OutputQueue::flush`] waits for a reader that does not read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Shared {
    waiting: Vec<u8>,
    /// The writer thread is writing what it took out of `waiting`.
    is_writing: bool,
    /// The other end is gone, or the program ends: output is dropped.
    is_closed: bool,
    /// Nobody waits for room any more: what has none is dropped.
    is_abandoned: bool,
    is_over: bool,
}

impl Shared {
    fn is_full(&self) -> bool {
        self.waiting.len() >= CAPACITY
    }
}

/// A bounded queue with a thread that writes it out.
pub(crate) struct OutputQueue {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock(shared: &(Mutex<Shared>, Condvar)) -> MutexGuard<'_, Shared> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OutputQueue {
    /// Starts a queue into `writer`. When writing fails, `on_close` is told once and output is
    /// dropped from then on.
    pub(crate) fn start(
        name: &str,
        mut writer: impl Write + Send + 'static,
        on_close: impl FnOnce(std::io::Error) + Send + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let shared: Arc<(Mutex<Shared>, Condvar)> = Arc::default();
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if let Err(error) = drain(&state, &mut writer) {
                let mut shared = lock(&state);
                shared.is_closed = true;
                shared.is_writing = false;
                shared.waiting = Vec::new();
                drop(shared);
                state.1.notify_all();
                on_close(error);
            }
        })?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Lets go whoever waits for a reader that does not read: the machine is to end.
    pub(crate) fn abandon(&self) {
        lock(&self.shared).is_abandoned = true;
        self.shared.1.notify_all();
    }

    /// Takes `bytes` if there is room, and waits for nobody. False if there is none.
    pub(crate) fn offer(&self, bytes: &[u8]) -> bool {
        let mut shared = lock(&self.shared);
        if shared.is_closed || shared.is_full() {
            return false;
        }
        shared.waiting.extend_from_slice(bytes);
        drop(shared);
        self.shared.1.notify_all();
        true
    }

    /// Waits until everything is written, or the other end is gone or does not read.
    pub(crate) fn flush(&self) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        let mut shared = lock(&self.shared);
        while !shared.is_closed && (shared.is_writing || !shared.waiting.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            shared = self
                .shared
                .1
                .wait_timeout(shared, left)
                .map_or_else(|error| error.into_inner().0, |(shared, _)| shared);
        }
    }
}

fn drain(state: &(Mutex<Shared>, Condvar), writer: &mut impl Write) -> std::io::Result<()> {
    let mut taken = Vec::new();
    loop {
        let mut shared = lock(state);
        shared.is_writing = false;
        state.1.notify_all();
        while shared.waiting.is_empty() {
            if shared.is_over {
                return Ok(());
            }
            shared = state.1.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut taken, &mut shared.waiting);
        shared.is_writing = true;
        drop(shared);
        state.1.notify_all();
        writer.write_all(&taken)?;
        writer.flush()?;
        taken.clear();
    }
}

impl SerialBackend for OutputQueue {
    fn write(&self, bytes: &[u8]) {
        let mut shared = lock(&self.shared);
        while shared.is_full() && !shared.is_abandoned && !shared.is_closed && !shared.is_over {
            shared = self.shared.1.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        if shared.is_closed || shared.is_abandoned && shared.is_full() {
            return;
        }
        let was_empty = shared.waiting.is_empty();
        shared.waiting.extend_from_slice(bytes);
        drop(shared);
        if was_empty {
            self.shared.1.notify_all();
        }
    }
}

impl Drop for OutputQueue {
    fn drop(&mut self) {
        self.flush();
        lock(&self.shared).is_over = true;
        self.shared.1.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A writer that hangs in a reader that does not read is left to the end of the process.
        if let Some(thread) = thread.filter(|thread| thread.is_finished())
            && thread.join().is_err()
        {
            log::error!("an output thread died");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Hands on what is written, and fails once its reader is gone.
    struct Pipe(mpsc::Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            self.0.send(bytes.to_vec()).map_err(|_| gone()).map(|()| bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Writes nothing until its reader is gone.
    struct Stuck(mpsc::SyncSender<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            self.0.send(()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            Ok(0)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_comes_out_whole_and_in_order() {
        let (sender, receiver) = mpsc::channel();
        let queue = OutputQueue::start("test", Pipe(sender), |_| {}).expect("a thread");
        let sent: Vec<u8> = (0..CAPACITY * 3).map(|n| n as u8).collect();
        let reader = std::thread::spawn(move || receiver.into_iter().flatten().collect::<Vec<_>>());
        sent.chunks(1000).for_each(|chunk| queue.write(chunk));
        queue.flush();
        drop(queue);
        assert_eq!(reader.join().expect("the reader ends"), sent);
    }

    #[test]
    fn who_waits_for_a_reader_that_does_not_read_can_be_let_go() {
        let (sender, receiver) = mpsc::sync_channel(0);
        let queue = OutputQueue::start("test", Stuck(sender), |_| {}).expect("a thread");
        let writer = Arc::clone(&queue);
        let guest = std::thread::spawn(move || {
            // One part is with the thread that is stuck, one waits, and there is no room for more.
            (0..4).for_each(|_| writer.write(&vec![0; CAPACITY]));
        });
        queue.abandon();
        guest.join().expect("the writer goes on");
        drop(receiver);
    }

    #[test]
    fn a_closed_reader_stops_the_output_and_nothing_else() {
        let (sender, receiver) = mpsc::channel();
        let (closed, told) = mpsc::channel();
        let on_close = move |error: std::io::Error| {
            let _ = closed.send(error.kind());
        };
        let queue = OutputQueue::start("test", Pipe(sender), on_close).expect("a thread");
        drop(receiver);
        queue.write(b"lost");
        assert_eq!(told.recv(), Ok(std::io::ErrorKind::BrokenPipe));
        for _ in 0..4 {
            queue.write(&vec![0; CAPACITY]);
        }
        queue.flush();
    }
}
