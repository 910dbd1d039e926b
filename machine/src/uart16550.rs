//! The NS16550A serial port: 16-byte receive FIFO, modem lines, loopback.
//!
//! [`Ns16550`] is the chip (registers and state machine), [`Uart16550`] its attachment to bus,
//! interrupt line, timer and back-end. Transmission takes no time: a byte written to THR is with
//! the back-end when the write returns, so THRE and TEMT always read as 1, and the transmitter
//! interrupt follows each write at once. Input is never lost to an overrun from outside: the
//! back-end asks for [`Uart16550::room`] and is told when there is some again.
//!
//! Source: National Semiconductor PC16550D data sheet, sections "Registers" and "FIFO Interrupt
//! Mode Operation". On a PC, OUT2 gates the interrupt line.
//! Known departures: no transmit time and so no transmit FIFO to fill; parity and framing errors
//! never happen; bytes from outside wait while the chip is in loopback, where the pin is deaf.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::clock::ticks_to_ns;
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;
use crate::serial_backend::SerialBackend;
use crate::timers::{TimerTarget, Timers};

/// The crystal of a PC's serial port.
const CLOCK_HZ: u64 = 1_843_200;
const FIFO_BYTES: usize = 16;
const VERSION: u16 = 1;

// Register offsets. With LCR.DLAB, RBR/THR and IER are DLL and DLM.
const RBR_THR: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_ERBFI: u8 = 1 << 0;
const IER_ETBEI: u8 = 1 << 1;
const IER_ELSI: u8 = 1 << 2;
const IER_EDSSI: u8 = 1 << 3;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_THR_EMPTY: u8 = 0x02;
const IIR_DATA_AVAILABLE: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_CHARACTER_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_RCVR_RESET: u8 = 1 << 1;
const FCR_DMA_MODE: u8 = 1 << 3;
const FCR_TRIGGER: u8 = 0xc0;

const LCR_WORD_LENGTH: u8 = 0x03;
const LCR_STB: u8 = 1 << 2;
const LCR_PEN: u8 = 1 << 3;
const LCR_BREAK: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DR: u8 = 1 << 0;
const LSR_OE: u8 = 1 << 1;
const LSR_BI: u8 = 1 << 4;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;
const LSR_FIFO_ERROR: u8 = 1 << 7;
/// The bits that belong to one received character.
const LSR_CHARACTER: u8 = 0x1c;

const MSR_TERI: u8 = 1 << 2;
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
const MSR_DELTAS: u8 = 0x0f;
/// What the other end of the cable asserts.
const MSR_CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

/// One received character with its LSR bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Character {
    byte: u8,
    errors: u8,
}

/// The chip: registers and state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ns16550 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    /// DLM and DLL: the baud rate is 115200 / divisor.
    divisor: u16,
    /// LSR.OE, until LSR is read.
    is_overrun: bool,
    /// The THRE interrupt waits to be seen in IIR.
    is_thre_pending: bool,
    /// The FIFO held something untouched for four character times.
    is_timed_out: bool,
    /// What RBR shows when nothing is there: the last character read.
    last_read: u8,
    received: VecDeque<Character>,
    /// Guest time at which the character timeout strikes.
    timeout_at_ns: Option<u64>,
}

impl Default for Ns16550 {
    fn default() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            msr: MSR_CONNECTED,
            scr: 0,
            // 9600 baud, as firmware leaves it; the data sheet leaves it undefined.
            divisor: 12,
            is_overrun: false,
            is_thre_pending: false,
            is_timed_out: false,
            last_read: 0,
            received: VecDeque::new(),
            timeout_at_ns: None,
        }
    }
}

impl Ns16550 {
    fn has_fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn is_loopback(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn is_divisor_latch(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn capacity(&self) -> usize {
        if self.has_fifo() { FIFO_BYTES } else { 1 }
    }

    /// How many characters the outside may send now.
    fn room(&self) -> usize {
        if self.is_loopback() { 0 } else { self.capacity().saturating_sub(self.received.len()) }
    }

    /// How many characters raise the data interrupt.
    fn trigger_level(&self) -> usize {
        match (self.has_fifo(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Four character times: start bit, data, parity and stop bits at 16 clocks a bit.
    fn timeout_ns(&self) -> u64 {
        let data_bits = 5 + u64::from(self.lcr & LCR_WORD_LENGTH);
        let parity_bits = u64::from(self.lcr & LCR_PEN != 0);
        let stop_bits = 1 + u64::from(self.lcr & LCR_STB != 0);
        let bits = 1 + data_bits + parity_bits + stop_bits;
        ticks_to_ns(4 * bits * 16 * u64::from(self.divisor.max(1)), CLOCK_HZ)
    }

    /// The FIFO was touched at `now_ns`: the character timeout starts again.
    fn restart_timeout(&mut self, now_ns: u64) {
        let waits = self.has_fifo() && !self.received.is_empty() && !self.is_timed_out;
        self.timeout_at_ns = waits.then(|| now_ns.saturating_add(self.timeout_ns()));
    }

    fn push(&mut self, character: Character, now_ns: u64) {
        if self.received.len() < self.capacity() {
            self.received.push_back(character);
        } else {
            self.is_overrun = true;
            if !self.has_fifo() {
                // Without FIFOs the new character takes the old one's place.
                self.received.clear();
                self.received.push_back(character);
            }
        }
        self.restart_timeout(now_ns);
    }

    fn clear_receiver(&mut self) {
        self.received.clear();
        self.is_timed_out = false;
        self.timeout_at_ns = None;
    }

    fn line_errors(&self) -> u8 {
        let overrun = if self.is_overrun { LSR_OE } else { 0 };
        overrun | self.received.front().map_or(0, |character| character.errors)
    }

    /// The interrupt with the highest priority, as IIR shows it.
    fn interrupt(&self) -> u8 {
        let data = self.received.len();
        if self.ier & IER_ELSI != 0 && self.line_errors() != 0 {
            IIR_LINE_STATUS
        } else if self.ier & IER_ERBFI != 0 && data >= self.trigger_level() {
            IIR_DATA_AVAILABLE
        } else if self.ier & IER_ERBFI != 0 && self.is_timed_out && data > 0 {
            IIR_CHARACTER_TIMEOUT
        } else if self.ier & IER_ETBEI != 0 && self.is_thre_pending {
            IIR_THR_EMPTY
        } else if self.ier & IER_EDSSI != 0 && self.msr & MSR_DELTAS != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// The level of the INTR pin behind the PC's OUT2 gate. Loopback holds OUT2 inactive.
    fn interrupt_line(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.interrupt() != IIR_NONE
    }

    fn read(&mut self, offset: u64, now_ns: u64) -> Result<u8, IoError> {
        Ok(match offset {
            RBR_THR if self.is_divisor_latch() => self.divisor.to_le_bytes()[0],
            RBR_THR => self.read_rbr(now_ns),
            IER if self.is_divisor_latch() => self.divisor.to_le_bytes()[1],
            IER => self.ier,
            IIR_FCR => self.read_iir(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.read_lsr(),
            MSR => {
                let value = self.msr;
                self.msr &= !MSR_DELTAS;
                value
            }
            SCR => self.scr,
            _ => return Err(IoError::NoRegister),
        })
    }

    fn read_rbr(&mut self, now_ns: u64) -> u8 {
        if let Some(character) = self.received.pop_front() {
            self.last_read = character.byte;
        }
        self.is_timed_out = false;
        self.restart_timeout(now_ns);
        self.last_read
    }

    fn read_iir(&mut self) -> u8 {
        let interrupt = self.interrupt();
        if interrupt == IIR_THR_EMPTY {
            // Seeing it as the source is what clears it.
            self.is_thre_pending = false;
        }
        interrupt | if self.has_fifo() { IIR_FIFOS_ENABLED } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut value = LSR_THRE | LSR_TEMT | self.line_errors();
        if !self.received.is_empty() {
            value |= LSR_DR;
        }
        if self.has_fifo() && self.received.iter().any(|character| character.errors != 0) {
            value |= LSR_FIFO_ERROR;
        }
        self.is_overrun = false;
        if let Some(first) = self.received.front_mut() {
            first.errors = 0;
        }
        value
    }

    /// Writes a register; the byte to transmit, if there is one.
    fn write(&mut self, offset: u64, value: u8, now_ns: u64) -> Result<Option<u8>, IoError> {
        let [low, high] = self.divisor.to_le_bytes();
        match offset {
            RBR_THR if self.is_divisor_latch() => {
                self.divisor = u16::from_le_bytes([value, high]);
            }
            RBR_THR => return Ok(self.write_thr(value, now_ns)),
            IER if self.is_divisor_latch() => self.divisor = u16::from_le_bytes([low, value]),
            IER => self.write_ier(value),
            IIR_FCR => self.write_fcr(value),
            LCR => self.write_lcr(value, now_ns),
            MCR => self.write_mcr(value),
            // LSR is for factory tests only; MSR's deltas are cleared by reading alone.
            LSR | MSR => {}
            SCR => self.scr = value,
            _ => return Err(IoError::NoRegister),
        }
        Ok(None)
    }

    fn write_thr(&mut self, byte: u8, now_ns: u64) -> Option<u8> {
        // The byte is gone at once, so THR is empty again.
        self.is_thre_pending = true;
        if self.is_loopback() {
            self.push(Character { byte, errors: 0 }, now_ns);
            return None;
        }
        Some(byte)
    }

    fn write_ier(&mut self, value: u8) {
        let enabled = value & !self.ier;
        self.ier = value & IER_MASK;
        if enabled & IER_ETBEI != 0 {
            // Enabling the interrupt while THR is empty raises it; drivers start output with it.
            self.is_thre_pending = true;
        }
    }

    fn write_fcr(&mut self, value: u8) {
        if (value ^ self.fcr) & FCR_ENABLE != 0 || value & FCR_RCVR_RESET != 0 {
            self.clear_receiver();
        }
        let kept = FCR_ENABLE | FCR_DMA_MODE | FCR_TRIGGER;
        self.fcr = if value & FCR_ENABLE != 0 { value & kept } else { 0 };
    }

    fn write_lcr(&mut self, value: u8, now_ns: u64) {
        let has_break_begun = value & !self.lcr & LCR_BREAK != 0;
        self.lcr = value;
        if has_break_begun && self.is_loopback() {
            self.push(Character { byte: 0, errors: LSR_BI }, now_ns);
        }
    }

    fn write_mcr(&mut self, value: u8) {
        self.mcr = value & MCR_MASK;
        self.set_modem_inputs(if self.is_loopback() {
            // Outputs come back as inputs: RTS as CTS, DTR as DSR, OUT1 as RI, OUT2 as DCD.
            [(MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)]
                .iter()
                .filter(|(output, _)| value & output != 0)
                .fold(0, |inputs, (_, input)| inputs | input)
        } else {
            MSR_CONNECTED
        });
    }

    fn set_modem_inputs(&mut self, inputs: u8) {
        let changed = (self.msr ^ inputs) & !MSR_DELTAS;
        let mut deltas = changed >> 4 & !MSR_TERI;
        if changed & MSR_RI != 0 && inputs & MSR_RI == 0 {
            deltas |= MSR_TERI;
        }
        self.msr = inputs | self.msr & MSR_DELTAS | deltas;
    }

    /// Checks a state from outside; the name of the field that is impossible.
    fn check(&self) -> Result<(), &'static str> {
        let fcr_mask = FCR_ENABLE | FCR_DMA_MODE | FCR_TRIGGER;
        let rules = [
            ("ier", self.ier & !IER_MASK == 0),
            ("mcr", self.mcr & !MCR_MASK == 0),
            ("fcr", self.fcr & !fcr_mask == 0 && (self.has_fifo() || self.fcr == 0)),
            ("received", self.received.len() <= self.capacity()),
            ("received", self.received.iter().all(|c| c.errors & !LSR_CHARACTER == 0)),
        ];
        rules.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(field, _)| Err(field))
    }
}

/// Called with no lock held when there may be room for input again.
pub type RoomHook = Arc<dyn Fn() + Send + Sync>;

/// A 16550 on the bus: 8 byte-wide registers.
pub struct Uart16550 {
    name: String,
    chip: Mutex<Ns16550>,
    interrupt: OutputPin,
    output: Arc<dyn SerialBackend>,
    room_hook: Mutex<Option<RoomHook>>,
    deadline: Deadline,
}

impl Uart16550 {
    /// A port called `name` (`uart0`...) that sends to `output` and raises `line`.
    pub fn new(
        name: impl Into<String>,
        timers: &Arc<Timers>,
        line: InterruptLine,
        output: Arc<dyn SerialBackend>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            name: name.into(),
            chip: Mutex::default(),
            interrupt: OutputPin::new(line),
            output,
            room_hook: Mutex::new(None),
            deadline: Deadline::new(timers.register(this.clone())),
        })
    }

    /// Sets what is called when the guest made room for input.
    pub fn set_room_hook(&self, hook: RoomHook) {
        *lock(&self.room_hook) = Some(hook);
    }

    /// How many bytes [`Uart16550::receive`] would take now.
    pub fn room(&self) -> usize {
        lock(&self.chip).room()
    }

    /// Gives the guest input; returns how many bytes were taken. The rest is to be offered again
    /// when the room hook is called.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.with_chip(|chip, now_ns| {
            let taken = bytes.len().min(chip.room());
            for &byte in bytes.iter().take(taken) {
                chip.push(Character { byte, errors: 0 }, now_ns);
            }
            taken
        })
    }

    /// Gives the guest a break condition. False if there was no room for it.
    pub fn receive_break(&self) -> bool {
        self.with_chip(|chip, now_ns| {
            let has_room = chip.room() > 0;
            if has_room {
                chip.push(Character { byte: 0, errors: LSR_BI }, now_ns);
            }
            has_room
        })
    }

    /// Runs `action` under the lock, then brings line, timer and input up to date.
    fn with_chip<R>(&self, action: impl FnOnce(&mut Ns16550, u64) -> R) -> R {
        let now_ns = self.deadline.clock().now_ns();
        let mut chip = lock(&self.chip);
        let room = chip.room();
        let result = action(&mut chip, now_ns);
        let has_more_room = chip.room() > room;
        let is_deadline_new = self.deadline.stage(chip.timeout_at_ns);
        let is_level_new = self.interrupt.stage(chip.interrupt_line());
        drop(chip);
        if is_deadline_new {
            self.deadline.flush();
        }
        if is_level_new {
            self.interrupt.flush();
        }
        if has_more_room {
            self.notify_room();
        }
        result
    }

    fn notify_room(&self) {
        let hook = lock(&self.room_hook).clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl TimerTarget for Uart16550 {
    fn expire(&self, now_ns: u64) {
        self.deadline.fired();
        self.with_chip(|chip, _| {
            if chip.timeout_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                chip.timeout_at_ns = None;
                chip.is_timed_out = true;
            }
        });
    }
}

impl Device for Uart16550 {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.with_chip(|chip, now_ns| chip.read(offset, now_ns)).map(u64::from)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let sent = self.with_chip(|chip, now_ns| chip.write(offset, value as u8, now_ns))?;
        if let Some(byte) = sent {
            self.output.write(&[byte]);
        }
        Ok(())
    }
}

impl Chip for Uart16550 {
    fn name(&self) -> &str {
        &self.name
    }

    fn reset(&self) {
        self.with_chip(|chip, _| *chip = Ns16550::default());
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.chip))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let state: Ns16550 = decode("uart16550", VERSION, saved)?;
        state.check().map_err(|field| RestoreError::Value { chip: "uart16550", field })?;
        self.with_chip(|chip, _| *chip = state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
