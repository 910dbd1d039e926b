//! Options of QEMU's that ask for what Volvelle has not.

/// Options by what they need. Those not listed are no options of QEMU's that we know.
#[rustfmt::skip]
const REASONS: &[(&str, &[&str])] = &[
    ("there are no disks", &[
        "drive", "blockdev", "hda", "hdb", "hdc", "hdd", "fda", "fdb", "cdrom", "sd", "pflash",
        "mtdblock", "snapshot", "boot", "fsdev", "virtfs", "iscsi",
    ]),
    ("there is no network", &["netdev"]),
    ("there is no display", &["spice", "sdl", "gtk", "full-screen", "g", "k", "audiodev", "audio"]),
    ("there is no USB", &["usb", "usbdevice"]),
    ("there is no QMP", &["qmp", "qmp-pretty"]),
    ("there are no configuration files", &["readconfig", "preconfig"]),
    ("logging is set by -d and `volvelle run --log`", &["dfilter", "trace", "singlestep"]),
    ("counted time is set by `volvelle run --clock icount`", &["icount"]),
    ("memory is never locked", &["overcommit"]),
    ("machines cannot be saved", &["incoming", "loadvm", "only-migratable"]),
    ("memory is plain", &["object", "mem-path", "mem-prealloc", "numa"]),
    ("the firmware's tables are fixed", &[
        "acpitable", "smbios", "uuid", "fw_cfg",
        "no-acpi", "no-hpet",
    ]),
    ("the process stays as it was started", &[
        "daemonize", "pidfile", "run-with", "runas", "chroot", "sandbox", "msg", "L",
    ]),
    ("properties have their defaults", &["global", "set", "action", "watchdog-action"]),
];

/// Why `-name` cannot be followed.
pub(super) fn reason(name: &str) -> String {
    match REASONS.iter().find(|(_, names)| names.contains(&name)) {
        Some((reason, _)) => format!("-{name}: not supported yet ({reason})"),
        None => format!("-{name}: no such option; `-help` lists what there is"),
    }
}
