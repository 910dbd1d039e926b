use super::*;
use crate::device_fuzz::check_chip;
use crate::test_lines::Recorder;

const EOI: u8 = 0x20;

struct Bench {
    pair: Arc<PicPair>,
    lines: Arc<Recorder>,
}

impl Bench {
    /// A pair as Linux and SeaBIOS set it up: vectors 30h and 38h, nothing masked.
    fn new(icw4: u8) -> Self {
        let lines = Recorder::new();
        let bench = Self { pair: PicPair::new(lines.line(0)), lines };
        for (ports, base, icw3) in [(PicPorts::Master, 0x30, 4), (PicPorts::Slave, 0x38, 2)] {
            bench.write(ports, 0, 0x11);
            for value in [base, icw3, icw4 | 1, 0] {
                bench.write(ports, 1, value);
            }
        }
        bench
    }

    fn write(&self, ports: PicPorts, a0: u64, value: u8) {
        self.pair.ports(ports).write(a0, Width::Byte, u64::from(value)).expect("a register");
    }

    fn read(&self, ports: PicPorts, a0: u64) -> u8 {
        self.pair.ports(ports).read(a0, Width::Byte).expect("a register") as u8
    }

    fn pulse(&self, irq: u32) {
        self.pair.set_line(irq, true);
        self.pair.set_line(irq, false);
    }

    fn intr(&self) -> bool {
        assert_eq!(self.lines.level(0), self.pair.is_interrupting());
        self.pair.is_interrupting()
    }

    /// IRR, ISR, IMR of one chip.
    fn registers(&self, ports: PicPorts) -> (u8, u8, u8) {
        self.write(ports, 0, 0x0a);
        let irr = self.read(ports, 0);
        self.write(ports, 0, 0x0b);
        (irr, self.read(ports, 0), self.read(ports, 1))
    }
}

#[test]
fn an_edge_is_served_once_and_eoi_allows_the_next() {
    let b = Bench::new(0);
    b.pair.set_line(3, true);
    assert!(b.intr());
    assert_eq!(b.pair.acknowledge(), 0x33);
    assert!(!b.intr(), "a line that stays high is no new edge");
    assert_eq!(b.registers(PicPorts::Master), (0, 8, 0));
    b.pair.set_line(3, false);
    b.pulse(3);
    assert!(!b.intr(), "its own level is in service");
    b.write(PicPorts::Master, 0, EOI);
    assert!(b.intr());
    assert_eq!(b.lines.rises(0), 2);
}

#[test]
fn higher_priority_interrupts_lower_but_not_the_other_way() {
    let b = Bench::new(0);
    b.pulse(4);
    assert_eq!(b.pair.acknowledge(), 0x34);
    b.pulse(5);
    assert!(!b.intr());
    b.pulse(1);
    assert!(b.intr());
    assert_eq!(b.pair.acknowledge(), 0x31);
    b.write(PicPorts::Master, 0, EOI);
    assert_eq!(b.registers(PicPorts::Master).1, 1 << 4, "the highest in service ended");
    b.write(PicPorts::Master, 0, EOI);
    assert_eq!(b.pair.acknowledge(), 0x35);
}

#[test]
fn the_slave_goes_through_ir2() {
    let b = Bench::new(0);
    b.pulse(8);
    b.pulse(12);
    assert_eq!(b.pair.acknowledge(), 0x38);
    assert_eq!((b.registers(PicPorts::Master).1, b.registers(PicPorts::Slave).1), (4, 1));
    b.write(PicPorts::Slave, 0, EOI);
    b.write(PicPorts::Master, 0, EOI);
    assert!(b.intr());
    assert_eq!(b.pair.acknowledge(), 0x3c);
}

#[test]
fn auto_eoi_on_both_chips_loses_no_slave_request() {
    let b = Bench::new(ICW4_AEOI);
    b.pulse(9);
    b.pulse(10);
    assert_eq!((b.pair.acknowledge(), b.pair.acknowledge()), (0x39, 0x3a));
    assert!(!b.intr());
    assert_eq!(b.registers(PicPorts::Slave).1, 0);
}

#[test]
fn masks_hold_a_request_back_without_losing_it() {
    let b = Bench::new(0);
    b.write(PicPorts::Master, 1, 0x10);
    b.pulse(4);
    assert!(!b.intr());
    assert_eq!(b.registers(PicPorts::Master), (0x10, 0, 0x10));
    b.write(PicPorts::Master, 1, 0);
    assert!(b.intr());
}

#[test]
fn level_requests_follow_the_input() {
    let b = Bench::new(0);
    b.write(PicPorts::Elcr, 0, 0xff);
    b.write(PicPorts::Elcr, 1, 0xff);
    assert_eq!((b.read(PicPorts::Elcr, 0), b.read(PicPorts::Elcr, 1)), (0xf8, 0xde));
    b.pair.set_line(11, true);
    assert_eq!(b.pair.acknowledge(), 0x3b);
    b.write(PicPorts::Slave, 0, EOI);
    b.write(PicPorts::Master, 0, EOI);
    assert!(b.intr(), "still high: requested again");
    b.pair.set_line(11, false);
    assert_eq!(b.registers(PicPorts::Slave).0, 0);
}

#[test]
fn a_request_that_vanished_is_spurious_7_or_15() {
    let b = Bench::new(0);
    assert_eq!(b.pair.acknowledge(), 0x37);
    assert_eq!(b.registers(PicPorts::Master).1, 0, "nothing in service");
    b.write(PicPorts::Elcr, 1, 0x08);
    b.pair.set_line(11, true);
    b.pair.set_line(11, false);
    // The master latched the slave's edge.
    assert_eq!(b.pair.acknowledge(), 0x3f);
    assert_eq!((b.registers(PicPorts::Master).1, b.registers(PicPorts::Slave).1), (4, 0));
}

#[test]
fn rotation_makes_the_served_level_the_lowest() {
    let b = Bench::new(0);
    b.pulse(3);
    b.pair.acknowledge();
    b.write(PicPorts::Master, 0, 0xa0);
    b.pulse(3);
    b.pulse(4);
    assert_eq!(b.pair.acknowledge(), 0x34);
    b.write(PicPorts::Master, 0, 0x64);
    assert_eq!(b.pair.acknowledge(), 0x33);
    b.write(PicPorts::Master, 0, 0xe0 | 3);
    b.write(PicPorts::Master, 0, 0xc0 | 5);
    b.pulse(5);
    b.pulse(6);
    assert_eq!(b.pair.acknowledge(), 0x36, "set priority: 5 is lowest");
}

#[test]
fn rotate_on_auto_eoi_gives_every_level_its_turn() {
    let b = Bench::new(ICW4_AEOI);
    b.write(PicPorts::Master, 0, 0x80);
    b.pair.set_line(0, true);
    b.pulse(1);
    assert_eq!(b.pair.acknowledge(), 0x30);
    b.pulse(0);
    assert_eq!((b.pair.acknowledge(), b.pair.acknowledge()), (0x31, 0x37), "0 was still high");
    b.pulse(0);
    b.pulse(1);
    assert_eq!((b.pair.acknowledge(), b.pair.acknowledge()), (0x30, 0x31));
}

#[test]
fn special_mask_mode_lets_lower_levels_through() {
    let b = Bench::new(0);
    b.pulse(3);
    b.pair.acknowledge();
    b.pulse(5);
    assert!(!b.intr());
    b.write(PicPorts::Master, 1, 1 << 3);
    b.write(PicPorts::Master, 0, 0x68);
    assert_eq!(b.pair.acknowledge(), 0x35);
    b.write(PicPorts::Master, 0, EOI);
    assert_eq!(b.registers(PicPorts::Master).1, 1 << 3, "EOI spares the masked level");
    b.write(PicPorts::Master, 0, 0x48);
    b.pulse(6);
    assert!(!b.intr(), "special mask mode is off again");
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, passes) in [(0, false), (ICW4_SFNM, true)] {
        let b = Bench::new(icw4);
        b.pulse(12);
        b.pair.acknowledge();
        b.pulse(8);
        assert_eq!(b.intr(), passes);
    }
}

#[test]
fn poll_serves_a_request_by_reading() {
    let b = Bench::new(0);
    b.write(PicPorts::Slave, 0, 0x0c);
    assert_eq!(b.read(PicPorts::Slave, 0) & POLL_INTERRUPT, 0);
    b.pulse(13);
    b.write(PicPorts::Slave, 0, 0x0c);
    assert_eq!(b.read(PicPorts::Slave, 0), POLL_INTERRUPT | 5);
    assert_eq!(b.registers(PicPorts::Slave).1, 1 << 5);
}

#[test]
fn icw1_forgets_edges_masks_and_service() {
    let b = Bench::new(0);
    b.pair.set_line(4, true);
    b.pulse(5);
    b.pair.acknowledge();
    b.write(PicPorts::Master, 1, 0x80);
    b.write(PicPorts::Master, 0, 0x13);
    b.write(PicPorts::Master, 1, 0x20);
    b.write(PicPorts::Master, 1, 0x01);
    assert_eq!(b.registers(PicPorts::Master), (0, 0, 0), "single mode: ICW3 is not asked for");
    b.pair.set_line(4, false);
    b.pair.set_line(4, true);
    assert_eq!(b.pair.acknowledge(), 0x24);
}

#[test]
fn state_survives_and_impossible_ones_are_refused() {
    let b = Bench::new(0);
    b.pulse(12);
    let saved = b.pair.save();
    b.pair.reset();
    assert!(!b.intr());
    assert_eq!(b.pair.restore(&saved), Ok(()));
    assert_eq!(b.pair.acknowledge(), 0x3c);
    let mut state = Cascade::default();
    state.slave.rotation = 8;
    let refused = b.pair.restore(&encode(VERSION, &state));
    assert_eq!(refused, Err(RestoreError::Value { chip: "pic", field: "rotation" }));
}

#[test]
fn takes_any_access() {
    check_chip(|_| {
        let pair = PicPair::new(Recorder::new().line(0));
        pair.set_line(5, true);
        pair.set_line(14, true);
        let ports = [PicPorts::Master, PicPorts::Slave, PicPorts::Elcr];
        let ranges = ports.map(|ports| (pair.ports(ports), 2)).into();
        (pair, ranges)
    });
}
