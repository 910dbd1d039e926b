//! The ACPI power-management block: PM1a event and control, PM timer, GPE0, and SMI_CMD.
//!
//! Sources: ACPI specification 6.5, "Fixed Hardware Registers" and "Waking and Sleeping"; Intel
//! ICH9 data sheet, "Power Management I/O Registers" and "APM I/O Decode". Offsets are
//! [`crate::layout`]'s.
//!
//! The PM timer does not count: its value and TMR_STS are computed from guest time, and a wake-up
//! is asked for only while TMR_EN could raise the SCI.
//!
//! Known departures from hardware:
//! - There is no SMM: a write to SMI_CMD does what firmware's handler would, and GBL_RLS nothing.
//! - BM_STS is never set. Registers of the block that are not listed read as zero.
//! - SLP_TYP means what our DSDT says ([`SLP_TYP_S3`], [`SLP_TYP_S5`]); other values do nothing.

use std::sync::{Arc, Mutex, Weak};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::clock::{ns_to_ticks, ticks_to_ns};
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::layout::{GPE0_BYTES, GPE0_OFFSET, PM_BYTES, PM_TIMER_OFFSET, PM1_CONTROL_OFFSET};
use crate::line::InterruptLine;
use crate::output_pin::OutputPin;
use crate::signals::{PowerEvent, PowerSink};
use crate::timers::{TimerTarget, Timers};

/// SLP_TYP of \_S5: power off.
pub const SLP_TYP_S5: u8 = 0;
/// SLP_TYP of \_S3: suspend to RAM.
pub const SLP_TYP_S3: u8 = 1;
/// The port of SMI_CMD (APM_CNT); APM_STS follows it.
pub const SMI_CMD_PORT: u16 = 0xB2;
/// Written to SMI_CMD, sets SCI_EN.
pub const ACPI_ENABLE: u8 = 2;
/// Written to SMI_CMD, clears SCI_EN.
pub const ACPI_DISABLE: u8 = 3;
/// The PM timer's frequency.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const TMR_STS: u16 = 1 << 0;
const GBL_STS: u16 = 1 << 5;
const PWRBTN_STS: u16 = 1 << 8;
const SLPBTN_STS: u16 = 1 << 9;
const RTC_STS: u16 = 1 << 10;
const PCIEXP_WAKE_STS: u16 = 1 << 14;
const WAK_STS: u16 = 1 << 15;
/// Status bits that raise the SCI if their enable bit is set, which has the same number.
const SCI_EVENTS: u16 = TMR_STS | GBL_STS | PWRBTN_STS | SLPBTN_STS | RTC_STS;
/// Status bits that are kept; TMR_STS is computed.
const STATUS_BITS: u16 = SCI_EVENTS & !TMR_STS | WAK_STS;
const ENABLE_BITS: u16 = SCI_EVENTS | PCIEXP_WAKE_STS;

const SCI_EN: u16 = 1 << 0;
const BM_RLD: u16 = 1 << 1;
const SLP_TYP: u16 = 7 << 10;
const SLP_EN: u16 = 1 << 13;
/// GBL_RLS and SLP_EN are write-only.
const CONTROL_BITS: u16 = SCI_EN | BM_RLD | SLP_TYP;

const STATE_VERSION: u16 = 1;

/// How wide the PM timer is; the FADT's TMR_VAL_EXT says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmTimerWidth {
    /// 24 bits: TMR_STS every 2.3 s.
    Bits24,
    /// 32 bits: TMR_STS every 10 minutes.
    Bits32,
}

impl PmTimerWidth {
    const fn bits(self) -> u32 {
        match self {
            Self::Bits24 => 24,
            Self::Bits32 => 32,
        }
    }
}

/// The registers; no lock, no clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u64,
    gpe_enable: u64,
    apm: [u8; 2],
    /// How often the timer's top bit had changed when TMR_STS was last cleared.
    toggles_seen: u64,
    is_suspended: bool,
}

/// A register of the block: first offset and size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Status,
    Enable,
    Control,
    Timer,
    GpeStatus,
    GpeEnable,
}

const GPE_BYTES: u64 = GPE0_BYTES as u64 / 2;
const GPE_BASE: u64 = GPE0_OFFSET as u64;

#[rustfmt::skip]
const MAP: [(Register, u64, u64); 6] = [
    (Register::Status,    0,                         2),
    (Register::Enable,    2,                         2),
    (Register::Control,   PM1_CONTROL_OFFSET as u64, 2),
    (Register::Timer,     PM_TIMER_OFFSET as u64,    4),
    (Register::GpeStatus, GPE_BASE,                  GPE_BYTES),
    (Register::GpeEnable, GPE_BASE + GPE_BYTES,      GPE_BYTES),
];

/// The register that a `width` access at `offset` is in, and the bit it starts at. Accesses that
/// cross a register's end are split by the bus.
fn locate(offset: u64, width: Width) -> Result<Option<(Register, u64)>, IoError> {
    if offset >= u64::from(PM_BYTES) {
        return Err(IoError::NoRegister);
    }
    let end = offset.saturating_add(width.bytes());
    let touched = MAP.iter().find(|&&(_, base, size)| offset < base + size && end > base);
    match touched {
        None => Ok(None),
        Some(&(register, base, size)) if offset >= base && end <= base + size => {
            Ok(Some((register, (offset - base) * 8)))
        }
        Some(_) => Err(IoError::Width),
    }
}

impl Registers {
    fn ticks(now_ns: u64) -> u64 {
        ns_to_ticks(now_ns, PM_TIMER_HZ)
    }

    /// How often the timer's top bit has changed since guest time 0.
    fn toggles(timer: PmTimerWidth, now_ns: u64) -> u64 {
        Self::ticks(now_ns) >> (timer.bits() - 1)
    }

    fn status(&self, timer: PmTimerWidth, now_ns: u64) -> u16 {
        let is_toggled = Self::toggles(timer, now_ns) > self.toggles_seen;
        self.status | if is_toggled { TMR_STS } else { 0 }
    }

    fn is_sci_high(&self, timer: PmTimerWidth, now_ns: u64) -> bool {
        let fixed = self.status(timer, now_ns) & self.enable & SCI_EVENTS != 0;
        let general = self.gpe_status & self.gpe_enable != 0;
        self.control & SCI_EN != 0 && (fixed || general)
    }

    /// When TMR_STS raises the SCI.
    fn deadline_ns(&self, timer: PmTimerWidth, now_ns: u64) -> Option<u64> {
        let is_awaited = self.enable & TMR_STS != 0
            && self.control & SCI_EN != 0
            && self.status(timer, now_ns) & TMR_STS == 0;
        let next = Self::toggles(timer, now_ns).saturating_add(1);
        let ticks = next.saturating_mul(1 << (timer.bits() - 1));
        is_awaited.then(|| ticks_to_ns(ticks, PM_TIMER_HZ))
    }

    fn read(&self, register: Register, timer: PmTimerWidth, now_ns: u64) -> u64 {
        match register {
            Register::Status => self.status(timer, now_ns).into(),
            Register::Enable => self.enable.into(),
            Register::Control => self.control.into(),
            Register::Timer => Self::ticks(now_ns) & ((1 << timer.bits()) - 1),
            Register::GpeStatus => self.gpe_status,
            Register::GpeEnable => self.gpe_enable,
        }
    }

    /// Writes the bits in `mask`; `value` has no others. An event is for the board.
    fn write(
        &mut self,
        register: Register,
        (value, mask): (u64, u64),
        timer: PmTimerWidth,
        now_ns: u64,
    ) -> Option<PowerEvent> {
        match register {
            Register::Status => {
                self.status &= !(value as u16);
                if value as u16 & TMR_STS != 0 {
                    self.toggles_seen = Self::toggles(timer, now_ns);
                }
            }
            Register::Enable => {
                self.enable = (self.enable & !(mask as u16) | value as u16) & ENABLE_BITS;
            }
            Register::Control => {
                self.control = (self.control & !(mask as u16) | value as u16) & CONTROL_BITS;
                if value as u16 & SLP_EN != 0 {
                    return self.sleep();
                }
            }
            Register::Timer => {}
            Register::GpeStatus => self.gpe_status &= !value,
            Register::GpeEnable => self.gpe_enable = self.gpe_enable & !mask | value,
        }
        None
    }

    fn sleep(&mut self) -> Option<PowerEvent> {
        match (self.control & SLP_TYP) >> 10 {
            typ if typ == u16::from(SLP_TYP_S5) => Some(PowerEvent::PowerOff),
            typ if typ == u16::from(SLP_TYP_S3) => {
                self.is_suspended = true;
                Some(PowerEvent::Suspend)
            }
            _ => None,
        }
    }

    /// An event's status bit is set; in S3 an enabled one wakes, and the power button always.
    fn raise(&mut self, event: u16) -> Option<PowerEvent> {
        self.status |= event;
        let can_wake = event & (self.enable | PWRBTN_STS) != 0;
        (self.is_suspended && can_wake).then_some(PowerEvent::Wake)
    }

    fn impossible_field(&self) -> Option<&'static str> {
        [
            (self.status & !STATUS_BITS == 0, "status"),
            (self.enable & !ENABLE_BITS == 0, "enable"),
            (self.control & !CONTROL_BITS == 0, "control"),
        ]
        .into_iter()
        .find_map(|(is_possible, field)| (!is_possible).then_some(field))
    }
}

/// The power-management block on its ports ([`crate::layout::PM_BASE`]).
pub struct AcpiPm {
    registers: Mutex<Registers>,
    width: PmTimerWidth,
    sci: OutputPin,
    timer: Deadline,
    power: Arc<dyn PowerSink>,
}

impl AcpiPm {
    /// The block after reset; `sci` is the line of the system control interrupt.
    pub fn new(
        width: PmTimerWidth,
        timers: &Arc<Timers>,
        sci: InterruptLine,
        power: Arc<dyn PowerSink>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            registers: Mutex::default(),
            width,
            sci: OutputPin::new(sci),
            timer: Deadline::new(timers.register(this.clone())),
            power,
        })
    }

    /// Runs `change` under the lock, then drives the SCI, arms the timer and tells the board.
    fn update(&self, change: impl FnOnce(&mut Registers, u64) -> Option<PowerEvent>) {
        let now_ns = self.timer.clock().now_ns();
        let (event, is_sci_changed, is_rearmed) = {
            let mut registers = lock(&self.registers);
            let event = change(&mut registers, now_ns);
            let is_sci_changed = self.sci.stage(registers.is_sci_high(self.width, now_ns));
            (event, is_sci_changed, self.timer.stage(registers.deadline_ns(self.width, now_ns)))
        };
        if is_sci_changed {
            self.sci.flush();
        }
        if is_rearmed {
            self.timer.flush();
        }
        if let Some(event) = event {
            self.power.power(event);
        }
    }

    /// The user pressed the power button.
    pub fn power_button(&self) {
        self.update(|registers, _| registers.raise(PWRBTN_STS));
    }

    /// The real-time clock's alarm went off.
    pub fn rtc_alarm(&self) {
        self.update(|registers, _| registers.raise(RTC_STS));
    }

    /// General-purpose event `number` (0 to 63) happened; others are ignored. An enabled one wakes.
    pub fn general_purpose_event(&self, number: u8) {
        self.update(|registers, _| {
            let event = 1u64.checked_shl(number.into()).unwrap_or(0);
            registers.gpe_status |= event;
            let can_wake = registers.is_suspended && registers.gpe_enable & event != 0;
            can_wake.then_some(PowerEvent::Wake)
        });
    }

    /// Wakes from S3: the block loses what a reset clears but keeps the status of what woke it, and
    /// sets WAK_STS. Called by the board in place of [`Chip::reset`].
    pub fn resume(&self) {
        self.update(|registers, now_ns| {
            let status = registers.status | WAK_STS;
            *registers = Registers { status, ..Self::after_reset(self.width, now_ns) };
            None
        });
    }

    fn after_reset(width: PmTimerWidth, now_ns: u64) -> Registers {
        Registers { toggles_seen: Registers::toggles(width, now_ns), ..Registers::default() }
    }

    /// The ports SMI_CMD and APM_STS, at [`SMI_CMD_PORT`].
    pub fn smi_command(self: &Arc<Self>) -> Arc<dyn Device> {
        Arc::new(SmiCommand(Arc::clone(self)))
    }
}

impl Device for AcpiPm {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let Some((register, shift)) = locate(offset, width)? else { return Ok(0) };
        let now_ns = self.timer.clock().now_ns();
        let value = lock(&self.registers).read(register, self.width, now_ns);
        Ok(value >> shift & width.mask())
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        let Some((register, shift)) = locate(offset, width)? else { return Ok(()) };
        let bits = ((value & width.mask()) << shift, width.mask() << shift);
        self.update(|registers, now_ns| registers.write(register, bits, self.width, now_ns));
        Ok(())
    }
}

impl TimerTarget for AcpiPm {
    fn expire(&self, _now_ns: u64) {
        self.timer.fired();
        self.update(|_, _| None);
    }
}

impl Chip for AcpiPm {
    fn name(&self) -> &str {
        "acpi_pm"
    }

    fn reset(&self) {
        self.update(|registers, now_ns| {
            *registers = Self::after_reset(self.width, now_ns);
            None
        });
    }

    fn save(&self) -> Vec<u8> {
        encode(STATE_VERSION, &*lock(&self.registers))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let chip = "acpi_pm";
        let restored: Registers = decode(chip, STATE_VERSION, saved)?;
        if let Some(field) = restored.impossible_field() {
            return Err(RestoreError::Value { chip, field });
        }
        self.update(|registers, _| {
            *registers = restored;
            None
        });
        Ok(())
    }
}

/// SMI_CMD and APM_STS.
struct SmiCommand(Arc<AcpiPm>);

impl Device for SmiCommand {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let registers = lock(&self.0.registers);
        registers.apm.get(offset as usize).map(|&byte| byte.into()).ok_or(IoError::NoRegister)
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let command = value as u8;
        self.0.update(|registers, _| {
            if let Some(byte) = registers.apm.get_mut(offset as usize) {
                *byte = command;
            }
            match (offset, command) {
                (0, ACPI_ENABLE) => registers.control |= SCI_EN,
                (0, ACPI_DISABLE) => registers.control &= !SCI_EN,
                _ => {}
            }
            None
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_fuzz::{check_chip, counted_timers};
    use crate::test_lines::{PowerLog, Recorder};

    struct Rig {
        timers: Arc<Timers>,
        lines: Arc<Recorder>,
        power: Arc<PowerLog>,
        pm: Arc<AcpiPm>,
    }

    impl Rig {
        fn new(width: PmTimerWidth) -> Self {
            let (timers, lines) = (counted_timers(), Recorder::new());
            let power = Arc::new(PowerLog::default());
            let pm = AcpiPm::new(width, &timers, lines.line(9), power.clone());
            Self { timers, lines, power, pm }
        }
        fn read(&self, offset: u64) -> u16 {
            self.pm.read(offset, Width::Word).unwrap() as u16
        }
        fn write(&self, offset: u64, value: u16) {
            self.pm.write(offset, Width::Word, value.into()).unwrap();
        }
        fn advance(&self, now_ns: u64) {
            self.timers.clock().advance_to(now_ns);
            self.timers.run_expired();
        }
        fn sci(&self) -> bool {
            self.lines.level(9)
        }
    }

    #[test]
    fn the_timer_counts_exactly() {
        for (width, mask) in [(PmTimerWidth::Bits24, 0xFF_FFFF), (PmTimerWidth::Bits32, u64::MAX)] {
            let rig = Rig::new(width);
            for seconds in [1, 4, 5, 1000] {
                rig.advance(seconds * 1_000_000_000);
                let ticks = (PM_TIMER_HZ * seconds) & mask & 0xFFFF_FFFF;
                assert_eq!(rig.pm.read(8, Width::Dword), Ok(ticks));
                assert_eq!(rig.pm.read(9, Width::Byte), Ok(ticks >> 8 & 0xFF));
            }
        }
    }

    #[test]
    fn each_change_of_the_top_bit_raises_the_sci_at_its_nanosecond() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(4, SCI_EN);
        rig.write(2, TMR_STS);
        for toggle in 1..=3 {
            let due = ticks_to_ns(toggle << 23, PM_TIMER_HZ);
            assert_eq!(rig.timers.next_deadline_ns(), Some(due));
            rig.advance(due - 1);
            assert!(!rig.sci());
            rig.advance(due);
            assert!(rig.sci());
            assert_eq!(rig.read(0), TMR_STS);
            assert_eq!(rig.timers.next_deadline_ns(), None, "nothing to wait for while it is set");
            rig.write(0, TMR_STS);
            assert!(!rig.sci());
        }
    }

    #[test]
    fn a_timer_that_nobody_enabled_wakes_nobody() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        assert_eq!(rig.timers.next_deadline_ns(), None);
        rig.advance(3_000_000_000);
        assert_eq!((rig.read(0), rig.sci()), (TMR_STS, false));
    }

    #[test]
    fn the_sci_needs_status_enable_and_acpi_mode() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.pm.power_button();
        assert_eq!((rig.read(0), rig.sci()), (PWRBTN_STS, false));
        rig.write(2, PWRBTN_STS);
        assert!(!rig.sci());
        let smi_command = rig.pm.smi_command();
        smi_command.write(0, Width::Byte, ACPI_ENABLE.into()).unwrap();
        assert_eq!((rig.read(4), rig.sci()), (SCI_EN, true));
        rig.write(0, PWRBTN_STS);
        assert_eq!((rig.read(0), rig.sci()), (0, false));
        smi_command.write(0, Width::Byte, ACPI_DISABLE.into()).unwrap();
        assert_eq!(rig.read(4), 0);
        assert_eq!(smi_command.read(0, Width::Byte), Ok(ACPI_DISABLE.into()));
    }

    #[test]
    fn general_purpose_events_raise_the_sci_bit_by_bit() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(4, SCI_EN);
        rig.pm.write(0x29, Width::Byte, 1 << 2).unwrap();
        rig.pm.general_purpose_event(3);
        rig.pm.general_purpose_event(200);
        assert!(!rig.sci());
        rig.pm.general_purpose_event(10);
        assert!(rig.sci());
        assert_eq!(rig.pm.read(0x20, Width::Qword), Ok(1 << 10 | 1 << 3));
        rig.pm.write(0x21, Width::Byte, 1 << 2).unwrap();
        assert!(!rig.sci());
        assert_eq!(rig.pm.read(0x20, Width::Word), Ok(1 << 3));
    }

    #[test]
    fn sleep_types_power_off_and_suspend() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(4, u16::from(SLP_TYP_S5) << 10);
        rig.write(4, 5 << 10 | SLP_EN);
        assert_eq!(rig.power.events(), []);
        rig.write(4, u16::from(SLP_TYP_S3) << 10 | SLP_EN);
        rig.write(4, u16::from(SLP_TYP_S5) << 10 | SLP_EN);
        assert_eq!(rig.power.events(), [PowerEvent::Suspend, PowerEvent::PowerOff]);
        assert_eq!(rig.read(4) & SLP_EN, 0, "SLP_EN reads as zero");
    }

    #[test]
    fn an_enabled_alarm_wakes_and_says_so() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(2, RTC_STS);
        rig.pm.rtc_alarm();
        assert_eq!(rig.power.events(), [], "awake already");
        rig.write(0, RTC_STS);
        rig.write(4, u16::from(SLP_TYP_S3) << 10 | SLP_EN);
        rig.pm.rtc_alarm();
        assert_eq!(rig.power.events(), [PowerEvent::Suspend, PowerEvent::Wake]);
        rig.pm.resume();
        assert_eq!((rig.read(0), rig.read(2), rig.read(4)), (WAK_STS | RTC_STS, 0, 0));
        rig.pm.rtc_alarm();
        assert_eq!(rig.power.events().len(), 2, "awake again");
        rig.write(0, WAK_STS | RTC_STS);
        assert_eq!(rig.read(0), 0);
    }

    #[test]
    fn a_disabled_alarm_leaves_it_asleep_and_the_button_wakes() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(4, u16::from(SLP_TYP_S3) << 10 | SLP_EN);
        rig.pm.rtc_alarm();
        assert_eq!(rig.power.events(), [PowerEvent::Suspend]);
        rig.pm.power_button();
        assert_eq!(rig.power.events(), [PowerEvent::Suspend, PowerEvent::Wake]);
    }

    #[test]
    fn accesses_over_a_register_end_are_the_bus_to_split() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        assert_eq!(rig.pm.read(0, Width::Dword), Err(IoError::Width));
        assert_eq!(rig.pm.read(7, Width::Word), Err(IoError::Width));
        assert_eq!(rig.pm.read(0x10, Width::Qword), Ok(0));
        assert_eq!(rig.pm.read(0x80, Width::Byte), Err(IoError::NoRegister));
    }

    #[test]
    fn reset_lowers_the_sci() {
        let rig = Rig::new(PmTimerWidth::Bits24);
        rig.write(4, SCI_EN);
        rig.write(2, PWRBTN_STS);
        rig.pm.power_button();
        assert!(rig.sci());
        let saved = rig.pm.save();
        rig.pm.reset();
        assert!(!rig.sci());
        rig.pm.restore(&saved).unwrap();
        assert!(rig.sci());
    }

    #[test]
    fn takes_any_access() {
        check_chip(|timers| {
            let power = Arc::new(PowerLog::default());
            let line = InterruptLine::unconnected();
            let pm = AcpiPm::new(PmTimerWidth::Bits24, timers, line, power);
            let ranges = vec![(Arc::clone(&pm) as Arc<dyn Device>, 0x30), (pm.smi_command(), 2)];
            (pm, ranges)
        });
    }
}
