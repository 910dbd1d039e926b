//! `volvelle run`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::jit::JitArguments;
use super::{Action, Launch, values};
use crate::config::{
    Accel, Backend, BackendConfig, Boot, Config, DeviceConfig, Endpoint, EngineKind, Form,
    GdbConfig, ModuleFile, MonitorConfig, Scheduler, StdioMonitor, SwitchPlan, TimeBase,
    TraceConfig,
};
use crate::exit::{self, Dialect};
use crate::logging::{self, LogConfig};
use crate::names::SymbolFile;
use crate::profile::ProfileConfig;

/// Where test suites expect the port that ends the machine.
const DEBUG_EXIT_PORT: &str = "0xf4";
/// The port of the debug console, which no option moves.
const DEBUGCON_PORT: &str = "0xe9";

#[derive(Args)]
#[command(after_help = exit::help())]
pub(super) struct RunArguments {
    /// Linux (bzImage or ELF with a PVH entry), or a Multiboot kernel
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk; Multiboot: a module, and more with each use
    #[arg(
        long,
        value_name = "FILE[ ARGS]",
        help_heading = "Guest",
        value_parser = OsStringValueParser::new().map(|text| values::module(&text))
    )]
    initrd: Vec<ModuleFile>,
    /// The kernel's command line
    #[arg(long, value_name = "WORDS", help_heading = "Guest")]
    #[arg(allow_hyphen_values = true)]
    append: Option<String>,
    /// A ROM image, started at the reset vector
    #[arg(long, value_name = "FILE", help_heading = "Guest", conflicts_with = "kernel")]
    bios: Option<PathBuf>,

    /// Chip set
    #[arg(long, value_enum, default_value_t = Machine::Q35, help_heading = "Machine")]
    machine: Machine,
    /// Number of processors, 1 to 255
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Machine")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Memory, with its unit: K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M", help_heading = "Machine")]
    #[arg(value_parser = values::memory)]
    memory: u64,
    /// Processor; `help` lists the models
    #[arg(long, value_name = "MODEL[,+FEATURE,-FEATURE]", default_value = "max")]
    #[arg(value_parser = values::cpu_model, help_heading = "Machine")]
    cpu: String,
    /// Serial port: stdio, none, file:PATH, unix:PATH or tcp:HOST:PORT
    #[arg(long, value_name = "WHERE", default_value = "stdio", help_heading = "Machine")]
    #[arg(value_parser = values::backend)]
    serial: Backend,
    /// Debug console at port 0xe9, to where a serial port can go
    #[arg(long, value_name = "WHERE", help_heading = "Machine", value_parser = values::backend)]
    debugcon: Option<Backend>,
    /// A port through which the guest ends the run [default port: 0xf4]
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = DEBUG_EXIT_PORT, value_parser = values::port)]
    #[arg(help_heading = "Machine")]
    debug_exit: Option<u16>,

    /// Engine: auto, kvm, jit (the translator) or interp (the interpreter)
    #[arg(long, value_name = "ENGINE", default_value = "auto", help_heading = "Run")]
    #[arg(value_parser = values::accel)]
    accel: Accel,
    /// Engines that the machine may be moved to, beside that of --accel
    #[arg(long, value_name = "ENGINES", value_delimiter = ',', help_heading = "Run")]
    #[arg(value_parser = values::engine)]
    switch_engines: Vec<EngineKind>,
    /// Move it to an engine at a time, such as jit@10s; and more with each use
    #[arg(long, value_name = "ENGINE@TIME", help_heading = "Run")]
    #[arg(value_parser = values::engine_at)]
    switch_to: Vec<(u64, EngineKind)>,
    /// Move it to the next of its engines each time, such as 50ms
    #[arg(long, value_name = "TIME", help_heading = "Run", conflicts_with = "switch_to")]
    #[arg(value_parser = values::time)]
    switch_every: Option<u64>,
    /// Processors on host threads of their own, or in turn on one
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Run")]
    sched: Option<Sched>,
    /// Guest time: host, or icount[=NS], NS nanoseconds an instruction
    #[arg(long, value_name = "TIME", default_value = "host", help_heading = "Run")]
    #[arg(value_parser = values::clock)]
    clock: TimeBase,
    /// End when the guest resets, instead of starting it again
    #[arg(long, help_heading = "Run")]
    no_reboot: bool,

    #[command(flatten)]
    jit: JitArguments,

    /// What to log: TARGET[=LEVEL] or LEVEL; `help` lists the targets
    #[arg(long, value_name = "ITEMS", value_delimiter = ',', help_heading = "Diagnostics")]
    log: Vec<String>,
    /// Log to a file instead of standard error
    #[arg(long, value_name = "FILE", help_heading = "Diagnostics")]
    log_file: Option<PathBuf>,
    /// Serve gdb's remote protocol: tcp:HOST:PORT or unix:PATH
    #[arg(long, value_name = "WHERE", help_heading = "Diagnostics")]
    #[arg(value_parser = values::endpoint)]
    gdb: Option<Endpoint>,
    /// Where the monitor is: stdio, none, unix:PATH or tcp:HOST:PORT; and more with each use
    #[arg(long, value_name = "WHERE", help_heading = "Diagnostics")]
    #[arg(value_parser = values::monitor)]
    monitor: Vec<Backend>,
    /// Wait for gdb or the monitor before the first instruction
    #[arg(long, help_heading = "Diagnostics")]
    paused: bool,
    /// Record what is executed. Keys: what=insn+int+..., size=SIZE, range=A-B, cpu=N, cpl=N, cr3=X,
    /// from=WHERE and to=WHERE
    #[arg(long, value_name = "FILE[,KEY=VALUE]", help_heading = "Diagnostics")]
    #[arg(value_parser = super::trace::trace)]
    trace: Option<TraceConfig>,
    /// Names for addresses: an ELF file or a System.map, at BASE; and more with each use
    #[arg(long, value_name = "FILE[@BASE]", help_heading = "Diagnostics")]
    #[arg(value_parser = OsStringValueParser::new().map(|text| values::symbols(&text)))]
    symbols: Vec<SymbolFile>,
    /// Write the names of addresses at the end, the kernel's own too, for `volvelle trace`
    #[arg(long, value_name = "FILE", help_heading = "Diagnostics")]
    save_symbols: Option<PathBuf>,
    /// Sample the guest and draw a flame graph; its stacks go beside it as .folded
    #[arg(long, value_name = "FILE[,hz=N][,cpl=N]", help_heading = "Diagnostics")]
    #[arg(value_parser = values::profile)]
    profile: Option<ProfileConfig>,
    /// Print figures about the run at its end, on standard error
    #[arg(long, help_heading = "Diagnostics")]
    stats: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Machine {
    Q35,
    Pc,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sched {
    Parallel,
    Serial,
}

impl RunArguments {
    /// What these arguments ask for, or the line that says why not.
    pub(super) fn into_action(self) -> Result<Action, String> {
        if self.cpu == "help" {
            return Ok(Action::Print(super::cpu_help()));
        }
        if self.log.iter().any(|item| item == "help") {
            return Ok(Action::Print(logging::help()));
        }
        let log = self.log_config()?;
        Ok(Action::Run(Box::new(Launch {
            config: self.into_config()?,
            log,
            dialect: Dialect::Native,
            notes: Vec::new(),
        })))
    }

    fn log_config(&self) -> Result<LogConfig, String> {
        let filters =
            self.log.iter().map(|item| logging::parse_item(item)).collect::<Result<Vec<_>, _>>();
        let filters = filters.map_err(|error| format!("--log: {error}"))?.concat();
        Ok(LogConfig { filters, file: self.log_file.clone() })
    }

    fn into_config(self) -> Result<Config, String> {
        let scheduler = self.scheduler()?;
        let (devices, backends) = self.devices()?;
        let (switch_engines, switch_plan) = self.switching()?;
        let has_jit = switch_engines.contains(&EngineKind::Jit);
        let translates = if has_jit { Accel::Jit } else { self.accel };
        let jit = self.jit.config(translates, self.cpus)?;
        let monitor = monitor(&self.monitor);
        let profile = profile(self.profile, scheduler)?;
        let boot = boot(self.kernel, self.initrd, self.append, self.bios)?;
        Ok(Config {
            accel: self.accel,
            switch_engines,
            switch_plan,
            jit,
            cpus: self.cpus,
            memory_bytes: self.memory,
            cpu_model: self.cpu,
            form: match self.machine {
                Machine::Q35 => Form::Q35,
                Machine::Pc => Form::Pc,
            },
            boot,
            devices,
            backends,
            has_pit: true,
            no_reboot: self.no_reboot,
            scheduler,
            time: self.clock,
            stats: self.stats,
            gdb: self.gdb.map(|endpoint| GdbConfig { endpoint }),
            monitor,
            is_paused: self.paused,
            trace: self.trace,
            symbols: self.symbols,
            save_symbols: self.save_symbols,
            profile,
            ..Config::default()
        })
    }

    /// The engines to move to, and when.
    fn switching(&self) -> Result<(Vec<EngineKind>, SwitchPlan), String> {
        let mut changes = self.switch_to.clone();
        changes.sort_by_key(|&(ns, _)| ns);
        let named = changes.iter().map(|&(_, engine)| engine);
        let engines = self.switch_engines.iter().copied().chain(named).collect::<Vec<_>>();
        let plan = match self.switch_every {
            Some(_) if engines.is_empty() => {
                return Err("--switch-every: name the engines, as with --switch-engines jit".into());
            }
            Some(ns) => SwitchPlan::Every(ns),
            None if changes.is_empty() => SwitchPlan::Never,
            None => SwitchPlan::At(changes),
        };
        Ok((engines, plan))
    }

    /// True if KVM is the engine, or may be later.
    fn has_kvm(&self) -> bool {
        let is_named = |engine: &EngineKind| *engine == EngineKind::Kvm;
        self.accel == Accel::Kvm
            || self.switch_engines.iter().any(is_named)
            || self.switch_to.iter().any(|(_, engine)| is_named(engine))
    }

    /// Counted time is a function of one order of instructions, and so of one thread.
    fn scheduler(&self) -> Result<Scheduler, String> {
        let is_counted = matches!(self.clock, TimeBase::Counted { .. });
        if self.has_kvm() && (is_counted || self.sched == Some(Sched::Serial)) {
            let option = if is_counted { "--clock icount" } else { "--sched serial" };
            return Err(format!("{option}: --accel kvm counts no instructions; take --accel jit"));
        }
        match (self.sched, self.clock) {
            (Some(Sched::Parallel), TimeBase::Counted { .. }) => {
                Err("--clock icount needs --sched serial, for parallel processors have no common \
                     count"
                    .into())
            }
            (Some(Sched::Serial), _) | (None, TimeBase::Counted { .. }) => Ok(Scheduler::Serial),
            (Some(Sched::Parallel) | None, TimeBase::Host) => Ok(Scheduler::Parallel),
        }
    }

    fn devices(&self) -> Result<(Vec<DeviceConfig>, Vec<BackendConfig>), String> {
        if self.debugcon == Some(Backend::Stdio) && self.serial == Backend::Stdio {
            return Err(
                "--debugcon stdio: --serial has stdio; move it, as with --serial none".into()
            );
        }
        let mut devices = Vec::new();
        let mut backends = Vec::new();
        let mut connect = |driver: &str, id: &str, backend: &Backend, port: &[(&str, &str)]| {
            backends.push(BackendConfig { id: id.to_owned(), backend: backend.clone() });
            devices.push(device(driver, port.iter().copied().chain([("chardev", id)])));
        };
        connect("isa-serial", "serial0", &self.serial, &[]);
        if let Some(backend) = &self.debugcon {
            connect("isa-debugcon", "debugcon", backend, &[("iobase", DEBUGCON_PORT)]);
        }
        if let Some(port) = self.debug_exit {
            let port = format!("{port:#x}");
            devices.push(device("isa-debug-exit", [("iobase", port.as_str()), ("iosize", "4")]));
        }
        Ok((devices, backends))
    }
}

/// Where monitors are; on a terminal unless somewhere else.
fn monitor(places: &[Backend]) -> MonitorConfig {
    let sockets = places.iter().filter_map(Endpoint::of).collect();
    let stdio = match places {
        [] => StdioMonitor::OnTerminal,
        places if places.contains(&Backend::Stdio) => StdioMonitor::Always,
        _ => StdioMonitor::Never,
    };
    MonitorConfig { stdio, sockets }
}

/// Samples are taken by the host's time, and so would end slices that are to be the same each time.
fn profile(
    profile: Option<ProfileConfig>,
    scheduler: Scheduler,
) -> Result<Option<ProfileConfig>, String> {
    if profile.is_some() && scheduler == Scheduler::Serial {
        return Err("--profile: it has no part in --sched serial and --clock icount".into());
    }
    Ok(profile)
}

fn boot(
    kernel: Option<PathBuf>,
    modules: Vec<ModuleFile>,
    append: Option<String>,
    bios: Option<PathBuf>,
) -> Result<Boot, String> {
    match (kernel, bios) {
        (Some(kernel), _) => {
            Ok(Boot::Kernel { kernel, modules, append: append.unwrap_or_default() })
        }
        _ if !modules.is_empty() => Err("--initrd: there is no --kernel to give it to".into()),
        _ if append.is_some() => Err("--append: there is no --kernel to give it to".into()),
        (None, Some(rom)) => Ok(Boot::Rom(rom)),
        (None, None) => Ok(Boot::BuiltIn),
    }
}

fn device<'a>(
    driver: &str,
    properties: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> DeviceConfig {
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    DeviceConfig {
        id: None,
        driver: driver.to_owned(),
        bus: None,
        address: None,
        properties: properties.into_iter().map(owned).collect::<BTreeMap<_, _>>(),
    }
}

#[cfg(test)]
mod tests {
    use log::LevelFilter;

    use super::super::tests::launch;
    use super::*;

    fn config(words: &[&str]) -> Config {
        launch(words).config
    }

    #[test]
    fn without_options_the_built_in_guest_runs_on_the_terminal() {
        let launch = launch(&[]);
        let config = launch.config;
        assert_eq!(config.boot, Boot::BuiltIn);
        assert_eq!((config.cpus, config.memory_bytes, config.form), (1, 512 << 20, Form::Q35));
        assert_eq!(
            config.backends,
            [BackendConfig { id: "serial0".into(), backend: Backend::Stdio }]
        );
        assert_eq!(config.devices, [device("isa-serial", [("chardev", "serial0")])]);
        assert_eq!(launch.dialect, Dialect::Native);
        assert_eq!(launch.log, LogConfig::default());
    }

    #[test]
    fn a_kernel_takes_its_modules_and_its_words() {
        let config = config(&[
            "--kernel",
            "k",
            "--initrd",
            "a one two",
            "--initrd=b",
            "--append",
            "-x console=ttyS0",
        ]);
        let module = |path: &str, arguments: &str| ModuleFile {
            path: path.into(),
            arguments: arguments.into(),
        };
        assert_eq!(
            config.boot,
            Boot::Kernel {
                kernel: "k".into(),
                modules: vec![module("a", "one two"), module("b", "")],
                append: "-x console=ttyS0".into(),
            }
        );
    }

    #[test]
    fn every_option_reaches_the_configuration() {
        let launch = launch(&[
            "--bios",
            "rom",
            "--machine",
            "pc",
            "--cpus",
            "255",
            "--memory",
            "4G",
            "--cpu",
            "x86-64-v3,-avx2",
            "--serial",
            "unix:s",
            "--debugcon",
            "file:d",
            "--debug-exit",
            "--accel",
            "interp",
            "--sched",
            "serial",
            "--clock",
            "icount=3",
            "--no-reboot",
            "--log",
            "warn,cpu::mmu=trace",
            "--log-file",
            "l",
            "--stats",
            "--gdb",
            "tcp:localhost:1234",
            "--monitor",
            "unix:m",
            "--paused",
        ]);
        let config = launch.config;
        assert_eq!(config.boot, Boot::Rom("rom".into()));
        assert_eq!((config.form, config.cpus, config.memory_bytes), (Form::Pc, 255, 4 << 30));
        assert_eq!(config.cpu_model, "x86-64-v3,-avx2");
        assert_eq!(config.accel, Accel::Interp);
        assert_eq!(config.scheduler, Scheduler::Serial);
        assert_eq!(config.time, TimeBase::Counted { ns_per_instruction: 3 });
        assert!(config.no_reboot && config.stats);
        let endpoint = Endpoint::Tcp("localhost:1234".into());
        assert_eq!(config.gdb, Some(GdbConfig { endpoint }));
        assert!(config.is_paused);
        let sockets = vec![Endpoint::Unix("m".into())];
        assert_eq!(config.monitor, MonitorConfig { stdio: StdioMonitor::Never, sockets });
        let backends = config.backends.iter().map(|b| (b.id.as_str(), &b.backend));
        assert_eq!(
            backends.collect::<Vec<_>>(),
            [("serial0", &Backend::Unix("s".into())), ("debugcon", &Backend::File("d".into())),]
        );
        assert_eq!(
            config.devices.get(1..),
            Some(
                &[
                    device("isa-debugcon", [("iobase", "0xe9"), ("chardev", "debugcon")]),
                    device("isa-debug-exit", [("iobase", "0xf4"), ("iosize", "4")]),
                ][..]
            )
        );
        assert_eq!(launch.log.file, Some("l".into()));
        let levels = launch.log.filters.iter().map(|f| (f.target.as_deref(), f.level));
        assert_eq!(
            levels.collect::<Vec<_>>(),
            [(None, LevelFilter::Warn), (Some("cpu::mmu"), LevelFilter::Trace),]
        );
    }

    #[test]
    fn a_change_of_engine_names_its_engine() {
        let config = config(&["--switch-to", "kvm@2s", "--switch-to=jit@500ms"]);
        assert_eq!(config.switch_engines, [EngineKind::Jit, EngineKind::Kvm]);
        let changes = [(500_000_000, EngineKind::Jit), (2_000_000_000, EngineKind::Kvm)];
        assert_eq!(config.switch_plan, SwitchPlan::At(changes.into()));
        let config = self::config(&["--switch-engines", "interp,jit", "--switch-every", "50ms"]);
        assert_eq!(config.switch_engines, [EngineKind::Interp, EngineKind::Jit]);
        assert_eq!(config.switch_plan, SwitchPlan::Every(50_000_000));
        let words = ["--accel", "interp", "--switch-engines", "jit", "--jit-block-size", "1"];
        assert_eq!(self::config(&words).jit.block_size, 1);
        for (words, part) in [
            (&["run", "--switch-every", "50ms"][..], "--switch-engines jit"),
            (&["run", "--switch-to", "kvm@1s", "--clock", "icount"], "--clock icount"),
            (&["run", "--switch-to", "auto@1s"], "kvm, jit or interp"),
            (&["run", "--switch-to", "jit"], "jit@10s"),
            (&["run", "--switch-to", "jit@1"], "unit"),
            (&["run", "--switch-engines", "tcg"], "kvm, jit or interp"),
            (&["run", "--switch-engines", "jit", "--switch-every", "0ms"], "10us"),
        ] {
            let message = super::super::tests::parse_words(words).unwrap_err().message;
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn counted_time_takes_one_thread_unasked() {
        assert_eq!(config(&["--clock", "icount"]).scheduler, Scheduler::Serial);
        assert_eq!(config(&["--sched", "serial"]).time, TimeBase::Host);
    }

    #[test]
    fn the_debug_exit_port_can_be_moved_and_leaves_the_next_option_alone() {
        let config = config(&["--debug-exit=0x501", "--no-reboot"]);
        assert!(config.no_reboot);
        let port = config.devices.last().and_then(|device| device.properties.get("iobase"));
        assert_eq!(port.map(String::as_str), Some("0x501"));
    }
}
