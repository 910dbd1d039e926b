use super::*;
use crate::device_fuzz::check_chip;
use crate::test_lines::Recorder;
use std::sync::atomic::{AtomicUsize, Ordering};

/// 2026-11-23 14:59:58 UTC, a Monday.
const START: i64 = 1_795_445_998;
const MS: u64 = 1_000_000;

struct Bench {
    rtc: Arc<Rtc>,
    lines: Arc<Recorder>,
    timers: Arc<Timers>,
}

fn bench() -> Bench {
    let timers = Timers::new(Arc::new(Clock::counted(START * SECOND_NS)));
    let lines = Recorder::new();
    Bench { rtc: Rtc::new(&timers, lines.line(8)), lines, timers }
}

impl Bench {
    fn read(&self, index: u8) -> u8 {
        self.rtc.write(INDEX, Width::Byte, u64::from(index)).expect("a register");
        self.rtc.read(DATA, Width::Byte).expect("a register") as u8
    }

    fn write(&self, index: u8, value: u8) {
        self.rtc.write(INDEX, Width::Byte, u64::from(index)).expect("a register");
        self.rtc.write(DATA, Width::Byte, u64::from(value)).expect("a register");
    }

    fn at_ms(&self, ms: u64) {
        self.timers.clock().advance_to(ms * MS);
        self.timers.run_expired();
    }

    fn time(&self) -> [u8; 3] {
        [HOURS, MINUTES, SECONDS].map(|index| self.read(index))
    }

    fn date(&self) -> [u8; 5] {
        [CENTURY, YEAR, MONTH, DATE, DAY_OF_WEEK].map(|index| self.read(index))
    }

    fn irq(&self) -> bool {
        self.lines.level(8)
    }
}

#[test]
fn shows_the_wall_time_in_bcd() {
    let b = bench();
    assert_eq!((b.date(), b.time()), ([0x20, 0x26, 0x11, 0x23, 2], [0x14, 0x59, 0x58]));
    b.at_ms(2000);
    assert_eq!(b.time(), [0x15, 0x00, 0x00]);
    assert_eq!((b.read(REGISTER_D), b.read(REGISTER_B)), (D_VRT, B_24H));
}

#[test]
fn shows_binary_and_twelve_hours_as_register_b_says() {
    let b = bench();
    b.write(REGISTER_B, B_24H | B_DM);
    assert_eq!((b.date(), b.time()), ([20, 26, 11, 23, 2], [14, 59, 58]));
    b.write(REGISTER_B, 0);
    assert_eq!(b.time(), [0x82, 0x59, 0x58]);
    b.write(REGISTER_B, B_DM);
    assert_eq!(b.time(), [0x82, 59, 58]);
}

#[test]
fn twelve_hours_read_and_write_around_noon_and_midnight() {
    for (hour, byte) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        let b = bench();
        b.write(REGISTER_B, 0);
        b.write(HOURS, byte);
        assert_eq!(b.read(HOURS), byte);
        b.write(REGISTER_B, B_24H | B_DM);
        assert_eq!(b.read(HOURS), hour);
    }
}

#[test]
fn set_stops_the_time_until_it_is_cleared() {
    let b = bench();
    b.write(REGISTER_B, B_24H | B_SET);
    b.at_ms(5000);
    assert_eq!(b.time(), [0x14, 0x59, 0x58]);
    for (index, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DATE, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        b.write(index, value);
        assert_eq!(b.read(index), value);
    }
    b.write(REGISTER_B, B_24H);
    b.at_ms(6000);
    assert_eq!((b.date(), b.time()), ([0x20, 0x00, 0x01, 0x01, 7], [0, 0, 0]));
}

#[test]
fn divider_reset_makes_the_next_second_half_a_second_long() {
    // As Linux sets the time: SET, divider reset, time, SET off, divider on.
    let b = bench();
    b.at_ms(300);
    b.write(REGISTER_B, B_24H | B_SET);
    b.write(REGISTER_A, 0x76);
    b.write(SECONDS, 0x10);
    b.write(REGISTER_B, B_24H);
    b.at_ms(9000);
    assert_eq!(b.read(SECONDS), 0x10);
    b.write(REGISTER_A, 0x26);
    b.at_ms(9499);
    assert_eq!(b.read(SECONDS), 0x10);
    b.at_ms(9500);
    assert_eq!(b.read(SECONDS), 0x11);
}

#[test]
fn uip_announces_each_update() {
    let b = bench();
    b.at_ms(997);
    assert_eq!(b.read(REGISTER_A) & A_UIP, 0);
    b.at_ms(998);
    assert_eq!((b.read(REGISTER_A) & A_UIP, b.read(SECONDS)), (A_UIP, 0x58));
    b.at_ms(1000);
    assert_eq!((b.read(REGISTER_A) & A_UIP, b.read(SECONDS)), (0, 0x59));
    b.write(REGISTER_B, B_24H | B_SET);
    b.at_ms(1999);
    assert_eq!(b.read(REGISTER_A) & A_UIP, 0, "no updates while SET");
}

#[test]
fn update_ended_interrupt_comes_every_second_and_c_clears_it() {
    let b = bench();
    b.at_ms(250);
    b.write(REGISTER_B, B_24H | B_UIE);
    for second in 1..5 {
        b.at_ms(second * 1000 - 1);
        assert!(!b.irq());
        b.at_ms(second * 1000);
        assert!(b.irq());
        assert_eq!(b.read(REGISTER_C) & !C_PF, C_IRQF | C_UF);
        assert!(!b.irq());
    }
    assert_eq!(b.read(REGISTER_C), 0);
}

#[test]
fn flags_are_set_without_their_interrupts() {
    let b = bench();
    b.write(REGISTER_A, 0x20);
    b.at_ms(1000);
    assert_eq!(b.read(REGISTER_C), C_UF);
    assert_eq!(b.lines.rises(8), 0);
}

#[test]
fn periodic_interrupt_has_the_rate_of_register_a() {
    // Rate, interrupts in one second.
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (13, 8), (15, 2)] {
        let b = bench();
        b.write(REGISTER_A, A_DIVIDER_32KHZ | rate);
        b.write(REGISTER_B, B_24H | B_PIE);
        while let Some(deadline) = b.timers.next_deadline_ns().filter(|at| *at <= 1000 * MS) {
            b.timers.clock().advance_to(deadline);
            b.timers.run_expired();
            assert_eq!(b.read(REGISTER_C) & (C_IRQF | C_PF), C_IRQF | C_PF);
        }
        assert_eq!(b.lines.rises(8), hz, "rate {rate}");
    }
}

#[test]
fn an_unread_register_c_stops_further_interrupts() {
    let b = bench();
    b.write(REGISTER_B, B_24H | B_PIE);
    b.at_ms(1);
    assert_eq!(b.timers.next_deadline_ns(), None, "nothing more to wait for");
    b.at_ms(60_000);
    assert_eq!(b.lines.rises(8), 1);
}

#[test]
fn alarm_strikes_at_its_time_and_wakes() {
    let b = bench();
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&woken);
    b.rtc.set_alarm_hook(Arc::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    for (index, value) in [(HOURS_ALARM, 0x15), (MINUTES_ALARM, 0x01), (SECONDS_ALARM, 0x30)] {
        b.write(index, value);
    }
    b.write(REGISTER_B, B_24H | B_AIE);
    assert_eq!(b.timers.next_deadline_ns(), Some(92_000 * MS));
    b.at_ms(91_999);
    assert!(!b.irq());
    b.at_ms(92_000);
    assert!(b.irq());
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert_eq!(b.read(REGISTER_C) & (C_IRQF | C_AF), C_IRQF | C_AF);
    assert_eq!(b.timers.next_deadline_ns(), Some((92_000 + 86_400_000) * MS), "daily");
}

#[test]
fn alarm_bytes_with_both_top_bits_match_everything() {
    // Hours, minutes, seconds alarm, and the seconds to wait from 14:59:58.
    let rows = [
        ([0xff, 0xff, 0xff], Some(1)),
        ([0xc0, 0xc0, 0x57], Some(59)),
        ([0xc0, 0x03, 0x05], Some(187)),
        ([0x14, 0x59, 0x58], Some(86_400)),
        ([0x14, 0xff, 0xff], Some(1)),
        ([0x15, 0xff, 0xff], Some(2)),
        ([0x14, 0x99, 0x00], None),
    ];
    for (alarm, wait) in rows {
        let b = bench();
        for (index, value) in [HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM].into_iter().zip(alarm) {
            b.write(index, value);
        }
        b.write(REGISTER_B, B_24H | B_AIE);
        let deadline = b.timers.next_deadline_ns();
        assert_eq!(deadline, wait.map(|seconds| seconds * 1000 * MS), "{alarm:x?}");
    }
}

#[test]
fn both_banks_and_the_nmi_mask() {
    let b = bench();
    b.write(0x0f | INDEX_NMI_MASK, 0x0a);
    assert!(b.rtc.is_nmi_masked());
    assert_eq!(b.read(0x0f), 0x0a);
    assert!(!b.rtc.is_nmi_masked());
    b.rtc.write(EXTENDED_INDEX, Width::Byte, 0x0f).expect("a register");
    b.rtc.write(EXTENDED_DATA, Width::Byte, 0x55).expect("a register");
    assert_eq!((b.rtc.cmos(0x8f), b.rtc.cmos(0x0f)), (0x55, 0x0a));
}

#[test]
fn memory_size_is_where_firmware_looks() {
    let b = bench();
    b.rtc.set_memory_size(3 << 30, 5 << 30);
    let bytes = [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35, 0x5b, 0x5c, 0x5d];
    let expected = [0x80, 0x02, 0xff, 0xff, 0xff, 0xff, 0x00, 0xbf, 0x00, 0x40, 0x01];
    assert_eq!(bytes.map(|index| b.rtc.cmos(index)), expected);
}

#[test]
fn reset_keeps_time_and_cmos_but_no_interrupts() {
    let b = bench();
    b.write(0x40, 7);
    b.write(HOURS, 0x03);
    b.write(REGISTER_B, B_24H | B_UIE);
    b.at_ms(1000);
    assert!(b.irq());
    b.rtc.reset();
    assert!(!b.irq());
    assert_eq!((b.read(0x40), b.read(HOURS), b.read(REGISTER_B)), (7, 0x03, B_24H));
}

#[test]
fn restored_state_goes_on() {
    let b = bench();
    b.write(HOURS, 0x03);
    b.write(REGISTER_B, B_24H | B_UIE);
    let saved = b.rtc.save();
    b.write(HOURS, 0x04);
    b.write(REGISTER_B, B_24H);
    assert_eq!(b.rtc.restore(&saved), Ok(()));
    b.at_ms(1000);
    assert_eq!((b.read(HOURS), b.irq()), (0x03, true));
    let state = Mc146818 { phase_ns: SECOND_NS, ..Mc146818::new(0) };
    let refused = b.rtc.restore(&encode(VERSION, &state));
    assert_eq!(refused, Err(RestoreError::Value { chip: "rtc", field: "phase_ns" }));
}

#[test]
fn takes_any_access() {
    check_chip(|timers| {
        let rtc = Rtc::new(timers, Recorder::new().line(8));
        (Arc::clone(&rtc), vec![(rtc as Arc<dyn Device>, 4)])
    });
}
