//! The timer in its three modes, to the nanosecond.

use super::*;

const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;

#[test]
fn the_one_shot_timer_is_exact_with_every_divider() {
    for (dcr, divider) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let rig = Rig::new(&[0]);
        rig.advance(77);
        rig.write(0, r::DIVIDE, dcr);
        rig.write(0, r::LVT_TIMER, 0x40);
        rig.write(0, r::INITIAL_COUNT, 1000);
        let due = 77 + 1000 * divider;
        assert_eq!(rig.timers.next_deadline_ns(), Some(due));
        rig.advance(77 + divider - 1);
        assert_eq!(rig.read(0, r::CURRENT_COUNT), 1000);
        rig.advance(77 + divider);
        assert_eq!(rig.read(0, r::CURRENT_COUNT), 999);
        rig.advance(due - 1);
        assert_eq!((rig.read(0, r::CURRENT_COUNT), rig.apic(0).has_interrupt()), (1, false));
        rig.advance(due);
        assert_eq!((rig.read(0, r::CURRENT_COUNT), rig.apic(0).acknowledge()), (0, Some(0x40)));
        assert_eq!(rig.timers.next_deadline_ns(), None);
    }
}

#[test]
fn the_periodic_timer_reloads_and_survives_lateness() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    rig.write(0, r::INITIAL_COUNT, 50_000);
    for due in [50_000, 100_000, 150_000] {
        rig.advance(due - 1);
        assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![], 1));
        rig.advance(due);
        assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![0], 50_000));
    }
    rig.advance(423_000);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![0], 27_000));
    assert_eq!(rig.timers.next_deadline_ns(), Some(450_000));
}

#[test]
fn a_period_of_one_tick_interrupts_at_a_bounded_rate() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    rig.write(0, r::INITIAL_COUNT, 1);
    let mut rounds = 0;
    while let Some(due) = rig.timers.next_deadline_ns().filter(|&due| due <= 1_000_000) {
        rig.advance(due);
        assert_eq!(rig.takers(0x40), [0]);
        rounds += 1;
    }
    assert_eq!(rounds, 1 + (1_000_000 - 1) / timer::MIN_INTERRUPT_NS);
}

#[test]
fn a_running_count_survives_mode_and_divider_changes() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40);
    rig.write(0, r::INITIAL_COUNT, 100_000);
    rig.advance(40_000);
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    assert_eq!(rig.read(0, r::CURRENT_COUNT), 60_000);
    rig.write(0, r::DIVIDE, 0);
    rig.advance(60_000);
    assert_eq!(rig.read(0, r::CURRENT_COUNT), 50_000);
    rig.advance(160_000);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![0], 100_000));
    rig.write(0, r::LVT_TIMER, 0x40 | TSC_DEADLINE);
    assert_eq!((rig.read(0, r::CURRENT_COUNT), rig.timers.next_deadline_ns()), (0, None));
    rig.write(0, r::INITIAL_COUNT, 1000);
    assert_eq!(rig.read(0, r::INITIAL_COUNT), 0, "ignored in TSC-deadline mode");
}

#[test]
fn an_expiry_is_not_lost_to_a_write_before_the_wake_up() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::LVT_TIMER, 0x40);
    rig.write(0, r::INITIAL_COUNT, 1000);
    rig.clock.advance_to(5000);
    rig.write(0, r::LVT_TIMER, 0x41 | MASKED);
    assert_eq!(rig.takers(0x40), [0]);
}

#[test]
fn a_masked_timer_wakes_nobody_and_counts_on() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40 | MASKED | PERIODIC);
    rig.write(0, r::INITIAL_COUNT, 100_000);
    assert_eq!(rig.timers.next_deadline_ns(), None);
    rig.advance(250_000);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![], 50_000));
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    assert_eq!(rig.timers.next_deadline_ns(), Some(300_000));
}

#[test]
fn the_tsc_deadline_follows_the_tsc_and_its_adjustments() {
    let rig = Rig::new(&[0]);
    let apic = rig.apic(0);
    rig.advance(1000);
    assert_eq!(apic.tsc(), 2000);
    apic.set_tsc_deadline(5000);
    assert_eq!(apic.tsc_deadline(), 0, "ignored in another mode");
    rig.write(0, r::LVT_TIMER, 0x40 | TSC_DEADLINE);
    apic.set_tsc_deadline(5001);
    assert_eq!((apic.tsc_deadline(), rig.timers.next_deadline_ns()), (5001, Some(2501)));
    apic.set_tsc_offset(1001);
    assert_eq!((apic.tsc(), rig.timers.next_deadline_ns()), (3001, Some(2000)));
    rig.advance(1999);
    assert!(!apic.has_interrupt());
    rig.advance(2000);
    assert_eq!((rig.takers(0x40), apic.tsc_deadline()), (vec![0], 0));
    apic.set_tsc_deadline(1);
    assert_eq!((rig.takers(0x40), apic.tsc_deadline()), (vec![0], 0), "passed already");
    apic.set_tsc_deadline(u64::MAX);
    apic.set_tsc_offset(0u64.wrapping_sub(5000));
    assert_eq!((rig.takers(0x40), apic.tsc()), (vec![], u64::MAX - 999));
    assert_eq!(rig.timers.next_deadline_ns(), Some(2500));
    apic.set_tsc_deadline(0);
    assert_eq!(rig.timers.next_deadline_ns(), None);
}

#[test]
fn a_timer_that_has_reloaded_runs_out_its_period_as_a_one_shot() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    rig.write(0, r::INITIAL_COUNT, 100_000);
    rig.advance(260_000);
    assert_eq!(rig.takers(0x40), [0]);
    rig.write(0, r::LVT_TIMER, 0x40);
    assert_eq!(rig.read(0, r::CURRENT_COUNT), 40_000);
    rig.advance(299_999);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![], 1));
    rig.advance(300_000);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![0], 0));
    // An expired count stays expired.
    rig.write(0, r::LVT_TIMER, 0x40 | PERIODIC);
    rig.advance(500_000);
    assert_eq!((rig.takers(0x40), rig.read(0, r::CURRENT_COUNT)), (vec![], 0));
}
