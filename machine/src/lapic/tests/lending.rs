//! Registers that an engine borrows.

use super::*;

/// An engine's local APICs: remembers what it is told, and takes it or not.
#[derive(Default)]
struct Engine {
    messages: Mutex<Vec<Message>>,
    awaited: Mutex<Vec<Vec<Message>>>,
}

impl ApicBorrower for Engine {
    fn deliver(&self, message: Message) -> bool {
        self.messages.lock().unwrap().push(message);
        message.vector != 0xEE
    }
    fn await_ends(&self, messages: &[Message]) {
        self.awaited.lock().unwrap().push(messages.to_vec());
    }
}

impl Engine {
    fn take(&self) -> Vec<(Destination, u8)> {
        let messages = std::mem::take(&mut *self.messages.lock().unwrap());
        messages.iter().map(|message| (message.destination, message.vector)).collect()
    }
}

impl Rig {
    /// The images of all CPUs, which the engine has from now on.
    fn lend(&self) -> (Arc<Engine>, Vec<ApicImage>) {
        let engine = Arc::new(Engine::default());
        self.bus.hold();
        let images = self.bus.apics().iter().map(|apic| apic.lend()).collect();
        self.bus.lend_to(Some(Arc::clone(&engine) as _));
        self.bus.release();
        (engine, images)
    }

    fn take_back(&self, images: &[ApicImage]) {
        self.bus.hold();
        for (apic, image) in self.bus.apics().iter().zip(images) {
            apic.take_back(image);
        }
        self.bus.lend_to(None);
        self.bus.release();
    }

    /// Everything that a guest can read of CPU `cpu`.
    fn all(&self, cpu: u32) -> Vec<Option<u64>> {
        let apic = self.apic(cpu);
        let page = (0..64).map(|n| Some(apic.mmio_read(16 * n, Width::Dword)));
        let msrs = (0x800..0x840).map(|msr| apic.msr_read(msr));
        page.chain(msrs).chain([Some(apic.apic_base()), Some(apic.tsc_deadline())]).collect()
    }
}

/// Registers of which each has something to lose.
fn busy(is_x2apic: bool, lvt_timer: u32) -> Rig {
    let rig = Rig::new(&[0, 1]);
    rig.write(0, r::LDR, 2 << 24);
    rig.write(0, r::DFR, 0x0FFF_FFFF);
    rig.write(0, r::ESR, 0);
    for (number, value) in
        [(r::LVT_LINT0, 0x700), (r::LVT_LINT1, 0x400), (r::LVT_ERROR, 0xFE), (r::DIVIDE, 3)]
    {
        rig.write(0, number, value);
    }
    rig.write(0, r::LVT_TIMER, lvt_timer);
    rig.write(0, r::INITIAL_COUNT, 1_000);
    rig.apic(0).set_tsc_deadline(50_000);
    for vector in [0x91, 0xB2, 0x51] {
        assert!(rig.bus.deliver(level(vector)));
        rig.apic(0).acknowledge();
    }
    rig.apic(0).set_tpr(0x40);
    rig.ipi(0, 1 << 24, 0x4041);
    if is_x2apic {
        rig.to_x2apic(0);
    }
    rig.advance(5_000);
    rig.signals.take();
    rig
}

#[test]
fn registers_come_back_as_they_went() {
    for is_x2apic in [false, true] {
        for lvt_timer in [0x31, 1 << 17 | 0x31, 2 << 17 | 0x31, 0x1_0031] {
            let rig = busy(is_x2apic, lvt_timer);
            let before = rig.all(0);
            let (_, images) = rig.lend();
            rig.take_back(&images);
            assert_eq!(rig.all(0), before, "x2APIC {is_x2apic}, timer {lvt_timer:#x}");
        }
    }
}

#[test]
fn the_timer_goes_on_with_what_is_left() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x31);
    rig.write(0, r::INITIAL_COUNT, 10_000);
    rig.advance(4_000);
    let (_, images) = rig.lend();
    rig.advance(50_000);
    assert_eq!(rig.timers.next_deadline_ns(), None);
    rig.take_back(&images);
    assert_eq!(rig.read(0, r::CURRENT_COUNT), 6_000);
    assert_eq!(rig.timers.next_deadline_ns(), Some(56_000));
    rig.advance(56_000);
    assert_eq!(rig.apic(0).acknowledge(), Some(0x31));
}

#[test]
fn what_is_lent_has_no_interrupt_and_its_pins_ask_the_engine() {
    let rig = Rig::new(&[0, 1]);
    let pair: Arc<dyn ExtIntSource> = Arc::new(Pair(0x77));
    rig.bus.connect_extint(Arc::downgrade(&pair));
    rig.apic(0).set_virtual_wire();
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x41);
    let (_, images) = rig.lend();
    rig.signals.take();
    assert!(!rig.apic(0).has_interrupt() && !rig.apic(0).has_extint());
    rig.bus.set_line(LINT0_PIN, true);
    rig.bus.set_line(LINT1_PIN, true);
    let expected = [Signal::Interrupt(0), Signal::Interrupt(1), Signal::Nmi(0), Signal::Nmi(1)];
    assert_eq!(rig.signals.take(), expected);
    assert_eq!((rig.apic(0).has_interrupt(), rig.apic(0).acknowledge()), (false, None));
    assert!(rig.apic(0).has_extint());
    assert_eq!(rig.apic(0).acknowledge_extint(), Some(0x77));
    rig.take_back(&images);
    assert_eq!(rig.signals.take(), [Signal::Interrupt(0)]);
    assert_eq!(rig.apic(0).acknowledge(), Some(0x77), "LINT0 is high, and was when it was away");
    rig.bus.set_line(LINT0_PIN, false);
    assert_eq!(rig.apic(0).acknowledge(), Some(0x41));
}

#[test]
fn messages_go_to_the_engine_without_their_sender() {
    let rig = Rig::new(&[0, 1, 4]);
    let (engine, images) = rig.lend();
    for (destination, expected) in [
        (Destination::Physical(4), vec![Destination::Physical(4)]),
        (Destination::Logical8(3), vec![Destination::Logical8(3)]),
        (Destination::All, vec![Destination::All]),
        (Destination::Only { sender: 2 }, vec![Destination::Physical(4)]),
        (
            Destination::AllBut { sender: 1 },
            vec![Destination::Physical(0), Destination::Physical(4)],
        ),
    ] {
        assert!(rig.send(destination, DeliveryMode::Fixed, 0x41));
        let expected: Vec<_> = expected.into_iter().map(|one| (one, 0x41)).collect();
        assert_eq!(engine.take(), expected, "{destination:?}");
    }
    assert!(!rig.send(Destination::Physical(4), DeliveryMode::Fixed, 0xEE));
    rig.signals.take();
    assert!(rig.send(Destination::Physical(0), DeliveryMode::ExtInt, 0));
    assert_eq!(rig.signals.take(), [Signal::Interrupt(0)], "the CPU looks for it");
    assert!(rig.apic(0).has_extint() && engine.take().len() == 1);
    rig.take_back(&images);
    assert!(rig.send(Destination::Physical(4), DeliveryMode::Fixed, 0x42));
    assert_eq!((engine.take(), rig.takers(0x42)), (vec![], vec![2]));
}

#[test]
fn messages_wait_while_registers_move() {
    let rig = Rig::new(&[0]);
    rig.bus.hold();
    assert!(rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x41));
    let image = rig.apic(0).lend();
    assert!(rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x42));
    rig.apic(0).take_back(&image);
    assert!(!rig.apic(0).has_interrupt());
    rig.bus.release();
    assert_eq!((rig.apic(0).acknowledge(), rig.read(0, r::IRR + 2)), (Some(0x42), 1 << 1));
}

/// Has level-triggered messages, which it was told were taken.
struct Levels(Mutex<Vec<Message>>, Ends);

impl EoiSink for Levels {
    fn end_of_interrupt(&self, vector: u8) {
        self.1.end_of_interrupt(vector);
    }
    fn awaited(&self) -> Vec<Message> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn the_engine_knows_whose_ends_are_awaited_and_what_nobody_took_is_ended() {
    let rig = Rig::new(&[0]);
    let levels = Arc::new(Levels(Mutex::new(vec![level(0x51)]), Ends::default()));
    let sink: Arc<dyn EoiSink> = levels.clone();
    rig.bus.connect_eoi(Arc::downgrade(&sink));
    let (engine, images) = rig.lend();
    rig.bus.awaited_changed();
    levels.0.lock().unwrap().push(level(0xEE));
    rig.bus.awaited_changed();
    let told = std::mem::take(&mut *engine.awaited.lock().unwrap());
    assert_eq!(told, [vec![level(0x51)], vec![level(0x51), level(0xEE)]]);
    rig.bus.hold();
    assert!(rig.bus.deliver(level(0xEE)));
    rig.bus.release();
    assert_eq!(*levels.1.0.lock().unwrap(), [0xEE]);
    rig.apic(0).broadcast_eoi(0x51);
    assert_eq!(*levels.1.0.lock().unwrap(), [0xEE, 0x51]);
    rig.take_back(&images);
    rig.bus.awaited_changed();
    assert_eq!(engine.awaited.lock().unwrap().len(), 0);
}
