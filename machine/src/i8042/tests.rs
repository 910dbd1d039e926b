use super::*;
use crate::device_fuzz::check_chip;
use crate::test_lines::{PowerLog, Recorder};

struct Bench {
    chip: Arc<I8042>,
    lines: Arc<Recorder>,
    gate: Arc<A20Gate>,
    power: Arc<PowerLog>,
}

fn bench() -> Bench {
    let (lines, power) = (Recorder::new(), Arc::new(PowerLog::default()));
    let gate = crate::a20::tests::gate();
    let chip = I8042::new(lines.line(1), lines.line(12), Arc::clone(&gate), power.clone());
    Bench { chip, lines, gate, power }
}

impl Bench {
    fn command(&self, value: u8) {
        let port = self.chip.port(I8042Port::Command);
        port.write(0, Width::Byte, u64::from(value)).expect("a register");
    }

    fn data(&self, value: u8) {
        let port = self.chip.port(I8042Port::Data);
        port.write(0, Width::Byte, u64::from(value)).expect("a register");
    }

    fn status(&self) -> u8 {
        self.chip.port(I8042Port::Command).read(0, Width::Byte).expect("a register") as u8
    }

    /// Reads all bytes that wait, each with its AUX bit.
    fn drain(&self) -> Vec<(u8, bool)> {
        let mut bytes = Vec::new();
        while self.status() & STATUS_OBF != 0 {
            let is_aux = self.status() & STATUS_AUX != 0;
            let byte = self.chip.port(I8042Port::Data).read(0, Width::Byte).expect("a register");
            bytes.push((byte as u8, is_aux));
        }
        bytes
    }

    fn keyboard_bytes(&self) -> Vec<u8> {
        let bytes = self.drain();
        assert!(bytes.iter().all(|(_, is_aux)| !is_aux));
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }

    fn mouse_bytes(&self) -> Vec<u8> {
        let bytes = self.drain();
        assert!(bytes.iter().all(|(_, is_aux)| *is_aux));
        bytes.into_iter().map(|(byte, _)| byte).collect()
    }

    fn set_command_byte(&self, value: u8) {
        self.command(0x60);
        self.data(value);
    }

    fn mouse_command(&self, value: u8) -> Vec<u8> {
        self.command(0xd4);
        self.data(value);
        self.mouse_bytes()
    }
}

#[test]
fn controller_tests_pass() {
    let b = bench();
    for (command, answer) in [(0xaa, 0x55), (0xab, 0), (0xa9, 0), (0xa4, 0xf1), (0xc0, 0x80)] {
        b.command(command);
        assert_eq!(b.status(), STATUS_OBF | STATUS_SYSTEM | STATUS_COMMAND | STATUS_UNLOCKED);
        assert_eq!(b.keyboard_bytes(), [answer], "command {command:#x}");
    }
}

#[test]
fn command_byte_reads_back_with_the_interface_switches() {
    let b = bench();
    b.set_command_byte(0x47);
    for (command, byte) in [(0xa7, 0x67), (0xad, 0x77), (0xa8, 0x57), (0xae, 0x47)] {
        b.command(command);
        b.command(0x20);
        assert_eq!(b.keyboard_bytes(), [byte], "after {command:#x}");
    }
}

#[test]
fn linux_finds_an_aux_port_and_no_multiplexer() {
    let b = bench();
    b.command(0xd3);
    b.data(0x5a);
    assert_eq!(b.mouse_bytes(), [0x5a]);
    b.set_command_byte(0x47);
    b.command(0xd3);
    b.data(0xa5);
    assert!(b.lines.level(12));
    assert_eq!(b.mouse_bytes(), [0xa5]);
    assert!(!b.lines.level(12));
    for byte in [0xf0, 0x56, 0xa4] {
        b.command(0xd3);
        b.data(byte);
        assert_eq!(b.mouse_bytes(), [byte], "a multiplexer would answer otherwise");
    }
}

#[test]
fn keyboard_answers_what_linux_asks() {
    let b = bench();
    // Without translation: command, argument, answer.
    b.set_command_byte(0x04);
    let rows: [(&[u8], &[u8]); 12] = [
        (&[0xff], &[0xfa, 0xaa]),
        (&[0xf2], &[0xfa, 0xab, 0x83]),
        (&[0xed, 2], &[0xfa, 0xfa]),
        (&[0xf3, 0], &[0xfa, 0xfa]),
        (&[0xee], &[0xee]),
        (&[0xf5], &[0xfa]),
        (&[0xf4], &[0xfa]),
        (&[0xf6], &[0xfa]),
        (&[0xf0, 0], &[0xfa, 0xfa, 2]),
        (&[0xf0, 3], &[0xfa, 0xfe]),
        (&[0xf8], &[0xfa]),
        (&[0x12], &[0xfe]),
    ];
    for (bytes, answer) in rows {
        for &byte in bytes {
            b.data(byte);
        }
        assert_eq!(b.keyboard_bytes(), answer, "{bytes:x?}");
    }
    b.data(0xfe);
    assert_eq!(b.keyboard_bytes(), [0xfe], "resend gives the last byte again");
}

#[test]
fn a_command_in_place_of_an_argument_is_a_command() {
    let b = bench();
    b.data(0xed);
    b.data(0xf4);
    b.data(0x01);
    assert_eq!(b.keyboard_bytes(), [0xfa, 0xfa, 0xfe]);
}

#[test]
fn an_answer_of_the_controller_loses_no_key() {
    let b = bench();
    assert!(b.chip.inject_scancodes(&[0x1c, 0x32]));
    b.command(0x20);
    assert_eq!(b.keyboard_bytes(), [0x44, 0x1e, 0x30]);
}

#[test]
fn keys_come_translated_or_raw() {
    let b = bench();
    b.data(0xf4);
    b.drain();
    let up_and_a = [0xe0, 0x75, 0xe0, 0xf0, 0x75, 0x1c, 0xf0, 0x1c];
    assert!(b.chip.inject_scancodes(&up_and_a));
    assert_eq!(b.keyboard_bytes(), [0xe0, 0x48, 0xe0, 0xc8, 0x1e, 0x9e]);
    b.set_command_byte(0x04);
    assert!(b.chip.inject_scancodes(&up_and_a));
    assert_eq!(b.keyboard_bytes(), up_and_a);
    b.data(0xf0);
    b.data(1);
    b.drain();
    assert!(b.chip.inject_scancodes(&up_and_a));
    assert_eq!(b.keyboard_bytes(), [0xe0, 0x48, 0xe0, 0xc8, 0x1e, 0x9e], "set 1 by itself");
}

#[test]
fn translated_identity_is_what_drivers_expect() {
    let b = bench();
    b.data(0xf2);
    assert_eq!(b.keyboard_bytes(), [0xfa, 0xab, 0x41]);
}

#[test]
fn each_byte_is_an_edge_on_irq_1() {
    let b = bench();
    b.set_command_byte(0x45);
    assert!(b.chip.inject_scancodes(&[0x1c, 0x1c, 0x1c]));
    assert_eq!((b.lines.level(1), b.lines.rises(1)), (true, 1));
    b.drain();
    assert_eq!((b.lines.level(1), b.lines.rises(1)), (false, 3));
    b.set_command_byte(0x44);
    assert!(b.chip.inject_scancodes(&[0x1c]));
    assert_eq!(b.lines.rises(1), 3, "interrupts are off");
    b.set_command_byte(0x45);
    assert_eq!(b.lines.rises(1), 4, "the waiting byte interrupts now");
}

#[test]
fn a_full_keyboard_refuses_whole_events() {
    let b = bench();
    b.command(0xad);
    for _ in 0..5 {
        assert!(b.chip.inject_scancodes(&[0xe0, 0xf0, 0x75]));
    }
    assert!(!b.chip.inject_scancodes(&[0xf0, 0x1c]));
    assert_eq!(b.status() & STATUS_OBF, 0, "the interface is off");
    b.command(0xae);
    assert_eq!(b.keyboard_bytes().len(), 10);
}

#[test]
fn a_disabled_keyboard_drops_keys() {
    let b = bench();
    b.data(0xf5);
    b.drain();
    assert!(b.chip.inject_scancodes(&[0x1c]));
    assert_eq!(b.drain(), []);
}

#[test]
fn a20_follows_the_output_port_and_its_commands() {
    let b = bench();
    for (command, is_open) in [(0xdd, false), (0xdf, true)] {
        b.command(command);
        assert_eq!(b.gate.is_open(), is_open);
        b.command(0xd0);
        let port = b.keyboard_bytes()[0];
        assert_eq!(port & (OUTPUT_A20 | OUTPUT_RESET), if is_open { 3 } else { 1 });
    }
    b.command(0xd1);
    b.data(0xdd);
    assert!(!b.gate.is_open());
    assert_eq!(b.power.events(), []);
}

#[test]
fn fe_and_output_port_bit_0_reset() {
    let b = bench();
    b.command(0xff);
    assert_eq!(b.power.events(), [], "FFh pulses nothing");
    b.command(0xfe);
    b.command(0xd1);
    b.data(0x02);
    assert_eq!(b.power.events(), [PowerEvent::Reset; 2]);
}

#[test]
fn mouse_identifies_and_turns_its_wheel_on() {
    let b = bench();
    assert_eq!(b.mouse_command(0xff), [0xfa, 0xaa, 0]);
    assert_eq!(b.mouse_command(0xf2), [0xfa, 0]);
    for rate in [200, 100, 80] {
        assert_eq!(b.mouse_command(0xf3), [0xfa]);
        assert_eq!(b.mouse_command(rate), [0xfa]);
    }
    assert_eq!(b.mouse_command(0xf2), [0xfa, 3]);
    assert_eq!(b.mouse_command(0xe8), [0xfa]);
    assert_eq!(b.mouse_command(3), [0xfa]);
    assert_eq!(b.mouse_command(0xe9), [0xfa, 0, 3, 80]);
}

#[test]
fn mouse_reports_movement_in_packets_that_fit() {
    let b = bench();
    let input = MouseInput { right: 300, up: -5, wheel: 0, buttons: 1 };
    b.chip.inject_mouse(input);
    assert_eq!(b.drain(), [], "reports are off");
    b.mouse_command(0xf4);
    b.chip.inject_mouse(MouseInput { buttons: 1, ..MouseInput::default() });
    assert_eq!(b.mouse_bytes(), [0x29, 255, 251]);
    b.chip.inject_mouse(MouseInput::default());
    assert_eq!(b.mouse_bytes(), [0x08, 45, 0]);
}

#[test]
fn state_survives_saving() {
    let b = bench();
    b.set_command_byte(0x45);
    assert!(b.chip.inject_scancodes(&[0x1c, 0x32]));
    let saved = b.chip.save();
    b.chip.reset();
    assert!(!b.lines.level(1));
    assert_eq!(b.chip.restore(&saved), Ok(()));
    assert!(b.lines.level(1));
    assert_eq!(b.keyboard_bytes(), [0x1e, 0x30]);
}

#[test]
fn takes_any_access() {
    check_chip(|_| {
        let chip = bench().chip;
        assert!(chip.inject_scancodes(&[0xe0, 0xf0, 0x75]));
        chip.inject_mouse(MouseInput { right: 1000, ..MouseInput::default() });
        let ports = [I8042Port::Data, I8042Port::Command];
        let ranges = ports.map(|port| (chip.port(port), 1)).into();
        (chip, ranges)
    });
}
