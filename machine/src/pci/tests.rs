//! Whole configuration accesses: from port or memory to BARs, pins and messages.

use std::sync::{Arc, Mutex};

use memory::{Device, GuestPhysical, IoError, PhysicalSpace, PortSpace, Ram, RegionKind, Width};
use proptest::prelude::*;

use super::bar::{BarKind, BarSpec};
use super::bus::PciBus;
use super::config_space::Identity;
use super::ecam::Ecam;
use super::endpoint::{CapabilitySpec, Endpoint, EndpointSpec, MsixSpec, Wiring};
use super::host_bridge::HostBridge;
use super::isa_bridge::IsaBridge;
use super::mechanism1::{Mechanism1, PORT_COUNT};
use super::pirq::PirqRouter;
use super::{DevFn, MessageSink, PciFunction};
use crate::cf9::Cf9;
use crate::chip::Chip;
use crate::clock::Clock;
use crate::guard::lock;
use crate::lapic::{ApicBus, ApicConfig};
use crate::layout::{self, Form, RamPlan};
use crate::line::InterruptLine;
use crate::signals::CpuSignals;
use crate::test_lines::{PowerLog, Recorder};
use crate::timers::Timers;

#[derive(Default)]
struct Messages(Mutex<Vec<(u64, u32)>>);

impl Messages {
    fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MessageSink for Messages {
    fn message(&self, address: u64, data: u32) {
        lock(&self.0).push((address, data));
    }
}

/// Reads as its own number in every byte.
struct Marker(u8);

impl Device for Marker {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        Ok(u64::from_le_bytes([self.0; 8]) & width.mask())
    }

    fn write(&self, _offset: u64, _width: Width, _value: u64) -> Result<(), IoError> {
        Ok(())
    }
}

struct Bench {
    space: Arc<PhysicalSpace>,
    ports: Arc<PortSpace>,
    lines: Arc<Recorder>,
    messages: Arc<Messages>,
    endpoint: Arc<Endpoint>,
    bus: Arc<PciBus>,
}

fn bar(index: u8, kind: BarKind, bytes: u64) -> BarSpec {
    BarSpec { index, kind, bytes, device: Arc::new(Marker(0xa0 + index)) }
}

/// A machine with an endpoint at 3.0 that has one BAR of every kind, MSI and MSI-X.
fn bench() -> Bench {
    let plan = RamPlan { memory_bytes: 2 << 20, rom_bytes: 64 << 10 };
    let space = Arc::new(PhysicalSpace::new(Arc::new(Ram::new(plan.total_bytes()).unwrap())));
    space.map(GuestPhysical(0), layout::CONVENTIONAL_END, RegionKind::Ram(0)).unwrap();
    let ports = Arc::new(PortSpace::new());
    let (lines, messages, bus) = (Recorder::new(), Arc::new(Messages::default()), PciBus::new());
    let ecam = Ecam::new(&bus);
    let bridge = HostBridge::new(Form::Q35, plan, Arc::clone(&space), ecam);
    assert!(bus.insert(DevFn::new(0, 0), bridge));
    let spec = EndpointSpec {
        name: "endpoint".into(),
        identity: Identity {
            vendor: 0x1234,
            device: 0x5678,
            interrupt_pin: 1,
            ..Default::default()
        },
        bars: vec![
            bar(0, BarKind::Io, 32),
            bar(1, BarKind::Memory32, 4096),
            bar(2, BarKind::Memory64, 3 << 20),
        ],
        capabilities: vec![CapabilitySpec { id: 9, body: vec![6, 1, 2, 3], writable: vec![] }],
        msi_vectors_log2: Some(2),
        msix: Some(MsixSpec { vectors: 5, bar: 4 }),
    };
    let wiring = Wiring {
        space: Arc::clone(&space),
        ports: Arc::clone(&ports),
        intx: lines.line(1),
        messages: messages.clone(),
    };
    let endpoint = Endpoint::new(spec, wiring);
    assert!(bus.insert(DevFn::new(3, 0), endpoint.clone()));
    assert!(!bus.insert(DevFn::new(3, 0), endpoint.clone()));
    let reset_control = Cf9::new(Arc::new(PowerLog::default()));
    let mechanism = Mechanism1::new(Arc::clone(&bus), reset_control);
    ports.map(layout::PCI_CONFIG_PORT, PORT_COUNT, mechanism).unwrap();
    Bench { space, ports, lines, messages, endpoint, bus }
}

impl Bench {
    fn write(&self, offset: u16, value: u32) {
        self.endpoint.config_write(offset, Width::Dword, value);
    }

    fn read(&self, offset: u16) -> u32 {
        self.endpoint.config_read(offset, Width::Dword)
    }

    fn byte(&self, address: u64) -> u64 {
        self.space.read(GuestPhysical(address), Width::Byte)
    }

    /// The offset of the capability with `id`.
    fn capability(&self, id: u32) -> u16 {
        let mut at = self.read(0x34) as u16 & 0xff;
        while at != 0 && self.read(at) & 0xff != id {
            at = (self.read(at) >> 8) as u16 & 0xff;
        }
        assert_ne!(at, 0, "capability {id:#x}");
        at
    }
}

#[test]
fn bars_size_map_and_move() {
    let bench = bench();
    let rows = [(0x10, 0xffff_ffe1), (0x14, 0xffff_f000), (0x18, 0xffc0_000c), (0x1c, u32::MAX)];
    for (offset, sized) in rows {
        bench.write(offset, u32::MAX);
        assert_eq!(bench.read(offset), sized, "BAR at {offset:#x}");
    }
    bench.write(0x10, 0xc000);
    bench.write(0x14, 0xd000_0000);
    bench.write(0x18, 0x4000_0000);
    bench.write(0x1c, 0x80);
    assert_eq!(bench.byte(0xd000_0000), 0xff, "not enabled yet");
    bench.write(0x04, 3);
    assert_eq!(bench.ports.read(0xc01f, Width::Byte), 0xa0);
    assert_eq!(bench.ports.read(0xc020, Width::Byte), 0xff);
    assert_eq!((bench.byte(0xd000_0fff), bench.byte(0xd000_1000)), (0xa1, 0xff));
    assert_eq!(bench.byte(0x80_403f_ffff), 0xa2);
    bench.write(0x14, 0xd000_8000);
    assert_eq!((bench.byte(0xd000_0000), bench.byte(0xd000_8000)), (0xff, 0xa1));
    bench.write(0x04, 1);
    assert_eq!((bench.byte(0xd000_8000), bench.ports.read(0xc000, Width::Byte)), (0xff, 0xa0));
    bench.endpoint.reset();
    assert_eq!(bench.ports.read(0xc000, Width::Byte), 0xff);
}

#[test]
fn a_bar_over_ram_waits_until_it_is_moved() {
    let bench = bench();
    bench.write(0x14, 0x8000);
    bench.write(0x04, 2);
    assert_eq!((bench.byte(0x8000), bench.endpoint.bar(1)), (0, None));
    bench.write(0x14, 0xc000_0000);
    assert_eq!((bench.byte(0xc000_0000), bench.endpoint.bar(1)), (0xa1, Some(0xc000_0000)));
}

#[test]
fn mechanism_1_and_ecam_reach_the_same_registers() {
    let bench = bench();
    let select = |value: u32| bench.ports.write(0xcf8, Width::Dword, value);
    select(0x8000_1800);
    assert_eq!(bench.ports.read(0xcf8, Width::Dword), 0x8000_1800);
    assert_eq!(bench.ports.read(0xcfc, Width::Dword), 0x5678_1234);
    assert_eq!(bench.ports.read(0xcfe, Width::Word), 0x5678);
    assert_eq!(bench.ports.read(0xcff, Width::Byte), 0x56);
    assert_eq!(bench.ports.read(0xcfd, Width::Word), 0x7812, "crosses no doubleword");
    // Narrow accesses to CONFIG_ADDRESS leave it alone.
    bench.ports.write(0xcf8, Width::Byte, 0x3c);
    bench.ports.write(0xcf9, Width::Byte, 0x02);
    assert_eq!(bench.ports.read(0xcf9, Width::Byte), 0x02);
    assert_eq!(bench.ports.read(0xcf8, Width::Dword), 0x8000_1800);
    for absent in [0x0000_1800, 0x8000_2000, 0x8001_1800] {
        select(absent);
        assert_eq!(bench.ports.read(0xcfc, Width::Dword), u32::MAX, "{absent:#x}");
    }

    let ecam = layout::ECAM_BASE + (3 << 15);
    assert_eq!(bench.byte(ecam), 0xff, "PCIEXBAR is off after reset");
    let bridge = bench.bus.function(0, DevFn::new(0, 0)).unwrap();
    bridge.config_write(0x60, Width::Dword, layout::ECAM_BASE as u32 | 1);
    let read = |at: u64| bench.space.read(GuestPhysical(at), Width::Dword);
    assert_eq!(read(ecam), 0x5678_1234);
    assert_eq!(read(ecam + 0x100), 0xffff_ffff, "no extended space");
    bench.space.write(GuestPhysical(ecam + 4), Width::Word, 2);
    assert_eq!(bench.read(4) & 0xffff, 2);
    assert_eq!(read(layout::ECAM_BASE + (1 << 20)), u32::MAX.into(), "bus 1 is empty");
    bridge.config_write(0x60, Width::Dword, 0xd000_0003);
    assert_eq!((read(ecam), read(0xd001_8000)), (0xffff_ffff, 0x5678_1234));
    bridge.config_write(0x60, Width::Dword, 7);
    assert_eq!(read(0xd001_8000), 0xffff_ffff);
}

#[test]
fn firmware_gives_every_bar_a_place_of_its_own() {
    let bench = bench();
    super::assign::assign_bars(&bench.bus);
    assert_eq!(bench.endpoint.bar(0), Some(0xc000));
    assert_eq!(bench.endpoint.bar(1), Some(0xc000_0000));
    assert_eq!(bench.endpoint.bar(2), Some(0xc040_0000));
    assert_eq!(bench.endpoint.bar(4), Some(0xc080_0000));
    assert_eq!(bench.read(4) & 7, 7);
    assert_eq!(bench.byte(0xc040_0000), 0xa2);
}

#[test]
fn intx_follows_command_and_message_modes() {
    let bench = bench();
    bench.endpoint.set_intx(true);
    assert!(bench.lines.level(1));
    assert_eq!(bench.read(4) >> 16 & 8, 8);
    bench.write(4, 1 << 10);
    assert!(!bench.lines.level(1));
    assert_eq!(bench.read(4) >> 16 & 8, 8, "status shows it, disabled or not");
    bench.write(4, 0);
    assert!(bench.lines.level(1));
    bench.write(bench.capability(5), 1 << 16);
    assert!(!bench.lines.level(1));
    bench.endpoint.reset();
    assert_eq!((bench.lines.level(1), bench.read(4)), (false, 0x0010_0000));
}

#[test]
fn msi_sends_masks_and_remembers() {
    let bench = bench();
    assert!(!bench.endpoint.signal(0), "nothing is chosen");
    let at = bench.capability(5);
    bench.write(4, 4);
    bench.write(at + 4, 0xfee0_1003);
    bench.write(at + 8, 0);
    bench.write(at + 12, 0x4030);
    bench.write(at, (1 | 2 << 4) << 16);
    assert!(bench.endpoint.signal(3));
    assert_eq!(bench.messages.take(), [(0xfee0_1000, 0x4033)]);
    bench.write(at + 16, 0xffff_ffff);
    assert_eq!(bench.read(at + 16), 0xf, "as many mask bits as vectors");
    bench.endpoint.signal(1);
    bench.endpoint.signal(1);
    assert_eq!((bench.messages.take(), bench.read(at + 20)), (vec![], 2));
    bench.write(at + 16, 0);
    assert_eq!((bench.messages.take(), bench.read(at + 20)), (vec![(0xfee0_1000, 0x4031)], 0));
    bench.write(at, 1 << 16);
    bench.endpoint.signal(3);
    assert_eq!(bench.messages.take(), [(0xfee0_1000, 0x4030)], "one vector was granted");
    bench.write(4, 0);
    bench.endpoint.signal(0);
    assert_eq!(bench.messages.take(), [], "not a bus master");
    bench.write(4, 4);
    assert_eq!(bench.messages.take().len(), 1);
}

#[test]
fn msix_sends_masks_and_shows_what_is_pending() {
    let bench = bench();
    let at = bench.capability(0x11);
    assert_eq!(bench.read(at) >> 16, 4, "table size less one");
    let table = 0xc010_0000;
    bench.write(0x20, table as u32);
    bench.write(4, 6);
    let pending = table + u64::from(bench.read(at + 8) & !7);
    let dword = |offset: u64, value: u64| {
        bench.space.write(GuestPhysical(table + offset), Width::Dword, value);
    };
    let vector = 4 * 16;
    dword(vector, 0xfee0_0003);
    dword(vector + 4, 1);
    dword(vector + 8, 0x51);
    bench.write(at, 0x8000_0000);
    bench.endpoint.signal(4);
    assert_eq!(bench.messages.take(), [], "masked after reset");
    assert_eq!(bench.space.read(GuestPhysical(pending), Width::Qword), 1 << 4);
    dword(vector + 12, 0);
    assert_eq!(bench.messages.take(), [(0x1_fee0_0000, 0x51)]);
    assert_eq!(bench.space.read(GuestPhysical(pending), Width::Qword), 0);
    bench.write(at, 0xc000_0000);
    bench.endpoint.signal(4);
    assert_eq!(bench.messages.take(), [], "the function is masked");
    bench.write(at, 0x8000_0000);
    assert_eq!(bench.messages.take(), [(0x1_fee0_0000, 0x51)]);
    bench.endpoint.signal(500);
    assert_eq!(bench.messages.take(), []);
    // A quadword write sets address and upper address at once.
    bench.space.write(GuestPhysical(table + vector), Width::Qword, 0x2_fee0_1000);
    bench.endpoint.signal(4);
    assert_eq!(bench.messages.take(), [(0x2_fee0_1000, 0x51)]);
}

/// Local APIC 0, which takes interrupts, and the bus to it.
fn apics() -> Arc<ApicBus> {
    struct Wires;
    impl CpuSignals for Wires {
        fn interrupt(&self, _: u32) {}
        fn nmi(&self, _: u32) {}
        fn init(&self, _: u32) {}
        fn startup(&self, _: u32, _: u8) {}
    }
    let timers = Timers::new(Arc::new(Clock::counted(0)));
    let config = ApicConfig {
        ids: vec![0],
        tsc_hz: 1_000_000_000,
        timer_hz: 1_000_000_000,
        physical_address_bits: 40,
        has_x2apic: false,
    };
    let signals: Arc<dyn CpuSignals> = Arc::new(Wires);
    let bus = ApicBus::new(&config, &timers, &signals);
    bus.apics()[0].set_virtual_wire();
    bus
}

/// The vector that comes next to local APIC 0.
fn next_vector(apics: &ApicBus) -> Option<u8> {
    let apic = &apics.apics()[0];
    let vector = (0..2000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        apic.acknowledge()
    });
    apic.eoi();
    vector
}

#[test]
fn writes_to_an_eventfd_signal_a_vector() {
    let (bench, apics) = (bench(), apics());
    let event = apics.interrupt_event().unwrap();
    let fd = Arc::clone(event.event());
    let write = || rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
    assert!(bench.endpoint.connect(4, event));
    assert!(!bench.endpoint.connect(4, apics.interrupt_event().unwrap()), "it has one");
    assert!(!bench.endpoint.connect(5, apics.interrupt_event().unwrap()), "there are five");
    let (at, table) = (bench.capability(0x11), 0xc010_0000);
    bench.write(0x20, table as u32);
    bench.write(4, 6);
    let pending = table + u64::from(bench.read(at + 8) & !7);
    let pending = || bench.space.read(GuestPhysical(pending), Width::Dword);
    let dword = |word: u64, value: u64| {
        bench.space.write(GuestPhysical(table + 4 * 16 + 4 * word), Width::Dword, value);
    };
    dword(0, 0xfee0_0000);
    dword(2, 0x51);
    bench.write(at, 0x8000_0000);
    write();
    assert_eq!(pending(), 1 << 4, "masked after reset");
    let saved = bench.endpoint.save();
    dword(3, 0);
    assert_eq!(next_vector(&apics), Some(0x51));
    assert_eq!(pending(), 0);
    bench.write(at, 0xc000_0000);
    write();
    assert_eq!(pending(), 1 << 4, "the function is masked");
    dword(2, 0x62);
    bench.write(at, 0x8000_0000);
    assert_eq!(next_vector(&apics), Some(0x62));
    bench.endpoint.reset();
    write();
    bench.endpoint.reset();
    assert_eq!(pending(), 0xffff_ffff, "nothing is decoded");
    bench.endpoint.restore(&saved).unwrap();
    assert_eq!(pending(), 1 << 4, "saved while it waited");
    dword(3, 0);
    assert_eq!(bench.messages.take(), [(0xfee0_0000, 0x51)], "it comes once, by the table");
    assert_eq!(pending(), 0);
}

#[test]
fn endpoint_state_goes_round_and_damage_is_refused() {
    let bench = bench();
    bench.write(0x14, 0xd000_0000);
    bench.write(4, 2);
    bench.endpoint.set_intx(true);
    let saved = bench.endpoint.save();
    bench.endpoint.reset();
    assert_eq!(bench.byte(0xd000_0000), 0xff);
    bench.endpoint.restore(&saved).unwrap();
    assert_eq!((bench.byte(0xd000_0000), bench.lines.level(1)), (0xa1, true));
    let mut damaged = saved.clone();
    damaged[3] ^= 1;
    assert!(bench.endpoint.restore(&damaged).is_err());
    assert_eq!(bench.endpoint.save(), saved);
}

#[test]
fn bridges_are_what_drivers_look_for() {
    for (form, host, isa) in [(Form::Q35, 0x29c0, 0x2918), (Form::Pc, 0x1237, 0x7000)] {
        let bench = bench();
        let plan = RamPlan { memory_bytes: 2 << 20, rom_bytes: 0 };
        let ram = Arc::new(Ram::new(2 << 20).unwrap());
        let space = Arc::new(PhysicalSpace::new(ram));
        let bridge = HostBridge::new(form, plan, space, Ecam::new(&bench.bus));
        assert_eq!(bridge.config_read(0, Width::Dword), host << 16 | 0x8086);
        let lines = || std::array::from_fn(|_| InterruptLine::unconnected());
        let bridge = IsaBridge::new(form, PirqRouter::new(form, lines(), vec![]));
        assert_eq!(bridge.config_read(0, Width::Dword), isa << 16 | 0x8086);
        assert_eq!(bridge.config_read(0x60, Width::Dword), 0x8080_8080);
        bridge.set_up_as_firmware();
        assert_eq!(bridge.config_read(0x60, Width::Dword), 0x0b0b_0a0a);
        assert_eq!(bridge.config_read(0x0e, Width::Byte), 0x80);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_programming_of_bars_overlaps_or_panics(
        writes in proptest::collection::vec((0u8..2, 0u16..256, any::<u32>(), 0u8..3), 0..200),
    ) {
        let bench = bench();
        bench.space.map(GuestPhysical(1 << 20), 1 << 20, RegionKind::Ram(1 << 20)).unwrap();
        for (function, offset, value, width) in writes {
            let at = DevFn::new(3 * function, 0);
            let widths = [(Width::Byte, !0), (Width::Word, !1), (Width::Dword, !3)];
            let (width, align) = widths[usize::from(width)];
            bench.bus.write(0, at, offset & align, width, value);
            let read = bench.bus.read(0, at, offset & align, width);
            prop_assert_eq!(u64::from(read) & !width.mask(), 0);
        }
        // RAM is where it was, and what is mapped is where the registers say.
        prop_assert_eq!(bench.space.page(GuestPhysical(0x1000)), memory::PageKind::Ram(0x1000));
        prop_assert_eq!(bench.space.page(GuestPhysical(1 << 20)), memory::PageKind::Ram(1 << 20));
        if let Some(base) = bench.endpoint.bar(1) {
            prop_assert_eq!(base as u32, bench.read(0x14) & !0xfff);
            prop_assert_eq!(bench.byte(base), 0xa1);
        }
        let saved = bench.endpoint.save();
        prop_assert!(bench.endpoint.restore(&saved).is_ok());
        bench.endpoint.reset();
        prop_assert_eq!(bench.endpoint.bar(1), None);
    }
}
