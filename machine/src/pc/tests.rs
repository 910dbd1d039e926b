//! The whole board: what is where, resets, loading, and waking.

use std::collections::HashSet;
use std::sync::Mutex;

use memory::{PageKind, Width};

use super::*;
use crate::clock::Clock;
use crate::guard::lock;
use crate::loader::{Kernel, LoadError};
use crate::serial_backend::{SerialBackend, Unplugged};
use crate::signals::PowerEvent;
use crate::test_lines::{PowerLog, Sent};

/// Remembers which CPUs were told of interrupts.
#[derive(Default)]
struct Told(Mutex<Vec<(u32, &'static str)>>);

impl CpuSignals for Told {
    fn interrupt(&self, cpu: u32) {
        lock(&self.0).push((cpu, "interrupt"));
    }
    fn nmi(&self, cpu: u32) {
        lock(&self.0).push((cpu, "nmi"));
    }
    fn init(&self, cpu: u32) {
        lock(&self.0).push((cpu, "init"));
    }
    fn startup(&self, cpu: u32, _vector: u8) {
        lock(&self.0).push((cpu, "startup"));
    }
}

struct Bench {
    pc: Pc,
    told: Arc<Told>,
    power: Arc<PowerLog>,
    sent: Arc<Sent>,
    timers: Arc<Timers>,
}

fn bench_with(change: impl FnOnce(&mut PcConfig)) -> Bench {
    let sent = Arc::new(Sent::default());
    let mut config = PcConfig::new(64 << 20, 2);
    config.serial = vec![sent.clone()];
    change(&mut config);
    let (told, power) = (Arc::new(Told::default()), Arc::new(PowerLog::default()));
    let timers = Timers::new(Arc::new(Clock::counted(1_770_000_000_000_000_000)));
    let around =
        Surroundings { timers: timers.clone(), signals: told.clone(), power: power.clone() };
    Bench { pc: Pc::new(config, around).unwrap(), told, power, sent, timers }
}

fn bench() -> Bench {
    bench_with(|_| ())
}

/// The smallest Multiboot kernel: a header that says where it goes.
fn kernel() -> BootSource {
    let (base, flags) = (0x10_0000_u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    let words = [0x1bad_b002, flags, checksum, base, base, 0, 0, base];
    let image = words.map(u32::to_le_bytes).concat();
    BootSource::Kernel(Kernel { image, name: "kernel".into(), ..Kernel::default() })
}

impl Bench {
    fn read(&self, address: u64, width: Width) -> u64 {
        self.pc.space().read(GuestPhysical(address), width)
    }

    fn port(&self, port: u16) -> u32 {
        self.pc.ports().read(port, Width::Byte)
    }
}

#[test]
fn every_chip_answers_where_the_layout_says() {
    let bench = bench();
    assert_eq!(bench.read(layout::HPET_BASE, Width::Dword), 0x8086_a201);
    bench.pc.space().write(GuestPhysical(layout::IOAPIC_BASE), Width::Dword, 1);
    assert_eq!(bench.read(layout::IOAPIC_BASE + 0x10, Width::Dword) >> 16 & 0xff, 23);
    bench.pc.ports().write(0xcf8, Width::Dword, 0x8000_f800);
    assert_eq!(bench.pc.ports().read(0xcfc, Width::Dword), 0x2918_8086);
    bench.pc.ports().write(layout::COM1_PORT, Width::Byte, b'x'.into());
    assert_eq!(bench.sent.bytes(), b"x");
    assert_eq!(bench.port(layout::COM2_PORT + 5), 0xff, "COM2 is not there");
    bench.pc.ports().write(FW_CFG_PORT, Width::Word, 0);
    let signature: Vec<u32> = (0..4).map(|_| bench.port(FW_CFG_PORT + 1)).collect();
    assert_eq!(signature, b"QEMU".map(u32::from));
    assert_eq!(bench.pc.space().page(GuestPhysical(0)), PageKind::Ram(0));
    assert_eq!(bench.pc.space().page(GuestPhysical(0xa_0000)), PageKind::Io);
}

#[test]
fn memory_above_4_gib_follows_that_below_in_ram() {
    let bench = bench_with(|config| config.memory_bytes = 4 << 30);
    let space = bench.pc.space();
    assert_eq!(space.page(GuestPhysical(0xbfff_f000)), PageKind::Ram(0xbfff_f000));
    assert_eq!(space.page(GuestPhysical(0xc000_0000)), PageKind::Io);
    assert_eq!(space.page(GuestPhysical(1 << 32)), PageKind::Ram(0xc000_0000));
    assert_eq!(space.page(GuestPhysical((5 << 30) - 4096)), PageKind::Ram((4 << 30) - 4096));
    assert_eq!(space.page(GuestPhysical(5 << 30)), PageKind::Io);
}

#[test]
fn chips_have_different_names_and_survive_reset_and_saving() {
    for form in [Form::Q35, Form::Pc] {
        let bench = bench_with(|config| {
            config.form = form;
            config.serial.push(Arc::new(Unplugged));
            config.debugcon = Some((0xe9, Arc::new(Unplugged)));
            config.debug_exit = Some(DebugExitPorts { first: 0xf4, count: 4 });
        });
        bench.pc.load(&kernel()).unwrap();
        let chips = bench.pc.chips();
        let names: HashSet<&str> = chips.iter().map(|chip| chip.name()).collect();
        assert_eq!(names.len(), chips.len(), "{names:?}");
        let saved: Vec<Vec<u8>> = chips.iter().map(|chip| chip.save()).collect();
        bench.pc.reset();
        for (chip, saved) in chips.iter().zip(&saved) {
            chip.restore(saved).unwrap();
            assert_eq!(&chip.save(), saved, "{}", chip.name());
        }
    }
}

#[test]
fn test_devices_fit_beside_each_other() {
    let bench = bench_with(|config| {
        config.pc_testdev = Some(None);
        config.has_pci_testdev = true;
        config.debugcon = Some((0xe9, Arc::new(Unplugged)));
        config.debug_exit = Some(DebugExitPorts { first: 0xf4, count: 4 });
    });
    bench.pc.ports().write(0xf4, Width::Dword, 0x21);
    assert_eq!(bench.power.events(), [PowerEvent::DebugExit(0x21)]);
    bench.pc.ports().write(0xe0, Width::Dword, 0x1234_5678);
    assert_eq!(bench.pc.ports().read(0xe0, Width::Dword), 0x1234_5678);
    assert_eq!(bench.port(0xe9), 0xe9);
    bench.pc.load(&kernel()).unwrap();
    bench.pc.ports().write(0xcf8, Width::Dword, 0x8000_2000);
    assert_eq!(bench.pc.ports().read(0xcfc, Width::Dword), 0x0005_1b36);
    assert_eq!(bench.read(layout::PCI_WINDOW_BASE + 1, Width::Byte), 1);
    // Test line 4 is the serial port's, as the 8259A sees it.
    bench.pc.ports().write(0x20, Width::Byte, 0x0a);
    bench.pc.ports().write(0x2004, Width::Byte, 1);
    assert_eq!(bench.port(0x20) & 0x10, 0x10);
}

#[test]
fn two_devices_at_one_port_are_an_error() {
    let mut config = PcConfig::new(64 << 20, 1);
    config.serial = vec![Arc::new(Unplugged)];
    config.debug_exit = Some(DebugExitPorts { first: layout::COM1_PORT, count: 1 });
    assert!(matches!(try_new(config), Err(PcError::Map(MapError::Overlap { .. }))));
}

fn try_new(config: PcConfig) -> Result<Pc, PcError> {
    let timers = Timers::new(Arc::new(Clock::counted(0)));
    let (signals, power) = (Arc::new(Told::default()), Arc::new(PowerLog::default()));
    Pc::new(config, Surroundings { timers, signals, power })
}

#[test]
fn impossible_machines_are_refused_by_name() {
    let refuse = |memory: u64, cpus: u32| {
        try_new(PcConfig::new(memory, cpus)).err().expect("refused").to_string()
    };
    assert_eq!(refuse(1 << 20, 1), "memory of 0x100000 bytes is too small, 0x200000 is the least");
    assert!(refuse(1 << 50, 1).contains("too large"));
    assert!(refuse((64 << 20) + 1, 1).contains("multiple of 4096"));
    assert_eq!(refuse(64 << 20, 0), "0 CPUs: a machine has 1 to 1024");
    assert!(try_new(PcConfig::new(layout::MEMORY_MIN, 1)).is_ok());
}

#[test]
fn loading_a_kernel_leaves_what_firmware_would() {
    let bench = bench();
    let state = bench.pc.load(&kernel()).unwrap();
    assert!(matches!(state, BootState::Protected32 { entry: 0x10_0000, .. }));
    assert_eq!(bench.read(layout::RSDP_BASE, Width::Qword), u64::from_le_bytes(*b"RSD PTR "));
    assert_eq!(bench.read(layout::SMBIOS_BASE, Width::Dword), u32::from_le_bytes(*b"_SM_").into());
    assert_eq!(bench.read(layout::BDA_COM1_PORT, Width::Word), 0x3f8);
    assert_eq!(bench.read(layout::ECAM_BASE, Width::Dword), 0x29c0_8086);
    assert_eq!((bench.port(0x21), bench.port(0xa1)), (0xfe, 0xff));
    assert_eq!((bench.port(0x4d0), bench.port(0x4d1)), (0x20, 0x0e));
    // Twice, as after a reboot.
    bench.pc.reset();
    assert_eq!(bench.read(layout::ECAM_BASE, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.pc.load(&kernel()).unwrap(), state);
    assert_eq!(bench.read(layout::ECAM_BASE, Width::Dword), 0x29c0_8086);
}

#[test]
fn what_cannot_be_loaded_says_so() {
    let bench = bench();
    let empty = BootSource::Kernel(Kernel::default());
    assert!(matches!(bench.pc.load(&empty), Err(PcError::Load(LoadError::Empty))));
    let rom = BootSource::Rom(vec![0; 4096]);
    assert!(matches!(bench.pc.load(&rom), Err(PcError::Load(LoadError::RomRoom { .. }))));
}

#[test]
fn a_rom_starts_at_the_reset_vector_and_shows_below_1_mib() {
    let bench = bench_with(|config| config.rom_bytes = 64 << 10);
    let mut image = vec![0x90; 64 << 10];
    image[0xfff0] = 0xea;
    let source = BootSource::Rom(image);
    assert_eq!(bench.pc.load(&source).unwrap(), BootState::RealModeReset);
    assert_eq!(bench.read(0xffff_fff0, Width::Byte), 0xea);
    assert_eq!(bench.read(0xf_fff0, Width::Byte), 0xea);
    assert_eq!(bench.pc.resume(), Some(BootState::RealModeReset));
    assert_eq!(bench.pc.rtc().cmos(0x0f), 0xfe);
}

#[test]
fn suspend_and_resume_goes_through_the_waking_vector() {
    let bench = bench();
    bench.pc.load(&kernel()).unwrap();
    let facs = bench.pc.config().plan().facs();
    assert_eq!(bench.read(facs, Width::Dword), u32::from_le_bytes(*b"FACS").into());
    assert_eq!(bench.pc.resume(), None, "no vector");
    bench.pc.space().write(GuestPhysical(facs + 12), Width::Dword, 0x9_a123);
    // SLP_TYP 1 with SLP_EN.
    bench.pc.ports().write(0x604, Width::Word, 1 << 10 | 1 << 13);
    assert_eq!(bench.power.events(), [PowerEvent::Suspend]);
    let state = bench.pc.resume().unwrap();
    assert_eq!(state, BootState::RealMode { segment: 0x9a12, offset: 3 });
    assert_eq!(bench.pc.ports().read(0x600, Width::Word) >> 15, 1, "WAK_STS");
    assert_eq!(bench.read(layout::ECAM_BASE, Width::Dword), 0x29c0_8086);
    bench.pc.space().write(GuestPhysical(facs + 24), Width::Qword, 0x1_0000);
    let state = bench.pc.resume().unwrap();
    assert!(matches!(state, BootState::Protected32 { entry: 0x1_0000, .. }), "{state:?}");
    bench.pc.space().write(GuestPhysical(facs + 24), Width::Qword, 1 << 40);
    assert_eq!(bench.pc.resume(), None);
}

#[test]
fn a_dropped_board_leaves_no_chip_behind() {
    for form in [Form::Q35, Form::Pc] {
        let bench = bench_with(|config| {
            config.form = form;
            config.pc_testdev = Some(None);
            config.has_pci_testdev = true;
        });
        bench.pc.load(&kernel()).unwrap();
        let chips: Vec<_> = bench.pc.chips().iter().map(Arc::downgrade).collect();
        drop(bench);
        let left = chips.iter().filter_map(Weak::upgrade).map(|chip| chip.name().to_owned());
        assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
    }
}

#[test]
fn power_off_and_reset_reach_the_board() {
    let bench = bench();
    bench.pc.ports().write(0xcf9, Width::Byte, 6);
    bench.pc.ports().write(0x604, Width::Word, 1 << 13);
    assert_eq!(bench.power.events(), [PowerEvent::Reset, PowerEvent::PowerOff]);
}

#[test]
fn the_timer_reaches_cpu_0_through_pic_and_virtual_wire() {
    let bench = bench();
    bench.pc.load(&kernel()).unwrap();
    let ports = bench.pc.ports();
    for (port, value) in [(0x21, 0xfe), (0x43, 0x34), (0x40, 0), (0x40, 0x10)] {
        ports.write(port, Width::Byte, value);
    }
    bench.timers.clock().advance_to(10_000_000);
    bench.timers.run_expired();
    assert!(lock(&bench.told.0).contains(&(0, "interrupt")));
    assert_eq!(bench.pc.lapic(0).unwrap().acknowledge(), Some(8));
    bench.pc.nmi();
    assert!(lock(&bench.told.0).contains(&(1, "nmi")));
    assert!(bench.pc.lapic(2).is_none());
}

#[test]
fn serial_input_raises_its_interrupt() {
    let bench = bench();
    bench.pc.load(&kernel()).unwrap();
    bench.pc.ports().write(0x3f9, Width::Byte, 1);
    bench.pc.ports().write(0x3fc, Width::Byte, 8);
    assert_eq!(bench.pc.uart(0).unwrap().receive(b"a"), 1);
    bench.pc.ports().write(0x20, Width::Byte, 0x0a);
    assert_eq!(bench.port(0x20) & 0x10, 0x10, "IRQ 4 is requested");
    assert!(bench.pc.uart(1).is_none());
    Unplugged.write(b"");
}

#[test]
fn real_mode_finds_a_bioss_vectors_and_its_running_timer() {
    let bench = bench();
    bench.pc.load(&kernel()).unwrap();
    let handler = |vector: u64| {
        let [offset, segment] = [0, 2].map(|at| bench.read(vector * 4 + at, Width::Word));
        segment * 16 + offset
    };
    const IRET: u64 = 0xcf;
    assert_eq!(bench.read(handler(0x73), Width::Byte), IRET);
    assert_eq!(bench.read(handler(0x08) + 19, Width::Byte), IRET);
    assert_eq!(bench.pc.lapic(0).unwrap().acknowledge(), None);
    bench.timers.clock().advance_to(60_000_000);
    bench.timers.run_expired();
    assert_eq!(bench.pc.lapic(0).unwrap().acknowledge(), Some(8));
}

#[test]
fn a_board_may_lack_the_8254() {
    let bench = bench_with(|config| config.has_pit = false);
    bench.pc.load(&kernel()).unwrap();
    assert_eq!((bench.port(0x40), bench.port(0x61)), (0xff, 0xff));
    bench.timers.clock().advance_to(60_000_000);
    bench.timers.run_expired();
    assert_eq!(bench.pc.lapic(0).unwrap().acknowledge(), None);
}
