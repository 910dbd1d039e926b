//! A PS/2 keyboard with 102 keys, as the keyboard controller's first port sees it.
//!
//! It sends scan code set 2, or set 1 if the host asks for it.
//! Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-Key)".
//! Known departures: set 3 is refused; typematic rate and LEDs are accepted and have no effect.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::scan_codes::{BREAK_PREFIX, translate};

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const ECHO: u8 = 0xee;
const SELF_TEST_PASSED: u8 = 0xaa;
/// An MF-II keyboard.
const IDENTITY: [u8; 2] = [0xab, 0x83];
/// The keyboard's own buffer.
pub(super) const BUFFER_BYTES: usize = 16;

/// The byte that a two-byte command still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Argument {
    Leds,
    ScanCodeSet,
    TypematicRate,
    /// A key of set 3, whose behaviour nothing here has.
    Key,
}

/// The keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    output: VecDeque<u8>,
    is_scanning: bool,
    scan_code_set: u8,
    leds: u8,
    waiting_for: Option<Argument>,
    last_sent: u8,
    /// The last injected byte was the break prefix, while sending set 1.
    has_break_prefix: bool,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            output: VecDeque::new(),
            is_scanning: true,
            scan_code_set: 2,
            leds: 0,
            waiting_for: None,
            last_sent: 0,
            has_break_prefix: false,
        }
    }
}

impl Keyboard {
    /// How many bytes of scan codes would be taken now.
    pub(super) fn room(&self) -> usize {
        BUFFER_BYTES.saturating_sub(self.output.len())
    }

    /// Takes the set 2 codes of a key if they fit as a whole; a disabled keyboard drops them.
    pub(super) fn inject(&mut self, codes: &[u8]) -> bool {
        if !self.is_scanning {
            return true;
        }
        if codes.len() > self.room() {
            return false;
        }
        for &code in codes {
            if self.scan_code_set == 1 {
                let is_break = std::mem::replace(&mut self.has_break_prefix, code == BREAK_PREFIX);
                self.output.extend(translate(code, is_break));
            } else {
                self.output.push_back(code);
            }
        }
        true
    }

    /// The next byte for the controller.
    pub(super) fn take(&mut self) -> Option<u8> {
        let byte = self.output.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    fn answer(&mut self, bytes: &[u8]) {
        // A host that sends commands without reading answers loses the answers.
        let room = self.room();
        self.output.extend(bytes.iter().take(room));
    }

    /// Takes a byte from the host.
    pub(super) fn command(&mut self, byte: u8) {
        if let Some(argument) = self.waiting_for.take()
            && byte < 0xed
        {
            return self.argument(argument, byte);
        }
        match byte {
            0xed => self.expect(Argument::Leds),
            0xee => self.answer(&[ECHO]),
            0xf0 => self.expect(Argument::ScanCodeSet),
            0xf2 => {
                let [first, second] = IDENTITY;
                self.answer(&[ACK, first, second]);
            }
            0xf3 => self.expect(Argument::TypematicRate),
            0xf4 => {
                self.output.clear();
                self.is_scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 => self.set_defaults(false),
            0xf6 => self.set_defaults(true),
            // All keys typematic, make/break, make only: set 3, which this keyboard never sends.
            0xf7..=0xfa => self.answer(&[ACK]),
            0xfb..=0xfd => self.expect(Argument::Key),
            0xfe => {
                let again = self.last_sent;
                self.answer(&[again]);
            }
            0xff => {
                *self = Self::default();
                self.answer(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn expect(&mut self, argument: Argument) {
        self.waiting_for = Some(argument);
        self.answer(&[ACK]);
    }

    fn set_defaults(&mut self, is_scanning: bool) {
        *self = Self { is_scanning, leds: self.leds, ..Self::default() };
        self.answer(&[ACK]);
    }

    fn argument(&mut self, argument: Argument, byte: u8) {
        match (argument, byte) {
            (Argument::Leds, leds) => self.leds = leds & 7,
            (Argument::ScanCodeSet, 0) => {
                let set = self.scan_code_set;
                return self.answer(&[ACK, set]);
            }
            (Argument::ScanCodeSet, 1 | 2) => self.scan_code_set = byte,
            (Argument::ScanCodeSet, _) => return self.answer(&[RESEND]),
            (Argument::TypematicRate | Argument::Key, _) => {}
        }
        self.answer(&[ACK]);
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let is_valid = self.output.len() <= BUFFER_BYTES
            && matches!(self.scan_code_set, 1 | 2)
            && self.leds <= 7;
        if is_valid { Ok(()) } else { Err("keyboard") }
    }
}
