//! Eventfds that interrupt: written by other threads, masked, and moved from owner to owner.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// Rounds of each writer while owners change.
const ROUNDS: usize = 500;

fn ring(event: &OwnedFd) {
    assert_eq!(rustix::io::write(event, &1u64.to_ne_bytes()), Ok(8));
}

/// Waits until `is_so`.
#[track_caller]
fn wait(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::yield_now();
    }
}

/// Time in which what must not come would have come.
fn linger() {
    std::thread::sleep(Duration::from_millis(20));
}

fn message(cpu: u32, vector: u8) -> Option<Message> {
    let destination = Destination::Physical(cpu);
    Some(Message { destination, delivery: DeliveryMode::Fixed, vector, trigger: TriggerMode::Edge })
}

impl Rig {
    fn event(&self, message: Option<Message>) -> InterruptEvent {
        let event = self.bus.interrupt_event().unwrap();
        event.set(message);
        event
    }

    /// The vector that comes to CPU `cpu`, which ends it.
    fn interrupt(&self, cpu: u32) -> u8 {
        wait("an interrupt", || self.apic(cpu).has_interrupt());
        let vector = self.apic(cpu).acknowledge().unwrap();
        self.apic(cpu).eoi();
        vector
    }
}

#[test]
fn a_write_of_another_thread_interrupts() {
    let rig = Rig::new(&[0, 1]);
    let event = rig.event(message(1, 0x41));
    let written = Arc::clone(event.event());
    std::thread::spawn(move || ring(&written)).join().unwrap();
    assert_eq!(rig.interrupt(1), 0x41);
    assert!(!event.is_pending() && !rig.apic(0).has_interrupt());
    event.set(message(0, 0x52));
    ring(event.event());
    assert_eq!(rig.interrupt(0), 0x52);
    linger();
    assert!(rig.apic(0).acknowledge().or(rig.apic(1).acknowledge()).is_none());
}

#[test]
fn writes_wait_while_the_event_is_masked() {
    let rig = Rig::new(&[0]);
    let event = rig.event(None);
    ring(event.event());
    linger();
    assert!(event.is_pending() && !rig.apic(0).has_interrupt());
    event.set(message(0, 0x41));
    assert_eq!(rig.interrupt(0), 0x41);
    assert!(!event.is_pending());
    event.set(None);
    ring(event.event());
    ring(event.event());
    event.clear();
    event.set(message(0, 0x41));
    linger();
    assert!(!event.is_pending() && !rig.apic(0).has_interrupt(), "it was forgotten");
}

#[test]
fn a_dropped_event_interrupts_no_more() {
    let rig = Rig::new(&[0]);
    let event = rig.event(message(0, 0x41));
    let written = Arc::clone(event.event());
    drop(event);
    ring(&written);
    linger();
    assert!(!rig.apic(0).has_interrupt());
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&*written, &mut count), Ok(8), "nobody has taken it");
}

#[test]
fn many_events_come_once_each() {
    const CPUS: u32 = 4;
    const VECTORS: std::ops::Range<u8> = 0x20..0xf0;
    let rig = Rig::new(&[0, 1, 2, 3]);
    let events: Vec<InterruptEvent> = (0..CPUS)
        .flat_map(|cpu| VECTORS.map(move |vector| (cpu, vector)))
        .map(|(cpu, vector)| rig.event(message(cpu, vector)))
        .collect();
    for _ in 0..3 {
        events.iter().for_each(|event| ring(event.event()));
        wait("each", || !events.iter().any(InterruptEvent::is_pending));
        for cpu in 0..CPUS {
            let mut found: Vec<u8> = VECTORS.map(|_| rig.interrupt(cpu)).collect();
            found.sort_unstable();
            assert_eq!(found, VECTORS.collect::<Vec<_>>());
        }
    }
    linger();
    assert!(!(0..CPUS).any(|cpu| rig.apic(cpu).has_interrupt()));
}

#[test]
fn writes_wait_while_registers_move() {
    let rig = Rig::new(&[0]);
    let event = rig.event(message(0, 0x41));
    rig.bus.hold();
    ring(event.event());
    linger();
    assert!(event.is_pending() && !rig.apic(0).has_interrupt());
    // What is changed meanwhile holds when they go on.
    event.set(message(0, 0x42));
    rig.bus.release();
    assert_eq!(rig.interrupt(0), 0x42);
    ring(event.event());
    assert_eq!(rig.interrupt(0), 0x42);
}

/// What is left of a bus when events outlive it: nothing that interrupts, and no thread.
#[test]
fn events_may_outlive_their_bus() {
    let rig = Rig::new(&[0]);
    let event = rig.event(message(0, 0x41));
    drop(rig);
    ring(event.event());
    wait("the reader", || !event.is_pending());
    event.set(None);
}

/// An engine whose kernel looks at eventfds, as a thread does that calls [`Kernel::look`].
#[derive(Default)]
struct Kernel {
    watched: Mutex<Vec<WatchedEvent>>,
    taken: AtomicUsize,
    /// It refuses vectors from this on.
    limit: u8,
}

impl Kernel {
    fn look(&self) {
        let watched = self.watched.lock().unwrap();
        for WatchedEvent { event, .. } in &*watched {
            let is_taken = rustix::io::read(event, &mut [0; 8]).is_ok();
            self.taken.fetch_add(is_taken.into(), Ordering::SeqCst);
        }
    }

    fn vectors(&self) -> Vec<u8> {
        self.watched.lock().unwrap().iter().map(|event| event.message.vector).collect()
    }
}

impl ApicBorrower for Kernel {
    fn deliver(&self, _: Message) -> bool {
        self.taken.fetch_add(1, Ordering::SeqCst);
        true
    }
    fn await_ends(&self, _: &[Message]) {}
    fn watch(&self, events: &[WatchedEvent]) -> Vec<bool> {
        let is_taken = |event: &WatchedEvent| event.message.vector < self.limit;
        let taken = events.iter().filter(|event| is_taken(event)).cloned().collect();
        *self.watched.lock().unwrap() = taken;
        events.iter().map(is_taken).collect()
    }
}

#[test]
fn an_engine_is_offered_what_it_can_send() {
    let rig = Rig::new(&[0]);
    let kernel = Arc::new(Kernel { limit: 0x80, ..Kernel::default() });
    let extint = Message { delivery: DeliveryMode::ExtInt, ..message(0, 0x21).unwrap() };
    let events = [message(0, 0x20), message(0, 0x90), Some(extint), None];
    let events = events.map(|message| rig.event(message));
    rig.bus.lend_to(Some(Arc::clone(&kernel) as _));
    rig.bus.release();
    assert_eq!(kernel.vectors(), [0x20]);
    events[1..3].iter().for_each(|event| ring(event.event()));
    wait("the reader", || !events.iter().any(InterruptEvent::is_pending));
    wait("the one that is no ExtINT", || kernel.taken.load(Ordering::SeqCst) == 1);
    events[3].set(message(0, 0x22));
    events[0].set(None);
    assert_eq!(kernel.vectors(), [0x22]);
    rig.bus.hold();
    assert!(kernel.vectors().is_empty());
    rig.bus.release();
    assert_eq!(kernel.vectors(), [0x22]);
    drop(events);
    assert!(kernel.vectors().is_empty());
}

/// Each write comes exactly once, whoever has the event then.
#[test]
fn owners_change_while_writes_are_in_flight() {
    const WRITERS: u8 = 3;
    let rig = Rig::new(&[0]);
    let kernel = Arc::new(Kernel { limit: 0xff, ..Kernel::default() });
    let (is_over, came) = (AtomicBool::new(false), AtomicUsize::new(0));
    let count = || came.load(Ordering::SeqCst) + kernel.taken.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                kernel.look();
                if rig.apic(0).acknowledge().is_some() {
                    came.fetch_add(1, Ordering::SeqCst);
                    rig.apic(0).eoi();
                }
                std::thread::yield_now();
            }
        });
        let mover = scope.spawn(|| {
            let mut moves = 0u32;
            while !is_over.load(Ordering::SeqCst) {
                let engine = moves.is_multiple_of(2).then(|| Arc::clone(&kernel) as _);
                rig.bus.hold();
                rig.bus.lend_to(engine);
                rig.bus.release();
                moves += 1;
                std::thread::sleep(Duration::from_micros(50));
            }
            moves
        });
        let events = [0x41, 0x52, 0x63].map(|vector| rig.event(message(0, vector)));
        for round in 0..ROUNDS {
            events.iter().for_each(|event| ring(event.event()));
            let expected = usize::from(WRITERS) * (round + 1);
            wait("each write", || count() >= expected);
            assert_eq!(count(), expected, "round {round}");
            // Masked in between, what is written is not lost either.
            let message = message(0, 0x41);
            events[0].set(None);
            events[0].set(message);
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(mover.join().unwrap() > 10);
        assert_eq!(count(), ROUNDS * usize::from(WRITERS));
    });
    let (by_engine, by_bus) = (kernel.taken.load(Ordering::SeqCst), came.load(Ordering::SeqCst));
    assert!(by_engine > 0 && by_bus > 0, "{by_engine} by the engine, {by_bus} by the bus");
}
