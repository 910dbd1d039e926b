//! `-device`.

use std::collections::BTreeMap;

use super::Stop;
use super::chardev::is_id;
use super::draft::Draft;
use super::key_values::KeyValues;
use crate::cli::values;
use crate::config::DeviceConfig;

/// What a property takes.
#[derive(Clone, Copy)]
enum Kind {
    /// The id of a chardev, which must be given.
    Chardev,
    /// An I/O port, with QEMU's default.
    Port(&'static str),
    /// A number of I/O ports, with QEMU's default.
    PortCount(&'static str),
}

struct Driver {
    name: &'static str,
    about: &'static str,
    properties: &'static [(&'static str, Kind)],
}

#[rustfmt::skip]
const DRIVERS: &[Driver] = &[
    Driver { name: "isa-serial", about: "16550A serial port",
        properties: &[("chardev", Kind::Chardev)] },
    Driver { name: "isa-debugcon", about: "port whose bytes go to a chardev",
        properties: &[("chardev", Kind::Chardev), ("iobase", Kind::Port("0xe9"))] },
    Driver { name: "isa-debug-exit", about: "port that ends the machine with a status",
        properties: &[("iobase", Kind::Port("0x501")), ("iosize", Kind::PortCount("2"))] },
    Driver { name: "pc-testdev", about: "kvm-unit-tests' ports and memory", properties: &[] },
    Driver { name: "pci-testdev", about: "kvm-unit-tests' PCI function", properties: &[] },
];

/// `-device DRIVER,...`.
pub(super) fn device(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "driver");
    let name = keys.take("driver").unwrap_or_default();
    if matches!(name.as_str(), "help" | "?") {
        return Err(Stop::Print(help()));
    }
    let driver = DRIVERS.iter().find(|driver| driver.name == name);
    let driver = driver.ok_or_else(|| {
        format!("{name}: not supported yet; `-device help` lists the devices there are")
    })?;
    let in_driver = |reason: String| format!("{name}: {reason}");
    let id = keys.take("id");
    if let Some(id) = id.as_deref().filter(|id| !is_id(id)) {
        return Err(in_driver(format!("id={id}: an id starts with a letter")).into());
    }
    let mut properties = BTreeMap::new();
    for &(key, kind) in driver.properties {
        let value = property(key, kind, &mut keys).map_err(in_driver)?;
        properties.insert(key.to_owned(), value);
    }
    keys.finish().map_err(in_driver)?;
    draft.devices.push(DeviceConfig { id, driver: name, bus: None, address: None, properties });
    Ok(())
}

fn property(key: &str, kind: Kind, keys: &mut KeyValues) -> Result<String, String> {
    let value = keys.take(key);
    let number = |text: &str, range: std::ops::RangeInclusive<u64>| {
        let number = values::number(text).filter(|number| range.contains(number));
        number
            .ok_or_else(|| format!("{key}={text}: take {:#x} to {:#x}", range.start(), range.end()))
    };
    match kind {
        Kind::Chardev => value.ok_or_else(|| format!("needs {key}=ID")),
        Kind::Port(default) => {
            let text = value.unwrap_or_else(|| default.to_owned());
            number(&text, 0..=0xffff).map(|port| format!("{port:#x}"))
        }
        Kind::PortCount(default) => {
            let text = value.unwrap_or_else(|| default.to_owned());
            number(&text, 1..=4).map(|count| count.to_string())
        }
    }
}

fn help() -> String {
    let rows = DRIVERS.iter().map(|driver| format!("name \"{}\", {}\n", driver.name, driver.about));
    rows.collect()
}
