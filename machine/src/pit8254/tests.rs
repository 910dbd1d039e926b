use super::*;
use crate::device_fuzz::{check_chip, counted_timers};
use crate::test_lines::Recorder;

struct Bench {
    pit: Arc<Pit8254>,
    lines: Arc<Recorder>,
    timers: Arc<Timers>,
}

fn bench() -> Bench {
    let (timers, lines) = (counted_timers(), Recorder::new());
    Bench { pit: Pit8254::new(&timers, lines.line(0)), lines, timers }
}

impl Bench {
    fn write(&self, offset: u64, value: u8) {
        self.pit.write(offset, Width::Byte, u64::from(value)).expect("a register");
    }

    fn read(&self, offset: u64) -> u8 {
        self.pit.read(offset, Width::Byte).expect("a register") as u8
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes([self.read(offset), self.read(offset)])
    }

    /// Programs a channel with both bytes of `count`.
    fn program(&self, channel: u8, mode: u8, count: u16) {
        self.write(CONTROL_WORD, channel << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            self.write(u64::from(channel), byte);
        }
    }

    /// Moves to `tick` of the input clock; the bench programs at tick 0, so counts are loaded at 1.
    fn at(&self, tick: u64) {
        self.timers.clock().advance_to(ticks_to_ns(tick, PIT_HZ));
        self.timers.run_expired();
    }

    fn port61(&self) -> u8 {
        self.pit.port61().read(0, Width::Byte).expect("a register") as u8
    }

    fn gate2(&self, level: bool) {
        self.pit.port61().write(0, Width::Byte, u64::from(level)).expect("a register");
    }

    fn out2(&self) -> bool {
        self.port61() & NMI_SC_TIMER2_OUT != 0
    }

    /// The status byte of a channel by read-back.
    fn status(&self, channel: u8) -> u8 {
        self.write(CONTROL_WORD, 0xe0 | 2 << channel);
        self.read(u64::from(channel))
    }
}

#[test]
fn mode_0_raises_irq_0_once_after_n_plus_1_ticks() {
    let b = bench();
    b.program(0, 0, 100);
    assert!(!b.lines.level(0));
    b.at(100);
    assert_eq!((b.lines.rises(0), b.read16(0)), (0, 1));
    b.at(101);
    assert_eq!((b.lines.rises(0), b.read16(0)), (1, 0));
    b.at(102);
    assert_eq!(b.read16(0), 0xffff, "the counter wraps and goes on");
    b.at(300_000);
    assert_eq!(b.lines.rises(0), 1);
}

#[test]
fn mode_0_lowers_out_with_the_first_byte_of_a_new_count() {
    let b = bench();
    b.program(0, 0, 10);
    b.at(20);
    assert!(b.lines.level(0));
    b.write(0, 5);
    assert!(!b.lines.level(0));
    b.at(40);
    assert!(!b.lines.level(0), "half a count does not count");
    b.write(0, 0);
    b.at(46);
    assert!(b.lines.level(0));
}

#[test]
fn mode_1_is_a_retriggerable_one_shot() {
    let b = bench();
    b.program(2, 1, 50);
    assert!(b.out2(), "high until triggered");
    b.gate2(true);
    assert!(!b.out2());
    b.at(40);
    b.gate2(false);
    b.gate2(true);
    b.at(90);
    assert!(!b.out2(), "the second trigger began anew");
    b.at(91);
    assert!(b.out2());
}

#[test]
fn mode_2_interrupts_every_n_ticks_without_drift() {
    let b = bench();
    b.program(0, 2, 1000);
    let start = b.lines.rises(0);
    for period in 1..=500 {
        b.at(1 + period * 1000 - 1);
        assert_eq!(b.lines.rises(0) - start, period as usize - 1);
        b.at(1 + period * 1000);
        assert_eq!(b.lines.rises(0) - start, period as usize);
    }
}

#[test]
fn mode_2_counts_from_n_to_1_and_is_low_at_1() {
    let b = bench();
    b.gate2(true);
    b.program(2, 2, 3);
    let seen: Vec<_> = (1..8).map(|tick| (b.at(tick), b.read16(2), b.out2())).collect();
    let expected = [(3, true), (2, true), (1, false), (3, true), (2, true), (1, false), (3, true)];
    assert_eq!(seen, expected.map(|(value, out)| ((), value, out)));
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let b = bench();
    b.program(0, 2, 100);
    b.at(51);
    b.write(0, 40);
    b.write(0, 0);
    assert_eq!(b.status(0) & STATUS_NULL_COUNT, STATUS_NULL_COUNT);
    assert_eq!(b.read16(0), 50, "the present period goes on");
    let rises = b.lines.rises(0);
    b.at(101);
    assert_eq!((b.lines.rises(0), b.read16(0)), (rises + 1, 40));
    assert_eq!(b.status(0) & STATUS_NULL_COUNT, 0);
    b.at(141);
    assert_eq!(b.lines.rises(0), rises + 2);
}

#[test]
fn mode_2_gate_forces_out_high_and_its_rise_restarts() {
    let b = bench();
    b.gate2(true);
    b.program(2, 2, 10);
    b.at(10);
    assert!(!b.out2());
    b.gate2(false);
    assert!(b.out2());
    b.at(500);
    b.gate2(true);
    b.at(501);
    assert_eq!(b.read16(2), 10);
}

#[test]
fn mode_3_halves_are_even_or_the_odd_tick_is_high() {
    // Count, then (value, out) tick by tick.
    let rows: [(u16, &[(u16, bool)]); 2] = [
        (4, &[(4, true), (2, true), (4, false), (2, false), (4, true)]),
        (5, &[(4, true), (2, true), (0, true), (4, false), (2, false), (4, true)]),
    ];
    for (count, expected) in rows {
        let b = bench();
        b.gate2(true);
        b.program(2, 3, count);
        for (tick, row) in (1..).zip(expected) {
            b.at(tick);
            assert_eq!((b.read16(2), b.out2()), *row, "count {count}, tick {tick}");
        }
    }
}

#[test]
fn mode_3_drives_irq_0_as_a_square() {
    let b = bench();
    b.program(0, 3, 0);
    let rises = b.lines.rises(0);
    b.at(32_768);
    assert!(b.lines.level(0));
    b.at(32_769);
    assert!(!b.lines.level(0));
    b.at(65_537);
    assert_eq!((b.lines.level(0), b.lines.rises(0)), (true, rises + 1));
}

#[test]
fn mode_3_takes_a_new_count_at_the_half() {
    let b = bench();
    b.gate2(true);
    b.program(2, 3, 100);
    b.at(11);
    b.write(2, 20);
    b.write(2, 0);
    b.at(50);
    assert!(b.out2());
    b.at(51);
    assert_eq!((b.out2(), b.read16(2)), (false, 20));
    b.at(61);
    assert!(b.out2());
}

#[test]
fn mode_4_strobes_once() {
    let b = bench();
    b.program(0, 4, 20);
    let rises = b.lines.rises(0);
    b.at(21);
    assert_eq!(b.lines.rises(0), rises, "low for the tick at zero");
    b.at(22);
    assert_eq!(b.lines.rises(0), rises + 1);
    b.at(200_000);
    assert_eq!(b.lines.rises(0), rises + 1);
}

#[test]
fn mode_4_is_paused_by_the_gate() {
    let b = bench();
    b.gate2(true);
    b.program(2, 4, 20);
    b.at(11);
    b.gate2(false);
    b.at(500);
    assert_eq!(b.read16(2), 10);
    b.gate2(true);
    b.at(511);
    assert_eq!((b.read16(2), b.out2()), (0, false));
}

#[test]
fn mode_5_strobes_when_triggered() {
    let b = bench();
    b.program(2, 5, 10);
    b.at(100);
    assert!(b.out2());
    b.gate2(true);
    b.at(111);
    assert!(!b.out2());
    b.at(112);
    assert!(b.out2());
}

#[test]
fn bcd_counts_in_decimal() {
    let b = bench();
    b.write(CONTROL_WORD, 0x31);
    b.write(0, 0x00);
    b.write(0, 0x10);
    b.at(2);
    assert_eq!(b.read16(0), 0x0999);
    b.at(1002);
    assert_eq!(b.read16(0), 0x9999, "wraps below zero to 9999");
}

#[test]
fn latched_counts_stand_still_until_read() {
    let b = bench();
    b.program(0, 2, 1000);
    b.at(11);
    b.write(CONTROL_WORD, 0x00);
    b.at(100);
    b.write(CONTROL_WORD, 0x00);
    assert_eq!(b.read16(0), 990, "the first latch stays");
    assert_eq!(b.read16(0), 901, "then the count itself");
}

#[test]
fn read_back_latches_status_before_count() {
    let b = bench();
    b.program(0, 2, 1000);
    b.gate2(true);
    b.write(CONTROL_WORD, 0x96);
    b.write(2, 7);
    b.at(11);
    b.write(CONTROL_WORD, 0xc0 | 2 | 8);
    b.at(15);
    assert_eq!(b.read(0), STATUS_OUTPUT | 0x34);
    assert_eq!(b.read16(0), 990);
    assert_eq!(b.read(2), STATUS_OUTPUT | 0x16);
    assert_eq!(b.read(2), 0, "square wave of 7 after 10 ticks");
    b.write(CONTROL_WORD, 0x34);
    assert_eq!(b.status(0), STATUS_OUTPUT | STATUS_NULL_COUNT | 0x34);
}

#[test]
fn single_byte_access_sets_the_other_byte_to_zero() {
    let b = bench();
    b.write(CONTROL_WORD, 0x24);
    b.write(0, 0x12);
    b.at(1);
    assert_eq!(b.read(0), 0x12);
    b.write(CONTROL_WORD, 0);
    b.write(CONTROL_WORD, 0x14);
    b.write(0, 0x34);
    b.at(2);
    assert_eq!(b.read(0), 0x34);
}

#[test]
fn port_61_toggles_refresh_and_keeps_its_enables() {
    let b = bench();
    let toggles = (0..180).map(|tick| {
        b.at(tick);
        b.port61() & NMI_SC_REFRESH_TOGGLE
    });
    let toggles: Vec<_> = toggles.collect();
    assert_eq!(toggles.windows(2).filter(|pair| pair[0] != pair[1]).count(), 10);
    b.pit.port61().write(0, Width::Byte, 0xff).expect("a register");
    assert_eq!(b.port61() & 0xcf, 0x0f);
}

#[test]
fn a_late_host_owes_a_bounded_number_of_edges() {
    let b = bench();
    b.program(0, 2, 1000);
    let start = b.lines.rises(0);
    b.at(10_001);
    assert_eq!(b.lines.rises(0) - start, 1, "one edge at a time");
    for quarter in 1..=9 {
        b.at(10_001 + quarter * 250);
    }
    b.at(20_001);
    b.at(1_000_000_001);
    let late = b.lines.rises(0);
    for step in 1..=2000 {
        b.at(1_000_000_001 + step * 50);
    }
    let made_up = (b.lines.rises(0) - late) as u64;
    assert_eq!(made_up, BACKLOG_MAX + 100, "100 periods and the backlog");
}

#[test]
fn catches_up_all_edges_of_a_short_delay() {
    let b = bench();
    b.program(0, 2, 1000);
    let start = b.lines.rises(0);
    b.at(8_001);
    for tick in 8_001..11_001 {
        b.at(tick);
    }
    assert_eq!(b.lines.rises(0) - start, 10);
}

#[test]
fn early_in_guest_time_a_half_period_still_reaches_back() {
    let b = bench();
    b.gate2(true);
    b.program(2, 3, 8);
    b.at(2);
    b.write(2, 0);
    b.write(2, 0x80);
    b.at(5);
    assert_eq!((b.out2(), b.read16(2)), (false, 0x8000));
}

#[test]
fn restored_state_goes_on_where_it_was() {
    let b = bench();
    b.program(0, 2, 1000);
    b.at(500);
    let saved = b.pit.save();
    b.pit.reset();
    assert_eq!(b.timers.next_deadline_ns(), None);
    assert_eq!(b.pit.restore(&saved), Ok(()));
    let rises = b.lines.rises(0);
    b.at(1001);
    assert_eq!((b.lines.rises(0), b.read16(0)), (rises + 1, 1000));
}

#[test]
fn restore_refuses_what_the_chip_cannot_be() {
    let b = bench();
    let mut state = State { nmi_sc: 0x10, ..State::default() };
    let refuse = |state: &State| b.pit.restore(&encode(VERSION, state)).is_err();
    assert!(refuse(&state));
    state = State { backlog: BACKLOG_MAX + 1, ..State::default() };
    assert!(refuse(&state));
    assert!(!refuse(&State::default()));
}

#[test]
fn takes_any_access() {
    check_chip(|timers| {
        let pit = Pit8254::new(timers, Recorder::new().line(0));
        let ranges = vec![(pit.clone() as Arc<dyn Device>, 4), (pit.port61(), 1)];
        (pit, ranges)
    });
}
