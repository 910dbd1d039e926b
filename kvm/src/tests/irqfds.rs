//! Eventfds that interrupt: sent by the kernel without an exit, and by whoever has them instead,
//! each write exactly once.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cpu::engine::{Vcpu, VmExit};
use cpu::events::Events;
use cpu::state::State;
use cpu::testing::{Bench, CODE, DATA, IDT, STACK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::{GuestPhysical, PhysicalSpace, Width};
use rustix::event::{EventfdFlags, eventfd};

use super::apics::Rig;
use crate::{KvmCpu, KvmVm, Message};

const VECTORS: [u8; 3] = [0x41, 0x52, 0x63];
/// Writes to each eventfd.
const ROUNDS: u64 = 300;
/// How far apart handlers are.
const HANDLER_BYTES: u64 = 64;
const X2APIC_EOI: u32 = 0x80b;

type Event = (Arc<OwnedFd>, Message);

fn events() -> Vec<Event> {
    let event = |vector| {
        let message =
            Message { destination: 0, is_logical: false, delivery: 0, vector, is_level: false };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        (Arc::new(eventfd(0, flags).expect("an eventfd")), message)
    };
    VECTORS.map(event).into()
}

fn ring((event, _): &Event) {
    rustix::io::write(event, &1u64.to_ne_bytes()).expect("room");
}

/// The count of an eventfd; it is zero then.
fn take((event, _): &Event) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

/// Counts one more interrupt of a kind, and ends it.
fn handler(address: u64, counter: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rbx, counter)?;
    a.inc(qword_ptr(rbx))?;
    a.mov(ecx, X2APIC_EOI)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.iretq()?;
    a.assemble(address)
}

fn counter(index: usize) -> u64 {
    DATA + 8 * index as u64
}

/// A guest that sleeps, and counts the interrupts of each vector.
fn sleeper(bench: &Bench) -> Result<State, IcedError> {
    for (index, vector) in VECTORS.into_iter().enumerate() {
        let address = CODE + HANDLER_BYTES * (1 + index as u64);
        bench.poke(address, &handler(address, counter(index))?);
        let low = address & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        bench.poke(IDT + 16 * u64::from(vector), &low.to_le_bytes());
        bench.poke(IDT + 16 * u64::from(vector) + 8, &(address >> 32).to_le_bytes());
    }
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(again)?;
    bench.poke(CODE, &a.assemble(CODE)?);
    let mut state = bench.cpu.state.clone();
    (state.rip, state.gpr[4]) = (CODE, STACK);
    Ok(state)
}

/// Ends the CPU's thread, also when the test fails.
struct End<'a>(&'a AtomicBool, Arc<Events>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        self.1.request_exit();
    }
}

/// Who is to count: the guest's counters.
struct Counters(Arc<PhysicalSpace>);

impl Counters {
    fn all(&self) -> Vec<u64> {
        let read = |index| self.0.read(GuestPhysical(counter(index)), Width::Qword);
        (0..VECTORS.len()).map(read).collect()
    }

    /// Waits until each kind has come `count` times, and no more often.
    #[track_caller]
    fn expect(&self, count: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.all().iter().any(|&found| found < count) && Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(self.all(), vec![count; VECTORS.len()]);
    }
}

#[test]
fn the_kernel_interrupts_without_an_exit() {
    let Some(mut rig) = Rig::new() else { return };
    let state = sleeper(&rig.bench).expect("a program");
    rig.start(&state);
    let (vm, counters) = (Arc::clone(&rig.vm), Counters(Arc::clone(&rig.bench.cpu.env.space)));
    let (events, is_over) = (events(), AtomicBool::new(false));
    // What was written before comes once it is connected.
    events.iter().for_each(ring);
    assert_eq!(vm.watch(&events), [true; 3]);
    let mailbox = Arc::clone(rig.cpu.events());
    let before = rig.cpu.statistics();
    std::thread::scope(|scope| {
        let end = End(&is_over, mailbox);
        let cpu = &mut rig.cpu;
        let runner = scope.spawn(move || cpu.run(u64::MAX));
        counters.expect(1);
        for round in 2..=ROUNDS {
            events.iter().for_each(ring);
            counters.expect(round);
        }
        assert_eq!(vm.watch(&[]), [false; 0]);
        events.iter().for_each(|event| assert_eq!(take(event), 0, "it was sent"));
        events.iter().for_each(ring);
        std::thread::sleep(Duration::from_millis(20));
        counters.expect(ROUNDS);
        events.iter().for_each(|event| assert_eq!(take(event), 1, "nobody is there"));
        drop(end);
        assert_eq!(runner.join().expect("no panic"), VmExit::Requested);
    });
    let after = rig.cpu.statistics();
    let exits = after.ports + after.devices + after.msrs + after.halts + after.ends;
    assert_eq!(exits, before.ports + before.devices + before.msrs, "{after}");
    rig.cpu.return_apic().expect("registers");
}

/// A thread of ours that sends for eventfds while the kernel does not.
#[derive(Default)]
struct Reader {
    /// Held while it sends, and while the owner changes.
    is_ours: Mutex<bool>,
    sent: AtomicU64,
}

impl Reader {
    fn run(&self, vm: &KvmVm, events: &[Event], is_over: &AtomicBool) {
        while !is_over.load(Ordering::SeqCst) {
            let is_ours = self.is_ours.lock().expect("no panic");
            for event in events.iter().filter(|_| *is_ours) {
                if take(event) > 0 {
                    assert!(vm.send(&event.1));
                    self.sent.fetch_add(1, Ordering::SeqCst);
                }
            }
            drop(is_ours);
            std::thread::yield_now();
        }
    }
}

/// Takes the local APIC's registers to the chip and back, and the eventfds to the next owner.
/// The last of them is written meanwhile.
fn change_owner(cpu: &mut KvmCpu, vm: &KvmVm, events: &[Event], reader: &Reader, turn: u64) {
    let mut is_ours = reader.is_ours.lock().expect("no panic");
    let ring_at = |point| {
        if turn % 4 == point {
            events.last().into_iter().for_each(ring);
        }
    };
    ring_at(0);
    *is_ours = false;
    vm.watch(&[]);
    ring_at(1);
    cpu.return_apic().expect("registers");
    ring_at(2);
    cpu.borrow_apic().expect("registers");
    ring_at(3);
    *is_ours = (turn / 4).is_multiple_of(2);
    let connected = vm.watch(if *is_ours { &[] } else { events });
    assert!(connected.iter().all(|&is_connected| is_connected));
}

#[test]
fn owners_change_while_writes_are_in_flight() {
    let Some(mut rig) = Rig::new() else { return };
    let state = sleeper(&rig.bench).expect("a program");
    rig.start(&state);
    let (vm, counters) = (Arc::clone(&rig.vm), Counters(Arc::clone(&rig.bench.cpu.env.space)));
    let (events, is_over, reader) = (events(), AtomicBool::new(false), Reader::default());
    let mailbox = Arc::clone(rig.cpu.events());
    vm.watch(&events);
    std::thread::scope(|scope| {
        let end = End(&is_over, Arc::clone(&mailbox));
        let (cpu, vm, events, is_over, reader) = (&mut rig.cpu, &vm, &events, &is_over, &reader);
        let runner = scope.spawn(move || {
            for turn in 0.. {
                assert_eq!(cpu.run(u64::MAX), VmExit::Requested);
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                change_owner(cpu, vm, events, reader, turn);
            }
        });
        scope.spawn(move || reader.run(vm, events, is_over));
        for round in 1..=ROUNDS {
            events[..2].iter().for_each(ring);
            std::thread::sleep(Duration::from_micros(20 * (round % 5)));
            mailbox.request_exit();
            counters.expect(round);
        }
        drop(end);
        runner.join().expect("no panic");
    });
    counters.expect(ROUNDS);
    let (sent, all) = (reader.sent.into_inner(), ROUNDS * VECTORS.len() as u64);
    assert!(0 < sent && sent < all, "{sent} of {all} by us");
}
