//! A PS/2 mouse with three buttons and, for hosts that knock, a wheel.
//!
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft's IntelliMouse
//! protocol (sample rates 200, 100, 80 turn the wheel on, and the identity becomes 3).
//! Known departures: movement is reported when it is injected, not at the sample rate; scaling 2:1
//! is accepted and has no effect.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const IDENTITY_PLAIN: u8 = 0;
const IDENTITY_WHEEL: u8 = 3;
const WHEEL_KNOCK: [u8; 3] = [200, 100, 80];
const BUFFER_BYTES: usize = 16;

const PACKET_ALWAYS: u8 = 1 << 3;
const PACKET_X_SIGN: u8 = 1 << 4;
const PACKET_Y_SIGN: u8 = 1 << 5;
const STATUS_REMOTE: u8 = 1 << 6;
const STATUS_ENABLED: u8 = 1 << 5;
const STATUS_SCALING: u8 = 1 << 4;

/// Movement and buttons since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseInput {
    /// Counts to the right.
    pub right: i32,
    /// Counts upwards.
    pub up: i32,
    /// Wheel notches towards the user.
    pub wheel: i32,
    /// Bit 0 left, bit 1 right, bit 2 middle button held.
    pub buttons: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Argument {
    SampleRate,
    Resolution,
}

/// The mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    output: VecDeque<u8>,
    is_reporting: bool,
    is_remote: bool,
    is_wrapping: bool,
    has_scaling: bool,
    has_wheel: bool,
    resolution: u8,
    sample_rate: u8,
    /// The last three sample rates set.
    knock: [u8; 3],
    waiting_for: Option<Argument>,
    last_sent: u8,
    /// Movement not reported yet.
    moved: MouseInput,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            output: VecDeque::new(),
            is_reporting: false,
            is_remote: false,
            is_wrapping: false,
            has_scaling: false,
            has_wheel: false,
            resolution: 2,
            sample_rate: 100,
            knock: [0; 3],
            waiting_for: None,
            last_sent: 0,
            moved: MouseInput::default(),
        }
    }
}

impl Mouse {
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.output.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    /// Adds movement; reports it if the host wants reports and the buffer has room.
    pub(super) fn inject(&mut self, input: MouseInput) {
        self.moved = MouseInput {
            right: self.moved.right.saturating_add(input.right),
            up: self.moved.up.saturating_add(input.up),
            wheel: self.moved.wheel.saturating_add(input.wheel),
            buttons: input.buttons & 7,
        };
        if self.is_reporting && !self.is_remote && self.output.len() + 4 <= BUFFER_BYTES {
            self.report();
        }
    }

    /// Queues one packet; what does not fit in its nine bits stays for the next.
    fn report(&mut self) {
        let (right, up) = (self.moved.right.clamp(-255, 255), self.moved.up.clamp(-255, 255));
        let wheel = self.moved.wheel.clamp(-8, 7);
        let sign = |value: i32, bit: u8| if value < 0 { bit } else { 0 };
        let flags = self.moved.buttons
            | PACKET_ALWAYS
            | sign(right, PACKET_X_SIGN)
            | sign(up, PACKET_Y_SIGN);
        self.answer(&[flags, right as u8, up as u8]);
        if self.has_wheel {
            self.answer(&[wheel as u8]);
        }
        self.moved.right = self.moved.right.saturating_sub(right);
        self.moved.up = self.moved.up.saturating_sub(up);
        self.moved.wheel = self.moved.wheel.saturating_sub(wheel);
    }

    fn answer(&mut self, bytes: &[u8]) {
        let room = BUFFER_BYTES.saturating_sub(self.output.len());
        self.output.extend(bytes.iter().take(room));
    }

    /// Takes a byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if self.is_wrapping && !matches!(byte, 0xec | 0xff) {
            return self.answer(&[byte]);
        }
        if let Some(argument) = self.waiting_for.take() {
            return self.argument(argument, byte);
        }
        match byte {
            0xe6 => self.has_scaling = false,
            0xe7 => self.has_scaling = true,
            0xe8 => self.waiting_for = Some(Argument::Resolution),
            0xe9 => return self.answer_status(),
            0xea => self.is_remote = false,
            0xeb => {
                self.answer(&[ACK]);
                return self.report();
            }
            0xec => self.is_wrapping = false,
            0xee => self.is_wrapping = true,
            0xf0 => self.is_remote = true,
            0xf2 => {
                let identity = if self.has_wheel { IDENTITY_WHEEL } else { IDENTITY_PLAIN };
                return self.answer(&[ACK, identity]);
            }
            0xf3 => self.waiting_for = Some(Argument::SampleRate),
            0xf4 => self.is_reporting = true,
            0xf5 => self.is_reporting = false,
            0xf6 => *self = Self { has_wheel: self.has_wheel, ..Self::default() },
            0xfe => {
                let again = self.last_sent;
                return self.answer(&[again]);
            }
            0xff => {
                *self = Self::default();
                return self.answer(&[ACK, SELF_TEST_PASSED, IDENTITY_PLAIN]);
            }
            _ => return self.answer(&[RESEND]),
        }
        self.answer(&[ACK]);
    }

    fn argument(&mut self, argument: Argument, byte: u8) {
        match argument {
            Argument::Resolution => self.resolution = byte & 3,
            Argument::SampleRate => {
                self.sample_rate = byte;
                let [_, second, third] = self.knock;
                self.knock = [second, third, byte];
                self.has_wheel |= self.knock == WHEEL_KNOCK;
            }
        }
        self.answer(&[ACK]);
    }

    fn answer_status(&mut self) {
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let buttons = self.moved.buttons;
        // Left, middle, right in this byte, unlike in a packet.
        let flags = bit(self.is_remote, STATUS_REMOTE)
            | bit(self.is_reporting, STATUS_ENABLED)
            | bit(self.has_scaling, STATUS_SCALING)
            | bit(buttons & 1 != 0, 1 << 2)
            | bit(buttons & 4 != 0, 1 << 1)
            | bit(buttons & 2 != 0, 1 << 0);
        let (resolution, rate) = (self.resolution, self.sample_rate);
        self.answer(&[ACK, flags, resolution, rate]);
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let is_valid =
            self.output.len() <= BUFFER_BYTES && self.resolution <= 3 && self.moved.buttons <= 7;
        if is_valid { Ok(()) } else { Err("mouse") }
    }
}
