//! The MC146818 real-time clock with 256 bytes of battery-backed CMOS memory.
//!
//! [`Mc146818`] is the chip as a function of wall time, [`Rtc`] its attachment: ports 70h to 73h,
//! IRQ 8 and a timer. Nothing ticks: the time registers are computed when read, the flags of
//! register C when they are looked at or when an enabled interrupt is due.
//!
//! Time is the clock's wall time, a phase below one second, and an offset in whole seconds that the
//! guest sets by setting the time; the offset moves with [`Clock::unix_ns`] only.
//!
//! Source: Motorola MC146818 data sheet, sections "Time, Calendar, and Alarm Locations", "Update
//! Cycle" and "Registers"; Intel ICH9 datasheet, "Real Time Clock Registers". The century is at
//! 32h, as the FADT says. Known departures: a written day of the week is ignored, the calendar's is
//! read; no daylight saving; the square-wave pin is not connected; seconds that the guest sets to
//! impossible values take the nearest possible one.

mod calendar;

use std::sync::{Arc, Mutex, Weak};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;
use crate::timers::{TimerTarget, Timers};

use calendar::{DAY_SECONDS, DateTime};

const VERSION: u16 = 1;
const SECOND_NS: i64 = 1_000_000_000;
/// The divider's input.
const OSCILLATOR_HZ: i128 = 32_768;
/// UIP is set so long before the registers change: 244 us of warning and 1984 us of update, at the
/// end of which the new time is there.
const UPDATE_NS: i64 = 2_228_000;

// CMOS addresses.
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const DAY_OF_WEEK: u8 = 0x06;
const DATE: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
const TIME_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DATE, MONTH, YEAR, CENTURY];

const A_UIP: u8 = 1 << 7;
const A_RATE: u8 = 0x0f;
/// Divider chain select: 010 is the 32.768 kHz time base, 11x holds the chain in reset.
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_32KHZ: u8 = 0x20;
const B_SET: u8 = 1 << 7;
const B_PIE: u8 = 1 << 6;
const B_AIE: u8 = 1 << 5;
const B_UIE: u8 = 1 << 4;
const B_SQWE: u8 = 1 << 3;
const B_DM: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;
const C_IRQF: u8 = 1 << 7;
const C_PF: u8 = 1 << 6;
const C_AF: u8 = 1 << 5;
const C_UF: u8 = 1 << 4;
/// PF, AF, UF stand at the same bits as their enables PIE, AIE, UIE.
const C_SOURCES: u8 = C_PF | C_AF | C_UF;
const D_VRT: u8 = 1 << 7;
const HOUR_PM: u8 = 1 << 7;
/// An alarm byte with both top bits set matches every value.
const ALARM_DO_NOT_CARE: u8 = 0xc0;

const INDEX: u64 = 0;
const DATA: u64 = 1;
const EXTENDED_INDEX: u64 = 2;
const EXTENDED_DATA: u64 = 3;
const INDEX_NMI_MASK: u8 = 1 << 7;
const BANK_BYTES: usize = 128;

/// The chip as a function of `unix_ns`, the clock's wall time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mc146818 {
    /// All 256 bytes. Those of time and registers A to D are kept elsewhere while the clock runs.
    cmos: Vec<u8>,
    index: u8,
    extended_index: u8,
    is_nmi_masked: bool,
    register_a: u8,
    register_b: u8,
    /// The flags of register C without IRQF.
    flags: u8,
    /// The guest's time less the clock's, in seconds.
    offset_s: i64,
    /// The guest's seconds begin so long before the clock's.
    phase_ns: i64,
    /// Events up to this wall time are in `flags`.
    seen_ns: i64,
}

impl Mc146818 {
    fn new(unix_ns: i64) -> Self {
        Self {
            cmos: vec![0; 2 * BANK_BYTES],
            index: 0,
            extended_index: 0,
            is_nmi_masked: false,
            // 32.768 kHz and a periodic rate of 1.024 kHz, 24 hours, as firmware leaves them.
            register_a: A_DIVIDER_32KHZ | 6,
            register_b: B_24H,
            flags: 0,
            offset_s: 0,
            phase_ns: 0,
            seen_ns: unix_ns,
        }
    }

    fn byte(&self, index: u8) -> u8 {
        self.cmos.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set_byte(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// The divider chain counts.
    fn has_divider(&self) -> bool {
        self.register_a & A_DIVIDER == A_DIVIDER_32KHZ
    }

    /// The time registers advance.
    fn is_running(&self) -> bool {
        self.has_divider() && self.register_b & B_SET == 0
    }

    /// The guest's time at `unix_ns`: whole seconds and nanoseconds into the second.
    fn time(&self, unix_ns: i64) -> (i64, i64) {
        let shifted = unix_ns.saturating_add(self.phase_ns);
        let seconds = shifted.div_euclid(SECOND_NS).saturating_add(self.offset_s);
        (seconds, shifted.rem_euclid(SECOND_NS))
    }

    /// Encodes a number as register B's data mode says.
    fn encoded(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.register_b & B_DM != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decoded(&self, byte: u8) -> i64 {
        let is_binary = self.register_b & B_DM != 0;
        i64::from(if is_binary { byte } else { (byte >> 4).wrapping_mul(10) + (byte & 0xf) })
    }

    fn encoded_hour(&self, hour: i64) -> u8 {
        if self.register_b & B_24H != 0 {
            return self.encoded(hour);
        }
        let afternoon = if hour >= 12 { HOUR_PM } else { 0 };
        self.encoded((hour + 11) % 12 + 1) | afternoon
    }

    fn decoded_hour(&self, byte: u8) -> i64 {
        if self.register_b & B_24H != 0 {
            return self.decoded(byte);
        }
        let afternoon = if byte & HOUR_PM != 0 { 12 } else { 0 };
        self.decoded(byte & !HOUR_PM) % 12 + afternoon
    }

    /// A time register's byte for `date`.
    fn time_byte(&self, index: u8, date: DateTime) -> u8 {
        match index {
            HOURS => self.encoded_hour(date.hour),
            SECONDS => self.encoded(date.second),
            MINUTES => self.encoded(date.minute),
            DAY_OF_WEEK => self.encoded(date.weekday()),
            DATE => self.encoded(date.day),
            MONTH => self.encoded(date.month),
            YEAR => self.encoded(date.year.rem_euclid(100)),
            _ => self.encoded(date.year.div_euclid(100)),
        }
    }

    /// Puts the running time into the time registers, as they stay when the clock is stopped.
    fn freeze(&mut self, unix_ns: i64) {
        let date = DateTime::from_seconds(self.time(unix_ns).0);
        for index in TIME_REGISTERS {
            let byte = self.time_byte(index, date);
            self.set_byte(index, byte);
        }
    }

    /// Lets the clock go on from the time registers, keeping the phase of the divider.
    fn thaw(&mut self, unix_ns: i64) {
        let date = DateTime {
            year: self.decoded(self.byte(CENTURY)) * 100 + self.decoded(self.byte(YEAR)),
            month: self.decoded(self.byte(MONTH)),
            day: self.decoded(self.byte(DATE)),
            hour: self.decoded_hour(self.byte(HOURS)),
            minute: self.decoded(self.byte(MINUTES)),
            second: self.decoded(self.byte(SECONDS)),
        };
        let now = unix_ns.saturating_add(self.phase_ns).div_euclid(SECOND_NS);
        self.offset_s = date.to_seconds().saturating_sub(now);
        self.seen_ns = unix_ns;
    }

    /// Runs `change` on the control registers, stopping or starting the clock as it says.
    fn change_control(&mut self, unix_ns: i64, change: impl FnOnce(&mut Self)) {
        self.collect_events(unix_ns);
        let (was_running, had_divider) = (self.is_running(), self.has_divider());
        if was_running {
            // In the encoding that the registers had; what is set next is read in the new one.
            self.freeze(unix_ns);
        }
        change(self);
        if !had_divider && self.has_divider() {
            // The first update comes half a second after the divider's reset ends.
            self.phase_ns = (SECOND_NS / 2).wrapping_sub(unix_ns).rem_euclid(SECOND_NS);
            self.seen_ns = unix_ns;
        }
        // A clock that was not stopped goes on, whatever its bytes look like in a new encoding.
        if !was_running && self.is_running() {
            self.thaw(unix_ns);
        }
    }

    fn is_updating(&self, unix_ns: i64) -> bool {
        self.is_running() && self.time(unix_ns).1 >= SECOND_NS - UPDATE_NS
    }

    fn read(&mut self, index: u8, unix_ns: i64) -> u8 {
        match index {
            REGISTER_A => self.register_a | if self.is_updating(unix_ns) { A_UIP } else { 0 },
            REGISTER_B => self.register_b,
            REGISTER_C => {
                let value = self.register_c();
                self.flags = 0;
                value
            }
            REGISTER_D => D_VRT,
            index if TIME_REGISTERS.contains(&index) && self.is_running() => {
                self.time_byte(index, DateTime::from_seconds(self.time(unix_ns).0))
            }
            index => self.byte(index),
        }
    }

    fn write(&mut self, index: u8, value: u8, unix_ns: i64) {
        match index {
            REGISTER_A => {
                self.change_control(unix_ns, |chip| chip.register_a = value & !A_UIP);
            }
            REGISTER_B => self.change_control(unix_ns, |chip| {
                // SET ends update interrupts.
                let cleared = if value & B_SET != 0 { B_UIE } else { 0 };
                chip.register_b = value & !cleared;
            }),
            REGISTER_C | REGISTER_D => {}
            index if TIME_REGISTERS.contains(&index) && self.is_running() => {
                self.freeze(unix_ns);
                self.set_byte(index, value);
                self.thaw(unix_ns);
            }
            index => self.set_byte(index, value),
        }
    }

    fn register_c(&self) -> u8 {
        let requested = self.flags & self.register_b & C_SOURCES;
        self.flags | if requested != 0 { C_IRQF } else { 0 }
    }

    /// The level of IRQ.
    fn interrupt_line(&self) -> bool {
        self.register_c() & C_IRQF != 0
    }

    /// Sets the flags of what happened up to `unix_ns`; the flags that are new.
    fn collect_events(&mut self, unix_ns: i64) -> u8 {
        let before = self.flags;
        let is_new_second = self.time(unix_ns).0 != self.time(self.seen_ns).0;
        // Alarms are events of whole seconds, and dear to look for.
        let candidates: &[u8] = if is_new_second { &[C_PF, C_AF, C_UF] } else { &[C_PF] };
        for &flag in candidates {
            if before & flag == 0 && self.next_event(flag).is_some_and(|at| at <= unix_ns) {
                self.flags |= flag;
            }
        }
        self.seen_ns = self.seen_ns.max(unix_ns);
        self.flags & !before
    }

    /// The wall time of the first event after `seen_ns` that sets `flag`.
    fn next_event(&self, flag: u8) -> Option<i64> {
        match flag {
            C_PF => self.next_period(),
            C_UF if self.is_running() => Some(self.start_of_second(self.time(self.seen_ns).0 + 1)),
            C_AF if self.is_running() => {
                let second = self.next_alarm(self.time(self.seen_ns).0)?;
                Some(self.start_of_second(second))
            }
            _ => None,
        }
    }

    /// The wall time at which the guest's `second` begins.
    fn start_of_second(&self, second: i64) -> i64 {
        let shifted = second.saturating_sub(self.offset_s).saturating_mul(SECOND_NS);
        shifted.saturating_sub(self.phase_ns)
    }

    /// The next tap of the divider: rates 1 and 2 are those of 8 and 9, the others double from 3.
    fn next_period(&self) -> Option<i64> {
        let rate = match self.register_a & A_RATE {
            0 => return None,
            rate @ (1 | 2) => rate + 7,
            rate => rate,
        };
        if !self.has_divider() {
            return None;
        }
        let period = 1i128 << (rate - 1);
        let since = i128::from(self.seen_ns.saturating_add(self.phase_ns));
        let second_ns = i128::from(SECOND_NS);
        let ticks = (since * OSCILLATOR_HZ).div_euclid(second_ns);
        let next = (ticks.div_euclid(period) + 1) * period;
        // Rounded up, so that the tick has been reached at that time.
        let at = -(-next * second_ns).div_euclid(OSCILLATOR_HZ) - i128::from(self.phase_ns);
        i64::try_from(at).ok()
    }

    /// The first second after `second` that the alarm registers match.
    fn next_alarm(&self, second: i64) -> Option<i64> {
        let first = second.saturating_add(1);
        let matches = |index: u8, byte: u8| {
            let alarm = self.byte(index);
            alarm & ALARM_DO_NOT_CARE == ALARM_DO_NOT_CARE || alarm == byte
        };
        // A minute and its hour decide together; at most a day of minutes has to be looked at.
        for minute_start in (0..=DAY_SECONDS / 60)
            .map(|minute| first.saturating_sub(first.rem_euclid(60)).saturating_add(minute * 60))
        {
            let of_day = minute_start.rem_euclid(DAY_SECONDS);
            if !matches(HOURS_ALARM, self.encoded_hour(of_day / 3600))
                || !matches(MINUTES_ALARM, self.encoded(of_day / 60 % 60))
            {
                continue;
            }
            let from = (first - minute_start).max(0);
            if let Some(at) = (from..60).find(|at| matches(SECONDS_ALARM, self.encoded(*at))) {
                return Some(minute_start.saturating_add(at));
            }
        }
        None
    }

    /// The wall time at which the interrupt line may rise by itself.
    fn deadline(&self) -> Option<i64> {
        let waited_for = self.register_b & !self.flags & C_SOURCES;
        // While the line is high nothing can change it but reading register C.
        if self.interrupt_line() {
            // The alarm wakes the machine even if another interrupt is pending.
            return (waited_for & C_AF != 0).then(|| self.next_event(C_AF)).flatten();
        }
        let flags = [C_PF, C_AF, C_UF].into_iter().filter(|flag| waited_for & flag != 0);
        flags.filter_map(|flag| self.next_event(flag)).min()
    }

    fn check(&self) -> Result<(), &'static str> {
        let rules = [
            ("cmos", self.cmos.len() == 2 * BANK_BYTES),
            ("index", usize::from(self.index) < BANK_BYTES),
            ("extended_index", usize::from(self.extended_index) < BANK_BYTES),
            ("register_a", self.register_a & A_UIP == 0),
            ("register_b", self.register_b & (B_SET | B_UIE) != B_SET | B_UIE),
            ("flags", self.flags & !C_SOURCES == 0),
            ("phase_ns", (0..SECOND_NS).contains(&self.phase_ns)),
            // Year 0 to 9999, and a clock within the range of its nanoseconds.
            ("offset_s", self.offset_s.unsigned_abs() < 1 << 40),
        ];
        rules.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(field, _)| Err(field))
    }
}

/// Called with no lock held when an alarm strikes whose interrupt is enabled.
pub type AlarmHook = Arc<dyn Fn() + Send + Sync>;

/// The clock on the bus: index and data at 70h and 71h, the second bank at 72h and 73h.
pub struct Rtc {
    chip: Mutex<Mc146818>,
    irq8: OutputPin,
    deadline: Deadline,
    alarm_hook: Mutex<Option<AlarmHook>>,
}

impl Rtc {
    /// A clock that drives `irq8`.
    pub fn new(timers: &Arc<Timers>, irq8: InterruptLine) -> Arc<Self> {
        let unix_ns = timers.clock().unix_ns();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            chip: Mutex::new(Mc146818::new(unix_ns)),
            irq8: OutputPin::new(irq8),
            deadline: Deadline::new(timers.register(this.clone())),
            alarm_hook: Mutex::new(None),
        })
    }

    /// Sets what an enabled alarm calls beside raising IRQ 8: the wake-up from S3.
    pub fn set_alarm_hook(&self, hook: AlarmHook) {
        *lock(&self.alarm_hook) = Some(hook);
    }

    /// Sets one of the 256 bytes of CMOS memory, as the board's firmware would.
    pub fn set_cmos(&self, index: u8, value: u8) {
        self.with_chip(|chip, unix_ns| chip.write(index, value, unix_ns));
    }

    /// One of the 256 bytes of CMOS memory, without the effects that reading has for the guest.
    pub fn cmos(&self, index: u8) -> u8 {
        let unix_ns = self.clock().unix_ns();
        lock(&self.chip).clone().read(index, unix_ns)
    }

    /// Sets the bytes by which firmware finds memory: `low_bytes` of RAM from address 0 and
    /// `high_bytes` from 4 GiB. (Conventional memory is 640 KiB.)
    pub fn set_memory_size(&self, low_bytes: u64, high_bytes: u64) {
        let above_1m = (low_bytes.saturating_sub(1 << 20) >> 10).min(0xffff);
        let above_16m = (low_bytes.saturating_sub(16 << 20) >> 16).min(0xffff);
        let above_4g = (high_bytes >> 16).min(0xff_ffff);
        // Little-endian fields: first address, bytes, value.
        let fields = [
            (0x15, 2, 640),
            (0x17, 2, above_1m),
            (0x30, 2, above_1m),
            (0x34, 2, above_16m),
            (0x5b, 3, above_4g),
        ];
        for (first, bytes, value) in fields {
            for (index, byte) in (first..).zip(value.to_le_bytes()).take(bytes) {
                self.set_cmos(index, byte);
            }
        }
    }

    /// True if the guest masked NMI by bit 7 of port 70h.
    pub fn is_nmi_masked(&self) -> bool {
        lock(&self.chip).is_nmi_masked
    }

    fn clock(&self) -> &Arc<Clock> {
        self.deadline.clock()
    }

    /// Runs `action` with all events up to now collected, then brings line and deadline up to
    /// date. `action` gets the wall time.
    fn with_chip<R>(&self, action: impl FnOnce(&mut Mc146818, i64) -> R) -> R {
        let mut chip = lock(&self.chip);
        let (unix_ns, now_ns) = (self.clock().unix_ns(), self.clock().now_ns());
        let new_flags = chip.collect_events(unix_ns);
        let has_alarm = new_flags & chip.register_b & C_AF != 0;
        let result = action(&mut chip, unix_ns);
        let level_has_changed = self.irq8.stage(chip.interrupt_line());
        let deadline = chip.deadline().map(|at| {
            let wait = u64::try_from(at.saturating_sub(unix_ns)).unwrap_or(0);
            now_ns.saturating_add(wait)
        });
        let deadline_has_changed = self.deadline.stage(deadline);
        drop(chip);
        if level_has_changed {
            self.irq8.flush();
        }
        if deadline_has_changed {
            self.deadline.flush();
        }
        if has_alarm {
            self.notify_alarm();
        }
        result
    }

    fn notify_alarm(&self) {
        let hook = lock(&self.alarm_hook).clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}

impl TimerTarget for Rtc {
    fn expire(&self, _now_ns: u64) {
        self.deadline.fired();
        self.with_chip(|_, _| ());
    }
}

impl Device for Rtc {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.with_chip(|chip, unix_ns| match offset {
            DATA => Ok(chip.read(chip.index, unix_ns)),
            EXTENDED_DATA => Ok(chip.byte(chip.extended_index | 0x80)),
            EXTENDED_INDEX => Ok(chip.extended_index),
            // Write-only.
            INDEX => Ok(0xff),
            _ => Err(IoError::NoRegister),
        })
        .map(u64::from)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let value = value as u8;
        self.with_chip(|chip, unix_ns| {
            match offset {
                INDEX => {
                    chip.index = value & !INDEX_NMI_MASK;
                    chip.is_nmi_masked = value & INDEX_NMI_MASK != 0;
                }
                DATA => chip.write(chip.index, value, unix_ns),
                EXTENDED_INDEX => chip.extended_index = value & 0x7f,
                EXTENDED_DATA => chip.set_byte(chip.extended_index | 0x80, value),
                _ => return Err(IoError::NoRegister),
            }
            Ok(())
        })
    }
}

impl Chip for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    /// RESET# leaves time, alarm, CMOS and register A alone: they have a battery.
    fn reset(&self) {
        self.with_chip(|chip, _| {
            chip.register_b &= !(B_PIE | B_AIE | B_UIE | B_SQWE);
            chip.flags = 0;
            chip.index = 0;
            chip.extended_index = 0;
            chip.is_nmi_masked = false;
        });
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.chip))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let mut restored: Mc146818 = decode("rtc", VERSION, saved)?;
        restored.check().map_err(|field| RestoreError::Value { chip: "rtc", field })?;
        restored.seen_ns = restored.seen_ns.min(self.clock().unix_ns());
        self.with_chip(|chip, _| *chip = restored);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
