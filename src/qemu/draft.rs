//! What the options read so far add up to.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::key_values::split_commas;
use super::{Stop, monitor};
use crate::cli::values;
use crate::config::{
    Backend, BackendConfig, Boot, Config, DeviceConfig, Endpoint, Form, GdbConfig, JitConfig,
    ModuleFile,
};
use crate::logging::LogConfig;

/// How many serial ports the board has.
const SERIAL_MAX: usize = 2;
/// QEMU's default RAM.
const MEMORY_BYTES: u64 = 128 << 20;
/// The port of `-debugcon`.
const DEBUGCON_PORT: &str = "0xe9";

/// What a port is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plug {
    /// Nothing; a serial port is there only if another one follows.
    Nothing,
    /// A back-end of its own.
    Own(Backend),
    /// A back-end of `-chardev`, by its id.
    Chardev(String),
}

/// The machine as far as it is known. Options fill it in; [`Draft::finish`] checks what only all of
/// them together can say.
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<String>,
    pub(super) append: Option<String>,
    pub(super) bios: Option<PathBuf>,
    pub(super) serials: Vec<Plug>,
    pub(super) debugcon: Option<Plug>,
    /// Devices of `-device`, which come behind those of other options.
    pub(super) devices: Vec<DeviceConfig>,
    pub(super) has_defaults: bool,
    pub(super) is_nographic: bool,
    pub(super) gdb: Option<Endpoint>,
    pub(super) monitors: Vec<Plug>,
    pub(super) is_paused: bool,
    /// What is logged, and where to.
    pub(super) log: LogConfig,
    /// What the user should know of how an option was understood.
    pub(super) notes: Vec<String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            config: Config { memory_bytes: MEMORY_BYTES, form: Form::Pc, ..Config::default() },
            kernel: None,
            initrd: None,
            append: None,
            bios: None,
            serials: Vec::new(),
            debugcon: None,
            devices: Vec::new(),
            has_defaults: true,
            is_nographic: false,
            gdb: None,
            monitors: Vec::new(),
            is_paused: false,
            log: LogConfig::default(),
            notes: Vec::new(),
        }
    }
}

impl Draft {
    /// The machine, and what the user should know about it.
    pub(super) fn finish(mut self) -> Result<(Config, Vec<String>), Stop> {
        self.config.boot = self.boot()?;
        for (index, plug) in self.serials().into_iter().enumerate() {
            self.connect("isa-serial", &format!("serial{index}"), plug, None);
        }
        if let Some(plug) = self.debugcon.take() {
            self.connect("isa-debugcon", "debugcon", plug, Some(DEBUGCON_PORT));
        }
        self.config.devices.append(&mut self.devices);
        self.limit_cache();
        self.config.gdb = self.gdb.take().map(|endpoint| GdbConfig { endpoint });
        self.config.monitor = monitor::settle(self.monitors, &mut self.config)?;
        self.config.is_paused = self.is_paused;
        check(&self.config)?;
        Ok((self.config, self.notes))
    }

    /// As QEMU does, takes what is nearest to a `tb-size` that cannot be had.
    fn limit_cache(&mut self) {
        let Some(bytes) = self.config.jit.cache_bytes else { return };
        let all = |each: u64| each * u64::from(self.config.cpus);
        let taken = bytes.clamp(all(JitConfig::CPU_CACHE_MIN), all(JitConfig::CPU_CACHE_MAX));
        if taken != bytes {
            let mebibytes = taken >> 20;
            self.notes.push(format!("-accel: tb-size: the nearest that works is {mebibytes}"));
            self.config.jit.cache_bytes = Some(taken);
        }
    }

    fn boot(&mut self) -> Result<Boot, Stop> {
        let Some(kernel) = self.kernel.take() else {
            return match (&self.append, &self.initrd) {
                (Some(_), _) => Err("-append: needs -kernel".into()),
                (None, Some(_)) => Err("-initrd: needs -kernel".into()),
                (None, None) => Ok(self.bios.take().map_or(Boot::BuiltIn, Boot::Rom)),
            };
        };
        if self.bios.is_some() {
            return Err("-bios: not supported yet together with -kernel".into());
        }
        let modules = self.initrd.take().map(|files| modules(&files)).unwrap_or_default();
        Ok(Boot::Kernel { kernel, modules, append: self.append.take().unwrap_or_default() })
    }

    fn serials(&mut self) -> Vec<Plug> {
        let mut serials = std::mem::take(&mut self.serials);
        if serials.is_empty() && self.has_defaults {
            let backend = if self.is_nographic { Backend::Stdio } else { Backend::Null };
            serials.push(Plug::Own(backend));
        }
        while serials.last() == Some(&Plug::Nothing) {
            serials.pop();
        }
        serials
    }

    fn connect(&mut self, driver: &str, id: &str, plug: Plug, port: Option<&str>) {
        let chardev = match plug {
            Plug::Chardev(name) => name,
            Plug::Nothing => self.add_backend(id, Backend::Null),
            Plug::Own(backend) => self.add_backend(id, backend),
        };
        let port = port.map(|port| ("iobase".to_owned(), port.to_owned()));
        self.config.devices.push(DeviceConfig {
            id: None,
            driver: driver.to_owned(),
            bus: None,
            address: None,
            properties: port.into_iter().chain([("chardev".to_owned(), chardev)]).collect(),
        });
    }

    fn add_backend(&mut self, id: &str, backend: Backend) -> String {
        // A name that `-chardev` cannot give.
        let id = format!("#{id}");
        self.config.backends.push(BackendConfig { id: id.clone(), backend });
        id
    }
}

/// `file args,file2 args2`.
fn modules(files: &str) -> Vec<ModuleFile> {
    split_commas(files).iter().map(|file| values::module(file.as_ref())).collect()
}

/// What only the whole machine can say: each chardev exists and has one user, standard input one
/// reader, the board a connector for each port.
fn check(config: &Config) -> Result<(), Stop> {
    let mut unused = BTreeSet::new();
    for backend in &config.backends {
        if !unused.insert(backend.id.as_str()) {
            return Err(format!("-chardev: id={} is given twice", backend.id).into());
        }
    }
    for device in &config.devices {
        let driver = &device.driver;
        if let Some(id) = device.properties.get("chardev")
            && !unused.remove(id.as_str())
        {
            let known = config.backends.iter().any(|backend| backend.id == *id);
            let reason = if known { "has another user" } else { "is not given by -chardev" };
            return Err(format!("{driver}: chardev={id} {reason}").into());
        }
    }
    if config.backends.iter().filter(|backend| backend.backend == Backend::Stdio).count() > 1 {
        return Err("stdio: only one device can be connected to it".into());
    }
    let count = |driver| config.devices.iter().filter(|device| device.driver == driver).count();
    if count("isa-serial") > SERIAL_MAX {
        return Err(format!("-serial: at most {SERIAL_MAX} serial ports are supported").into());
    }
    for driver in ["isa-debugcon", "isa-debug-exit", "pc-testdev", "pci-testdev"] {
        if count(driver) > 1 {
            return Err(format!("-device: {driver}: only one is supported").into());
        }
    }
    Ok(())
}
