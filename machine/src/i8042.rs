//! The 8042 keyboard controller of a PC, with a keyboard and a mouse plugged in.
//!
//! [`Controller`] is the chip with both devices; [`I8042`] its attachment: ports 60h and 64h, IRQ 1
//! and 12, the A20 gate and the reset pulse. Commands take no time, so the input buffer is never
//! full; bytes for the host wait in the devices and come into the output buffer one at a time, each
//! with an edge on its interrupt line.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller".
//! Known departures: the reset pulse resets the whole machine; the A20 bit of the output port is
//! the shared latch of [`crate::a20`]; passwords, the controller's own RAM beyond the command byte,
//! and diagnostics dumps are not there.

mod keyboard;
mod mouse;
mod scan_codes;

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::a20::A20Gate;
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;
use crate::signals::{PowerEvent, PowerSink};

use keyboard::Keyboard;
use mouse::Mouse;
pub use mouse::MouseInput;
use scan_codes::{BREAK_PREFIX, translate};

/// Port 60h: output buffer (read), data (write).
pub const DATA_PORT: u16 = 0x60;
/// Port 64h: status (read), command (write).
pub const COMMAND_PORT: u16 = 0x64;
const VERSION: u16 = 1;

const STATUS_OBF: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard lock is open.
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;

const BYTE_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const BYTE_AUX_INTERRUPT: u8 = 1 << 1;
const BYTE_SYSTEM: u8 = 1 << 2;
const BYTE_KEYBOARD_DISABLED: u8 = 1 << 4;
const BYTE_AUX_DISABLED: u8 = 1 << 5;
const BYTE_TRANSLATE: u8 = 1 << 6;

const OUTPUT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
const OUTPUT_KEYBOARD_FULL: u8 = 1 << 4;
const OUTPUT_AUX_FULL: u8 = 1 << 5;
/// The clock and data pins of the keyboard, idle.
const OUTPUT_IDLE: u8 = 0xc0;

const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_TEST_PASSED: u8 = 0x00;
const NO_PASSWORD: u8 = 0xf1;
/// The keyboard lock is open, the display is colour.
const INPUT_PORT: u8 = 0x80;

/// Who a byte in the output buffer is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
    /// An answer of the controller, which it gives as the keyboard's.
    Controller,
}

/// A command whose parameter comes through port 60h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    CommandByte,
    OutputPort,
    KeyboardBuffer,
    AuxBuffer,
    AuxDevice,
}

/// What a write asks of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    None,
    A20(bool),
    Reset,
    /// The output port: A20 and reset together.
    A20AndReset(bool),
}

/// Controller, keyboard and mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    command_byte: u8,
    /// The last write was to port 64h.
    has_command: bool,
    waiting_for: Option<Parameter>,
    output: Option<(u8, Source)>,
    /// What an answer of the controller pushed out of the output buffer; it comes back after it.
    displaced: Option<(u8, Source)>,
    last_read: u8,
    has_break_prefix: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            // As firmware leaves it: translating, both interfaces on, no interrupts.
            command_byte: BYTE_SYSTEM | BYTE_TRANSLATE,
            has_command: false,
            waiting_for: None,
            output: None,
            displaced: None,
            last_read: 0,
            has_break_prefix: false,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
        }
    }
}

impl Controller {
    fn status(&self) -> u8 {
        let output = match self.output {
            None => 0,
            Some((_, Source::Aux)) => STATUS_OBF | STATUS_AUX,
            Some(_) => STATUS_OBF,
        };
        let system = if self.command_byte & BYTE_SYSTEM != 0 { STATUS_SYSTEM } else { 0 };
        let command = if self.has_command { STATUS_COMMAND } else { 0 };
        output | system | command | STATUS_UNLOCKED
    }

    /// The level of IRQ 1.
    fn irq1(&self) -> bool {
        let is_keyboard = matches!(self.output, Some((_, Source::Keyboard | Source::Controller)));
        is_keyboard && self.command_byte & BYTE_KEYBOARD_INTERRUPT != 0
    }

    /// The level of IRQ 12.
    fn irq12(&self) -> bool {
        let is_aux = matches!(self.output, Some((_, Source::Aux)));
        is_aux && self.command_byte & BYTE_AUX_INTERRUPT != 0
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last_read = byte;
        }
        self.last_read
    }

    /// Fills an empty output buffer from the devices that are enabled, the keyboard first.
    fn fill(&mut self) {
        if self.output.is_none() {
            self.output = self.displaced.take();
        }
        if self.output.is_some() {
            return;
        }
        if self.command_byte & BYTE_KEYBOARD_DISABLED == 0
            && let Some(byte) = self.take_from_keyboard()
        {
            self.output = Some((byte, Source::Keyboard));
        } else if self.command_byte & BYTE_AUX_DISABLED == 0
            && let Some(byte) = self.mouse.take()
        {
            self.output = Some((byte, Source::Aux));
        }
    }

    /// The keyboard's next byte, translated if the host wants it so.
    fn take_from_keyboard(&mut self) -> Option<u8> {
        // Ends: the break prefix gives no byte, but the keyboard's buffer gets shorter.
        loop {
            let byte = self.keyboard.take()?;
            if self.command_byte & BYTE_TRANSLATE == 0 {
                return Some(byte);
            }
            let is_break = std::mem::replace(&mut self.has_break_prefix, byte == BREAK_PREFIX);
            if let Some(code) = translate(byte, is_break) {
                return Some(code);
            }
        }
    }

    /// Puts a byte into the output buffer, before those that the devices have.
    fn put(&mut self, byte: u8, source: Source) {
        if let Some(displaced) = self.output.replace((byte, source))
            && displaced.1 != Source::Controller
        {
            self.displaced.get_or_insert(displaced);
        }
    }

    fn answer(&mut self, byte: u8) -> Request {
        self.put(byte, Source::Controller);
        Request::None
    }

    fn expect(&mut self, parameter: Parameter) -> Request {
        self.waiting_for = Some(parameter);
        Request::None
    }

    fn set_bit(&mut self, bit: u8) -> Request {
        self.command_byte |= bit;
        Request::None
    }

    fn clear_bit(&mut self, bit: u8) -> Request {
        self.command_byte &= !bit;
        Request::None
    }

    /// A write to port 64h; `is_a20_open` is what the output port shows.
    fn command(&mut self, command: u8, is_a20_open: bool) -> Request {
        self.has_command = true;
        self.waiting_for = None;
        match command {
            0x20 => self.answer(self.command_byte),
            // The controller's own RAM behind the command byte.
            0x21..=0x3f => self.answer(0),
            0x60 => self.expect(Parameter::CommandByte),
            0xa4 => self.answer(NO_PASSWORD),
            0xa7 => self.set_bit(BYTE_AUX_DISABLED),
            0xa8 => self.clear_bit(BYTE_AUX_DISABLED),
            0xa9 | 0xab => self.answer(INTERFACE_TEST_PASSED),
            0xaa => {
                self.command_byte |= BYTE_SYSTEM;
                self.answer(SELF_TEST_PASSED)
            }
            0xad => self.set_bit(BYTE_KEYBOARD_DISABLED),
            0xae => self.clear_bit(BYTE_KEYBOARD_DISABLED),
            0xc0 => self.answer(INPUT_PORT),
            0xd0 => self.answer(self.output_port(is_a20_open)),
            0xd1 => self.expect(Parameter::OutputPort),
            0xd2 => self.expect(Parameter::KeyboardBuffer),
            0xd3 => self.expect(Parameter::AuxBuffer),
            0xd4 => self.expect(Parameter::AuxDevice),
            0xdd => Request::A20(false),
            0xdf => Request::A20(true),
            0xe0 => self.answer(0),
            // Pulses the output port's low bits that are 0 in the command.
            0xf0..=0xff if command & OUTPUT_RESET == 0 => Request::Reset,
            _ => Request::None,
        }
    }

    fn output_port(&self, is_a20_open: bool) -> u8 {
        let gate = if is_a20_open { OUTPUT_A20 } else { 0 };
        let full = match self.output {
            None => 0,
            Some((_, Source::Aux)) => OUTPUT_AUX_FULL,
            Some(_) => OUTPUT_KEYBOARD_FULL,
        };
        OUTPUT_IDLE | OUTPUT_RESET | gate | full
    }

    /// A write to port 60h: a command's parameter, or a byte for the keyboard.
    fn write_data(&mut self, byte: u8) -> Request {
        self.has_command = false;
        match self.waiting_for.take() {
            None => {
                // Sending to the keyboard turns its interface on.
                self.command_byte &= !BYTE_KEYBOARD_DISABLED;
                self.keyboard.command(byte);
            }
            Some(Parameter::CommandByte) => self.command_byte = byte,
            Some(Parameter::OutputPort) => {
                let a20 = byte & OUTPUT_A20 != 0;
                let is_reset = byte & OUTPUT_RESET == 0;
                return if is_reset { Request::A20AndReset(a20) } else { Request::A20(a20) };
            }
            Some(Parameter::KeyboardBuffer) => self.put(byte, Source::Keyboard),
            Some(Parameter::AuxBuffer) => self.put(byte, Source::Aux),
            Some(Parameter::AuxDevice) => {
                self.command_byte &= !BYTE_AUX_DISABLED;
                self.mouse.command(byte);
            }
        }
        Request::None
    }
}

/// The controller on the bus.
pub struct I8042 {
    controller: Mutex<Controller>,
    irq1: OutputPin,
    irq12: OutputPin,
    a20: Arc<A20Gate>,
    power: Arc<dyn PowerSink>,
}

/// One port of an [`I8042`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I8042Port {
    /// [`DATA_PORT`].
    Data,
    /// [`COMMAND_PORT`].
    Command,
}

struct Port {
    chip: Arc<I8042>,
    port: I8042Port,
}

impl I8042 {
    /// A controller that drives IRQ 1 and 12, `a20` and `power`.
    pub fn new(
        irq1: InterruptLine,
        irq12: InterruptLine,
        a20: Arc<A20Gate>,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        Arc::new(Self {
            controller: Mutex::default(),
            irq1: OutputPin::new(irq1),
            irq12: OutputPin::new(irq12),
            a20,
            power,
        })
    }

    /// What answers at a port, one byte-wide register.
    pub fn port(self: &Arc<Self>, port: I8042Port) -> Arc<dyn Device> {
        Arc::new(Port { chip: Arc::clone(self), port })
    }

    /// Presses or releases keys: `codes` are the set 2 codes of one event. False if the keyboard's
    /// buffer has no room for all of them.
    pub fn inject_scancodes(&self, codes: &[u8]) -> bool {
        self.with_controller(|controller| controller.keyboard.inject(codes))
    }

    /// Moves the mouse.
    pub fn inject_mouse(&self, input: MouseInput) {
        self.with_controller(|controller| controller.mouse.inject(input));
    }

    /// Runs `action`, refills the output buffer, and drives the interrupt lines: a byte that takes
    /// the place of another is a new edge.
    fn with_controller<R>(&self, action: impl FnOnce(&mut Controller) -> R) -> R {
        let mut controller = lock(&self.controller);
        let before = controller.output;
        let result = action(&mut controller);
        let was_taken = before.is_some() && controller.output.is_none();
        controller.fill();
        let is_new = controller.output.is_some() && (was_taken || controller.output != before);
        let levels = [(&self.irq1, controller.irq1()), (&self.irq12, controller.irq12())];
        let changed = levels.map(|(pin, level)| {
            let has_edge = level && is_new;
            if has_edge {
                pin.stage_edge(true);
            }
            pin.stage(level) || has_edge
        });
        drop(controller);
        for ((pin, _), has_changed) in levels.iter().zip(changed) {
            if has_changed {
                pin.flush();
            }
        }
        result
    }

    fn carry_out(&self, request: Request) {
        match request {
            Request::None => {}
            Request::A20(is_open) => self.a20.set(is_open),
            Request::Reset => self.power.power(PowerEvent::Reset),
            Request::A20AndReset(is_open) => {
                self.a20.set(is_open);
                self.power.power(PowerEvent::Reset);
            }
        }
    }
}

impl Device for Port {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        Ok(u64::from(match self.port {
            I8042Port::Data => self.chip.with_controller(Controller::read_data),
            I8042Port::Command => lock(&self.chip.controller).status(),
        }))
    }

    fn write(&self, _offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = value as u8;
        let is_a20_open = self.chip.a20.is_open();
        let request = self.chip.with_controller(|controller| match self.port {
            I8042Port::Data => controller.write_data(value),
            I8042Port::Command => controller.command(value, is_a20_open),
        });
        self.chip.carry_out(request);
        Ok(())
    }
}

impl Chip for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn reset(&self) {
        self.with_controller(|controller| *controller = Controller::default());
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.controller))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let restored: Controller = decode("i8042", VERSION, saved)?;
        let is_valid = restored.keyboard.check().and_then(|()| restored.mouse.check());
        is_valid.map_err(|field| RestoreError::Value { chip: "i8042", field })?;
        self.with_controller(|controller| *controller = restored);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
