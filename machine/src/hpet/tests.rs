use super::comparator::{MODE_32, TYPE_PERIODIC, VAL_SET};
use super::*;
use crate::device_fuzz::{check_chip, counted_timers};
use crate::lapic::{Destination, Message};
use crate::test_lines::Recorder;

#[derive(Default)]
struct Messages(Mutex<Vec<Message>>);

impl MessageSink for Messages {
    fn deliver(&self, message: Message) -> bool {
        lock(&self.0).push(message);
        true
    }
}

/// An HPET whose timers can go to inputs 20 and 21; pins 0 and 8 are the legacy interrupts.
struct Rig {
    timers: Arc<Timers>,
    lines: Arc<Recorder>,
    messages: Arc<Messages>,
    hpet: Arc<Hpet>,
}

fn build(timers: &Arc<Timers>) -> Rig {
    let (lines, messages) = (Recorder::new(), Arc::new(Messages::default()));
    let wiring = HpetWiring {
        legacy: LegacyReplacement::new(lines.line(0), lines.line(8)),
        routes: vec![(20, lines.line(20)), (21, lines.line(21))],
        messages: messages.clone(),
    };
    Rig { timers: Arc::clone(timers), hpet: Hpet::new(timers, wiring), lines, messages }
}

impl Rig {
    fn new() -> Self {
        build(&counted_timers())
    }
    fn read(&self, offset: u64) -> u64 {
        self.hpet.read(offset, Width::Qword).unwrap()
    }
    fn write(&self, offset: u64, value: u64) {
        self.hpet.write(offset, Width::Qword, value).unwrap();
    }
    fn set_timer(&self, index: u64, config: u64, value: u64) {
        self.write(TIMER_BASE + TIMER_STRIDE * index, config);
        self.write(TIMER_BASE + TIMER_STRIDE * index + 8, value);
    }
    fn advance(&self, now_ns: u64) {
        self.timers.clock().advance_to(now_ns);
        self.timers.run_expired();
    }
}

const fn route(input: u64) -> u64 {
    input << 9
}

#[test]
fn capabilities_say_what_is_there() {
    let rig = Rig::new();
    assert_eq!(rig.read(GCAP_ID), 10_000_000 << 32 | 0x8086_A201);
    assert_eq!(rig.hpet.read(GCAP_ID + 4, Width::Dword), Ok(10_000_000));
    assert_eq!(rig.read(0x120), 0x0030_0000_0000_8030);
    assert_eq!(rig.read(0x128), u64::MAX);
    assert_eq!(rig.hpet.read(GCAP_ID, Width::Byte), Err(IoError::NoRegister));
}

#[test]
fn the_counter_counts_exactly_while_enabled() {
    let rig = Rig::new();
    rig.advance(1005);
    assert_eq!(rig.read(MAIN_CNT), 0);
    rig.write(MAIN_CNT, 1 << 40);
    rig.write(GEN_CONF, ENABLE_CNF);
    for (now_ns, ticks) in [(1014, 0), (1015, 1), (1024, 1), (1025, 2), (2005, 100)] {
        rig.advance(now_ns);
        assert_eq!(rig.read(MAIN_CNT), (1 << 40) + ticks, "at {now_ns} ns");
    }
    rig.write(GEN_CONF, 0);
    rig.advance(1_000_000);
    assert_eq!(rig.read(MAIN_CNT), (1 << 40) + 100);
    rig.hpet.write(MAIN_CNT + 4, Width::Dword, 1).unwrap();
    assert_eq!(rig.read(MAIN_CNT), (1 << 32) + 100);
}

#[test]
fn a_one_shot_timer_interrupts_once_at_its_nanosecond() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(2, INT_ENB | route(20), 500);
    assert_eq!(rig.timers.next_deadline_ns(), Some(5000));
    rig.advance(4999);
    assert_eq!(rig.lines.rises(20), 0);
    rig.advance(5000);
    assert_eq!((rig.lines.rises(20), rig.lines.level(20)), (1, false));
    rig.advance(1_000_000_000);
    assert_eq!((rig.lines.rises(20), rig.read(GINTR_STA)), (1, 0));
}

#[test]
fn a_periodic_timer_accumulates() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(0, INT_ENB | TYPE_PERIODIC | VAL_SET | route(20), 5000);
    rig.write(0x108, 3000);
    assert_eq!(rig.read(0x100) & VAL_SET, 0);
    for (tick, count) in [(4999, 0), (5000, 1), (7999, 1), (8000, 2), (11_000, 3)] {
        rig.advance(tick * TICK_NS);
        assert_eq!(rig.lines.rises(20), count, "at tick {tick}");
    }
    rig.advance(50_000 * TICK_NS);
    assert_eq!((rig.lines.rises(20), rig.read(0x108)), (4, 53_000), "missed ones are one");
}

#[test]
fn a_period_of_one_tick_interrupts_at_a_bounded_rate() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(0, INT_ENB | TYPE_PERIODIC | VAL_SET | route(20), 1);
    let mut rounds = 0;
    while let Some(due) = rig.timers.next_deadline_ns().filter(|&due| due <= 1_000_000) {
        rig.advance(due);
        rounds += 1;
    }
    assert_eq!((rounds, rig.lines.rises(20)), (50, 50));
}

#[test]
fn level_interrupts_hold_until_their_status_is_cleared() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(1, INT_ENB | INT_TYPE_LEVEL | route(21), 100);
    rig.advance(1000);
    assert_eq!((rig.read(GINTR_STA), rig.lines.level(21)), (2, true));
    assert_eq!(rig.lines.rises(21), 1, "a level, no pulse beside it");
    rig.write(GINTR_STA, 1);
    assert!(rig.lines.level(21));
    rig.hpet.write(GINTR_STA, Width::Dword, 2).unwrap();
    assert_eq!((rig.read(GINTR_STA), rig.lines.level(21)), (0, false));
}

#[test]
fn legacy_replacement_takes_irq_0_and_8() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF | LEG_RT_CNF);
    for index in 0..3 {
        rig.set_timer(index, INT_ENB | route(20), 100);
    }
    rig.advance(1000);
    let rises = [0, 8, 20].map(|pin| rig.lines.rises(pin));
    assert_eq!(rises, [1, 1, 1]);
}

#[test]
fn fsb_delivery_writes_a_message() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.write(0x110, 0xFEE0_3000 << 32 | 0x41);
    rig.set_timer(0, INT_ENB | FSB_EN | route(20), 100);
    rig.advance(1000);
    let messages = lock(&rig.messages.0);
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].destination, messages[0].vector), (Destination::Physical(3), 0x41));
    assert_eq!(rig.lines.rises(20), 0);
}

#[test]
fn a_32_bit_timer_compares_the_low_half_and_wraps() {
    let rig = Rig::new();
    rig.write(MAIN_CNT, 0x5_FFFF_FF00);
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(0, INT_ENB | MODE_32 | route(20), 0xDEAD_0000_0100);
    assert_eq!(rig.read(0x108), 0x100);
    rig.advance(0x1FF * TICK_NS);
    assert_eq!(rig.lines.rises(20), 0);
    rig.advance(0x200 * TICK_NS);
    assert_eq!(rig.lines.rises(20), 1);
    assert_eq!(rig.timers.next_deadline_ns(), Some((0x200 + (1 << 32)) * TICK_NS));
}

#[test]
fn a_disabled_timer_wakes_nobody() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(0, route(20), 100);
    assert_eq!(rig.timers.next_deadline_ns(), None);
    rig.set_timer(0, INT_ENB | route(20), 1 << 20);
    assert!(rig.timers.next_deadline_ns().is_some());
    rig.write(GEN_CONF, 0);
    assert_eq!(rig.timers.next_deadline_ns(), None);
}

#[test]
fn a_saved_state_goes_on_where_it_was() {
    let rig = Rig::new();
    rig.write(GEN_CONF, ENABLE_CNF);
    rig.set_timer(0, INT_ENB | INT_TYPE_LEVEL | route(20), 100);
    let saved = rig.hpet.save();
    rig.hpet.reset();
    assert_eq!((rig.timers.next_deadline_ns(), rig.read(GEN_CONF)), (None, 0));
    rig.hpet.restore(&saved).unwrap();
    assert_eq!(rig.timers.next_deadline_ns(), Some(1000));
    rig.advance(1000);
    assert!(rig.lines.level(20));
}

#[test]
fn takes_any_access() {
    check_chip(|timers| {
        let hpet = build(timers).hpet;
        (Arc::clone(&hpet), vec![(hpet as Arc<dyn Device>, HPET_BYTES)])
    });
}
