//! The board: every chip of the PC, where it is, and what it is wired to.
//!
//! [`Pc::new`] is the list: it makes the chips in the order of their wiring and maps them where
//! [`crate::layout`] says. [`Pc::load`] puts a guest into memory and says in what state CPU 0
//! starts; what firmware would have left behind is in [`handover`]. Neighbours: the program that
//! owns the vCPUs gives the clock's timers and takes signals and power events; it reaches memory
//! and ports through [`Pc::space`] and [`Pc::ports`], and interrupts through [`Pc::apics`].
//!
//! Interrupt wires: every interrupt of the board is an OR of its drivers ([`SharedLine`]) into
//! [`IsaRouting`], so that a PCI interrupt that software routes onto a chip's cannot hide it.

mod bios;
mod config;
mod handover;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use memory::{Device, GuestPhysical, MapError, PhysicalSpace, PortSpace, Ram, RegionKind};

use crate::a20::A20Gate;
use crate::acpi_pm::{AcpiPm, PmTimerWidth, SMI_CMD_PORT};
use crate::cf9::Cf9;
use crate::chip::Chip;
use crate::coprocessor_error::{COPROCESSOR_PORT, COPROCESSOR_PORT_COUNT, CoprocessorError};
use crate::debug_exit::DebugExit;
use crate::debugcon::Debugcon;
use crate::dma8237::{DmaPair, DmaPorts};
use crate::e820::E820Map;
use crate::fw_cfg::{FW_CFG_PORT, FW_CFG_PORT_COUNT, FwCfg};
use crate::hpet::{HPET_BYTES, Hpet, HpetWiring};
use crate::i8042::{COMMAND_PORT, DATA_PORT, I8042, I8042Port};
use crate::ioapic::IoApic;
use crate::isa_routing::{IsaRouting, LegacyInput, LegacyReplacement, SharedLine};
use crate::lapic::{ApicBus, ApicConfig, LINT0_PIN, LINT1_PIN, LocalApic, MessageSink};
use crate::layout::{self, Form, RamPlan};
use crate::line::{InterruptLine, LineSink};
use crate::loader::{self, BootSource, BootState, Target};
use crate::msi::{MSI_WINDOW_BASE, MSI_WINDOW_BYTES, MsiWindow, decode_msi};
use crate::pc_testdev::{self, PcTestdev, TestRange};
use crate::pci::bus::PciBus;
use crate::pci::ecam::Ecam;
use crate::pci::endpoint::Wiring;
use crate::pci::host_bridge::HostBridge;
use crate::pci::isa_bridge::{self, IsaBridge, Piix4Pm};
use crate::pci::mechanism1::{self, Mechanism1};
use crate::pci::pirq::{PIRQ_COUNT, PirqRouter};
use crate::pci::testdev::pci_testdev;
use crate::pci::{self, DevFn};
use crate::pic8259::{PicPair, PicPorts};
use crate::pit8254::Pit8254;
use crate::port92::Port92;
use crate::rtc::Rtc;
use crate::signals::{CpuSignals, PowerSink};
use crate::timers::Timers;
use crate::uart16550::Uart16550;

pub use config::{DebugExitPorts, PcConfig, PcError};

/// Number of interrupt lines of the board: 16 of ISA, 8 PIRQs.
const LINE_COUNT: u32 = layout::IOAPIC_PINS;

/// Where pci-testdev is: the first slot that both forms have free.
const PCI_TESTDEV: DevFn = DevFn::new(4, 0);

/// What the board is put into.
#[derive(Clone)]
pub struct Surroundings {
    /// Deadlines on the guest's clock.
    pub timers: Arc<Timers>,
    /// Wires to the CPUs.
    pub signals: Arc<dyn CpuSignals>,
    /// Takes power events.
    pub power: Arc<dyn PowerSink>,
}

/// The board with all its chips.
pub struct Pc {
    config: PcConfig,
    plan: RamPlan,
    map: E820Map,
    space: Arc<PhysicalSpace>,
    ports: Arc<PortSpace>,
    apics: Arc<ApicBus>,
    lines: Lines,
    pic: Arc<PicPair>,
    ioapic: Arc<IoApic>,
    rtc: Arc<Rtc>,
    acpi_pm: Arc<AcpiPm>,
    coprocessor: Arc<CoprocessorError>,
    i8042: Arc<I8042>,
    dma: Arc<DmaPair>,
    serial: Vec<Arc<Uart16550>>,
    fw_cfg: Arc<FwCfg>,
    host_bridge: Arc<HostBridge>,
    isa_bridge: Arc<IsaBridge>,
    pci: Arc<PciBus>,
    pirq: Arc<PirqRouter>,
    messages: Arc<dyn pci::MessageSink>,
    /// All chips but the functions on the PCI bus, in the order of reset.
    chips: Vec<Arc<dyn Chip>>,
    /// The guest was started through a ROM, which then also resumes it.
    has_firmware: AtomicBool,
}

/// The board's interrupt wires, each with any number of drivers.
struct Lines(Vec<Arc<SharedLine>>);

impl Lines {
    fn new(routing: &Arc<IsaRouting>) -> Self {
        Self((0..LINE_COUNT).map(|line| SharedLine::new(routing.line(line))).collect())
    }

    /// A new driver of interrupt `line`.
    fn driver(&self, line: u32) -> InterruptLine {
        let shared = self.0.get(line as usize);
        shared.map_or_else(InterruptLine::unconnected, SharedLine::driver)
    }
}

/// One driver of every line, as inputs of one sink: for the test device.
struct DriverOfAll(Vec<InterruptLine>);

impl LineSink for DriverOfAll {
    fn set_line(&self, pin: u32, level: bool) {
        if let Some(line) = self.0.get(pin as usize) {
            line.set(level);
        }
    }
}

/// Turns PCI functions' writes into interrupt messages.
struct PciMessages(Arc<dyn MessageSink>);

impl pci::MessageSink for PciMessages {
    fn message(&self, address: u64, data: u32) {
        match decode_msi(address, data) {
            Some(message) => {
                self.0.deliver(message);
            }
            None => log::debug!(target: "guest_error", "no message: {data:#x} to {address:#x}"),
        }
    }
}

/// What is made first, and everything else is wired to.
struct Base<'a> {
    config: &'a PcConfig,
    around: &'a Surroundings,
    space: Arc<PhysicalSpace>,
    lines: &'a Lines,
    messages: Arc<dyn MessageSink>,
}

/// Chips collected while they are made: what is to be reset and saved, and what answers where.
#[derive(Default)]
struct Parts {
    chips: Vec<Arc<dyn Chip>>,
    ports: Vec<(u16, u32, Arc<dyn Device>)>,
    memory: Vec<(u64, u64, Arc<dyn Device>)>,
}

impl Parts {
    fn chip(&mut self, chip: &Arc<impl Chip + 'static>) {
        self.chips.push(Arc::clone(chip) as _);
    }

    /// Maps everything that was collected.
    fn map(&self, space: &PhysicalSpace, ports: &PortSpace) -> Result<(), MapError> {
        for (first, count, device) in &self.ports {
            ports.map(*first, *count, Arc::clone(device))?;
        }
        for (base, bytes, device) in &self.memory {
            let kind = RegionKind::Device(Arc::clone(device));
            space.map(GuestPhysical(*base), *bytes, kind)?;
        }
        Ok(())
    }
}

impl Pc {
    /// Makes the board that `config` describes, after a power-up reset.
    pub fn new(config: PcConfig, around: Surroundings) -> Result<Self, PcError> {
        config.check()?;
        let plan = config.plan();
        let ram = Arc::new(Ram::new(plan.total_bytes())?);
        let space = Arc::new(PhysicalSpace::new(ram));
        let ports = Arc::new(PortSpace::new());
        map_ram(&plan, &space)?;
        loader::rom::map(&plan, &space)?;

        let mut parts = Parts::default();
        let apics = ApicBus::new(&apic_config(&config), &around.timers, &around.signals);
        let (pic, ioapic, routing) = interrupt_controllers(&apics, &mut parts);
        let lines = Lines::new(&routing);
        let base = Base {
            config: &config,
            around: &around,
            space: Arc::clone(&space),
            lines: &lines,
            messages: Arc::clone(&apics) as _,
        };
        let (rtc, acpi_pm) = timers_and_power(&base, &mut parts);
        let (i8042, reset_control) = keyboard_and_resets(&base, &mut parts);
        let dma = dma(&base, &mut parts);
        let coprocessor = coprocessor_error(&base, &mut parts);
        let serial = serial_ports(&base, &mut parts);
        debug_devices(&base, &mut parts);
        let fw_cfg = FwCfg::new(Arc::clone(&space));
        parts.chip(&fw_cfg);
        parts.ports.push((FW_CFG_PORT, FW_CFG_PORT_COUNT, Arc::clone(&fw_cfg) as _));
        let bridges = pci_bus(&base, plan, reset_control, &mut parts);
        parts.map(&space, &ports)?;
        let Bridges { bus: pci, host: host_bridge, isa: isa_bridge, pirq } = bridges;
        let messages = Arc::new(PciMessages(Arc::clone(&apics) as _));

        let map = E820Map::new(config.form, &plan);
        let this = Self {
            plan,
            map,
            space,
            ports,
            apics,
            lines,
            pic,
            ioapic,
            rtc,
            acpi_pm,
            coprocessor,
            i8042,
            dma,
            serial,
            fw_cfg,
            host_bridge,
            isa_bridge,
            pci,
            pirq,
            messages,
            chips: parts.chips,
            has_firmware: AtomicBool::new(false),
            config,
        };
        if this.config.has_pci_testdev {
            this.pci.insert(PCI_TESTDEV, pci_testdev(this.pci_wiring(PCI_TESTDEV, 0)));
        }
        handover::describe_to_firmware(&this);
        Ok(this)
    }

    /// What the board was made from.
    pub fn config(&self) -> &PcConfig {
        &self.config
    }

    /// Guest-physical memory.
    pub fn space(&self) -> &Arc<PhysicalSpace> {
        &self.space
    }

    /// The I/O ports.
    pub fn ports(&self) -> &Arc<PortSpace> {
        &self.ports
    }

    /// The local APICs and their bus.
    pub fn apics(&self) -> &Arc<ApicBus> {
        &self.apics
    }

    /// The local APIC of CPU `cpu`.
    pub fn lapic(&self, cpu: u32) -> Option<&Arc<LocalApic>> {
        self.apics.apic(cpu)
    }

    /// Serial port `index`: 0 is COM1.
    pub fn uart(&self, index: usize) -> Option<&Arc<Uart16550>> {
        self.serial.get(index)
    }

    /// The ACPI power-management block: the power button, the wake events.
    pub fn acpi_pm(&self) -> &Arc<AcpiPm> {
        &self.acpi_pm
    }

    /// The coprocessor error latch.
    pub fn coprocessor(&self) -> &Arc<CoprocessorError> {
        &self.coprocessor
    }

    /// The real-time clock.
    pub fn rtc(&self) -> &Arc<Rtc> {
        &self.rtc
    }

    /// The 8259A pair.
    pub fn pic(&self) -> &Arc<PicPair> {
        &self.pic
    }

    /// The I/O APIC.
    pub fn ioapic(&self) -> &Arc<IoApic> {
        &self.ioapic
    }

    /// Each interrupt line of the board: its number, and how often it has risen.
    pub fn interrupt_counts(&self) -> Vec<(u32, u64)> {
        (0..).zip(&self.lines.0).map(|(line, shared)| (line, shared.rises())).collect()
    }

    /// The keyboard controller, to type at.
    pub fn i8042(&self) -> &Arc<I8042> {
        &self.i8042
    }

    /// The DMA controllers, for ISA devices.
    pub fn dma(&self) -> &Arc<DmaPair> {
        &self.dma
    }

    /// The firmware configuration device, to add files to before the machine runs.
    pub fn fw_cfg(&self) -> &Arc<FwCfg> {
        &self.fw_cfg
    }

    /// The PCI bus, to add functions to before the machine runs.
    pub fn pci(&self) -> &Arc<PciBus> {
        &self.pci
    }

    /// What a function at `at` with interrupt pin `pin` (0 is INTA#) is connected to.
    pub fn pci_wiring(&self, at: DevFn, pin: u8) -> Wiring {
        Wiring {
            space: Arc::clone(&self.space),
            ports: Arc::clone(&self.ports),
            intx: self.pirq.line(at.device(), pin),
            messages: Arc::clone(&self.messages),
        }
    }

    /// A new driver of interrupt line `irq` (16 and above: PIRQs), such as the coprocessor's 13.
    pub fn interrupt_line(&self, irq: u32) -> InterruptLine {
        self.lines.driver(irq)
    }

    /// Sends an NMI by the board's wire, LINT1 of every CPU.
    pub fn nmi(&self) {
        self.apics.set_line(LINT1_PIN, true);
        self.apics.set_line(LINT1_PIN, false);
    }

    /// Memory as the guest is told of it.
    pub fn memory_map(&self) -> &E820Map {
        &self.map
    }

    /// Every chip, local APICs and PCI functions included, for saving and restoring. Names are
    /// unique and the order is always the same.
    pub fn chips(&self) -> Vec<Arc<dyn Chip>> {
        let functions = self.pci.functions().map(|(_, function)| Arc::clone(function) as _);
        self.apics.chips().chain(self.chips.iter().cloned()).chain(functions).collect()
    }

    /// Resets every chip. Memory keeps its contents. Called with all vCPUs stopped; the caller
    /// resets these and then calls [`Pc::load`] again.
    pub fn reset(&self) {
        self.chips().iter().for_each(|chip| chip.reset());
    }

    /// Puts `source` into memory and the board into the state in which firmware would start it.
    /// Called after [`Pc::new`] or [`Pc::reset`].
    pub fn load(&self, source: &BootSource) -> Result<BootState, PcError> {
        match source {
            BootSource::Rom(image) => {
                self.has_firmware.store(true, Ordering::Release);
                loader::rom::load(image, &self.plan, &self.space)?;
                Ok(BootState::RealModeReset)
            }
            BootSource::Kernel(kernel) => {
                self.has_firmware.store(false, Ordering::Release);
                handover::set_up(self);
                handover::write_tables(self)?;
                let target = Target { space: &self.space, map: &self.map, rsdp: layout::RSDP_BASE };
                Ok(loader::load(kernel, &target)?)
            }
        }
    }

    /// Wakes the board from S3: resets what lost its power, and says where CPU 0 goes on. `None` if
    /// the guest left no waking vector; a reset is then what hardware would do. Called with all
    /// vCPUs stopped, on [`crate::signals::PowerEvent::Wake`].
    pub fn resume(&self) -> Option<BootState> {
        let keep: [&str; 2] = [self.rtc.name(), self.acpi_pm.name()];
        let chips = self.chips();
        chips.iter().filter(|chip| !keep.contains(&chip.name())).for_each(|chip| chip.reset());
        self.acpi_pm.resume();
        if self.has_firmware.load(Ordering::Acquire) {
            handover::note_resume_for_firmware(&self.rtc);
            return Some(BootState::RealModeReset);
        }
        handover::set_up(self);
        handover::waking_vector(self)
    }
}

/// Chips that move their ranges about hold the buses, which hold them.
impl Drop for Pc {
    fn drop(&mut self) {
        self.space.unmap_all();
        self.ports.unmap_all();
    }
}

fn map_ram(plan: &RamPlan, space: &PhysicalSpace) -> Result<(), MapError> {
    let map = |base: u64, end: u64, offset: u64| {
        if base < end {
            space.map(GuestPhysical(base), end - base, RegionKind::Ram(offset))
        } else {
            Ok(())
        }
    };
    map(0, layout::CONVENTIONAL_END, 0)?;
    map(layout::HIGH_MEMORY_BASE, plan.low_ram_end(), layout::HIGH_MEMORY_BASE)?;
    map(layout::ABOVE_4G, layout::ABOVE_4G + plan.high_ram_bytes(), plan.low_ram_end())
}

fn apic_config(config: &PcConfig) -> ApicConfig {
    ApicConfig {
        ids: (0..config.cpu_count).collect(),
        tsc_hz: config.tsc_hz,
        timer_hz: config.lapic_timer_hz,
        physical_address_bits: config.physical_address_bits,
        has_x2apic: config.has_x2apic,
    }
}

fn interrupt_controllers(
    apics: &Arc<ApicBus>,
    parts: &mut Parts,
) -> (Arc<PicPair>, Arc<IoApic>, Arc<IsaRouting>) {
    let ioapic = IoApic::new(Arc::clone(apics) as _);
    let eoi: Arc<IoApic> = Arc::clone(&ioapic);
    apics.connect_eoi(Arc::downgrade(&eoi) as Weak<_>);
    let pic = PicPair::new(InterruptLine::new(Arc::clone(apics) as _, LINT0_PIN));
    apics.connect_extint(Arc::downgrade(&pic) as Weak<_>);
    let routing = IsaRouting::new(Arc::clone(&pic) as _, Arc::clone(&ioapic) as _);
    parts.chip(&ioapic);
    parts.chip(&pic);
    for (first, ports) in
        [(0x20, PicPorts::Master), (0xa0, PicPorts::Slave), (0x4d0, PicPorts::Elcr)]
    {
        parts.ports.push((first, 2, pic.ports(ports)));
    }
    let msi = Arc::new(MsiWindow::new(Arc::clone(apics) as _));
    parts.memory.push((layout::IOAPIC_BASE, memory::PAGE_SIZE, Arc::clone(&ioapic) as _));
    parts.memory.push((MSI_WINDOW_BASE, MSI_WINDOW_BYTES, msi));
    (pic, ioapic, routing)
}

fn timers_and_power(base: &Base<'_>, parts: &mut Parts) -> (Arc<Rtc>, Arc<AcpiPm>) {
    let Base { around, lines, .. } = base;
    let irq0_and_8 = (lines.driver(layout::IRQ_PIT), lines.driver(layout::IRQ_RTC));
    let legacy = LegacyReplacement::new(irq0_and_8.0, irq0_and_8.1);
    if base.config.has_pit {
        let pit = Pit8254::new(&around.timers, legacy.line(LegacyInput::Pit));
        parts.chip(&pit);
        parts.ports.push((0x61, 1, pit.port61()));
        parts.ports.push((0x40, 4, pit));
    }
    let rtc = Rtc::new(&around.timers, legacy.line(LegacyInput::Rtc));
    let hpet_inputs = [(layout::GSI_PIT, layout::IRQ_PIT), (layout::IRQ_RTC, layout::IRQ_RTC)];
    let pirqs = (layout::GSI_PIRQ_BASE..LINE_COUNT).map(|pin| (pin, pin));
    let routes = hpet_inputs.into_iter().chain(pirqs).map(|(pin, line)| (pin, lines.driver(line)));
    let messages = Arc::clone(&base.messages);
    let hpet = Hpet::new(&around.timers, HpetWiring { legacy, routes: routes.collect(), messages });
    let sci = lines.driver(layout::IRQ_SCI);
    let power = Arc::clone(&around.power);
    let acpi_pm = AcpiPm::new(PmTimerWidth::Bits32, &around.timers, sci, power);
    let alarm = Arc::downgrade(&acpi_pm);
    rtc.set_alarm_hook(Arc::new(move || {
        if let Some(acpi_pm) = alarm.upgrade() {
            acpi_pm.rtc_alarm();
        }
    }));
    parts.chip(&rtc);
    parts.chip(&hpet);
    parts.chip(&acpi_pm);
    parts.ports.push((0x70, 4, Arc::clone(&rtc) as _));
    parts.ports.push((SMI_CMD_PORT, 2, acpi_pm.smi_command()));
    parts.ports.push((layout::PM_BASE, layout::PM_BYTES.into(), Arc::clone(&acpi_pm) as _));
    parts.memory.push((layout::HPET_BASE, HPET_BYTES, hpet));
    (rtc, acpi_pm)
}

/// The keyboard controller and the other ways to reset the machine and to gate A20. Returns the
/// controller, and what answers at CF9h.
fn keyboard_and_resets(base: &Base<'_>, parts: &mut Parts) -> (Arc<I8042>, Arc<dyn Device>) {
    let a20 = A20Gate::new(Arc::clone(&base.space));
    let port92 = Port92::new(Arc::clone(&a20), Arc::clone(&base.around.power));
    let cf9 = Cf9::new(Arc::clone(&base.around.power));
    let (irq1, irq12) =
        (base.lines.driver(layout::IRQ_KEYBOARD), base.lines.driver(layout::IRQ_MOUSE));
    let i8042 = I8042::new(irq1, irq12, Arc::clone(&a20), Arc::clone(&base.around.power));
    parts.chip(&a20);
    parts.chip(&port92);
    parts.chip(&cf9);
    parts.chip(&i8042);
    parts.ports.push((0x92, 1, port92));
    parts.ports.push((DATA_PORT, 1, i8042.port(I8042Port::Data)));
    parts.ports.push((COMMAND_PORT, 1, i8042.port(I8042Port::Command)));
    (i8042, cf9)
}

fn dma(base: &Base<'_>, parts: &mut Parts) -> Arc<DmaPair> {
    let dma = DmaPair::new(Arc::clone(&base.space));
    parts.chip(&dma);
    let ranges =
        [(0x00, 16, DmaPorts::First), (0xc0, 32, DmaPorts::Second), (0x80, 16, DmaPorts::Pages)];
    for (first, count, ports) in ranges {
        parts.ports.push((first, count, dma.ports(ports)));
    }
    dma
}

fn coprocessor_error(base: &Base<'_>, parts: &mut Parts) -> Arc<CoprocessorError> {
    let latch = CoprocessorError::new(base.lines.driver(layout::IRQ_FERR));
    parts.chip(&latch);
    parts.ports.push((COPROCESSOR_PORT, COPROCESSOR_PORT_COUNT, Arc::clone(&latch) as _));
    latch
}

fn serial_ports(base: &Base<'_>, parts: &mut Parts) -> Vec<Arc<Uart16550>> {
    let places = [
        ("uart0", layout::COM1_PORT, layout::IRQ_COM1),
        ("uart1", layout::COM2_PORT, layout::IRQ_COM2),
    ];
    let mut serial = Vec::new();
    for ((name, port, irq), output) in places.into_iter().zip(&base.config.serial) {
        let line = base.lines.driver(irq);
        let uart = Uart16550::new(name, &base.around.timers, line, Arc::clone(output));
        parts.chip(&uart);
        parts.ports.push((port, 8, Arc::clone(&uart) as _));
        serial.push(uart);
    }
    serial
}

fn debug_devices(base: &Base<'_>, parts: &mut Parts) {
    if let Some((port, output)) = &base.config.debugcon {
        let debugcon = Debugcon::new(Arc::clone(output));
        parts.chip(&debugcon);
        parts.ports.push((*port, 1, debugcon));
    }
    if let Some(DebugExitPorts { first, count }) = base.config.debug_exit {
        let debug_exit = DebugExit::new(Arc::clone(&base.around.power));
        parts.chip(&debug_exit);
        parts.ports.push((first, count, debug_exit));
    }
    if let Some(flush) = &base.config.pc_testdev {
        let drivers = (0..LINE_COUNT).map(|line| base.lines.driver(line)).collect();
        let testdev = PcTestdev::new(Arc::new(DriverOfAll(drivers)), flush.clone());
        parts.chip(&testdev);
        for (first, count, range) in [
            (pc_testdev::SCRATCH_PORT, 4, TestRange::Scratch),
            (pc_testdev::FLUSH_PORT, 4, TestRange::Flush),
            (pc_testdev::SCRATCH_ALIAS_PORT, 1, TestRange::Scratch),
            (pc_testdev::LINES_PORT, pc_testdev::LINE_COUNT, TestRange::Lines),
        ] {
            parts.ports.push((first, count, testdev.range(range)));
        }
        let mmio = testdev.range(TestRange::Mmio);
        parts.memory.push((pc_testdev::MMIO_BASE, pc_testdev::MMIO_BYTES, mmio));
    }
}

struct Bridges {
    bus: Arc<PciBus>,
    host: Arc<HostBridge>,
    isa: Arc<IsaBridge>,
    pirq: Arc<PirqRouter>,
}

fn pci_bus(
    base: &Base<'_>,
    plan: RamPlan,
    reset_control: Arc<dyn Device>,
    parts: &mut Parts,
) -> Bridges {
    let form = base.config.form;
    let bus = PciBus::new();
    let isa_lines = std::array::from_fn(|irq| base.lines.driver(irq as u32));
    let pin_count = if form == Form::Q35 { PIRQ_COUNT as u32 } else { 0 };
    let pins = (0..pin_count).map(|pirq| base.lines.driver(layout::GSI_PIRQ_BASE + pirq));
    let pirq = PirqRouter::new(form, isa_lines, pins.collect());
    let ecam = Ecam::new(&bus);
    let host = HostBridge::new(form, plan, Arc::clone(&base.space), ecam);
    let isa = IsaBridge::new(form, Arc::clone(&pirq));
    // The bus is empty: nothing can be in the way.
    bus.insert(DevFn::new(0, 0), Arc::clone(&host) as _);
    bus.insert(isa_bridge::place(form), Arc::clone(&isa) as _);
    if form == Form::Pc {
        bus.insert(isa_bridge::PIIX4_PM_PLACE, Piix4Pm::new());
    }
    let mechanism1 = Mechanism1::new(Arc::clone(&bus), reset_control);
    parts.chip(&mechanism1);
    parts.ports.push((layout::PCI_CONFIG_PORT, mechanism1::PORT_COUNT, mechanism1));
    Bridges { bus, host, isa, pirq }
}

#[cfg(test)]
mod tests;
