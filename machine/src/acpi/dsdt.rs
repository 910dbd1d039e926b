//! The DSDT: the devices that no bus can enumerate, and how PCI interrupts are wired.
//!
//! Sources: ACPI 6.5, "ACPI-Defined Devices and Device-Specific Objects", "_PRT (PCI Routing
//! Table)", "_OSC (Operating System Capabilities)"; PCI Firmware Specification 3.3, "_OSC Interface
//! for PCI Host Bridge Devices" and "MCFG Table Description".

use acpi_tables::aml::{self, AddressSpace, AddressSpaceCacheable, Arg, ONE, Uuid, ZERO};

use super::AcpiConfig;
use super::aml::{
    Code, INTERRUPT_NUMBER_OFFSET, code, device, dma, eisa, give, if_then, io, irq,
    level_interrupts, list, memory32, method, name, otherwise, package, path, resources, scope,
    store,
};
use crate::acpi_pm::{SLP_TYP_S3, SLP_TYP_S5, SMI_CMD_PORT};
use crate::fw_cfg::{FW_CFG_PORT, FW_CFG_PORT_COUNT};
use crate::layout::{self, Form};
use crate::pci::isa_bridge;
use crate::pci::pirq::{PIRQ_COUNT, ROUTE_DISABLED, pirq_of};

const LINKS: [&str; PIRQ_COUNT] = ["LNKA", "LNKB", "LNKC", "LNKD", "LNKE", "LNKF", "LNKG", "LNKH"];
const ROUTE_FIELDS: [&str; PIRQ_COUNT] =
    ["PRQA", "PRQB", "PRQC", "PRQD", "PRQE", "PRQF", "PRQG", "PRQH"];
/// The root bridge's `_OSC` interface.
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the operating system may take over: PME, AER, PCI Express capability structures. There is
/// no firmware that holds on to them, and no hot plug to hand over.
const OSC_GRANTED: u8 = 0b1_1100;
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;

/// The DSDT's byte code, without its header.
pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let sleep = |kind: u8| package([code(&kind), code(&kind), code(&ZERO), code(&ZERO)]);
    let body = [
        name("_S3_", sleep(SLP_TYP_S3)),
        name("_S5_", sleep(SLP_TYP_S5)),
        // 0 in PIC mode, 1 in APIC mode: the operating system says so by _PIC.
        name("PICM", ZERO),
        method("_PIC", 1, [store(Arg(0), path("PICM"))]),
        scope("_SB_", [root_bridge(config), list(links(config.form)), board(config), cpus(config)]),
    ];
    list(body).into_bytes()
}

fn root_bridge(config: &AcpiConfig) -> Code {
    let ids = match config.form {
        Form::Q35 => list([eisa("_HID", "PNP0A08"), eisa("_CID", "PNP0A03")]),
        Form::Pc => eisa("_HID", "PNP0A03"),
    };
    let osc = (config.form == Form::Q35).then(operating_system_capabilities);
    let body = [
        ids,
        name("_UID", ZERO),
        name("_BBN", ZERO),
        resources("_CRS", windows(config)),
        list(osc),
        routing(config.form),
        isa_devices(config),
    ];
    device("PCI0", body)
}

/// What the root bridge decodes for its bus.
fn windows(config: &AcpiConfig) -> Vec<Code> {
    let ports = |first: u16, last: u16| code(&AddressSpace::new_io(first, last, None));
    let memory = |first: u64, end: u64| {
        let kind = AddressSpaceCacheable::NotCacheable;
        code(&AddressSpace::new_memory(kind, true, first as u32, (end - 1) as u32, None))
    };
    let high = config.plan.pci_window_64();
    let high_last = high + layout::PCI_WINDOW_64_BYTES - 1;
    let cacheable = AddressSpaceCacheable::Cacheable;
    let mut list = vec![
        code(&AddressSpace::new_bus_number(0u16, 255)),
        ports(0, layout::PCI_CONFIG_PORT - 1),
        io(layout::PCI_CONFIG_PORT, 8),
        ports(layout::PCI_CONFIG_PORT + 8, 0xffff),
        memory(layout::CONVENTIONAL_END, layout::SHADOW_BASE),
    ];
    match config.form {
        Form::Q35 => {
            let ecam_end = layout::ECAM_BASE + layout::ECAM_BYTES;
            list.push(memory(layout::PCI_WINDOW_BASE, layout::ECAM_BASE));
            list.push(memory(ecam_end, layout::PCI_WINDOW_END));
        }
        Form::Pc => list.push(memory(layout::PCI_WINDOW_BASE, layout::PCI_WINDOW_END)),
    }
    list.push(code(&AddressSpace::new_memory(cacheable, true, high, high_last, None)));
    list
}

/// `_OSC`: grants what [`OSC_GRANTED`] says of what is asked for.
fn operating_system_capabilities() -> Code {
    let field =
        |field: &str, offset: u8| code(&aml::CreateDWordField::new(&path(field), &Arg(3), &offset));
    let set_error = |bit: u8| code(&aml::Or::new(&path("CDW1"), &path("CDW1"), &bit));
    let known = [
        field("CDW3", 8),
        code(&aml::And::new(&aml::Local(0), &path("CDW3"), &OSC_GRANTED)),
        if_then(&aml::NotEqual::new(&Arg(1), &ONE), [set_error(OSC_UNKNOWN_REVISION)]),
        if_then(&aml::NotEqual::new(&path("CDW3"), &aml::Local(0)), [set_error(OSC_MASKED)]),
        store(aml::Local(0), path("CDW3")),
    ];
    let body = [
        field("CDW1", 0),
        if_then(&aml::Equal::new(&Arg(0), &Uuid::new(OSC_UUID)), known),
        otherwise([set_error(OSC_UNKNOWN_UUID)]),
        give(Arg(3)),
    ];
    method("_OSC", 4, body)
}

/// `_PRT`: by links where the PIC is in use and on `pc`, by I/O APIC pins on q35.
fn routing(form: Form) -> Code {
    let entries = |target: &dyn Fn(usize) -> [Code; 2]| {
        let pins = (0..32u8).flat_map(|device| (0..4u8).map(move |pin| (device, pin)));
        let entries = pins.map(|(device, pin)| {
            let address = u32::from(device) << 16 | 0xffff;
            let [source, index] = target(pirq_of(form, device, pin));
            code(&package([code(&address), code(&pin), source, index]))
        });
        package(entries)
    };
    let by_link = entries(&|pirq| {
        let link = LINKS.get(pirq).copied().unwrap_or("LNKA");
        [code(&path(link)), code(&ZERO)]
    });
    if form == Form::Pc {
        return name("_PRT", by_link);
    }
    let by_pin = entries(&|pirq| [code(&ZERO), code(&(layout::GSI_PIRQ_BASE + pirq as u32))]);
    list([
        name("PRTP", by_link),
        name("PRTA", by_pin),
        method("_PRT", 0, [if_then(&path("PICM"), [give(path("PRTA"))]), give(path("PRTP"))]),
    ])
}

/// The interrupt links: PIRQs as devices, whose setting is the ISA bridge's route register.
fn links(form: Form) -> Vec<Code> {
    let count = if form == Form::Q35 { PIRQ_COUNT } else { 4 };
    LINKS.iter().zip(ROUTE_FIELDS).zip(0u8..).take(count).map(|((l, f), n)| link(l, f, n)).collect()
}

fn link(link: &str, route: &str, number: u8) -> Code {
    const DISABLED: u8 = ROUTE_DISABLED;
    const PRESENT: u8 = 0x9;
    const PRESENT_ENABLED: u8 = 0xb;
    let route = || path(&format!("\\_SB_.PCI0.ISA_.{route}"));
    let irqs: Vec<u32> = (0..16).filter(|irq| layout::PCI_LINK_IRQS >> irq & 1 != 0).collect();
    let number_field = |buffer: &dyn acpi_tables::Aml| {
        let offset = INTERRUPT_NUMBER_OFFSET;
        code(&aml::CreateDWordField::new(&path("IRQN"), buffer, &offset))
    };
    let disabled = aml::And::new(&ZERO, &route(), &DISABLED).into_code();
    let current = [
        number_field(&path("PRRT")),
        code(&aml::And::new(&path("IRQN"), &route(), &0x0f_u8)),
        give(path("PRRT")),
    ];
    device(
        link,
        [
            eisa("_HID", "PNP0C0F"),
            name("_UID", number),
            resources("_PRS", [level_interrupts(&irqs)]),
            resources("PRRT", [level_interrupts(&[0])]),
            method("_STA", 0, [if_then(&disabled, [give(PRESENT)]), give(PRESENT_ENABLED)]),
            method("_DIS", 0, [code(&aml::Or::new(&route(), &route(), &DISABLED))]),
            method("_CRS", 0, current),
            method("_SRS", 1, [number_field(&Arg(0)), store(path("IRQN"), route())]),
        ],
    )
}

/// `code` as a method, where a term must be built from temporaries that do not outlive a statement.
trait IntoCode {
    fn into_code(self) -> Code;
}

impl<T: acpi_tables::Aml> IntoCode for T {
    fn into_code(self) -> Code {
        code(&self)
    }
}

/// The ISA bridge with its route registers and what sits behind it.
fn isa_devices(config: &AcpiConfig) -> Code {
    let place = isa_bridge::place(config.form);
    let address = u32::from(place.device()) << 16 | u32::from(place.function());
    let named = |name: &&str| {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        aml::FieldEntry::Named(bytes, 8)
    };
    let (low, high) = ROUTE_FIELDS.split_at(4);
    let mut fields: Vec<aml::FieldEntry> = low.iter().map(named).collect();
    if config.form == Form::Q35 {
        fields.push(aml::FieldEntry::Reserved(32));
        fields.extend(high.iter().map(named));
    }
    let routes = aml::Field::new(
        path("PIRQ"),
        aml::FieldAccessType::Byte,
        aml::FieldLockRule::NoLock,
        aml::FieldUpdateRule::Preserve,
        fields,
    );
    let region = aml::OpRegionSpace::PCIConfig;
    let body = [
        name("_ADR", address),
        code(&aml::OpRegion::new(path("PIRQ"), region, &0x60_u8, &0x0c_u8)),
        code(&routes),
        list(legacy_devices()),
        list(serial_ports(config)),
        list(firmware_config(config)),
    ];
    device("ISA_", body)
}

/// A device with an EISA ID and fixed resources.
fn fixed(device_name: &str, id: &str, current: impl IntoIterator<Item = Code>) -> Code {
    device(device_name, [eisa("_HID", id), resources("_CRS", current)])
}

fn legacy_devices() -> [Code; 8] {
    [
        fixed("PIC_", "PNP0000", [io(0x20, 2), io(0xa0, 2), io(0x4d0, 2), irq(2)]),
        fixed("DMAC", "PNP0200", [io(0, 16), io(0x81, 15), io(0xc0, 32), dma(4)]),
        fixed("TMR_", "PNP0100", [io(0x40, 4), irq(layout::IRQ_PIT)]),
        fixed("RTC_", "PNP0B00", [io(0x70, 8), irq(layout::IRQ_RTC)]),
        fixed("SPKR", "PNP0800", [io(0x61, 1)]),
        fixed("FPU_", "PNP0C04", [io(0xf0, 1), irq(13)]),
        fixed("KBD_", "PNP0303", [io(0x60, 1), io(0x64, 1), irq(layout::IRQ_KEYBOARD)]),
        // The mouse shares the controller's ports, which are the keyboard's to list.
        fixed("MOU_", "PNP0F13", [irq(layout::IRQ_MOUSE)]),
    ]
}

fn serial_ports(config: &AcpiConfig) -> Vec<Code> {
    let ports = [
        ("COM1", layout::COM1_PORT, layout::IRQ_COM1),
        ("COM2", layout::COM2_PORT, layout::IRQ_COM2),
    ];
    let present = ports.into_iter().zip(1u8..).take(usize::from(config.serial_ports));
    let port = |((port_name, port, line), number)| {
        device(
            port_name,
            [
                eisa("_HID", "PNP0501"),
                name("_UID", number),
                resources("_CRS", [io(port, 8), irq(line)]),
            ],
        )
    };
    present.map(port).collect()
}

fn firmware_config(config: &AcpiConfig) -> Option<Code> {
    config.has_fw_cfg.then(|| {
        device(
            "FWCF",
            [
                name("_HID", "QEMU0002"),
                name("_STA", 0x0b_u8),
                resources("_CRS", [io(FW_CFG_PORT, FW_CFG_PORT_COUNT as u8)]),
            ],
        )
    })
}

/// What the board itself takes, so that nothing is put there; and the HPET.
fn board(config: &AcpiConfig) -> Code {
    // As much as Linux takes for the bridge already, or it complains of a range that overlaps.
    let pm_ports = match config.form {
        Form::Q35 => layout::PM_BYTES as u8,
        Form::Pc => layout::PIIX4_PM_BYTES,
    };
    // The I/O APIC is not here: Linux takes its registers by the MADT before it reads this, and
    // then complains of a page that it cannot have as a whole.
    let mut taken = vec![
        io(layout::PM_BASE, pm_ports),
        io(SMI_CMD_PORT, 2),
        memory32(layout::LAPIC_BASE, layout::LAPIC_BYTES),
    ];
    if config.form == Form::Q35 {
        taken.push(memory32(layout::ECAM_BASE, layout::ECAM_BYTES));
    }
    list([
        device("MBRD", [eisa("_HID", "PNP0C02"), name("_UID", ONE), resources("_CRS", taken)]),
        fixed("HPET", "PNP0103", [memory32(layout::HPET_BASE, 1024)]),
    ])
}

/// A processor device for each MADT entry, with the same `_UID`.
fn cpus(config: &AcpiConfig) -> Code {
    let cpu = |number: u32| {
        let uid = name("_UID", number);
        device(&format!("C{number:03X}"), [name("_HID", "ACPI0007"), uid])
    };
    let container = [name("_HID", "ACPI0010"), eisa("_CID", "PNP0A05")];
    device("CPUS", container.into_iter().chain((0..config.cpu_count).map(cpu)))
}
