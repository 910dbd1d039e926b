//! PIRQ: the chipset's interrupt request inputs for PCI, and where the ISA bridge routes them.
//!
//! Sources: Intel ICH9 datasheet, "`PIRQ[n]_ROUT`" and "Interrupt mapping"; 82371SB (PIIX3)
//! datasheet, "`PIRQRC[A:D]` - PIRQx Route Control Registers"; PCI-to-PCI Bridge Specification,
//! "Interrupt Support" for the rotation of pins by device number.
//!
//! Every device has four pins; several share one PIRQ, whose level is the OR of them. A PIRQ goes
//! to the ISA interrupt its route register names (again an OR), and on q35 also to I/O APIC pin 16
//! + n, which is not inverted here: high is asserted everywhere in this crate.

use std::sync::{Arc, Mutex};

use crate::guard::lock;
use crate::layout::Form;
use crate::line::{InterruptLine, LineSink};
use crate::output_pin::OutputPin;

/// Number of PIRQ inputs: A to H. The PIIX3 has the first four.
pub const PIRQ_COUNT: usize = 8;
const ISA_IRQS: usize = 16;
/// Route register: not routed to any ISA interrupt.
pub const ROUTE_DISABLED: u8 = 1 << 7;
/// ISA interrupts that a route register may name: not 0, 1, 2, 8 and 13.
const ROUTABLE: u16 = 0xdef8;

/// The PIRQ that pin `pin` (0 is INTA#) of device `device` is wired to.
pub const fn pirq_of(form: Form, device: u8, pin: u8) -> usize {
    let rotated = (device as usize + pin as usize) & 3;
    match (form, device) {
        // One device lower, as on the boards that the PIIX3 was made for.
        (Form::Pc, _) => (rotated + 3) & 3,
        // Devices in slots use PIRQE..H; the chipset's own, PIRQA..D without rotation.
        (Form::Q35, 0..=24) => 4 + rotated,
        (Form::Q35, _) => (pin & 3) as usize,
    }
}

#[derive(Default)]
struct State {
    /// By PIRQ: a bit for each of 32 devices times 4 pins that is asserted.
    asserted: [u128; PIRQ_COUNT],
    routes: [u8; PIRQ_COUNT],
}

impl State {
    fn is_high(&self, pirq: usize) -> bool {
        self.asserted.get(pirq).is_some_and(|&bits| bits != 0)
    }

    /// The ISA interrupts that some PIRQ asserts, as a mask.
    fn isa_levels(&self) -> u16 {
        let active = self
            .asserted
            .iter()
            .zip(&self.routes)
            .filter(|&(&bits, &route)| bits != 0 && route & ROUTE_DISABLED == 0);
        active.fold(0, |mask, (_, route)| mask | 1 << (route & 15)) & ROUTABLE
    }
}

/// Routes the pins of all functions to interrupt controllers. The input pins of its [`LineSink`]
/// are `4 * device + pin`.
pub struct PirqRouter {
    form: Form,
    state: Mutex<State>,
    isa: Vec<OutputPin>,
    gsi: Vec<OutputPin>,
}

impl PirqRouter {
    /// A router to 16 ISA interrupt lines, and to I/O APIC pins for PIRQA.. as far as there are.
    pub fn new(form: Form, isa: [InterruptLine; ISA_IRQS], gsi: Vec<InterruptLine>) -> Arc<Self> {
        Arc::new(Self {
            form,
            state: Mutex::new(State { routes: [ROUTE_DISABLED; PIRQ_COUNT], ..State::default() }),
            isa: isa.into_iter().map(OutputPin::new).collect(),
            gsi: gsi.into_iter().map(OutputPin::new).collect(),
        })
    }

    /// The line for pin `pin` (0 is INTA#) of device `device`.
    pub fn line(self: &Arc<Self>, device: u8, pin: u8) -> InterruptLine {
        InterruptLine::new(Arc::clone(self) as _, u32::from(device & 31) * 4 + u32::from(pin & 3))
    }

    /// Sets the route registers of PIRQA and so on.
    pub fn set_routes(&self, routes: [u8; PIRQ_COUNT]) {
        let mut state = lock(&self.state);
        state.routes = routes;
        self.settle(state);
    }

    /// Drives every line that changed, with the lock given back first.
    fn settle(&self, state: std::sync::MutexGuard<'_, State>) {
        let levels = state.isa_levels();
        let isa = (0..).zip(&self.isa).map(|(irq, pin)| (pin, levels >> irq & 1 != 0));
        let gsi = self.gsi.iter().enumerate().map(|(pirq, pin)| (pin, state.is_high(pirq)));
        let changed: Vec<&OutputPin> =
            isa.chain(gsi).filter(|(pin, level)| pin.stage(*level)).map(|(pin, _)| pin).collect();
        drop(state);
        changed.into_iter().for_each(OutputPin::flush);
    }
}

impl LineSink for PirqRouter {
    fn set_line(&self, input: u32, level: bool) {
        let (device, pin) = ((input >> 2 & 31) as u8, (input & 3) as u8);
        let mut state = lock(&self.state);
        let Some(bits) = state.asserted.get_mut(pirq_of(self.form, device, pin)) else { return };
        let bit = 1u128 << (input & 127);
        *bits = if level { *bits | bit } else { *bits & !bit };
        self.settle(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::Recorder;

    fn router(form: Form) -> (Arc<PirqRouter>, Arc<Recorder>) {
        let lines = Recorder::new();
        let isa = std::array::from_fn(|irq| lines.line(irq as u32));
        let gsi =
            if form == Form::Q35 { (16..24).map(|pin| lines.line(pin)).collect() } else { vec![] };
        (PirqRouter::new(form, isa, gsi), lines)
    }

    #[test]
    fn pins_rotate_by_device() {
        let rows = [
            (Form::Pc, 1, 0, 0),
            (Form::Pc, 3, 1, 3),
            (Form::Pc, 4, 0, 3),
            (Form::Q35, 1, 0, 5),
            (Form::Q35, 3, 1, 4),
            (Form::Q35, 31, 0, 0),
            (Form::Q35, 31, 3, 3),
        ];
        for (form, device, pin, pirq) in rows {
            assert_eq!(pirq_of(form, device, pin), pirq, "{form:?} {device}.{pin}");
        }
    }

    #[test]
    fn shared_lines_fall_with_the_last_device() {
        let (router, lines) = router(Form::Q35);
        router.set_routes([10, 10, 11, 11, 10, 10, 11, 11]);
        let (one, other) = (router.line(0, 0), router.line(1, 0));
        one.set(true);
        assert!(lines.level(10) && lines.level(20) && !lines.level(21));
        other.set(true);
        assert!(lines.level(21));
        one.set(false);
        assert!(lines.level(10), "PIRQF holds IRQ 10 up");
        other.set(false);
        assert!(!lines.level(10) && !lines.level(20) && !lines.level(21));
        assert_eq!(lines.rises(10), 1);
    }

    #[test]
    fn routes_move_a_level_that_is_up() {
        let (router, lines) = router(Form::Pc);
        router.line(1, 0).set(true);
        assert!((0..24).all(|pin| !lines.level(pin)), "nothing is routed after reset");
        router.set_routes([5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]);
        assert!(lines.level(5));
        router.set_routes([11, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]);
        assert!(!lines.level(5) && lines.level(11));
        router.set_routes([8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]);
        assert!((0..24).all(|pin| !lines.level(pin)), "the RTC's interrupt cannot be taken");
    }
}
