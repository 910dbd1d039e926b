//! Two or more local APICs on a counted clock, driven as their CPUs would.

use std::sync::{Arc, Mutex};

use memory::Width;

use super::access::register as r;
use super::*;
use crate::clock::Clock;
use crate::signals::CpuSignals;
use crate::timers::Timers;

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
fn registers_after_power_up_are_the_manuals() {
    let rig = Rig::at_power_up(&[0, 1]);
    assert_eq!(rig.apic(0).apic_base(), 0xFEE0_0900);
    assert_eq!(rig.apic(1).apic_base(), 0xFEE0_0800);
    for (number, value) in [
        (r::ID, 0x0100_0000),
        (r::VERSION, access::VERSION),
        (r::TPR, 0),
        (r::LDR, 0),
        (r::DFR, u32::MAX),
        (r::SVR, 0xFF),
        (r::ESR, 0),
        (r::LVT_TIMER, 0x1_0000),
        (r::LVT_LINT0, 0x1_0000),
        (r::LVT_LINT1, 0x1_0000),
        (r::LVT_ERROR, 0x1_0000),
        (r::LVT_CMCI, 0x1_0000),
        (r::DIVIDE, 0),
        (r::CURRENT_COUNT, 0),
    ] {
        assert_eq!(rig.read(1, number), value, "register {number:#x}");
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
