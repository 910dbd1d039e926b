//! Two or more local APICs on a counted clock, driven as their CPUs would.

use std::sync::{Arc, Mutex};

use memory::Width;

use super::access::register as r;
use super::*;
use crate::chip::{Chip, RestoreError};
use crate::clock::Clock;
use crate::line::LineSink;
use crate::signals::CpuSignals;
use crate::timers::Timers;

mod any_access;
mod events;
mod lending;
mod registers;
mod timers;

const EXTD_EN: u64 = 3 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Interrupt(u32),
    Nmi(u32),
    Init(u32),
    Startup(u32, u8),
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Signal>>);

impl Recorder {
    fn take(&self) -> Vec<Signal> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
    fn push(&self, signal: Signal) {
        self.0.lock().unwrap().push(signal);
    }
}

impl CpuSignals for Recorder {
    fn interrupt(&self, cpu: u32) {
        self.push(Signal::Interrupt(cpu));
    }
    fn nmi(&self, cpu: u32) {
        self.push(Signal::Nmi(cpu));
    }
    fn init(&self, cpu: u32) {
        self.push(Signal::Init(cpu));
    }
    fn startup(&self, cpu: u32, vector: u8) {
        self.push(Signal::Startup(cpu, vector));
    }
}

struct Rig {
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    signals: Arc<Recorder>,
    bus: Arc<ApicBus>,
}

impl Rig {
    /// CPUs with the APIC IDs `ids`, a 2 GHz TSC and a 1 GHz timer; software-enabled.
    fn new(ids: &[u32]) -> Self {
        let rig = Self::at_power_up(ids);
        for cpu in 0..ids.len() as u32 {
            rig.write(cpu, r::SVR, 0x1FF);
        }
        rig.signals.take();
        rig
    }

    fn at_power_up(ids: &[u32]) -> Self {
        let clock = Arc::new(Clock::counted(0));
        let timers = Timers::new(Arc::clone(&clock));
        let signals = Arc::new(Recorder::default());
        let config = ApicConfig {
            ids: ids.to_vec(),
            tsc_hz: 2_000_000_000,
            timer_hz: 1_000_000_000,
            physical_address_bits: 40,
            has_x2apic: true,
        };
        let dyn_signals: Arc<dyn CpuSignals> = signals.clone();
        let bus = ApicBus::new(&config, &timers, &dyn_signals);
        Self { clock, timers, signals, bus }
    }

    fn apic(&self, cpu: u32) -> &LocalApic {
        self.bus.apic(cpu).unwrap()
    }
    fn read(&self, cpu: u32, number: u32) -> u32 {
        self.apic(cpu).mmio_read(u64::from(number) << 4, Width::Dword) as u32
    }
    fn write(&self, cpu: u32, number: u32, value: u32) {
        self.apic(cpu).mmio_write(u64::from(number) << 4, Width::Dword, value.into());
    }
    fn to_x2apic(&self, cpu: u32) {
        let apic = self.apic(cpu);
        apic.set_apic_base(apic.apic_base() | EXTD_EN).unwrap();
    }
    fn ipi(&self, cpu: u32, high: u32, low: u32) {
        self.write(cpu, r::ICR_HIGH, high);
        self.write(cpu, r::ICR_LOW, low);
    }
    /// The CPUs that have `vector` requested; takes it off them.
    fn takers(&self, vector: u8) -> Vec<u32> {
        let apics = self.bus.apics().iter();
        apics
            .filter(|a| a.acknowledge() == Some(vector))
            .map(|a| {
                a.eoi();
                a.cpu()
            })
            .collect()
    }
    fn advance(&self, now_ns: u64) {
        self.clock.advance_to(now_ns);
        self.timers.run_expired();
    }
    fn send(&self, destination: Destination, delivery: DeliveryMode, vector: u8) -> bool {
        self.bus.deliver(Message { destination, delivery, vector, trigger: TriggerMode::Edge })
    }
}

#[test]
fn a_fixed_ipi_is_requested_acknowledged_and_ended() {
    let rig = Rig::new(&[0, 1]);
    rig.ipi(0, 1 << 24, 0x4041);
    assert_eq!(rig.signals.take(), [Signal::Interrupt(1)]);
    assert_eq!(rig.read(1, r::IRR + 2), 1 << 1);
    assert!(rig.apic(1).has_interrupt() && !rig.apic(0).has_interrupt());
    assert_eq!(rig.apic(1).acknowledge(), Some(0x41));
    assert_eq!((rig.read(1, r::IRR + 2), rig.read(1, r::ISR + 2)), (0, 1 << 1));
    assert_eq!(rig.read(1, r::PPR), 0x40);
    rig.write(1, r::EOI, 0);
    assert_eq!((rig.read(1, r::ISR + 2), rig.read(1, r::PPR)), (0, 0));
    assert_eq!(rig.apic(1).acknowledge(), None);
}

/// Takes the EOIs that an I/O APIC would.
#[derive(Default)]
struct Ends(Mutex<Vec<u8>>);

impl EoiSink for Ends {
    fn end_of_interrupt(&self, vector: u8) {
        self.0.lock().unwrap().push(vector);
    }
}

struct Pair(u8);

impl ExtIntSource for Pair {
    fn acknowledge(&self) -> u8 {
        self.0
    }
}

fn level(vector: u8) -> Message {
    let destination = Destination::Physical(0);
    Message { destination, delivery: DeliveryMode::Fixed, vector, trigger: TriggerMode::Level }
}

#[test]
fn priorities_nest_and_hold_back() {
    let rig = Rig::new(&[0]);
    let apic = rig.apic(0);
    for vector in [0x31, 0x52, 0x58] {
        assert!(rig.send(Destination::Physical(0), DeliveryMode::Fixed, vector));
    }
    assert_eq!(apic.acknowledge(), Some(0x58));
    assert!(!apic.has_interrupt(), "0x52 is of the same class");
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x61);
    assert_eq!((apic.acknowledge(), apic.in_service()), (Some(0x61), Some(0x61)));
    apic.eoi();
    apic.eoi();
    assert_eq!((apic.acknowledge(), apic.in_service()), (Some(0x52), Some(0x52)));
    apic.eoi();
    apic.set_tpr(0x3F);
    assert_eq!((apic.has_interrupt(), apic.acknowledge()), (false, None));
    rig.signals.take();
    apic.set_tpr(0x20);
    assert_eq!(rig.signals.take(), [Signal::Interrupt(0)]);
    assert_eq!(apic.acknowledge(), Some(0x31));
}

#[test]
fn ppr_and_apr_follow_the_manuals_formulas() {
    let rig = Rig::new(&[0]);
    // TPR, in service, requested -> PPR, APR
    for (tpr, isr, irr, ppr, apr) in [
        (0x00, 0x00, 0x00, 0x00, 0x00),
        (0x35, 0x00, 0x00, 0x35, 0x35),
        (0x35, 0x41, 0x00, 0x40, 0x40),
        (0x45, 0x41, 0x00, 0x45, 0x40),
        (0x45, 0x41, 0x38, 0x45, 0x40),
        (0x55, 0x41, 0x61, 0x55, 0x60),
        (0x55, 0x41, 0x51, 0x55, 0x55),
    ] {
        let apic = rig.apic(0);
        apic.reset(ResetKind::PowerUp);
        rig.write(0, r::SVR, 0x1FF);
        if isr != 0 {
            rig.send(Destination::Physical(0), DeliveryMode::Fixed, isr);
            assert_eq!(apic.acknowledge(), Some(isr));
        }
        apic.set_tpr(tpr);
        if irr != 0 {
            rig.send(Destination::Physical(0), DeliveryMode::Fixed, irr);
        }
        assert_eq!(
            (rig.read(0, r::PPR), rig.read(0, r::APR)),
            (ppr, apr),
            "{tpr:#x} {isr:#x} {irr:#x}"
        );
    }
}

#[test]
fn only_level_triggered_interrupts_are_ended_on_the_bus() {
    let rig = Rig::new(&[0]);
    let ends = Arc::new(Ends::default());
    let sink: Arc<dyn EoiSink> = ends.clone();
    rig.bus.connect_eoi(Arc::downgrade(&sink));
    // Edge, level, and level with the broadcast suppressed.
    for (message, svr, ended) in [
        (Message { trigger: TriggerMode::Edge, ..level(0x41) }, 0x1FF, vec![]),
        (level(0x42), 0x1FF, vec![0x42]),
        (level(0x43), 0x11FF, vec![]),
    ] {
        rig.write(0, r::SVR, svr);
        assert!(rig.bus.deliver(message));
        let is_level = message.trigger == TriggerMode::Level;
        assert_eq!(rig.read(0, r::TMR + 2) >> (message.vector & 31) & 1, u32::from(is_level));
        assert_eq!(rig.apic(0).acknowledge(), Some(message.vector));
        rig.apic(0).eoi();
        assert_eq!(std::mem::take(&mut *ends.0.lock().unwrap()), ended);
    }
}

#[test]
fn xapic_destinations_reach_whom_they_name() {
    let rig = Rig::new(&[0, 1, 2, 5]);
    for (cpu, logical) in [(0, 0x01), (1, 0x02), (2, 0x04), (3, 0x80)] {
        rig.write(cpu, r::LDR, logical << 24);
    }
    const LOGICAL: u32 = 1 << 11;
    // ICR high, ICR low, who takes it
    let rows: [(u32, u32, &[u32]); 12] = [
        (0x00, 0x4050, &[0]),
        (0x05, 0x4050, &[3]),
        (0x03, 0x4050, &[]),
        (0xFF, 0x4050, &[0, 1, 2, 3]),
        (0x02, 0x4050 | LOGICAL, &[1]),
        (0x86, 0x4050 | LOGICAL, &[1, 2, 3]),
        (0xFF, 0x4050 | LOGICAL, &[0, 1, 2, 3]),
        (0x40, 0x4050 | LOGICAL, &[]),
        (0x05, 0x4050 | 1 << 18, &[1]),
        (0x05, 0x4050 | 2 << 18, &[0, 1, 2, 3]),
        (0x05, 0x4050 | 3 << 18, &[0, 2, 3]),
        (0x05, 0xC050, &[3]),
    ];
    for (high, low, takers) in rows {
        rig.ipi(1, high << 24, low);
        assert_eq!(rig.takers(0x50), takers, "{high:#x} {low:#x}");
    }
}

#[test]
fn clusters_are_four_members_each() {
    let rig = Rig::new(&[0, 1, 2, 3]);
    for (cpu, logical) in [(0, 0x11), (1, 0x12), (2, 0x21), (3, 0x28)] {
        rig.write(cpu, r::DFR, 0x0FFF_FFFF);
        rig.write(cpu, r::LDR, logical << 24);
    }
    let rows: [(u8, &[u32]); 6] = [
        (0x11, &[0]),
        (0x13, &[0, 1]),
        (0x29, &[2, 3]),
        (0x24, &[]),
        (0x31, &[]),
        (0xFF, &[0, 1, 2, 3]),
    ];
    for (mda, takers) in rows {
        rig.send(Destination::Logical8(mda), DeliveryMode::Fixed, 0x50);
        assert_eq!(rig.takers(0x50), takers, "{mda:#x}");
    }
}

#[test]
fn x2apic_destinations_reach_whom_they_name() {
    let rig = Rig::new(&[0, 1, 0x11, 0x123]);
    (0..4).for_each(|cpu| rig.to_x2apic(cpu));
    let ldr: Vec<_> = (0..4).map(|cpu| rig.apic(cpu).msr_read(0x80D)).collect();
    assert_eq!(ldr, [Some(1), Some(2), Some(0x1_0002), Some(0x12_0008)]);
    assert_eq!(rig.apic(3).msr_read(0x802), Some(0x123));
    const LOGICAL: u64 = 1 << 11;
    let rows: [(u64, u64, &[u32]); 8] = [
        (0x123, 0x50, &[3]),
        (0x23, 0x50, &[]),
        (0xFF, 0x50, &[]),
        (0xFFFF_FFFF, 0x50, &[0, 1, 2, 3]),
        (0x0000_0003, 0x50 | LOGICAL, &[0, 1]),
        (0x0001_0003, 0x50 | LOGICAL, &[2]),
        (0xFFFF_FFFF, 0x50 | LOGICAL, &[0, 1, 2, 3]),
        (0, 0x50 | 3 << 18, &[1, 2, 3]),
    ];
    for (destination, low, takers) in rows {
        rig.apic(0).msr_write(0x830, destination << 32 | low).unwrap();
        assert_eq!(rig.apic(0).msr_read(0x830), Some(destination << 32 | low));
        assert_eq!(rig.takers(0x50), takers, "{destination:#x} {low:#x}");
    }
    rig.apic(2).msr_write(0x83F, 0x50).unwrap();
    assert_eq!(rig.takers(0x50), [2]);
}

#[test]
fn lowest_priority_goes_to_one_idle_cpu() {
    let rig = Rig::new(&[0, 1, 2]);
    rig.apic(0).set_tpr(0x50);
    rig.apic(2).set_tpr(0x50);
    assert!(rig.send(Destination::All, DeliveryMode::LowestPriority, 0x61));
    assert_eq!(rig.takers(0x61), [1]);
    rig.apic(1).set_tpr(0x50);
    for vector in 0x60..0x66 {
        rig.send(Destination::All, DeliveryMode::LowestPriority, vector);
        assert_eq!(rig.takers(vector), [u32::from(vector) % 3], "spread by vector");
    }
    rig.write(1, r::SVR, 0xFF);
    for vector in 0x70..0x79 {
        assert!(rig.send(Destination::All, DeliveryMode::LowestPriority, vector));
    }
    assert_eq!(rig.read(1, r::IRR + 3), 0, "a disabled APIC is no candidate");
}

#[test]
fn nmi_init_and_startup_reach_the_cpu_even_software_disabled() {
    let rig = Rig::at_power_up(&[0, 1]);
    for (low, signals) in [
        (0x0400, vec![Signal::Nmi(1)]),
        (0x4500, vec![Signal::Init(1)]),
        (0xC500, vec![Signal::Init(1)]),
        (0x8500, vec![]),
        (0x4699, vec![Signal::Startup(1, 0x99)]),
        (0x4200, vec![]),
        (0x4350, vec![]),
        (0x4750, vec![]),
        (0x4050, vec![]),
    ] {
        rig.ipi(0, 1 << 24, low);
        assert_eq!(rig.signals.take(), signals, "ICR {low:#x}");
    }
    rig.ipi(0, 0, 0xC_4500);
    assert_eq!(rig.signals.take(), [Signal::Init(1)], "all but the sender");
    rig.ipi(0, 0, 0x8_4500);
    assert_eq!(rig.signals.take(), [], "nobody resets itself by a shorthand");
}

#[test]
fn illegal_vectors_are_errors_that_a_write_of_esr_shows() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::LVT_ERROR, 0xE0);
    rig.ipi(0, 0, 0x400F);
    assert_eq!((rig.read(0, r::ESR), rig.apic(0).acknowledge()), (0, Some(0xE0)));
    rig.apic(0).eoi();
    rig.ipi(0, 0, 0x400F);
    assert_eq!(rig.apic(0).acknowledge(), None, "noted already");
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 3);
    rig.read(0, 0x04);
    rig.write(0, r::ESR, 0);
    assert_eq!(rig.read(0, r::ESR), 0xE0);
    rig.write(0, r::ESR, 0);
    assert_eq!(rig.read(0, r::ESR), 0);
    rig.write(0, r::LVT_ERROR, 0x05);
    rig.ipi(0, 0, 0x4001);
    rig.write(0, r::ESR, 0);
    assert_eq!(rig.read(0, r::ESR), 0x60, "an error entry with an illegal vector is one more");
}

#[test]
fn software_disable_masks_and_refuses_but_keeps() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::LVT_LINT0, 0x700);
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x41);
    rig.write(0, r::SVR, 0xFF);
    assert_eq!(rig.read(0, r::LVT_LINT0), 0x1_0700);
    rig.write(0, r::LVT_LINT0, 0x700);
    assert_eq!(rig.read(0, r::LVT_LINT0), 0x1_0700);
    assert!(!rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x51));
    assert_eq!(rig.apic(0).acknowledge(), Some(0x41));
}

#[test]
fn lint0_takes_extint_levels_and_edges() {
    let rig = Rig::at_power_up(&[0, 1]);
    let pair: Arc<dyn ExtIntSource> = Arc::new(Pair(0x30));
    rig.bus.connect_extint(Arc::downgrade(&pair));
    rig.bus.set_line(LINT0_PIN, true);
    assert!(!rig.apic(0).has_interrupt(), "masked after reset");
    (0..2).for_each(|cpu| rig.apic(cpu).set_virtual_wire());
    assert_eq!(rig.signals.take(), [Signal::Interrupt(0)], "only the bootstrap processor");
    assert_eq!((rig.apic(0).acknowledge(), rig.apic(0).in_service()), (Some(0x30), None));
    rig.bus.set_line(LINT0_PIN, false);
    assert!(!rig.apic(0).has_interrupt());
    rig.write(0, r::LVT_LINT0, 0x45);
    rig.bus.set_line(LINT0_PIN, true);
    rig.bus.set_line(LINT0_PIN, true);
    assert_eq!((rig.apic(0).acknowledge(), rig.apic(0).acknowledge()), (Some(0x45), None));
}

#[test]
fn lint0_levels_wait_for_the_eoi_and_come_again() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::LVT_LINT0, 0x8045);
    rig.bus.set_line(LINT0_PIN, true);
    assert_eq!(rig.read(0, r::LVT_LINT0), 0xC045);
    assert_eq!(rig.apic(0).acknowledge(), Some(0x45));
    rig.apic(0).eoi();
    assert_eq!(rig.apic(0).acknowledge(), Some(0x45));
    rig.bus.set_line(LINT0_PIN, false);
    rig.apic(0).eoi();
    assert_eq!((rig.apic(0).acknowledge(), rig.read(0, r::LVT_LINT0)), (None, 0x8045));
}

#[test]
fn lint1_is_the_nmi_once_for_each_edge() {
    let rig = Rig::new(&[0]);
    rig.bus.set_line(LINT1_PIN, true);
    assert_eq!(rig.signals.take(), []);
    rig.write(0, r::LVT_LINT1, 0x400);
    rig.bus.set_line(LINT1_PIN, false);
    rig.bus.set_line(LINT1_PIN, true);
    rig.bus.set_line(LINT1_PIN, true);
    assert_eq!(rig.signals.take(), [Signal::Nmi(0)]);
}

#[test]
fn performance_interrupts_mask_themselves() {
    let rig = Rig::new(&[0]);
    rig.write(0, r::LVT_PERFORMANCE, 0x400);
    rig.apic(0).raise(LvtEntry::PerformanceMonitoring);
    rig.apic(0).raise(LvtEntry::PerformanceMonitoring);
    assert_eq!(rig.signals.take(), [Signal::Nmi(0)]);
    assert_eq!(rig.read(0, r::LVT_PERFORMANCE), 0x1_0400);
}

#[test]
fn an_eoi_may_be_skipped_only_when_nothing_waits_for_it() {
    let rig = Rig::new(&[0]);
    let apic = rig.apic(0);
    assert_eq!(apic.skippable_eoi(), None);
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x51);
    apic.acknowledge();
    assert_eq!(apic.skippable_eoi(), Some(0x51));
    rig.signals.take();
    apic.set_pv_eoi_armed(true);
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x31);
    assert_eq!((rig.signals.take(), apic.skippable_eoi()), (vec![Signal::Interrupt(0)], None));
    apic.set_pv_eoi_armed(false);
    apic.eoi();
    apic.acknowledge();
    apic.eoi();
    rig.bus.deliver(level(0x61));
    apic.acknowledge();
    assert_eq!(apic.skippable_eoi(), None, "an I/O APIC waits");
}

#[test]
fn a_saved_state_goes_on_where_it_was_and_a_wrong_one_is_refused() {
    let rig = Rig::new(&[0, 1]);
    rig.write(0, r::DIVIDE, 0xB);
    rig.write(0, r::LVT_TIMER, 0x40);
    rig.write(0, r::INITIAL_COUNT, 1000);
    rig.send(Destination::Physical(0), DeliveryMode::Fixed, 0x51);
    let saved = rig.apic(0).save();
    Chip::reset(rig.apic(0));
    assert_eq!((rig.apic(0).has_interrupt(), rig.timers.next_deadline_ns()), (false, None));
    rig.apic(0).restore(&saved).unwrap();
    assert_eq!((rig.apic(0).has_interrupt(), rig.timers.next_deadline_ns()), (true, Some(1000)));
    assert_eq!(rig.apic(0).save(), saved);
    rig.to_x2apic(1);
    let refused = rig.apic(0).restore(&rig.apic(1).save());
    assert_eq!(refused, Err(RestoreError::Value { chip: "lapic", field: "base" }));
    assert_eq!(rig.apic(0).save(), saved);
}
