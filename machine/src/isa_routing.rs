//! The board's interrupt wiring: from IRQ numbers to the inputs of the 8259A pair and the I/O APIC.
//!
//! Sources: ACPI specification, "Interrupt Source Overrides" (the override of IRQ 0 that the MADT
//! states is the one made here); IA-PC HPET specification 1.0a, "LegacyReplacement Route Option".

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::guard::lock;
use crate::layout::{GSI_PIT, IRQ_PIT};
use crate::line::{InterruptLine, LineSink};

/// The number of ISA interrupts; PCI's follow at the I/O APIC only.
pub const ISA_IRQS: u32 = 16;
/// IRQ 2 is the cascade of the 8259A pair: nothing can drive it.
const CASCADE_IRQ: u32 = 2;

/// Routes interrupts of the board: ISA IRQ `n` to the 8259A pair's input `n` and to the I/O APIC
/// (IRQ 0 to input 2, the others to input `n`), pins 16 and above to the I/O APIC only.
pub struct IsaRouting {
    pic: Arc<dyn LineSink>,
    ioapic: Arc<dyn LineSink>,
}

impl IsaRouting {
    /// A routing to the 8259A pair `pic` and the I/O APIC `ioapic`.
    pub fn new(pic: Arc<dyn LineSink>, ioapic: Arc<dyn LineSink>) -> Arc<Self> {
        Arc::new(Self { pic, ioapic })
    }

    /// The line of IRQ or GSI `irq`. Several drivers of one line go through a [`SharedLine`].
    pub fn line(self: &Arc<Self>, irq: u32) -> InterruptLine {
        InterruptLine::new(Arc::clone(self) as Arc<dyn LineSink>, irq)
    }
}

impl LineSink for IsaRouting {
    fn set_line(&self, pin: u32, level: bool) {
        if pin == CASCADE_IRQ {
            return;
        }
        if pin < ISA_IRQS {
            self.pic.set_line(pin, level);
        }
        self.ioapic.set_line(if pin == IRQ_PIT { GSI_PIT } else { pin }, level);
    }
}

/// One level-triggered line with several drivers: high while any of them holds it.
pub struct SharedLine {
    line: InterruptLine,
    asserting: AtomicU64,
}

struct Driver {
    shared: Arc<SharedLine>,
    level: AtomicBool,
}

impl SharedLine {
    /// A line with no driver yet.
    pub fn new(line: InterruptLine) -> Arc<Self> {
        Arc::new(Self { line, asserting: AtomicU64::new(0) })
    }

    /// One more driver of the line.
    pub fn driver(self: &Arc<Self>) -> InterruptLine {
        let driver = Driver { shared: Arc::clone(self), level: AtomicBool::new(false) };
        InterruptLine::new(Arc::new(driver), 0)
    }

    /// Tells the sink until it has heard the last state: drivers on other threads may overtake.
    fn settle(&self) {
        loop {
            let asserting = self.asserting.load(Ordering::SeqCst);
            self.line.set(asserting != 0);
            if (self.asserting.load(Ordering::SeqCst) != 0) == (asserting != 0) {
                return;
            }
        }
    }
}

impl LineSink for Driver {
    fn set_line(&self, _pin: u32, level: bool) {
        if self.level.swap(level, Ordering::SeqCst) == level {
            return;
        }
        if level {
            self.shared.asserting.fetch_add(1, Ordering::SeqCst);
        } else {
            self.shared.asserting.fetch_sub(1, Ordering::SeqCst);
        }
        self.shared.settle();
    }
}

/// The inputs of [`LegacyReplacement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyInput {
    /// The 8254's counter 0, on IRQ 0.
    Pit,
    /// The MC146818, on IRQ 8.
    Rtc,
    /// The HPET's timer 0, which takes IRQ 0 over.
    HpetTimer0,
    /// The HPET's timer 1, which takes IRQ 8 over.
    HpetTimer1,
}

#[derive(Default)]
struct LegacyLevels {
    is_hpet: bool,
    levels: [bool; 4],
}

/// The switch behind the HPET's LEG_RT_CNF: IRQ 0 and 8 come from the 8254 and the RTC, or from the
/// HPET's timers 0 and 1.
pub struct LegacyReplacement {
    irq0: InterruptLine,
    irq8: InterruptLine,
    levels: Mutex<LegacyLevels>,
}

impl LegacyReplacement {
    /// A switch in front of IRQ 0 and IRQ 8, set to the 8254 and the RTC.
    pub fn new(irq0: InterruptLine, irq8: InterruptLine) -> Arc<Self> {
        Arc::new(Self { irq0, irq8, levels: Mutex::default() })
    }

    /// The line that `input` drives.
    pub fn line(self: &Arc<Self>, input: LegacyInput) -> InterruptLine {
        InterruptLine::new(Arc::clone(self) as Arc<dyn LineSink>, input as u32)
    }

    /// Sets the switch: to the HPET, or back.
    pub fn select_hpet(&self, is_hpet: bool) {
        let (irq0, irq8) = {
            let mut levels = lock(&self.levels);
            if levels.is_hpet == is_hpet {
                return;
            }
            levels.is_hpet = is_hpet;
            let [pit, rtc, timer0, timer1] = levels.levels;
            if is_hpet { (timer0, timer1) } else { (pit, rtc) }
        };
        self.irq0.set(irq0);
        self.irq8.set(irq8);
    }
}

impl LineSink for LegacyReplacement {
    fn set_line(&self, pin: u32, level: bool) {
        let is_selected = {
            let mut levels = lock(&self.levels);
            let Some(input) = levels.levels.get_mut(pin as usize) else { return };
            *input = level;
            levels.is_hpet == (pin >= LegacyInput::HpetTimer0 as u32)
        };
        if is_selected {
            let irq = if pin & 1 == 0 { &self.irq0 } else { &self.irq8 };
            irq.set(level);
        }
    }
}
