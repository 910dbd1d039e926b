//! The vCPUs' mailboxes with the threads that sleep on them.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use cpu::events::Events;
use machine::signals::CpuSignals;

/// The mailboxes of all CPUs. Posting wakes the thread that runs the CPU.
pub(crate) struct Mailboxes {
    events: Arc<[Arc<Events>]>,
    /// By CPU: the thread to unpark. Unset until the thread has started.
    threads: Vec<OnceLock<Thread>>,
}

impl Mailboxes {
    /// Empty mailboxes for `count` CPUs.
    pub(crate) fn new(count: u32) -> Arc<Self> {
        Arc::new(Self {
            events: (0..count).map(|_| Arc::default()).collect(),
            threads: (0..count).map(|_| OnceLock::new()).collect(),
        })
    }

    /// All mailboxes, in the order of the CPUs.
    pub(crate) fn all(&self) -> &Arc<[Arc<Events>]> {
        &self.events
    }

    /// Names the thread that runs CPU `cpu`: the caller.
    pub(crate) fn serve_from_here(&self, cpu: u32) {
        if let Some(thread) = self.threads.get(cpu as usize) {
            // A second naming would be by the same thread: threads serve their CPU until they end.
            let _ = thread.set(std::thread::current());
        }
    }

    /// Posts `bits` to CPU `cpu` and wakes it.
    pub(crate) fn post(&self, cpu: u32, bits: u32) {
        if let Some(events) = self.events.get(cpu as usize) {
            events.post(bits);
        }
        self.wake(cpu);
    }

    /// Posts `bits` to every CPU.
    pub(crate) fn post_all(&self, bits: u32) {
        for cpu in (0u32..).take(self.events.len()) {
            self.post(cpu, bits);
        }
    }

    /// Sleeps until CPU `cpu` has one of `bits`; the caller serves it.
    pub(crate) fn sleep(&self, cpu: u32, bits: u32) {
        let Some(events) = self.events.get(cpu as usize) else { return };
        while events.peek() & bits == 0 {
            std::thread::park();
        }
    }

    fn wake(&self, cpu: u32) {
        if let Some(thread) = self.threads.get(cpu as usize).and_then(OnceLock::get) {
            thread.unpark();
        }
    }
}

impl CpuSignals for Mailboxes {
    fn interrupt(&self, cpu: u32) {
        self.post(cpu, Events::INTERRUPT);
    }
    fn nmi(&self, cpu: u32) {
        if let Some(events) = self.events.get(cpu as usize) {
            events.post_nmi();
            self.wake(cpu);
        }
    }
    fn init(&self, cpu: u32) {
        self.post(cpu, Events::INIT);
    }
    fn startup(&self, cpu: u32, vector: u8) {
        if let Some(events) = self.events.get(cpu as usize) {
            events.post_sipi(vector);
        }
        self.wake(cpu);
    }
}
