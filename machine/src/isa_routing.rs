//! The board's interrupt wiring: from IRQ numbers to the inputs of the 8259A pair and the I/O APIC.
//!
//! Sources: ACPI specification, "Interrupt Source Overrides" (the override of IRQ 0 that the MADT
//! states is the one made here); IA-PC HPET specification 1.0a, "LegacyReplacement Route Option".

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::guard::lock;
use crate::layout::{GSI_PIT, IRQ_PIT};
use crate::line::{InterruptLine, LineSink};
use crate::output_pin::OutputPin;

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
    /// How often the line has risen.
    rises: AtomicU64,
}

struct Driver {
    shared: Arc<SharedLine>,
    level: AtomicBool,
}

impl SharedLine {
    /// A line with no driver yet.
    pub fn new(line: InterruptLine) -> Arc<Self> {
        Arc::new(Self { line, asserting: AtomicU64::new(0), rises: AtomicU64::new(0) })
    }

    /// One more driver of the line.
    pub fn driver(self: &Arc<Self>) -> InterruptLine {
        let driver = Driver { shared: Arc::clone(self), level: AtomicBool::new(false) };
        InterruptLine::new(Arc::new(driver), 0)
    }

    /// How often the line has risen since the board was made.
    pub fn rises(&self) -> u64 {
        self.rises.load(Ordering::Relaxed)
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
            let others = self.shared.asserting.fetch_add(1, Ordering::SeqCst);
            self.shared.rises.fetch_add(u64::from(others == 0), Ordering::Relaxed);
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
    /// The HPET's LEG_RT_CNF: high gives both interrupts to the HPET.
    Select,
}

/// The switch behind the HPET's LEG_RT_CNF: IRQ 0 and 8 come from the 8254 and the RTC, or from the
/// HPET's timers 0 and 1.
pub struct LegacyReplacement {
    levels: Mutex<[bool; 5]>,
    irq0: OutputPin,
    irq8: OutputPin,
}

impl LegacyReplacement {
    /// A switch in front of IRQ 0 and IRQ 8, set to the 8254 and the RTC.
    pub fn new(irq0: InterruptLine, irq8: InterruptLine) -> Arc<Self> {
        let (irq0, irq8) = (OutputPin::new(irq0), OutputPin::new(irq8));
        Arc::new(Self { levels: Mutex::default(), irq0, irq8 })
    }

    /// The line that `input` drives.
    pub fn line(self: &Arc<Self>, input: LegacyInput) -> InterruptLine {
        InterruptLine::new(Arc::clone(self) as Arc<dyn LineSink>, input as u32)
    }
}

impl LineSink for LegacyReplacement {
    fn set_line(&self, pin: u32, level: bool) {
        let (is_irq0_changed, is_irq8_changed) = {
            let mut levels = lock(&self.levels);
            let Some(input) = levels.get_mut(pin as usize) else { return };
            *input = level;
            let [pit, rtc, timer0, timer1, is_hpet] = *levels;
            let (irq0, irq8) = if is_hpet { (timer0, timer1) } else { (pit, rtc) };
            (self.irq0.stage(irq0), self.irq8.stage(irq8))
        };
        if is_irq0_changed {
            self.irq0.flush();
        }
        if is_irq8_changed {
            self.irq8.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::Recorder;

    #[test]
    fn isa_irqs_reach_both_controllers_and_gsis_one() {
        let (pic, ioapic) = (Recorder::new(), Recorder::new());
        let routing = IsaRouting::new(pic.clone(), ioapic.clone());
        // irq, input of the 8259A pair, input of the I/O APIC
        for (irq, pic_pin, ioapic_pin) in
            [(0, Some(0), 2), (1, Some(1), 1), (15, Some(15), 15), (16, None, 16), (23, None, 23)]
        {
            routing.line(irq).set(true);
            assert!(ioapic.level(ioapic_pin), "IRQ {irq}");
            assert_eq!((0..24).find(|&pin| pic.level(pin)), pic_pin);
            assert_eq!((0..24).filter(|&pin| ioapic.level(pin)).count(), 1);
            routing.line(irq).set(false);
            assert!(!ioapic.level(ioapic_pin));
        }
        routing.line(2).set(true);
        assert!((0..24).all(|pin| !pic.level(pin) && !ioapic.level(pin)), "the cascade");
    }

    #[test]
    fn a_shared_line_is_high_while_anyone_holds_it() {
        let recorder = Recorder::new();
        let shared = SharedLine::new(recorder.line(5));
        let (first, second) = (shared.driver(), shared.driver());
        first.set(true);
        first.set(true);
        second.set(true);
        assert!(recorder.level(5));
        first.set(false);
        assert!(recorder.level(5));
        second.set(false);
        second.set(false);
        assert!(!recorder.level(5));
        assert_eq!((recorder.rises(5), shared.rises()), (1, 1));
    }

    #[test]
    fn a_shared_line_ends_at_the_last_state_whoever_drives_last() {
        let recorder = Recorder::new();
        let shared = SharedLine::new(recorder.line(5));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let driver = shared.driver();
                scope.spawn(move || (0..200).for_each(|_| driver.pulse()));
            }
        });
        assert!(!recorder.level(5));
    }

    #[test]
    fn legacy_replacement_switches_irq_0_and_8_with_their_levels() {
        let recorder = Recorder::new();
        let switch = LegacyReplacement::new(recorder.line(0), recorder.line(8));
        let line = |input| switch.line(input);
        line(LegacyInput::Pit).set(true);
        line(LegacyInput::HpetTimer1).set(true);
        assert_eq!((recorder.level(0), recorder.level(8)), (true, false));
        line(LegacyInput::Select).set(true);
        assert_eq!((recorder.level(0), recorder.level(8)), (false, true));
        line(LegacyInput::Rtc).pulse();
        line(LegacyInput::HpetTimer0).pulse();
        assert_eq!((recorder.rises(0), recorder.rises(8)), (2, 1));
        line(LegacyInput::Select).set(false);
        assert_eq!((recorder.level(0), recorder.level(8)), (true, false));
    }
}
