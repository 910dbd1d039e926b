//! The vCPUs' mailboxes with the threads that sleep on them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use cpu::events::Events;
use machine::signals::CpuSignals;

use super::halt_poll::HaltPoll;

/// The mailboxes of all CPUs. Posting wakes the thread that runs the CPU.
pub(crate) struct Mailboxes {
    events: Arc<[Arc<Events>]>,
    /// By CPU: the thread to unpark. Unset until the thread has started.
    threads: Vec<OnceLock<Thread>>,
    /// Threads that serve a CPU and do not sleep.
    awake: AtomicUsize,
    /// Host CPUs this process may use.
    host_cpus: usize,
}

impl Mailboxes {
    /// Empty mailboxes for `count` CPUs.
    pub(crate) fn new(count: u32) -> Arc<Self> {
        Arc::new(Self {
            events: (0..count).map(|_| Arc::default()).collect(),
            threads: (0..count).map(|_| OnceLock::new()).collect(),
            awake: AtomicUsize::new(0),
            host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }

    /// All mailboxes, in the order of the CPUs.
    pub(crate) fn all(&self) -> &Arc<[Arc<Events>]> {
        &self.events
    }

    /// Names the thread that runs CPU `cpu`: the caller.
    pub(crate) fn serve_from_here(&self, cpu: u32) {
        // A second naming would be by the same thread: threads serve their CPU until they end.
        if let Some(thread) = self.threads.get(cpu as usize)
            && thread.set(std::thread::current()).is_ok()
        {
            self.awake.fetch_add(1, Ordering::Relaxed);
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
        if events.peek() & bits != 0 {
            return;
        }
        self.awake.fetch_sub(1, Ordering::Relaxed);
        while events.peek() & bits == 0 {
            std::thread::park();
        }
        self.awake.fetch_add(1, Ordering::Relaxed);
    }

    /// The same for a halted CPU, which may be woken soon: its thread looks out for that before it
    /// sleeps, for as long as `poll` finds worthwhile and no other vCPU's thread lacks a host CPU.
    pub(crate) fn halt(&self, cpu: u32, bits: u32, poll: &mut HaltPoll) {
        let Some(events) = self.events.get(cpu as usize) else { return };
        if events.peek() & bits != 0 {
            return;
        }
        let start = Instant::now();
        let window = Duration::from_nanos(poll.window_ns());
        while events.peek() & bits == 0 && self.has_spare_cpu() && start.elapsed() < window {
            std::hint::spin_loop();
        }
        self.sleep(cpu, bits);
        poll.on_wake(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// True if a thread that only looks out takes no vCPU's place.
    fn has_spare_cpu(&self) -> bool {
        self.host_cpus > 1 && self.awake.load(Ordering::Relaxed) <= self.host_cpus
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_cpu_wakes_for_its_bits_only_whether_it_looks_out_or_sleeps() {
        let mailboxes = Mailboxes::new(1);
        let served = Arc::clone(&mailboxes);
        let thread = std::thread::spawn(move || {
            served.serve_from_here(0);
            let mut poll = HaltPoll::default();
            for _ in 0..1000 {
                served.halt(0, Events::INTERRUPT, &mut poll);
                served.all()[0].take(Events::INTERRUPT);
            }
            served.awake.load(Ordering::Relaxed)
        });
        while !thread.is_finished() {
            mailboxes.post(0, Events::NMI);
            mailboxes.post(0, Events::INTERRUPT);
            std::thread::yield_now();
        }
        assert_eq!(thread.join().expect("the thread ends"), 1);
    }

    #[test]
    fn nobody_looks_out_where_vcpus_lack_host_cpus() {
        for (host_cpus, awake, is_spare) in
            [(1, 1, false), (2, 1, true), (2, 2, true), (2, 3, false)]
        {
            let mailboxes = Mailboxes {
                events: Arc::new([]),
                threads: Vec::new(),
                awake: AtomicUsize::new(awake),
                host_cpus,
            };
            assert_eq!(mailboxes.has_spare_cpu(), is_spare, "{awake} on {host_cpus}");
        }
    }
}
