//! The high precision event timer: a 64-bit counter at 100 MHz and three comparators.
//!
//! Source: Intel, "IA-PC HPET (High Precision Event Timers) Specification", revision 1.0a. All
//! timers are 64 bits wide, periodic, and can interrupt by message (FSB delivery). LEG_RT_CNF gives
//! timers 0 and 1 the interrupts of the 8254 and the RTC ([`LegacyReplacement`]).
//!
//! Nothing counts: the counter is computed from guest time, and wake-ups are asked for only where
//! an enabled timer will interrupt.
//!
//! Known departures from hardware:
//! - A periodic timer faster than 20 us interrupts every 20 us at most; its comparator is exact.
//! - The main counter may be written while it runs (the specification wants it halted).
//! - A write of either half of a comparator uses VAL_SET up.
//!
//! Lock order: the lock is a leaf. Levels and pulses are decided under it and driven after it.

mod comparator;

use std::sync::{Arc, Mutex, Weak};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::deadline::Deadline;
use crate::guard::lock;
use crate::isa_routing::{LegacyInput, LegacyReplacement};
use crate::lapic::MessageSink;
use crate::line::InterruptLine;
use crate::msi::decode_msi;
use crate::output_pin::OutputPin;
use crate::timers::{TimerTarget, Timers};
use comparator::{Comparator, FSB_EN, INT_ENB, INT_TYPE_LEVEL};

/// Nanoseconds of one tick of the main counter.
const TICK_NS: u64 = 10;
/// COUNTER_CLK_PERIOD: femtoseconds of one tick.
pub const CLK_PERIOD_FS: u64 = TICK_NS * 1_000_000;
/// Bytes of the register block.
pub const HPET_BYTES: u64 = 0x400;

const TIMERS: usize = 3;
const STATE_VERSION: u16 = 1;

const GCAP_ID: u64 = 0x000;
const GEN_CONF: u64 = 0x010;
const GINTR_STA: u64 = 0x020;
const MAIN_CNT: u64 = 0x0F0;
const TIMER_BASE: u64 = 0x100;
const TIMER_STRIDE: u64 = 0x20;

/// Vendor 8086H, LEG_RT_CAP, COUNT_SIZE_CAP, three timers, revision 1.
pub const HPET_ID: u32 = 0x8086_A201;

const ENABLE_CNF: u64 = 1 << 0;
const LEG_RT_CNF: u64 = 1 << 1;

/// The registers; no lock, no clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    config: u64,
    status: u64,
    /// The main counter at `counted_ns`; the timers have seen it.
    counter: u64,
    /// The guest time that `counter` belongs to, while it runs. Always whole ticks after the
    /// moment it was enabled.
    counted_ns: u64,
    timers: [Comparator; TIMERS],
}

/// Where an interrupt of a timer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Timer 0 or 1 in legacy replacement.
    Legacy(usize),
    /// An input of the I/O APIC.
    Input(u32),
    /// A write of the data (bits 31:0) to the address (bits 63:32).
    Message(u64),
}

impl Registers {
    fn power_up() -> Self {
        Self {
            config: 0,
            status: 0,
            counter: 0,
            counted_ns: 0,
            timers: std::array::from_fn(|_| Comparator::power_up()),
        }
    }

    fn is_running(&self) -> bool {
        self.config & ENABLE_CNF != 0
    }

    /// Catches up with guest time; returns the timers that interrupt, a bit each.
    fn advance(&mut self, now_ns: u64) -> u64 {
        if !self.is_running() {
            return 0;
        }
        let ticks = now_ns.saturating_sub(self.counted_ns) / TICK_NS;
        let mut fired = 0;
        for (index, timer) in self.timers.iter_mut().enumerate() {
            fired |= u64::from(timer.advance(self.counter, ticks, now_ns)) << index;
        }
        self.counter = self.counter.wrapping_add(ticks);
        self.counted_ns = self.counted_ns.saturating_add(ticks * TICK_NS);
        for (index, timer) in self.timers.iter().enumerate() {
            if timer.has(INT_TYPE_LEVEL) {
                self.status |= fired & 1 << index;
            }
        }
        fired
    }

    fn deadline_ns(&self) -> Option<u64> {
        let deadlines = self.timers.iter();
        let deadlines = deadlines.filter_map(|t| t.deadline_ns(self.counter, self.counted_ns));
        deadlines.min().filter(|_| self.is_running())
    }

    fn route(&self, index: usize) -> Option<Route> {
        let timer = self.timers.get(index)?;
        Some(match (timer.has(FSB_EN), self.config & LEG_RT_CNF != 0) {
            (true, _) => Route::Message(timer.fsb_route),
            (false, true) if index < 2 => Route::Legacy(index),
            _ => Route::Input(timer.route()),
        })
    }

    /// True if timer `index` holds its level-triggered line.
    fn is_holding(&self, index: usize) -> bool {
        self.status >> index & 1 != 0
            && self.timers.get(index).is_some_and(|t| t.has(INT_ENB) && t.has(INT_TYPE_LEVEL))
    }

    fn read(&self, register: u64, route_capability: u32) -> Option<u64> {
        Some(match register {
            GCAP_ID => CLK_PERIOD_FS << 32 | u64::from(HPET_ID),
            GEN_CONF => self.config,
            GINTR_STA => self.status,
            MAIN_CNT => self.counter,
            _ => {
                let (index, field) = timer_register(register)?;
                let timer = self.timers.get(index)?;
                match field {
                    0x00 => timer.config_register(route_capability),
                    0x08 => timer.value,
                    0x10 => timer.fsb_route,
                    _ => return None,
                }
            }
        })
    }

    /// Writes a whole register; the block has caught up with `now_ns`.
    fn write(&mut self, register: u64, value: u64, now_ns: u64) -> Option<()> {
        match register {
            GCAP_ID => {}
            GEN_CONF => {
                if !self.is_running() {
                    self.counted_ns = now_ns;
                }
                self.config = value & (ENABLE_CNF | LEG_RT_CNF);
            }
            GINTR_STA => self.status &= !value,
            MAIN_CNT => {
                self.counter = value;
                self.counted_ns = now_ns;
            }
            _ => self.write_timer(register, value)?,
        }
        Some(())
    }

    fn write_timer(&mut self, register: u64, value: u64) -> Option<()> {
        let (index, field) = timer_register(register)?;
        let timer = self.timers.get_mut(index)?;
        match field {
            0x00 => timer.set_config(value),
            0x08 => timer.set_value(value),
            0x10 => timer.fsb_route = value,
            _ => return None,
        }
        if !timer.has(INT_TYPE_LEVEL) {
            self.status &= !(1 << index);
        }
        Some(())
    }

    fn impossible_field(&self) -> Option<&'static str> {
        [
            (self.config & !(ENABLE_CNF | LEG_RT_CNF) == 0, "config"),
            (self.status >> TIMERS == 0, "status"),
            (self.timers.iter().all(Comparator::is_valid), "timers"),
        ]
        .into_iter()
        .find_map(|(is_possible, field)| (!is_possible).then_some(field))
    }
}

/// The timer and the field that `register` is.
fn timer_register(register: u64) -> Option<(usize, u64)> {
    let offset = register.checked_sub(TIMER_BASE)?;
    Some((usize::try_from(offset / TIMER_STRIDE).ok()?, offset % TIMER_STRIDE))
}

/// What the HPET is connected to.
pub struct HpetWiring {
    /// The switch in front of IRQ 0 and 8.
    pub legacy: Arc<LegacyReplacement>,
    /// The inputs of the I/O APIC below 32 that timers can be routed to, and their lines: for
    /// inputs that others drive too, drivers of a shared line.
    pub routes: Vec<(u32, InterruptLine)>,
    /// Takes FSB interrupts.
    pub messages: Arc<dyn MessageSink>,
}

/// A line and its level.
struct Output {
    route: Route,
    line: InterruptLine,
    pin: OutputPin,
}

/// The HPET on its bus.
pub struct Hpet {
    registers: Mutex<Registers>,
    timer: Deadline,
    /// LEG_RT_CNF.
    select: OutputPin,
    outputs: Vec<Output>,
    route_capability: u32,
    messages: Arc<dyn MessageSink>,
}

impl Hpet {
    /// The HPET after reset.
    pub fn new(timers: &Arc<Timers>, wiring: HpetWiring) -> Arc<Self> {
        let HpetWiring { legacy, routes, messages } = wiring;
        let capability = |bits, (input, _): &(u32, _)| bits | 1u32.checked_shl(*input).unwrap_or(0);
        let route_capability = routes.iter().fold(0, capability);
        let legacy_lines = [LegacyInput::HpetTimer0, LegacyInput::HpetTimer1]
            .into_iter()
            .enumerate()
            .map(|(index, input)| (Route::Legacy(index), legacy.line(input)));
        let routed = routes.into_iter().map(|(input, line)| (Route::Input(input), line));
        let outputs = legacy_lines
            .chain(routed)
            .map(|(route, line)| Output { route, pin: OutputPin::new(line.clone()), line })
            .collect();
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            registers: Mutex::new(Registers::power_up()),
            timer: Deadline::new(timers.register(this.clone())),
            select: OutputPin::new(legacy.line(LegacyInput::Select)),
            outputs,
            route_capability,
            messages,
        })
    }

    /// Catches up, runs `change` under the lock, then interrupts without it.
    fn update<R>(&self, change: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let now_ns = self.timer.clock().now_ns();
        let mut registers = lock(&self.registers);
        let fired = registers.advance(now_ns);
        let pulses = self.pulses(&registers, fired);
        let result = change(&mut registers, now_ns);
        self.select.stage(registers.config & LEG_RT_CNF != 0);
        for output in &self.outputs {
            let holds =
                |index| registers.is_holding(index) && registers.route(index) == Some(output.route);
            output.pin.stage((0..TIMERS).any(holds));
        }
        let is_rearmed = self.timer.stage(registers.deadline_ns());
        drop(registers);
        self.select.flush();
        if is_rearmed {
            self.timer.flush();
        }
        for route in pulses.into_iter().flatten() {
            self.pulse(route);
        }
        for output in &self.outputs {
            output.pin.flush();
        }
        result
    }

    /// The edge-triggered interrupts and messages of the timers that fired.
    fn pulses(&self, registers: &Registers, fired: u64) -> [Option<Route>; TIMERS] {
        std::array::from_fn(|index| {
            let is_level = registers.timers.get(index).is_some_and(|t| t.has(INT_TYPE_LEVEL));
            let route = registers.route(index).filter(|_| fired >> index & 1 != 0)?;
            (!is_level || matches!(route, Route::Message(_))).then_some(route)
        })
    }

    fn pulse(&self, route: Route) {
        if let Route::Message(fsb_route) = route {
            if let Some(message) = decode_msi(fsb_route >> 32, fsb_route as u32) {
                self.messages.deliver(message);
            }
        } else if let Some(output) = self.outputs.iter().find(|output| output.route == route) {
            output.line.pulse();
        }
    }
}

/// The register an access is in, and the bit it starts at.
fn locate(offset: u64, width: Width) -> Result<(u64, u64), IoError> {
    match width {
        Width::Qword if offset.is_multiple_of(8) => Ok((offset, 0)),
        Width::Qword => Err(IoError::Width),
        Width::Dword if offset.is_multiple_of(4) => Ok((offset & !7, (offset & 4) * 8)),
        _ => Err(IoError::NoRegister),
    }
}

impl Device for Hpet {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let (register, shift) = locate(offset, width)?;
        let value = self.update(|registers, _| registers.read(register, self.route_capability));
        // Reserved registers read as zero.
        Ok(value.unwrap_or(0) >> shift & width.mask())
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        let (register, shift) = locate(offset, width)?;
        let mask = width.mask() << shift;
        let bits = (value & width.mask()) << shift;
        self.update(|registers, now_ns| {
            // Status bits are cleared by ones: the other half must not bring its own.
            let kept = match register {
                GINTR_STA => 0,
                _ => registers.read(register, 0).unwrap_or(0) & !mask,
            };
            registers.write(register, kept | bits, now_ns)
        });
        Ok(())
    }
}

impl TimerTarget for Hpet {
    fn expire(&self, _now_ns: u64) {
        self.timer.fired();
        self.update(|_, _| ());
    }
}

impl Chip for Hpet {
    fn name(&self) -> &str {
        "hpet"
    }

    fn reset(&self) {
        self.update(|registers, _| *registers = Registers::power_up());
    }

    fn save(&self) -> Vec<u8> {
        encode(STATE_VERSION, &*lock(&self.registers))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let chip = "hpet";
        let restored: Registers = decode(chip, STATE_VERSION, saved)?;
        if let Some(field) = restored.impossible_field() {
            return Err(RestoreError::Value { chip, field });
        }
        self.update(|registers, _| *registers = restored);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
