//! The 8254 programmable interval timer, and port 61h that gates its speaker channel.
//!
//! [`Pit8254`] is on the bus at 40h to 43h; [`Pit8254::port61`] is the NMI status and control port
//! beside it. The counters are computed from guest time when somebody looks
//! ([`counting_element`]); only channel 0, whose output is IRQ 0, sets a timer.
//!
//! If the host was late, channel 0's missed edges are delivered one at a time, a quarter of a
//! period apart, so that guests that count ticks keep their time; at most [`BACKLOG_MAX`] are owed.
//!
//! Source: Intel 82C54 data sheet, sections "Control Word", "Counter Latch Command", "Read-Back
//! Command" and "Mode Definitions"; Intel ICH9 datasheet, "NMI_SC - NMI Status and Control".
//! Known departures: a count is in the counter one tick after its last byte is written, and reads
//! as loaded meanwhile; the one-tick low pulse of mode 2 on IRQ 0 falls together with its end.

mod counting_element;

use std::sync::{Arc, Mutex, Weak};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::clock::{ns_to_ticks, ticks_to_ns};
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;
use crate::timers::{TimerTarget, Timers};

use counting_element::{CountingElement, Mode};

/// The clock input of all three channels: a third of the colour subcarrier.
pub const PIT_HZ: u64 = 1_193_182;
/// The tick of guest time 0: later than any count is long, so that no origin lies before tick 0.
const FIRST_TICK: u64 = 1 << 20;
/// Missed edges of channel 0 that are made up for at most.
const BACKLOG_MAX: u64 = 32;
const VERSION: u16 = 1;

const CONTROL_WORD: u64 = 3;
const SELECT_READ_BACK: u8 = 3;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;
const STATUS_OUTPUT: u8 = 1 << 7;
const STATUS_NULL_COUNT: u8 = 1 << 6;

const NMI_SC_TIMER2_GATE: u8 = 1 << 0;
const NMI_SC_SPEAKER: u8 = 1 << 1;
/// TIM_CNT2_EN, SPKR_DAT_EN, PCI_SERR_EN, IOCHK_NMI_EN.
const NMI_SC_WRITABLE: u8 = 0x0f;
const NMI_SC_REFRESH_TOGGLE: u8 = 1 << 4;
const NMI_SC_TIMER2_OUT: u8 = 1 << 5;
/// Ticks between DRAM refreshes: 15.085 microseconds, as firmware programs channel 1.
const REFRESH_TICKS: u64 = 18;

/// Which bytes of a count are written and read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    #[default]
    Low,
    High,
    /// Low byte, then high byte.
    Both,
}

/// One channel: the counting element and the byte-wide way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    element: CountingElement,
    access: Access,
    /// The low byte of a count whose high byte is still to be written.
    low_byte: Option<u8>,
    /// The next read is the high byte.
    is_reading_high: bool,
    latch: Option<u16>,
    status_latch: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            element: CountingElement::new(gate),
            access: Access::Both,
            low_byte: None,
            is_reading_high: false,
            latch: None,
            status_latch: None,
        }
    }

    fn write_control(&mut self, word: u8, now: u64) {
        self.access = match word >> 4 & 3 {
            0 => return self.latch_count(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.element.set_mode(Mode::from_bits(word >> 1), word & 1 != 0);
        self.low_byte = None;
        self.is_reading_high = false;
        self.latch = None;
        self.status_latch = None;
    }

    /// Latches the count; one that is latched and not yet read stays.
    fn latch_count(&mut self, now: u64) {
        if self.latch.is_none() {
            self.latch = Some(self.element.value(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status_latch.is_some() {
            return;
        }
        let output = if self.element.output(now) { STATUS_OUTPUT } else { 0 };
        let is_null = self.low_byte.is_some() || self.element.is_null_count(now);
        let null_count = if is_null { STATUS_NULL_COUNT } else { 0 };
        let access = (self.access as u8).wrapping_add(1) << 4;
        let mode = self.element.mode().bits() << 1 | u8::from(self.element.is_bcd());
        self.status_latch = Some(output | null_count | access | mode);
    }

    fn write_count(&mut self, byte: u8, now: u64) {
        let raw = match (self.access, self.low_byte) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::Both, None) => {
                self.low_byte = Some(byte);
                self.element.half_written();
                return;
            }
        };
        self.low_byte = None;
        self.element.write_count(raw, now);
    }

    /// Reads the latched status, the latched count or the running count, in this order.
    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status_latch.take() {
            return status;
        }
        let value = self.latch.unwrap_or_else(|| self.element.value(now));
        let [low, high] = value.to_le_bytes();
        let is_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.is_reading_high = !self.is_reading_high;
                !self.is_reading_high
            }
        };
        if is_high || self.access == Access::Low {
            self.latch = None;
        }
        if is_high { high } else { low }
    }

    fn check(&self) -> Result<(), &'static str> {
        let has_half = self.low_byte.is_some() || self.is_reading_high;
        if has_half && self.access != Access::Both {
            return Err("access");
        }
        self.element.check()
    }
}

/// The chip, port 61h, and what IRQ 0 has been told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    channels: [Channel; 3],
    nmi_sc: u8,
    /// Channel 0's rises up to this tick are on the line or in `backlog`.
    counted_to: u64,
    /// Missed edges of channel 0 that are still owed to the guest.
    backlog: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            // Gates 0 and 1 are tied high, gate 2 is port 61h's.
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            nmi_sc: 0,
            counted_to: 0,
            backlog: 0,
        }
    }
}

impl State {
    /// Brings all channels up to `now`; how often channel 0's output rose.
    fn advance(&mut self, now: u64) -> u64 {
        let [channel0, channel1, channel2] = &mut self.channels;
        let rises = channel0.element.advance_counting_rises(self.counted_to, now);
        self.counted_to = now;
        channel1.element.advance(now);
        channel2.element.advance(now);
        rises
    }

    /// Takes one of the edges owed to IRQ 0 and `rises` new ones; false if there is none.
    fn take_edge(&mut self, rises: u64) -> bool {
        if self.period().is_none() {
            self.backlog = 0;
            return rises > 0;
        }
        let owed = self.backlog.saturating_add(rises);
        self.backlog = owed.saturating_sub(1).min(BACKLOG_MAX);
        owed > 0
    }

    fn irq0(&self, now: u64) -> bool {
        let [channel0, ..] = &self.channels;
        // Mode 2's low tick is part of the next edge.
        channel0.element.mode() == Mode::RateGenerator || channel0.element.output(now)
    }

    /// Channel 0's period, if it has one.
    fn period(&self) -> Option<u64> {
        let [channel0, ..] = &self.channels;
        channel0.element.period()
    }

    /// When channel 0 wants to be looked at again.
    fn deadline(&self, now: u64) -> Option<u64> {
        let [channel0, ..] = &self.channels;
        let event = channel0.element.next_event(now)?;
        match self.period() {
            Some(period) if self.backlog > 0 => {
                Some(event.min(now.saturating_add(period.div_ceil(4))))
            }
            _ => Some(event),
        }
    }

    fn read(&mut self, offset: u64, now: u64) -> Result<u8, IoError> {
        if offset == CONTROL_WORD {
            // The control word register cannot be read; the data bus floats.
            return Ok(0xff);
        }
        let channel = self.channels.get_mut(offset as usize).ok_or(IoError::NoRegister)?;
        Ok(channel.read(now))
    }

    fn write(&mut self, offset: u64, value: u8, now: u64) -> Result<(), IoError> {
        if offset == CONTROL_WORD {
            self.write_control(value, now);
            return Ok(());
        }
        let channel = self.channels.get_mut(offset as usize).ok_or(IoError::NoRegister)?;
        channel.write_count(value, now);
        if offset == 0 {
            self.backlog = 0;
        }
        Ok(())
    }

    fn write_control(&mut self, word: u8, now: u64) {
        if word >> 6 == SELECT_READ_BACK {
            return self.read_back(word, now);
        }
        if word >> 6 == 0 && word & 0x30 != 0 {
            self.backlog = 0;
        }
        if let Some(channel) = self.channels.get_mut(usize::from(word >> 6)) {
            channel.write_control(word, now);
        }
    }

    fn read_back(&mut self, word: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if word >> (index + 1) & 1 == 0 {
                continue;
            }
            if word & READ_BACK_NO_COUNT == 0 {
                channel.latch_count(now);
            }
            if word & READ_BACK_NO_STATUS == 0 {
                channel.latch_status(now);
            }
        }
    }

    fn read_nmi_sc(&self, now: u64) -> u8 {
        let [_, _, channel2] = &self.channels;
        let refresh = if (now / REFRESH_TICKS) & 1 == 0 { 0 } else { NMI_SC_REFRESH_TOGGLE };
        let output = if channel2.element.output(now) { NMI_SC_TIMER2_OUT } else { 0 };
        self.nmi_sc | refresh | output
    }

    fn write_nmi_sc(&mut self, value: u8, now: u64) {
        self.nmi_sc = value & NMI_SC_WRITABLE;
        let [_, _, channel2] = &mut self.channels;
        channel2.element.set_gate(value & NMI_SC_TIMER2_GATE != 0, now);
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.nmi_sc & !NMI_SC_WRITABLE != 0 {
            return Err("nmi_sc");
        }
        if self.backlog > BACKLOG_MAX {
            return Err("backlog");
        }
        self.channels.iter().try_for_each(Channel::check)
    }
}

/// Why the chip is being looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    Access,
    /// The deadline: time for an edge from the backlog.
    Timer,
}

/// The timer on the bus: four byte-wide registers.
pub struct Pit8254 {
    state: Mutex<State>,
    irq0: OutputPin,
    deadline: Deadline,
}

impl Pit8254 {
    /// A timer whose channel 0 drives `irq0`.
    pub fn new(timers: &Arc<Timers>, irq0: InterruptLine) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            state: Mutex::default(),
            irq0: OutputPin::new(irq0),
            deadline: Deadline::new(timers.register(this.clone())),
        })
    }

    /// Port 61h, one byte-wide register.
    pub fn port61(self: &Arc<Self>) -> Arc<dyn Device> {
        Arc::new(Port61(Arc::clone(self)))
    }

    /// True while the speaker's input is high: SPKR_DAT_EN and channel 2's output.
    pub fn is_speaker_high(&self) -> bool {
        self.with_state(Occasion::Access, |state, now| {
            let both = NMI_SC_SPEAKER | NMI_SC_TIMER2_OUT;
            state.read_nmi_sc(now) & both == both
        })
    }

    fn now(&self) -> u64 {
        ns_to_ticks(self.deadline.clock().now_ns(), PIT_HZ).saturating_add(FIRST_TICK)
    }

    /// Brings the chip up to now, runs `action`, drives IRQ 0 and sets the next deadline.
    fn with_state<R>(&self, occasion: Occasion, action: impl FnOnce(&mut State, u64) -> R) -> R {
        let mut state = lock(&self.state);
        // Read under the lock, so that ticks never go back from one holder to the next.
        let now = self.now().max(state.counted_to);
        let rises = state.advance(now);
        let has_edge = (rises > 0 || occasion == Occasion::Timer) && state.take_edge(rises);
        let result = action(&mut state, now);
        let level = state.irq0(now);
        if has_edge {
            self.irq0.stage_edge(level);
        }
        let is_level_new = self.irq0.stage(level);
        let deadline = state.deadline(now).map(|tick| tick.saturating_sub(FIRST_TICK));
        let is_deadline_new = self.deadline.stage(deadline.map(|tick| ticks_to_ns(tick, PIT_HZ)));
        drop(state);
        if has_edge || is_level_new {
            self.irq0.flush();
        }
        if is_deadline_new {
            self.deadline.flush();
        }
        result
    }
}

impl TimerTarget for Pit8254 {
    fn expire(&self, _now_ns: u64) {
        self.deadline.fired();
        self.with_state(Occasion::Timer, |_, _| ());
    }
}

impl Device for Pit8254 {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.with_state(Occasion::Access, |state, now| state.read(offset, now)).map(u64::from)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.with_state(Occasion::Access, |state, now| state.write(offset, value as u8, now))
    }
}

struct Port61(Arc<Pit8254>);

impl Device for Port61 {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = self.0.with_state(Occasion::Access, |state, now| state.read_nmi_sc(now));
        Ok(u64::from(value))
    }

    fn write(&self, _offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.0.with_state(Occasion::Access, |state, now| state.write_nmi_sc(value as u8, now));
        Ok(())
    }
}

impl Chip for Pit8254 {
    fn name(&self) -> &str {
        "pit"
    }

    fn reset(&self) {
        self.with_state(Occasion::Access, |state, now| {
            *state = State { counted_to: now, ..State::default() };
        });
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.state))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let mut restored: State = decode("pit", VERSION, saved)?;
        restored.check().map_err(|field| RestoreError::Value { chip: "pit", field })?;
        // Guest time may not be behind what the chip has seen of it.
        restored.counted_to = restored.counted_to.min(self.now());
        self.with_state(Occasion::Access, |state, _| *state = restored);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
