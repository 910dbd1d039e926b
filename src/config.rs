//! What machine to make and how to run it: plain data, built by both command lines.
//!
//! A machine is a tree of devices ([`DeviceConfig`]) and the back-ends they are connected to
//! ([`BackendConfig`]). Nothing here opens a file or asks the host; [`crate::vm`] does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use crate::names::SymbolFile;
use crate::profile::ProfileConfig;
use cpu::recording::Wishes;

/// Which engine executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// The best one that works here.
    Auto,
    /// The host's KVM.
    Kvm,
    /// The translator.
    Jit,
    /// The interpreter.
    Interp,
}

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The interpreter.
    Interp,
    /// The translator.
    Jit,
    /// The host's KVM.
    Kvm,
}

impl fmt::Display for EngineKind {
    /// As the command line names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interp => "interp",
            Self::Jit => "jit",
            Self::Kvm => "kvm",
        })
    }
}

/// When the engine is changed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SwitchPlan {
    /// Never.
    Never,
    /// At these guest times in nanoseconds, in their order.
    At(Vec<(u64, EngineKind)>),
    /// Each time when so many nanoseconds have passed: to the next engine of the machine's, and
    /// behind the last to the first.
    Every(u64),
}

/// How the translator works, where it is the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JitConfig {
    /// Bytes of translated code that all CPUs together keep; none for the default.
    pub(crate) cache_bytes: Option<u64>,
    /// Guest instructions in a block at most.
    pub(crate) block_size: usize,
    /// How often a jump is taken until its target becomes a superblock; 0 for never, none for the
    /// translator's own number.
    pub(crate) superblock_after: Option<u32>,
    /// Overwrite the registers that a call may change, to find code that relies on them.
    pub(crate) trash_helpers: bool,
    /// Have the interpreter execute every block too, and compare.
    pub(crate) cross_check: bool,
    /// Count the accesses that look into the TLB.
    pub(crate) count_accesses: bool,
    /// Tell perf where translated code is.
    pub(crate) perf_map: bool,
}

impl JitConfig {
    /// The longest blocks there are.
    pub(crate) const BLOCK_SIZE_MAX: usize = 64;
    /// The least code that a CPU keeps, most, and without a word about it.
    pub(crate) const CPU_CACHE_MIN: u64 = 4 << 20;
    pub(crate) const CPU_CACHE_MAX: u64 = 1 << 30;
    const CPU_CACHE_DEFAULT: u64 = 256 << 20;

    /// Bytes of translated code that each of `cpus` keeps.
    pub(crate) fn cpu_cache_bytes(&self, cpus: u32) -> u64 {
        let each = |bytes: u64| bytes / u64::from(cpus.max(1));
        self.cache_bytes
            .map_or(Self::CPU_CACHE_DEFAULT, each)
            .clamp(Self::CPU_CACHE_MIN, Self::CPU_CACHE_MAX)
    }
}

impl Default for JitConfig {
    fn default() -> Self {
        Self {
            cache_bytes: None,
            block_size: Self::BLOCK_SIZE_MAX,
            superblock_after: None,
            trash_helpers: false,
            cross_check: false,
            count_accesses: false,
            perf_map: false,
        }
    }
}

/// A trace of what is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceConfig {
    /// The file.
    pub(crate) path: PathBuf,
    /// What is recorded of each processor.
    pub(crate) wishes: Wishes,
    /// The only processor that is recorded, if not all are.
    pub(crate) cpu: Option<u16>,
    /// About how long the file may get; it has the newest part then.
    pub(crate) ring_bytes: Option<u64>,
    /// Where recording begins and ends, as the user has said it.
    pub(crate) from: String,
    /// See `from`.
    pub(crate) to: String,
    /// Keys with values that name symbols, which are looked up when the trace begins.
    pub(crate) named: Vec<(String, String)>,
}

/// How vCPUs share the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduler {
    /// One host thread each.
    Parallel,
    /// All on one thread in fixed slices of instructions.
    Serial,
}

/// What guest time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeBase {
    /// The host's monotonic time, less the time the machine was stopped.
    Host,
    /// A function of retired instructions; the wall clock starts at a fixed date.
    Counted {
        /// Guest nanoseconds an instruction takes.
        ns_per_instruction: u64,
    },
}

/// The chip set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Q35: PCI Express with ECAM, ICH9 LPC.
    Q35,
    /// i440FX: PCI, PIIX3.
    Pc,
}

/// A file for the guest beside its kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModuleFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its command line, which Multiboot guests see.
    pub(crate) arguments: String,
}

/// What the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    /// A kernel, loaded straight into memory.
    Kernel {
        /// The kernel file.
        kernel: PathBuf,
        /// The initrd, or Multiboot modules.
        modules: Vec<ModuleFile>,
        /// The kernel command line.
        append: String,
    },
    /// A ROM image at the reset vector.
    Rom(PathBuf),
    /// The guest in the program itself.
    BuiltIn,
}

/// Where a character device's bytes go to and come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Nowhere.
    Null,
    /// This process's standard input and output.
    Stdio,
    /// Output to a file.
    File(PathBuf),
    /// A listening Unix socket, one client at a time.
    Unix(PathBuf),
    /// A listening TCP socket (`HOST:PORT`), one client at a time.
    Tcp(String),
}

/// Where a debugger connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// A listening Unix socket.
    Unix(PathBuf),
    /// A listening TCP socket, `HOST:PORT`.
    Tcp(String),
}

impl Endpoint {
    /// Where a back-end listens, if it does.
    pub(crate) fn of(backend: &Backend) -> Option<Self> {
        match backend {
            Backend::Unix(path) => Some(Self::Unix(path.clone())),
            Backend::Tcp(address) => Some(Self::Tcp(address.clone())),
            Backend::Null | Backend::Stdio | Backend::File(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
            Self::Tcp(address) => write!(out, "tcp:{address}"),
        }
    }
}

/// The server of gdb's remote protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GdbConfig {
    /// Where it listens.
    pub(crate) endpoint: Endpoint,
}

/// Whether standard input and output have a monitor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StdioMonitor {
    /// They have none.
    Never,
    /// They have one where the guest uses them and they are a terminal.
    #[default]
    OnTerminal,
    /// They have one, which shares them with the guest if that uses them.
    Always,
}

/// Where monitors are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MonitorConfig {
    /// On standard input and output.
    pub(crate) stdio: StdioMonitor,
    /// Where they listen.
    pub(crate) sockets: Vec<Endpoint>,
}

/// A back-end with the name devices refer to it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendConfig {
    /// The name, unique among back-ends.
    pub(crate) id: String,
    /// What it is.
    pub(crate) backend: Backend,
}

/// A device of the machine beyond what every PC has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceConfig {
    /// The name, if the user gave one.
    pub(crate) id: Option<String>,
    /// The kind: `isa-serial`, `isa-debug-exit`, `isa-debugcon`, `pc-testdev`, `pci-testdev`.
    pub(crate) driver: String,
    /// The bus, if the user gave one.
    pub(crate) bus: Option<String>,
    /// The address on the bus, if the user gave one.
    pub(crate) address: Option<String>,
    /// Everything else: `chardev=`, `iobase=` and their like.
    pub(crate) properties: BTreeMap<String, String>,
}

/// A machine and how to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// A name for people.
    pub(crate) name: Option<String>,
    /// The engine.
    pub(crate) accel: Accel,
    /// The engines that the machine may be moved to while it runs, beside the one it starts on.
    pub(crate) switch_engines: Vec<EngineKind>,
    /// When it is.
    pub(crate) switch_plan: SwitchPlan,
    /// How the translator works.
    pub(crate) jit: JitConfig,
    /// The number of CPUs.
    pub(crate) cpus: u32,
    /// RAM in bytes, a multiple of 4096.
    pub(crate) memory_bytes: u64,
    /// CPU model and features: `MODEL[,+feat,-feat]`.
    pub(crate) cpu_model: String,
    /// The chip set.
    pub(crate) form: Form,
    /// What to boot.
    pub(crate) boot: Boot,
    /// Devices beyond what every PC has.
    pub(crate) devices: Vec<DeviceConfig>,
    /// Back-ends of character devices.
    pub(crate) backends: Vec<BackendConfig>,
    /// The board has an 8254.
    pub(crate) has_pit: bool,
    /// A guest reset ends the program.
    pub(crate) no_reboot: bool,
    /// A guest power-off stops the machine and leaves the program running.
    pub(crate) no_shutdown: bool,
    /// How vCPUs share the host.
    pub(crate) scheduler: Scheduler,
    /// What guest time is.
    pub(crate) time: TimeBase,
    /// Print figures about the run at its end.
    pub(crate) stats: bool,
    /// The server of gdb's remote protocol, if there is one.
    pub(crate) gdb: Option<GdbConfig>,
    /// Where monitors are.
    pub(crate) monitor: MonitorConfig,
    /// The machine waits for gdb or a monitor before its first instruction.
    pub(crate) is_paused: bool,
    /// What is recorded, if something is.
    pub(crate) trace: Option<TraceConfig>,
    /// Files with names of the guest's addresses.
    pub(crate) symbols: Vec<SymbolFile>,
    /// Where the names go that are known when the guest ends or resets.
    pub(crate) save_symbols: Option<PathBuf>,
    /// The profile that is to be made.
    pub(crate) profile: Option<ProfileConfig>,
}

impl Default for Config {
    /// The machine of `volvelle run` without options: the built-in guest on a q35.
    fn default() -> Self {
        Self {
            name: None,
            accel: Accel::Auto,
            switch_engines: Vec::new(),
            switch_plan: SwitchPlan::Never,
            jit: JitConfig::default(),
            cpus: 1,
            memory_bytes: 512 << 20,
            cpu_model: "max".into(),
            form: Form::Q35,
            boot: Boot::BuiltIn,
            devices: Vec::new(),
            backends: Vec::new(),
            has_pit: true,
            no_reboot: false,
            no_shutdown: false,
            scheduler: Scheduler::Parallel,
            time: TimeBase::Host,
            stats: false,
            gdb: None,
            monitor: MonitorConfig::default(),
            is_paused: false,
            trace: None,
            symbols: Vec::new(),
            save_symbols: None,
            profile: None,
        }
    }
}

impl Config {
    /// True if the machine has a device of kind `driver`.
    pub(crate) fn has_device(&self, driver: &str) -> bool {
        self.devices.iter().any(|device| device.driver == driver)
    }
}
