//! The two 8259A interrupt controllers of a PC, cascaded over IR2, with ELCR.
//!
//! [`Pic8259`] is one chip, [`PicPair`] both of them on the bus: ports 20h/21h, A0h/A1h and the
//! edge/level control registers 4D0h/4D1h. The pair's INTR output is a line (to LINT0 of the local
//! APICs, or the CPU), and [`PicPair::acknowledge`] is the INTA cycle.
//!
//! Source: Intel 8259A data sheet, "Programming the 8259A", and Intel ICH9 datasheet, "8259
//! Interrupt Controllers (PIC) (D31:F0)".
//! Known departures: an edge-triggered request stays latched when its input falls before INTA (the
//! chip would answer with a spurious IR7), because a pulse may be shorter than a vCPU's reaction;
//! MCS-80 mode and buffered mode are accepted and have no effect.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};
use serde::{Deserialize, Serialize};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::line::{InterruptLine, LineSink};
use crate::output_pin::OutputPin;

const VERSION: u16 = 1;

const ICW1_SELECT: u8 = 1 << 4;
const ICW1_IC4: u8 = 1 << 0;
const ICW1_SNGL: u8 = 1 << 1;
const ICW1_LTIM: u8 = 1 << 3;
const ICW2_VECTOR: u8 = 0xf8;
const ICW4_AEOI: u8 = 1 << 1;
const ICW4_SFNM: u8 = 1 << 4;
const OCW2_LEVEL: u8 = 0x07;
const OCW3_SELECT: u8 = 1 << 3;
const OCW3_RIS: u8 = 1 << 0;
const OCW3_RR: u8 = 1 << 1;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SMM: u8 = 1 << 5;
const OCW3_ESMM: u8 = 1 << 6;
const POLL_INTERRUPT: u8 = 1 << 7;

/// The master's input that the slave is on.
const CASCADE_IR: u8 = 2;
/// What a chip answers if nothing requests any more when INTA comes.
const SPURIOUS_IR: u8 = 7;
/// IRQ 0 (timer), 1 (keyboard), 2 (cascade) cannot be level-triggered.
const ELCR1_MASK: u8 = 0xf8;
/// IRQ 8 (RTC) and 13 (FPU) cannot be level-triggered.
const ELCR2_MASK: u8 = 0xde;

/// Which initialization command word comes next at A0 = 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expecting {
    /// None: A0 = 1 is OCW1.
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pic8259 {
    /// Requests: latched edges, and the inputs that are level-triggered.
    irr: u8,
    isr: u8,
    imr: u8,
    /// The inputs as they are.
    lines: u8,
    elcr: u8,
    icw1: u8,
    icw2: u8,
    icw3: u8,
    icw4: u8,
    expecting: Expecting,
    /// The IR with the lowest priority, less 7 modulo 8: 0 after initialization.
    rotation: u8,
    is_rotating_on_aeoi: bool,
    is_special_mask: bool,
    is_reading_isr: bool,
    /// The next read is a poll.
    is_polled: bool,
}

impl Pic8259 {
    fn level_inputs(&self) -> u8 {
        if self.icw1 & ICW1_LTIM != 0 { 0xff } else { self.elcr }
    }

    fn set_line(&mut self, ir: u8, level: bool) {
        let bit = 1u8.wrapping_shl(u32::from(ir));
        let has_risen = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if has_risen {
            self.irr |= bit;
        } else if !level {
            self.irr &= !(bit & self.level_inputs());
        }
    }

    /// What edges are latched, with the level-triggered inputs as they are.
    fn refresh_levels(&mut self) {
        let level = self.level_inputs();
        self.irr = self.irr & !level | self.lines & level;
    }

    /// The place of the first set bit in priority order: 0 highest, 8 none.
    fn priority(&self, mask: u8) -> u32 {
        mask.rotate_right(u32::from(self.rotation)).trailing_zeros()
    }

    fn ir_at(&self, priority: u32) -> u8 {
        (priority as u8).wrapping_add(self.rotation) & 7
    }

    /// The request that INT is raised for.
    fn pending(&self, is_master: bool) -> Option<u8> {
        let mut in_service = self.isr;
        if self.is_special_mask {
            in_service &= !self.imr;
        }
        if is_master && self.icw4 & ICW4_SFNM != 0 {
            // The slave's higher requests pass while a lower one of it is in service.
            in_service &= !(1 << CASCADE_IR);
        }
        let request = self.priority(self.irr & !self.imr);
        (request < self.priority(in_service)).then(|| self.ir_at(request))
    }

    /// The INTA cycle: the IR that goes into service, or the spurious one.
    fn acknowledge(&mut self, is_master: bool) -> Option<u8> {
        let ir = self.pending(is_master)?;
        let bit = 1u8.wrapping_shl(u32::from(ir));
        self.irr &= !(bit & !self.level_inputs());
        if self.icw4 & ICW4_AEOI == 0 {
            self.isr |= bit;
        } else if self.is_rotating_on_aeoi {
            self.make_lowest(ir);
        }
        Some(ir)
    }

    fn make_lowest(&mut self, ir: u8) {
        self.rotation = ir.wrapping_add(1) & 7;
    }

    fn read(&mut self, a0: u8, is_master: bool) -> u8 {
        if std::mem::take(&mut self.is_polled) {
            return self.acknowledge(is_master).map_or(0, |ir| POLL_INTERRUPT | ir);
        }
        match (a0, self.is_reading_isr) {
            (0, false) => self.irr,
            (0, true) => self.isr,
            _ => self.imr,
        }
    }

    fn write(&mut self, a0: u8, value: u8) {
        if a0 == 0 {
            if value & ICW1_SELECT != 0 {
                self.write_icw1(value);
            } else if value & OCW3_SELECT != 0 {
                self.write_ocw3(value);
            } else {
                self.write_ocw2(value);
            }
            return;
        }
        match self.expecting {
            Expecting::Ocw1 => self.imr = value,
            Expecting::Icw2 => {
                self.icw2 = value & ICW2_VECTOR;
                self.expecting = self.after_icw2();
            }
            Expecting::Icw3 => {
                self.icw3 = value;
                self.expecting = self.after_icw3();
            }
            Expecting::Icw4 => {
                self.icw4 = value;
                self.expecting = Expecting::Ocw1;
            }
        }
    }

    fn after_icw2(&self) -> Expecting {
        if self.icw1 & ICW1_SNGL == 0 { Expecting::Icw3 } else { self.after_icw3() }
    }

    fn after_icw3(&self) -> Expecting {
        if self.icw1 & ICW1_IC4 != 0 { Expecting::Icw4 } else { Expecting::Ocw1 }
    }

    /// Starts initialization: edges must come anew, everything but ELCR and inputs is cleared.
    fn write_icw1(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            icw1: value,
            icw2: self.icw2,
            icw3: self.icw3,
            expecting: Expecting::Icw2,
            ..Self::default()
        };
        self.refresh_levels();
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & OCW2_LEVEL;
        match value >> 5 {
            0b000 => self.is_rotating_on_aeoi = false,
            0b100 => self.is_rotating_on_aeoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ir) = self.end_highest() {
                    self.make_lowest(ir);
                }
            }
            0b011 => self.end(level),
            0b111 => {
                self.end(level);
                self.make_lowest(level);
            }
            0b110 => self.make_lowest(level),
            // 010: no operation.
            _ => {}
        }
    }

    fn end(&mut self, ir: u8) {
        self.isr &= !1u8.wrapping_shl(u32::from(ir));
    }

    /// Non-specific EOI. In special mask mode it leaves masked levels in service.
    fn end_highest(&mut self) -> Option<u8> {
        let candidates = if self.is_special_mask { self.isr & !self.imr } else { self.isr };
        let priority = self.priority(candidates);
        (priority < 8).then(|| {
            let ir = self.ir_at(priority);
            self.end(ir);
            ir
        })
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & OCW3_ESMM != 0 {
            self.is_special_mask = value & OCW3_SMM != 0;
        }
        if value & OCW3_POLL != 0 {
            self.is_polled = true;
        } else if value & OCW3_RR != 0 {
            self.is_reading_isr = value & OCW3_RIS != 0;
        }
    }

    fn check(&self, elcr_mask: u8) -> Result<(), &'static str> {
        let level = self.level_inputs();
        let rules = [
            ("elcr", self.elcr & !elcr_mask == 0),
            ("icw2", self.icw2 & !ICW2_VECTOR == 0),
            ("rotation", self.rotation < 8),
            ("irr", (self.irr ^ self.lines) & level == 0),
        ];
        rules.iter().find(|(_, holds)| !holds).map_or(Ok(()), |(field, _)| Err(field))
    }
}

/// Both chips, wired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cascade {
    master: Pic8259,
    slave: Pic8259,
}

impl Cascade {
    /// Carries the slave's INT to the master's IR2.
    fn propagate(&mut self) {
        let level = self.slave.pending(false).is_some();
        self.master.set_line(CASCADE_IR, level);
    }

    /// Lowers IR2 for a moment, as the slave's INT falls while it is acknowledged, so that the
    /// slave's next request is a new edge for the master.
    fn propagate_after_slave_acknowledge(&mut self) {
        self.master.set_line(CASCADE_IR, false);
        self.propagate();
    }

    fn acknowledge(&mut self) -> u8 {
        let ir = self.master.acknowledge(true).unwrap_or(SPURIOUS_IR);
        if ir != CASCADE_IR {
            return self.master.icw2 | ir;
        }
        let ir = self.slave.acknowledge(false).unwrap_or(SPURIOUS_IR);
        self.propagate_after_slave_acknowledge();
        self.slave.icw2 | ir
    }
}

/// The PC's interrupt controllers. Its line inputs are IRQ 0 to 15; 2 is not connected.
pub struct PicPair {
    cascade: Mutex<Cascade>,
    intr: OutputPin,
}

/// One port range of a [`PicPair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicPorts {
    /// 20h and 21h.
    Master,
    /// A0h and A1h.
    Slave,
    /// 4D0h and 4D1h: a one makes the IRQ level-triggered.
    Elcr,
}

struct PicRegisters {
    pair: Arc<PicPair>,
    ports: PicPorts,
}

/// The registers of one chip of the pair, for who looks at the machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicSnapshot {
    /// Requests.
    pub irr: u8,
    /// In service.
    pub isr: u8,
    /// Masked.
    pub imr: u8,
    /// The inputs as they are.
    pub lines: u8,
    /// Level-triggered inputs.
    pub elcr: u8,
    /// The vector of input 0.
    pub vector_base: u8,
    /// The input with the highest priority.
    pub highest: u8,
    /// A read of the first port gives ISR, not IRR.
    pub is_reading_isr: bool,
    /// Special fully nested mode.
    pub is_special_fully_nested: bool,
    /// Interrupts end when they are acknowledged.
    pub is_auto_eoi: bool,
}

impl Pic8259 {
    fn snapshot(&self) -> PicSnapshot {
        PicSnapshot {
            irr: self.irr,
            isr: self.isr,
            imr: self.imr,
            lines: self.lines,
            elcr: self.elcr,
            vector_base: self.icw2,
            highest: self.ir_at(0),
            is_reading_isr: self.is_reading_isr,
            is_special_fully_nested: self.icw4 & ICW4_SFNM != 0,
            is_auto_eoi: self.icw4 & ICW4_AEOI != 0,
        }
    }
}

impl PicPair {
    /// The registers of both chips, the master's first.
    pub fn snapshot(&self) -> [PicSnapshot; 2] {
        let cascade = lock(&self.cascade);
        [cascade.master.snapshot(), cascade.slave.snapshot()]
    }

    /// The pair, whose INTR output drives `intr`.
    pub fn new(intr: InterruptLine) -> Arc<Self> {
        Arc::new(Self { cascade: Mutex::default(), intr: OutputPin::new(intr) })
    }

    /// The two registers of a port range.
    pub fn ports(self: &Arc<Self>, ports: PicPorts) -> Arc<dyn Device> {
        Arc::new(PicRegisters { pair: Arc::clone(self), ports })
    }

    /// The INTA cycle: takes the highest request into service and returns its vector; a spurious
    /// IRQ 7 or 15 if there is none any more.
    pub fn acknowledge(&self) -> u8 {
        self.with_cascade(Cascade::acknowledge)
    }

    /// The level of INTR.
    pub fn is_interrupting(&self) -> bool {
        self.intr.level()
    }

    fn with_cascade<R>(&self, action: impl FnOnce(&mut Cascade) -> R) -> R {
        let mut cascade = lock(&self.cascade);
        let result = action(&mut cascade);
        let has_changed = self.intr.stage(cascade.master.pending(true).is_some());
        drop(cascade);
        if has_changed {
            self.intr.flush();
        }
        result
    }
}

impl LineSink for PicPair {
    fn set_line(&self, pin: u32, level: bool) {
        self.with_cascade(|cascade| match pin {
            0 | 1 | 3..=7 => cascade.master.set_line(pin as u8, level),
            8..=15 => {
                cascade.slave.set_line(pin as u8 & 7, level);
                cascade.propagate();
            }
            _ => {}
        });
    }
}

impl Device for PicRegisters {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let a0 = u8::try_from(offset).ok().filter(|a0| *a0 < 2).ok_or(IoError::NoRegister)?;
        Ok(u64::from(self.pair.with_cascade(|cascade| match self.ports {
            PicPorts::Master => cascade.master.read(a0, true),
            PicPorts::Slave => {
                let is_poll = cascade.slave.is_polled;
                let value = cascade.slave.read(a0, false);
                if is_poll {
                    cascade.propagate_after_slave_acknowledge();
                }
                value
            }
            PicPorts::Elcr if a0 == 0 => cascade.master.elcr,
            PicPorts::Elcr => cascade.slave.elcr,
        })))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let a0 = u8::try_from(offset).ok().filter(|a0| *a0 < 2).ok_or(IoError::NoRegister)?;
        let value = value as u8;
        self.pair.with_cascade(|cascade| {
            match self.ports {
                PicPorts::Master => cascade.master.write(a0, value),
                PicPorts::Slave => cascade.slave.write(a0, value),
                PicPorts::Elcr if a0 == 0 => {
                    cascade.master.elcr = value & ELCR1_MASK;
                    cascade.master.refresh_levels();
                }
                PicPorts::Elcr => {
                    cascade.slave.elcr = value & ELCR2_MASK;
                    cascade.slave.refresh_levels();
                }
            }
            cascade.propagate();
        });
        Ok(())
    }
}

impl Chip for PicPair {
    fn name(&self) -> &str {
        "pic"
    }

    fn reset(&self) {
        self.with_cascade(|cascade| {
            // The inputs belong to the chips that drive them.
            let (master, slave) = (cascade.master.lines, cascade.slave.lines);
            *cascade = Cascade::default();
            cascade.master.lines = master & !(1 << CASCADE_IR);
            cascade.slave.lines = slave;
        });
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.cascade))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let state: Cascade = decode("pic", VERSION, saved)?;
        let is_valid = state.master.check(ELCR1_MASK).and_then(|()| state.slave.check(ELCR2_MASK));
        is_valid.map_err(|field| RestoreError::Value { chip: "pic", field })?;
        self.with_cascade(|cascade| *cascade = state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
