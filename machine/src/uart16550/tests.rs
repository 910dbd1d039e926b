use super::*;
use crate::device_fuzz::{check_chip, counted_timers};
use crate::test_lines::{Recorder, Sent};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Bench {
    uart: Arc<Uart16550>,
    lines: Arc<Recorder>,
    sent: Arc<Sent>,
    timers: Arc<Timers>,
}

fn bench() -> Bench {
    let (timers, lines, sent) = (counted_timers(), Recorder::new(), Arc::new(Sent::default()));
    let uart = Uart16550::new("uart0", &timers, lines.line(4), sent.clone());
    Bench { uart, lines, sent, timers }
}

impl Bench {
    fn read(&self, offset: u64) -> u8 {
        self.uart.read(offset, Width::Byte).expect("a register") as u8
    }

    fn write(&self, offset: u64, value: u8) {
        self.uart.write(offset, Width::Byte, u64::from(value)).expect("a register");
    }

    fn irq(&self) -> bool {
        self.lines.level(4)
    }

    fn advance(&self, ns: u64) {
        let clock = self.timers.clock();
        clock.advance_to(clock.now_ns() + ns);
        self.timers.run_expired();
    }
}

#[test]
fn transmits_at_once_and_stays_empty() {
    let b = bench();
    for byte in *b"ok" {
        b.write(RBR_THR, byte);
        assert_eq!(b.read(LSR), LSR_THRE | LSR_TEMT);
    }
    assert_eq!(b.sent.bytes(), b"ok");
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let b = bench();
    b.write(IER, IER_ERBFI);
    b.write(LCR, LCR_DLAB | 3);
    b.write(0, 0x01);
    b.write(1, 0x02);
    assert_eq!((b.read(0), b.read(1)), (0x01, 0x02));
    b.write(LCR, 3);
    assert_eq!(b.read(IER), IER_ERBFI);
    assert!(b.sent.bytes().is_empty());
}

#[test]
fn enabling_etbei_raises_thre_each_time_and_iir_clears_it() {
    // Linux decides by this whether it needs a backup timer for lost transmit interrupts.
    let b = bench();
    b.write(MCR, MCR_OUT2);
    for _ in 0..2 {
        b.write(IER, IER_ETBEI);
        assert!(b.irq());
        assert_eq!(b.read(IIR_FCR), IIR_THR_EMPTY);
        assert!(!b.irq());
        assert_eq!(b.read(IIR_FCR), IIR_NONE);
        b.write(IER, 0);
    }
    b.write(IER, IER_ETBEI);
    b.read(IIR_FCR);
    b.write(RBR_THR, b'x');
    assert!(b.irq(), "the transmitter is empty again after each byte");
}

#[test]
fn out2_and_loopback_gate_the_line() {
    let b = bench();
    b.write(IER, IER_ETBEI);
    assert!(!b.irq());
    b.write(MCR, MCR_OUT2);
    assert!(b.irq());
    b.write(MCR, MCR_OUT2 | MCR_LOOP);
    assert!(!b.irq());
}

#[test]
fn data_interrupt_follows_the_trigger_level() {
    for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let b = bench();
        b.write(MCR, MCR_OUT2);
        b.write(IIR_FCR, fcr);
        b.write(IER, IER_ERBFI);
        assert_eq!(b.uart.receive(&vec![7; level - 1]), level - 1);
        assert!(!b.irq(), "below trigger level {level}");
        b.uart.receive(&[7]);
        assert_eq!(b.read(IIR_FCR), IIR_FIFOS_ENABLED | IIR_DATA_AVAILABLE);
        b.read(RBR_THR);
        assert!(!b.irq(), "below trigger level {level} again");
    }
}

#[test]
fn character_timeout_strikes_after_four_characters_and_reading_ends_it() {
    let b = bench();
    b.write(LCR, LCR_DLAB);
    b.write(0, 1);
    b.write(LCR, 3);
    b.write(MCR, MCR_OUT2);
    b.write(IIR_FCR, 0xc1);
    b.write(IER, IER_ERBFI);
    b.uart.receive(b"ab");
    // 8N1 at 115200 baud: 40 bit times are 347.2 microseconds.
    b.advance(347_000);
    assert!(!b.irq());
    b.advance(300);
    assert_eq!(b.read(IIR_FCR), IIR_FIFOS_ENABLED | IIR_CHARACTER_TIMEOUT);
    assert_eq!(b.read(RBR_THR), b'a');
    assert!(!b.irq());
    b.advance(348_000);
    assert!(b.irq(), "the second character times out by itself");
    assert_eq!(b.read(RBR_THR), b'b');
    b.advance(348_000);
    assert!(!b.irq());
}

#[test]
fn input_waits_for_room_and_the_hook_tells() {
    let b = bench();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    b.uart.set_room_hook(Arc::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    assert_eq!(b.uart.receive(b"abc"), 1, "one character without FIFOs");
    assert_eq!(b.uart.receive(b"bc"), 0);
    assert_eq!(b.read(RBR_THR), b'a');
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    b.write(IIR_FCR, 1);
    assert_eq!(b.uart.receive(&[0; 20]), 16);
    assert_eq!((b.uart.room(), b.read(LSR) & LSR_OE), (0, 0));
    b.write(IIR_FCR, 1 | FCR_RCVR_RESET);
    assert_eq!(b.uart.room(), 16);
    b.write(MCR, MCR_LOOP);
    assert_eq!(b.uart.receive(b"a"), 0, "the pin is deaf in loopback");
}

#[test]
fn loopback_returns_data_breaks_and_overruns() {
    let b = bench();
    b.write(MCR, MCR_LOOP);
    b.write(RBR_THR, 0x5a);
    assert_eq!(b.read(LSR) & LSR_DR, LSR_DR);
    assert_eq!(b.read(RBR_THR), 0x5a);
    b.write(RBR_THR, 1);
    b.write(RBR_THR, 2);
    assert_eq!(b.read(LSR) & (LSR_OE | LSR_DR), LSR_OE | LSR_DR);
    assert_eq!(b.read(LSR) & LSR_OE, 0, "reading LSR clears it");
    assert_eq!(b.read(RBR_THR), 2);
    b.write(LCR, LCR_BREAK);
    assert_eq!(b.read(LSR) & LSR_BI, LSR_BI);
    assert!(b.sent.bytes().is_empty(), "nothing leaves the chip");
}

#[test]
fn loopback_returns_modem_outputs_as_inputs_with_deltas() {
    let b = bench();
    b.write(MCR, MCR_LOOP);
    b.read(MSR);
    let rows = [
        (MCR_RTS, 0x11),
        (MCR_DTR, 0x23),
        // RI shows a delta only on its trailing edge.
        (MCR_OUT1, 0x42),
        (MCR_OUT2, 0x8c),
        (0, 0x08),
        (0, 0x00),
    ];
    for (output, status) in rows {
        b.write(MCR, MCR_LOOP | output);
        assert_eq!(b.read(MSR), status, "MCR {output:#x}");
    }
}

#[test]
fn modem_status_interrupt_ends_with_reading_msr() {
    let b = bench();
    b.write(MCR, MCR_LOOP);
    b.write(MCR, MCR_OUT2);
    b.write(IER, IER_EDSSI);
    assert_eq!(b.read(IIR_FCR), IIR_MODEM_STATUS);
    assert_eq!(b.read(MSR) & !MSR_DELTAS, MSR_CONNECTED);
    assert_eq!(b.read(IIR_FCR), IIR_NONE);
}

#[test]
fn a_break_from_outside_is_a_line_status_interrupt_of_top_priority() {
    let b = bench();
    b.write(MCR, MCR_OUT2);
    b.write(IIR_FCR, 1);
    b.write(IER, IER_MASK);
    assert!(b.uart.receive_break());
    assert_eq!(b.read(IIR_FCR), IIR_FIFOS_ENABLED | IIR_LINE_STATUS);
    assert_eq!(b.read(LSR), LSR_THRE | LSR_TEMT | LSR_DR | LSR_BI | LSR_FIFO_ERROR);
    assert_eq!(b.read(IIR_FCR), IIR_FIFOS_ENABLED | IIR_DATA_AVAILABLE);
}

#[test]
fn identifies_as_16550a_by_iir_and_scratch() {
    let b = bench();
    b.write(IIR_FCR, 1);
    assert_eq!(b.read(IIR_FCR) & 0xc0, 0xc0);
    b.write(IIR_FCR, 0);
    assert_eq!(b.read(IIR_FCR) & 0xc0, 0);
    b.write(SCR, 0xa5);
    assert_eq!(b.read(SCR), 0xa5);
}

#[test]
fn reset_lowers_the_line_and_restore_raises_it_again() {
    let b = bench();
    b.write(MCR, MCR_OUT2);
    b.write(IER, IER_ERBFI);
    b.uart.receive(b"z");
    let saved = b.uart.save();
    b.uart.reset();
    assert!(!b.irq());
    assert_eq!(b.uart.restore(&saved), Ok(()));
    assert!(b.irq());
    assert_eq!(b.read(RBR_THR), b'z');
}

#[test]
fn restore_refuses_what_the_chip_cannot_be() {
    let b = bench();
    let refused = |change: fn(&mut Ns16550), field| {
        let mut state = Ns16550::default();
        change(&mut state);
        let error = RestoreError::Value { chip: "uart16550", field };
        assert_eq!(b.uart.restore(&encode(VERSION, &state)), Err(error));
    };
    refused(|s| s.ier = 0x10, "ier");
    refused(|s| s.mcr = 0x20, "mcr");
    refused(|s| s.fcr = 0xc0, "fcr");
    refused(|s| s.received = vec![Character { byte: 0, errors: 0 }; 2].into(), "received");
}

#[test]
fn takes_any_access() {
    check_chip(|timers| {
        let sent = Arc::new(Sent::default());
        let uart = Uart16550::new("uart0", timers, Recorder::new().line(4), sent);
        (Arc::clone(&uart), vec![(uart as Arc<dyn Device>, 8)])
    });
}
