//! The kernel's local APICs: random legal registers, events and activities go into KVM and come
//! out again, and what it was about to deliver is delivered.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cpu::Cpu;
use cpu::engine::Vcpu;
use cpu::exception::Exception;
use cpu::platform::{Lapic, LapicImage, LapicLending};
use cpu::state::{Activity, InterruptShadow, State, rflags};
use cpu::testing::random::Random;
use cpu::testing::{Bench, CODE, IDT, STACK};
use kvm_bindings::{KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW};
use memory::Width;

use super::states::{comparable, differences, shaken};
use super::{bench_of, say};
use crate::{Apics, Clocks, KvmCpu, KvmVm, Message, msrs};

/// Rounds of each test.
const CASES: u64 = 150;
/// With what registers of local APICs depend on.
const MODEL: &str = "x86-64-v2,+x2apic,+tsc-deadline";

const ENABLED: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;
const BASE: u64 = 0xfee0_0000 | 1 << 8;

/// Register numbers.
mod number {
    pub const ID: usize = 0x02;
    pub const TPR: usize = 0x08;
    pub const LDR: usize = 0x0d;
    pub const DFR: usize = 0x0e;
    pub const SVR: usize = 0x0f;
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
    pub const ESR: usize = 0x28;
    pub const ICR_LOW: usize = 0x30;
    pub const ICR_HIGH: usize = 0x31;
    pub const LVT_TIMER: usize = 0x32;
    pub const LVT_THERMAL: usize = 0x33;
    pub const LVT_PERFORMANCE: usize = 0x34;
    pub const LVT_LINT0: usize = 0x35;
    pub const LVT_LINT1: usize = 0x36;
    pub const LVT_ERROR: usize = 0x37;
    pub const INITIAL_COUNT: usize = 0x38;
    pub const CURRENT_COUNT: usize = 0x39;
    pub const DIVIDE: usize = 0x3e;
}

/// Registers that hold something by themselves.
const HOLDING: [usize; 18] = [
    number::ID,
    number::TPR,
    number::LDR,
    number::DFR,
    number::SVR,
    number::ESR,
    number::ICR_LOW,
    number::ICR_HIGH,
    number::LVT_TIMER,
    number::LVT_THERMAL,
    number::LVT_PERFORMANCE,
    number::LVT_LINT0,
    number::LVT_LINT1,
    number::LVT_ERROR,
    number::INITIAL_COUNT,
    number::DIVIDE,
    number::TMR,
    number::IRR,
];
/// How far the timer may have come meanwhile, and how much it has left at least.
const TIMER_SLACK: u32 = 1 << 31;

/// A chip that lends its registers and has nothing else.
struct Chip {
    image: Mutex<LapicImage>,
    cr8: AtomicU8,
}

impl Chip {
    fn new() -> Arc<Self> {
        let image = LapicImage { base: BASE | ENABLED, registers: [0; 64], tsc_deadline: 0 };
        Arc::new(Self { image: Mutex::new(image), cr8: AtomicU8::new(0) })
    }

    fn image(&self) -> MutexGuard<'_, LapicImage> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, image: &LapicImage) {
        self.cr8.store((image.registers[number::TPR] >> 4) as u8, Ordering::SeqCst);
        self.image().clone_from(image);
    }
}

impl Lapic for Chip {
    fn mmio_read(&self, _: u64, width: Width) -> u64 {
        width.mask()
    }
    fn mmio_write(&self, _: u64, _: Width, _: u64) {}
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }
    fn base(&self) -> u64 {
        self.image().base
    }
    fn set_base(&self, value: u64) -> bool {
        self.image().base = value;
        true
    }
    fn cr8(&self) -> u8 {
        self.cr8.load(Ordering::SeqCst)
    }
    fn set_cr8(&self, value: u8) {
        self.cr8.store(value, Ordering::SeqCst);
    }
    fn has_interrupt(&self) -> bool {
        false
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn eoi(&self) {}
    fn silent_eoi_vector(&self) -> Option<u8> {
        None
    }
    fn set_pv_eoi_armed(&self, _: bool) {}
    fn tsc_deadline(&self) -> u64 {
        self.image().tsc_deadline
    }
    fn set_tsc_deadline(&self, _: u64) {}
    fn set_tsc_offset(&self, _: u64) {}
    fn init(&self) {}
    fn send_icr(&self, _: u64) {}
    fn lending(&self) -> Option<&dyn LapicLending> {
        Some(self)
    }
}

impl LapicLending for Chip {
    fn lend(&self) -> LapicImage {
        self.image().clone()
    }
    fn take_back(&self, image: &LapicImage) {
        self.set(image);
    }
    fn hold_messages(&self) {}
    fn release_messages(&self) {}
    fn has_extint(&self) -> bool {
        false
    }
    fn acknowledge_extint(&self) -> Option<u8> {
        None
    }
    fn broadcast_eoi(&self, _: u8) {}
}

/// A CPU with one of the kernel's local APICs, and the chip that it borrows from.
pub(super) struct Rig {
    pub(super) bench: Bench,
    pub(super) cpu: KvmCpu,
    pub(super) vm: Arc<KvmVm>,
    chip: Arc<Chip>,
}

impl Rig {
    /// `None`, and said, where there is no KVM or its local APICs are no good.
    pub(super) fn new() -> Option<Self> {
        let mut bench = bench_of(MODEL);
        let vm = match KvmVm::new(Clocks::Kernel, Apics::Kernel) {
            Ok(vm) if vm.has_apics() => vm,
            Ok(_) => {
                say("skipped: this host's KVM has no good local APICs");
                return None;
            }
            Err(error) => {
                say(&format!("skipped: no KVM on this host: {error}"));
                return None;
            }
        };
        let chip = Chip::new();
        bench.cpu.env.lapic = Arc::clone(&chip) as _;
        let cpu = KvmCpu::new(&vm, bench.cpu.env.clone()).expect("a CPU");
        Some(Self { bench, cpu, vm, chip })
    }

    /// CPU 0 in x2APIC mode, with `state`, ready to run.
    pub(super) fn start(&mut self, state: &State) {
        let mut image =
            LapicImage { base: BASE | ENABLED | EXTENDED, registers: [0; 64], tsc_deadline: 0 };
        image.registers[number::SVR] = 0x1ff;
        image.registers[number::LDR] = 1;
        self.chip.set(&image);
        self.cpu.set_state(state.clone());
        self.cpu.borrow_apic().expect("registers that the kernel takes");
    }

    /// Gives the kernel everything.
    fn put(&mut self, state: &State, image: &LapicImage) {
        self.chip.set(image);
        self.cpu.set_state(state.clone());
        self.cpu.borrow_apic().expect("registers that the kernel takes");
        self.cpu.put().expect("a state that the kernel takes");
        // What comes out must not be what is still here.
        self.cpu.cpu_mut().state = self.bench.cpu.state.clone();
    }

    /// Takes everything back.
    fn take(&mut self) -> (State, LapicImage) {
        self.cpu.fetch().expect("a state");
        self.cpu.return_apic().expect("registers");
        (self.cpu.state().clone(), self.chip.image().clone())
    }
}

/// Registers that a guest can have brought the local APIC of CPU 0 to, but for what is in service
/// and requested. The deadline mode is there if `tsc` says what the counter shows.
fn registers(random: &mut Random, tsc: Option<u64>) -> LapicImage {
    let is_extended = random.chance(50);
    let mut registers = [0; 64];
    registers[number::TPR] = u32::from(random.byte());
    registers[number::DFR] = u32::MAX;
    if is_extended {
        registers[number::LDR] = 1;
        registers[number::ICR_HIGH] = random.bits() as u32;
    } else {
        registers[number::ID] = u32::from(random.byte()) << 24;
        registers[number::LDR] = u32::from(random.byte()) << 24;
        registers[number::DFR] = random.pick(&[u32::MAX, 0x0fff_ffff]);
        registers[number::ICR_HIGH] = u32::from(random.byte()) << 24;
    }
    registers[number::SVR] = 0x100 | u32::from(random.byte());
    registers[number::ESR] = random.pick(&[0, 0x20, 0x40, 0x60]);
    registers[number::ICR_LOW] = random.bits() as u32 & 0x000c_cfff;
    let masks = [(number::LVT_TIMER, 0x1_00ff), (number::LVT_THERMAL, 0x1_00ff)];
    let pins = [(number::LVT_LINT0, 0x1_a0ff), (number::LVT_LINT1, 0x1_20ff)];
    let others = [(number::LVT_PERFORMANCE, 0x1_00ff), (number::LVT_ERROR, 0x1_00ff)];
    for (register, bits) in masks.into_iter().chain(pins).chain(others) {
        registers[register] = random.bits() as u32 & bits;
    }
    for register in [number::LVT_LINT0, number::LVT_LINT1, number::LVT_PERFORMANCE] {
        registers[register] |= random.pick(&[0, 4 << 8, 7 << 8]);
    }
    let tsc_deadline = timer(&mut registers, random, tsc);
    let base = BASE | ENABLED | if is_extended { EXTENDED } else { 0 };
    LapicImage { base, registers, tsc_deadline }
}

/// A timer that stands, has run down, or has a second and more left. Gives the deadline.
fn timer(registers: &mut [u32; 64], random: &mut Random, tsc: Option<u64>) -> u64 {
    const PERIODIC: u32 = 1 << 17;
    const DEADLINE: u32 = 1 << 18;
    let mode = random.pick(&[0, PERIODIC, DEADLINE]);
    registers[number::DIVIDE] = random.pick(&[0, 1, 2, 3, 8, 9, 10, 11]);
    if let Some(tsc) = tsc.filter(|_| mode == DEADLINE) {
        registers[number::LVT_TIMER] |= DEADLINE;
        // Not too far: the kernel multiplies what is left.
        let far = tsc + (1 << 41 | random.below(1 << 41));
        return random.pick(&[0, far]);
    }
    registers[number::LVT_TIMER] |= mode & PERIODIC;
    if random.chance(70) {
        registers[number::INITIAL_COUNT] = random.bits() as u32 | 0xf000_0000;
        let has_run_down = mode == 0 && random.chance(30);
        let left = registers[number::INITIAL_COUNT] - random.below(1 << 28) as u32;
        registers[number::CURRENT_COUNT] = if has_run_down { 0 } else { left };
    }
    0
}

/// Vectors in service and requested. None of those requested is above what is in service, so that
/// none is delivered, unless `are_open`.
fn vectors(registers: &mut [u32; 64], random: &mut Random, are_open: bool) {
    let in_service = random.pick(&[0x20, 0x51, 0xa7, 0xff]);
    for vector in (16..=in_service).filter(|_| random.chance(4)).chain([in_service]) {
        set_vector(registers, number::ISR, vector);
    }
    let most = if are_open { 0x100 } else { in_service & 0xf0 };
    for vector in 16..most {
        if random.chance(6) {
            set_vector(registers, number::IRR, vector);
            set_vector(registers, number::TMR, vector * random.below(2) as u32);
        }
    }
}

/// Sets the bit of `vector`, if it is none of the reserved ones.
fn set_vector(registers: &mut [u32; 64], first: usize, vector: u32) {
    registers[first + (vector >> 5) as usize] |= u32::from(vector >= 16) << (vector & 31);
}

/// What an image does not have of the other.
fn lost(expected: &LapicImage, found: &LapicImage) -> Vec<String> {
    let mut lost = Vec::new();
    let mut check = |what: &str, number: usize, one: u64, other: u64| {
        if one != other {
            lost.push(format!("{what} {number:#x}: in {one:#x}, out {other:#x}"));
        }
    };
    check("IA32_APIC_BASE", 0, expected.base, found.base);
    check("IA32_TSC_DEADLINE", 0, expected.tsc_deadline, found.tsc_deadline);
    let words = |first: usize| first..first + 8;
    let all = HOLDING.into_iter().chain(words(number::ISR));
    for number in all.chain(words(number::TMR)).chain(words(number::IRR)) {
        // x2APIC mode has no destination format.
        if number != number::DFR || expected.base & EXTENDED == 0 {
            let [one, other] = [expected, found].map(|image| image.registers[number].into());
            check("register", number, one, other);
        }
    }
    let [one, other] = [expected, found].map(|image| image.registers[number::CURRENT_COUNT]);
    let has_gone_on = one != 0 && other <= one && one - other < TIMER_SLACK;
    check("current count", 0, u64::from(one != other && !has_gone_on), 0);
    lost
}

/// `state` made one that waits for something, or not.
fn activity(state: &mut State, random: &mut Random) {
    state.activity = random.pick(&[Activity::Active, Activity::Halted, Activity::WaitForSipi]);
    if state.activity != Activity::Active {
        // HLT and INIT end a shadow, and an NMI ends HLT.
        state.shadow = InterruptShadow::None;
        state.nmis_pending = 0;
    }
}

#[test]
fn registers_events_and_activity_come_out_as_they_went_in() {
    let Some(mut rig) = Rig::new() else { return };
    let has_deadline = rig.vm.gives(1, 0, 2, 24);
    let mut random = Random::new(0x6170_6963);
    for case in 0..CASES {
        let mut state = shaken(rig.bench.cpu.state.clone(), 0, &mut random);
        activity(&mut state, &mut random);
        let tsc = has_deadline.then(|| msrs::read(&rig.cpu.fd, 0x10).expect("a counter"));
        let mut image = registers(&mut random, tsc);
        let are_open = state.rflags & rflags::IF == 0;
        vectors(&mut image.registers, &mut random, are_open);
        rig.put(&state, &image);
        let (mut found, registers) = rig.take();
        if state.nmis_pending != 0 {
            // On AMD's processors the kernel waits by a step of its own until an NMI is taken, and
            // its RF is in all that comes out of that CPU until then. It matters to breakpoints
            // alone.
            found.rflags = found.rflags & !rflags::RF | state.rflags & rflags::RF;
            rig = Rig::new().expect("another CPU");
        }
        let lost = [lost(&image, &registers), differences(&state, &found)].concat();
        let State { nmis_pending, nmi_blocked, shadow, .. } = state;
        assert!(
            lost.is_empty(),
            "case {case}, {nmis_pending} NMIs, blocked {nmi_blocked}, {shadow:?}: {lost:#?}"
        );
    }
}

/// A place for the interpreter to deliver to: a gate for each vector, whose handler nobody enters.
fn deliverable(rig: &Rig) -> State {
    for vector in 0..256u64 {
        let handler = CODE + 16 * vector;
        let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        rig.bench.poke(IDT + 16 * vector, &low.to_le_bytes());
        rig.bench.poke(IDT + 16 * vector + 8, &(handler >> 32).to_le_bytes());
    }
    let mut state = rig.bench.cpu.state.clone();
    (state.rip, state.gpr[4]) = (CODE + 0x8000, STACK);
    state.rflags |= rflags::IF;
    state
}

/// The state behind what `act` has the interpreter do in `state`, and the frame.
fn interpreted(rig: &mut Rig, state: &State, act: impl FnOnce(&mut Cpu)) -> (String, [u8; 64]) {
    rig.bench.cpu.set_state(state.clone());
    act(&mut rig.bench.cpu);
    let outcome = (comparable(&rig.bench.cpu.state), rig.bench.peek(STACK - 64));
    rig.bench.poke(STACK - 64, &[0; 64]);
    outcome
}

/// Whatever KVM says that it was about to deliver is delivered when the state is out, as the
/// interpreter does it.
#[test]
fn what_was_being_delivered_is_delivered() {
    const CODED: [u8; 6] = [8, 10, 11, 12, 13, 17];
    let Some(mut rig) = Rig::new() else { return };
    let state = deliverable(&rig);
    let image = registers(&mut Random::new(7), None);
    // #DB and #PF have more to them than a vector, 2 is no exception, and INT3 and INTO are
    // executed again.
    for vector in (0..32).filter(|vector| ![1, 2, 3, 4, 14].contains(vector)) {
        let code = CODED.contains(&vector).then_some(u16::from(vector != 8) * 0x18);
        let Some(exception) = Exception::from_parts(vector, code) else { continue };
        let expected = interpreted(&mut rig, &state, |cpu| cpu.raise(exception));
        rig.put(&state, &image);
        let mut events = rig.cpu.fd.get_vcpu_events().expect("events");
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        (events.exception.injected, events.exception.nr) = (1, vector);
        events.exception.has_error_code = u8::from(code.is_some());
        events.exception.error_code = code.unwrap_or_default().into();
        rig.cpu.fd.set_vcpu_events(&events).expect("events that KVM takes");
        let (found, _) = rig.take();
        let found = (comparable(&found), rig.bench.peek(STACK - 64));
        assert_eq!(found, expected, "exception {vector}");
        rig.bench.poke(STACK - 64, &[0; 64]);
    }
    for vector in [0x20, 0x41, 0x80, 0xff] {
        let expected = interpreted(&mut rig, &state, |cpu| cpu.take_interrupt(vector));
        rig.put(&state, &image);
        let mut events = rig.cpu.fd.get_vcpu_events().expect("events");
        events.flags = KVM_VCPUEVENT_VALID_SHADOW;
        (events.interrupt.injected, events.interrupt.nr) = (1, vector);
        rig.cpu.fd.set_vcpu_events(&events).expect("events that KVM takes");
        let (found, _) = rig.take();
        let found = (comparable(&found), rig.bench.peek(STACK - 64));
        assert_eq!(found, expected, "interrupt {vector:#x}");
        rig.bench.poke(STACK - 64, &[0; 64]);
    }
}

/// An interrupt that a local APIC has for a CPU that takes interrupts goes from requested to in
/// service exactly once, whether it stays there or is delivered on the way out.
#[test]
fn a_requested_interrupt_is_neither_lost_nor_doubled() {
    let Some(mut rig) = Rig::new() else { return };
    let state = deliverable(&rig);
    let mut random = Random::new(8);
    for vector in [0x20u8, 0x41, 0xfe] {
        let mut image = registers(&mut random, None);
        image.registers[number::TPR] = 0;
        set_vector(&mut image.registers, number::IRR, vector.into());
        let expected = interpreted(&mut rig, &state, |cpu| cpu.take_interrupt(vector));
        rig.put(&state, &image);
        let (found, registers) = rig.take();
        let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
        let [is_requested, is_in_service] =
            [number::IRR, number::ISR].map(|first| registers.registers[first + word] & bit != 0);
        assert_ne!(is_requested, is_in_service, "{vector:#x}");
        let found = (comparable(&found), rig.bench.peek(STACK - 64));
        let expected = if is_in_service { expected } else { (comparable(&state), [0; 64]) };
        assert_eq!(found, expected, "{vector:#x}");
        rig.bench.poke(STACK - 64, &[0; 64]);
    }
}

/// A CPU that a debugger has stopped is where it was when its registers are the machine's again.
#[test]
fn a_cpu_that_is_outside_stays_before_its_interrupt() {
    let Some(mut rig) = Rig::new() else { return };
    let stopped = deliverable(&rig);
    let mut random = Random::new(11);
    for activity in [Activity::Active, Activity::Halted] {
        for vector in [0x20u8, 0x41, 0xfe] {
            let state = State { activity, ..stopped.clone() };
            let mut image = registers(&mut random, None);
            image.registers[number::TPR] = 0;
            set_vector(&mut image.registers, number::IRR, vector.into());
            rig.chip.set(&image);
            rig.cpu.set_state(state.clone());
            rig.cpu.borrow_apic().expect("registers that the kernel takes");
            let (found, registers) = rig.take();
            assert_eq!(comparable(&found), comparable(&state), "{vector:#x}");
            let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
            assert_ne!(registers.registers[number::IRR + word] & bit, 0, "{vector:#x}");
        }
    }
}

/// NMIs that another CPU sends while the state is with the kernel.
#[test]
fn two_nmis_wait_and_are_both_there() {
    let Some(mut rig) = Rig::new() else { return };
    let state = State { rip: CODE, ..rig.bench.cpu.state.clone() };
    let image = registers(&mut Random::new(9), None);
    for count in [1, 2] {
        rig.put(&state, &image);
        let mut events = rig.cpu.fd.get_vcpu_events().expect("events");
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        (events.nmi.injected, events.nmi.pending) = (1, count - 1);
        rig.cpu.fd.set_vcpu_events(&events).expect("events that KVM takes");
        let (found, _) = rig.take();
        assert_eq!((found.nmis_pending, found.nmi_blocked), (count, false));
    }
}

/// INIT and start-up IPIs that came while the CPU did not look are acted on when it is left.
#[test]
fn init_and_start_up_are_latched() {
    const INIT: u8 = 5;
    const START_UP: u8 = 6;
    let Some(mut rig) = Rig::new() else { return };
    let state = rig.bench.cpu.state.clone();
    let mut image = registers(&mut Random::new(10), None);
    // CPU 0 is the one that INIT has start at its reset vector: not here.
    (image.base, image.registers[number::ID]) = (0xfee0_0000 | ENABLED, 0);
    let message = |delivery, vector| Message {
        destination: 0,
        is_logical: false,
        delivery,
        vector,
        is_level: false,
    };
    rig.put(&state, &image);
    assert!(rig.vm.send(&message(INIT, 0)));
    let (found, registers) = rig.take();
    assert_eq!(found.activity, Activity::WaitForSipi);
    assert_eq!(registers.registers[number::SVR], 0xff);
    rig.put(&found, &registers);
    assert!(rig.vm.send(&message(START_UP, 0x9a)));
    let (found, _) = rig.take();
    let cs = found.segments[cpu::state::seg::CS];
    assert_eq!((found.activity, found.rip), (Activity::Active, 0));
    assert_eq!((cs.selector, cs.base), (0x9a00, 0x9_a000));
}
