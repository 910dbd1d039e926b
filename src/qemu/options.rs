//! The options there are.

use super::draft::Draft;
use super::{Stop, chardev, device, help, machine, monitor, version};

/// One option.
pub(super) struct QemuOption {
    /// Its names, without dashes.
    pub(super) names: &'static [&'static str],
    /// What it does, for `-help`.
    pub(super) about: &'static str,
    pub(super) takes: Takes,
}

/// Whether an option has a value, and what it does to the machine.
pub(super) enum Takes {
    Nothing(fn(&mut Draft) -> Result<(), Stop>),
    /// With what `-help` calls the value.
    Value(&'static str, fn(&mut Draft, &str) -> Result<(), Stop>),
}

use Takes::{Nothing, Value};

const fn option(names: &'static [&'static str], about: &'static str, takes: Takes) -> QemuOption {
    QemuOption { names, about, takes }
}

/// Every option that is understood.
#[rustfmt::skip]
pub(super) const OPTIONS: &[QemuOption] = &[
    option(&["help", "h"], "this text", Nothing(|_| Err(Stop::Print(help())))),
    option(&["version"], "the version", Nothing(|_| Err(Stop::Print(version())))),

    option(&["machine", "M"], "the board", Value("[type=]q35|pc[,accel=tcg]", machine::machine)),
    option(&["accel"], "the engine",
        Value("tcg|auto|interp[,thread=single|multi][,tb-size=MIB]", machine::accel)),
    option(&["cpu"], "the processor", Value("MODEL[,+FEATURE][,-FEATURE]", cpu)),
    option(&["smp"], "number of processors", Value("[cpus=]N[,...]", machine::smp)),
    option(&["m"], "memory, in MiB without a unit", Value("[size=]SIZE", machine::memory)),
    option(&["rtc"], "the clock", Value("base=utc", machine::rtc)),

    option(&["kernel"], "Linux or Multiboot kernel", Value("FILE", |draft, file| {
        put(&mut draft.kernel, file.into())
    })),
    option(&["initrd"], "initial RAM disk, or modules", Value("FILE[ ARGS][,FILE...]",
        |draft, files| put(&mut draft.initrd, files.to_owned()))),
    option(&["append"], "the kernel's command line", Value("WORDS", |draft, words| {
        put(&mut draft.append, words.to_owned())
    })),
    option(&["bios"], "ROM image at the reset vector", Value("FILE", |draft, file| {
        put(&mut draft.bios, file.into())
    })),

    option(&["serial"], "a serial port", Value("DEVICE", chardev::serial)),
    option(&["debugcon"], "the debug console, at port 0xe9", Value("DEVICE", |draft, text| {
        put(&mut draft.debugcon, chardev::plug(text)?)
    })),
    option(&["chardev"], "what a device can be connected to",
        Value("null|stdio|file|socket,id=ID[,...]", chardev::chardev)),
    option(&["device"], "a device; `help` lists them", Value("DRIVER[,...]", device::device)),

    option(&["display"], "there is no display", Value("none", only_none)),
    option(&["vga"], "there is no display", Value("none", only_none)),
    option(&["vnc"], "there is no display", Value("none", only_none)),
    option(&["parallel"], "there is no parallel port", Value("none", only_none)),
    option(&["net", "nic"], "there is no network", Value("none", only_none)),
    option(&["monitor"], "where the monitor is",
        Value("stdio|none|unix:PATH,server|tcp:[HOST]:PORT,server", monitor::monitor)),
    option(&["mon"], "a monitor at a character device",
        Value("[chardev=]ID[,mode=readline]", monitor::mon)),
    option(&["nographic"], "the serial port on standard input and output", Nothing(|draft| {
        draft.is_nographic = true;
        Ok(())
    })),
    option(&["nodefaults"], "no serial port unless asked for", Nothing(|draft| {
        draft.has_defaults = false;
        Ok(())
    })),
    option(&["no-user-config"], "there are no configuration files", Nothing(|_| Ok(()))),

    option(&["no-reboot"], "end when the guest resets", Nothing(|draft| {
        draft.config.no_reboot = true;
        Ok(())
    })),
    option(&["no-shutdown"], "stay when the guest powers off", Nothing(|draft| {
        draft.config.no_shutdown = true;
        Ok(())
    })),
    option(&["enable-kvm"], "the host's virtualization, as -accel kvm", Nothing(|draft| {
        draft.config.accel = crate::config::Accel::Kvm;
        Ok(())
    })),
    option(&["gdb"], "serve gdb", Value("tcp:[HOST]:PORT|unix:PATH,server=on", |draft, text| {
        draft.gdb = chardev::gdb(text)?;
        Ok(())
    })),
    option(&["s"], "serve gdb, as -gdb tcp::1234", Nothing(|draft| {
        draft.gdb = chardev::gdb("tcp::1234")?;
        Ok(())
    })),
    option(&["S"], "wait for gdb or the monitor before the first instruction", Nothing(|draft| {
        draft.is_paused = true;
        Ok(())
    })),
    option(&["d"], "what to log", Value("ITEM[,...]", log_items)),
    option(&["D"], "log to a file", Value("FILE", |draft, file| {
        draft.log.file = Some(file.into());
        Ok(())
    })),
    option(&["name"], "a name for people", Value("[guest=]NAME[,...]", name)),
];

/// Items that both have, by QEMU's names.
fn log_items(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    const ITEMS: &[(&str, &str)] = &[
        ("in_asm", "in_asm"),
        ("out_asm", "out_asm"),
        ("exec", "exec"),
        ("int", "int"),
        ("mmu", "mmu"),
        ("guest_errors", "guest_error"),
        // Blocks are never chained where each is logged.
        ("nochain", "exec"),
    ];
    for item in text.split(',') {
        let ours = ITEMS.iter().find(|(name, _)| *name == item).map(|(_, ours)| *ours);
        let ours = ours.ok_or_else(|| {
            let names = ITEMS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            format!("{item}: not supported yet; take some of {names}")
        })?;
        draft.log.filters.extend(crate::logging::parse_item(ours)?);
    }
    Ok(())
}

fn put<T>(slot: &mut Option<T>, value: T) -> Result<(), Stop> {
    *slot = Some(value);
    Ok(())
}

fn only_none(_: &mut Draft, text: &str) -> Result<(), Stop> {
    match text {
        "none" => Ok(()),
        _ => Err(format!("{text}: not supported yet; take none").into()),
    }
}

/// Whether the model exists, and here, is known when it is made.
fn cpu(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    if matches!(text, "help" | "?") {
        return Err(Stop::Print(crate::cli::cpu_help()));
    }
    draft.config.cpu_model = text.to_owned();
    Ok(())
}

fn name(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = super::key_values::KeyValues::parse(text, "guest");
    draft.config.name = keys.take("guest");
    // What threads and the process are called is of no consequence to the guest.
    keys.take_switch("debug-threads")?;
    keys.take("process");
    Ok(keys.finish()?)
}
