//! The machine as a running thing: its CPUs and chips put together, scheduled, stopped and reset.
//!
//! [`Vm::new`] opens what the configuration names, makes the board and the CPUs and loads the
//! guest; [`Vm::run`] schedules the CPUs and acts on what stops them until the machine ends, and
//! says how ([`Outcome`]).

mod adapters;
mod backends;
mod boot;
mod control;
mod desk;
mod engine;
mod entropy;
mod guest_files;
mod halt_poll;
mod mailboxes;
mod serial_scheduler;
mod signals;
mod statistics;
mod switching;
mod threads;
mod timer_thread;
mod tracing;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use anyhow::{Context, Error, Result, bail};
use cpu::Environment;
use cpu::cpuid::{CpuidMachine, CpuidPolicy, Feature};
use machine::clock::{Clock, ns_to_ticks};
use machine::layout;
use machine::loader::BootState;
use machine::pc::{Pc, PcConfig, PcError, Surroundings};
use machine::signals::PowerEvent;
use machine::timers::Timers;

use crate::config::{Config, EngineKind, Form, Scheduler, TimeBase};
use crate::debug::inbox::Inbox;
use crate::debug::{Board, Machine};
use crate::exit::{self, Dialect};
use crate::monitor::{self, Audience, Office, Screen};
use crate::names::Names;
use crate::profile::{Profile, Sampling};
use adapters::{ChipLapic, MachinePlatform, Slice};
use backends::Backends;
use engine::Engines;
use entropy::Entropy;
use guest_files::GuestFiles;
use mailboxes::Mailboxes;
use serial_scheduler::SerialScheduler;
use statistics::Changes;
use switching::Timetable;
use timer_thread::TimerThread;

use desk::Desk;

pub(crate) use control::{Control, Quit, Request};
pub(crate) use engine::Engine;
pub(crate) use switching::Switcher;
pub(crate) use threads::{SharedCpu, lock};
pub(crate) use tracing::Tracer;

/// Ticks of the guest's TSC a second, where the engine makes it: a tick is a nanosecond of guest
/// time.
const TSC_HZ: u64 = 1_000_000_000;
/// Ticks of the local APIC timers' clock a second.
const LAPIC_TIMER_HZ: u64 = 1_000_000_000;
/// Wall time at the start of a machine whose time is counted: 2026-01-01 00:00:00 UTC.
const COUNTED_EPOCH_UNIX_NS: i64 = 1_767_225_600_000_000_000;
/// Where the random numbers of a machine whose time is counted start.
const COUNTED_SEED: u64 = 0x566f_6c76_656c_6c65;

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset, and `--no-reboot` says that ends it.
    Reset,
    /// A triple fault, and `--no-reboot` says that ends it.
    TripleFault,
    /// isa-debug-exit was written.
    DebugExit(u32),
    /// The guest told the panic device that it panicked.
    Panicked,
    /// The user's side ended it.
    Quit(Quit),
}

/// A machine ready to run.
pub(crate) struct Vm {
    config: Config,
    files: GuestFiles,
    backends: Backends,
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    slice: Arc<Slice>,
    mailboxes: Arc<Mailboxes>,
    control: Arc<Control>,
    pc: Arc<Pc>,
    engines: Engines,
    cpus: Vec<SharedCpu>,
    changes: Changes,
    /// The changes that the command line asks for, once the machine runs.
    timetable: OnceLock<Arc<Timetable>>,
    /// The machine as debuggers see it.
    machine: Arc<Machine>,
    profile: Option<Arc<Profile>>,
    /// Taken by the machine's owner alone.
    desk: Mutex<Desk>,
    _monitors: Vec<monitor::Socket>,
}

impl Vm {
    /// Makes the machine that `config` describes and loads its guest.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        memory::register_barriers();
        let files = GuestFiles::open(&config.boot)?;
        let names = Names::open(&config.symbols)?;
        names.serve_log();
        let profile = profile(config, &names)?;
        let engines = Engines::new(config)?;
        let mailboxes = Mailboxes::new(config.cpus);
        let control = Control::new(Arc::clone(&mailboxes));
        let clock = Arc::new(clock(config.time));
        let timers = Timers::new(Arc::clone(&clock));
        let tsc_hz = engines.tsc_hz().unwrap_or(TSC_HZ);
        let policy = Arc::new(cpu_policy(config, &engines, tsc_hz)?);
        let inbox = desk::inbox(&control);
        let backends = Backends::open(config, &control)?;
        let around = Surroundings {
            timers: Arc::clone(&timers),
            signals: Arc::clone(&mailboxes) as _,
            power: Arc::clone(&control) as _,
        };
        let pc = Pc::new(board(config, &files, &backends, &policy), around)
            .map_err(|error| with_remedy(error, config.memory_bytes))?;
        let pc = Arc::new(pc);
        backends.connect(&pc);
        let slice = slice(config.time);
        let platform = Arc::new(MachinePlatform {
            clock: Arc::clone(&clock),
            slice: Arc::clone(&slice),
            host_tsc_base: engines.has_host_tsc().then(|| host_tsc_base(&clock, tsc_hz)),
            entropy: if clock.is_counted() { Entropy::seeded(COUNTED_SEED) } else { Entropy::Host },
            mailboxes: Arc::clone(&mailboxes),
            coprocessor: Arc::clone(pc.coprocessor()),
        });
        let cpus = environments(&pc, &platform, &mailboxes, &policy)
            .map(|environment| Ok(Arc::new(Mutex::new(engines.make(&environment)?))))
            .collect::<Result<Vec<SharedCpu>>>()?;
        let board = Board {
            pc: Arc::clone(&pc),
            timers: Arc::clone(&timers),
            control: Arc::clone(&control),
            switcher: Switcher::new(&control, engines.kinds()),
            tracer: Tracer::new(config, &engines, cpus.clone()),
            names: Arc::clone(&names),
            memory_bytes: config.memory_bytes,
        };
        let machine = Arc::new(Machine::new(cpus.clone(), board));
        let (desk, monitors) = open_desk(config, inbox, &backends, &machine)?;
        let vm = Self {
            config: config.clone(),
            files,
            backends,
            clock,
            timers,
            slice,
            mailboxes,
            control,
            pc,
            engines,
            cpus,
            changes: Changes::default(),
            timetable: OnceLock::new(),
            machine,
            desk: Mutex::new(desk),
            _monitors: monitors,
            profile,
        };
        vm.load()?;
        vm.start_trace()?;
        Ok(vm)
    }

    /// Begins the trace that the configuration asks for.
    fn start_trace(&self) -> Result<()> {
        let Some(wanted) = &self.config.trace else { return Ok(()) };
        let names = self.machine.names().current();
        self.machine.board().tracer.start(wanted, &names).context("--trace")
    }

    /// Loads the guest into a machine whose chips and CPUs are as after reset.
    fn load(&self) -> Result<()> {
        let source = self.files.read()?;
        let state = self.pc.load(&source).map_err(|error| self.files.explain(error.into()))?;
        self.enter(&state);
        Ok(())
    }

    /// CPU 0, for who runs it without the machine's threads.
    pub(crate) fn first_cpu(&self) -> Option<MutexGuard<'_, Engine>> {
        self.cpus.first().map(lock)
    }

    /// The machine as debuggers see it, for tests of what they do to it.
    #[cfg(test)]
    pub(crate) fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Puts the CPUs into the state in which the guest starts.
    pub(crate) fn enter(&self, state: &BootState) {
        for cpu in &self.cpus {
            boot::set_up_as_firmware(lock(cpu).cpu_mut(), state);
        }
        if let Some(cpu) = self.cpus.first() {
            boot::enter(lock(cpu).cpu_mut(), state);
        }
    }

    /// Runs the machine until it ends.
    pub(crate) fn run(self) -> Result<Outcome> {
        let started = Instant::now();
        signals::watch(&self.control)?;
        let plan = self.config.switch_plan.clone();
        let switcher = self.machine.board().switcher.clone();
        self.timetable.get_or_init(|| Timetable::start(plan, switcher, &self.timers));
        let outcome = match self.config.scheduler {
            Scheduler::Parallel => self.run_parallel(),
            Scheduler::Serial => self.run_serial(),
        };
        self.machine.board().tracer.stop();
        let outcome = outcome?;
        desk::lock(&self.desk).finish(exit::status(outcome, Dialect::Native));
        self.backends.flush();
        self.keep_names()?;
        if let Some(profile) = &self.profile {
            profile.finish()?;
        }
        if self.config.stats {
            self.changes.print();
            statistics::print(&self.cpus, self.engines.has_counts(), started.elapsed());
        }
        Ok(outcome)
    }

    fn run_parallel(&self) -> Result<Outcome> {
        let _timers = TimerThread::start(Arc::clone(&self.timers))
            .context("cannot start the timer thread")?;
        self.lend_apics()?;
        let threads =
            threads::start(&self.cpus, &self.control, &self.mailboxes, self.profile.as_ref())
                .context("cannot start a vCPU thread")?;
        let sampling = self.profile.as_ref().map(|it| Sampling::start(it, self.mailboxes.all()));
        let _sampling = sampling.transpose()?;
        let cpu_count = self.config.cpus;
        let outcome = loop {
            let request = self.control.wait_for_request(cpu_count);
            match self.act_and_go_on(request) {
                Ok(Some(outcome)) => break Ok(outcome),
                Ok(None) => self.control.resume(),
                Err(error) => break Err(error),
            }
        };
        self.control.finish();
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a vCPU thread died");
            }
        }
        outcome
    }

    fn run_serial(&self) -> Result<Outcome> {
        for cpu in 0..self.config.cpus {
            self.mailboxes.serve_from_here(cpu);
        }
        let scheduler = SerialScheduler {
            cpus: &self.cpus,
            clock: &self.clock,
            timers: &self.timers,
            slice: &self.slice,
            control: &self.control,
        };
        loop {
            if let Some(outcome) = self.act(scheduler.run())? {
                return Ok(outcome);
            }
            self.control.resume();
        }
    }

    /// Does what stopped the machine, and has the CPUs ready if it goes on (`None`).
    fn act_and_go_on(&self, request: Request) -> Result<Option<Outcome>> {
        self.return_apics()?;
        let outcome = self.act(request)?;
        if outcome.is_none() {
            self.lend_apics()?;
        }
        Ok(outcome)
    }

    /// An engine with local APICs of its own takes the registers of the machine's. All vCPUs are
    /// stopped, or have not started.
    fn lend_apics(&self) -> Result<()> {
        let kind = self.first_cpu().map(|engine| engine.kind());
        let borrower = kind.and_then(|kind| self.engines.apic_borrower(kind));
        if borrower.is_none() {
            return Ok(());
        }
        self.pc.apics().hold();
        let outcome = self.cpus.iter().try_for_each(|cpu| lock(cpu).borrow_apic());
        self.pc.apics().lend_to(borrower);
        self.pc.apics().release();
        outcome
    }

    /// The machine's local APICs have their registers again: while it is stopped they are the ones
    /// that are reset, saved, looked at and handed to other engines.
    fn return_apics(&self) -> Result<()> {
        self.pc.apics().hold();
        let outcome = self.cpus.iter().try_for_each(|cpu| lock(cpu).return_apic());
        self.pc.apics().lend_to(None);
        self.pc.apics().release();
        outcome
    }

    /// Does what stopped the machine; `None` if it goes on. All vCPUs are stopped.
    fn act(&self, request: Request) -> Result<Option<Outcome>> {
        let outcome = match request {
            Request::Quit(quit) => Outcome::Quit(quit),
            Request::Debug => {
                self.serve_debugger();
                return Ok(None);
            }
            Request::Power(PowerEvent::PowerOff) if self.config.no_shutdown => {
                return Ok(Some(self.wait_for_quit()));
            }
            Request::Power(PowerEvent::PowerOff) => Outcome::PoweredOff,
            Request::Power(PowerEvent::DebugExit(value)) => Outcome::DebugExit(value),
            Request::Power(PowerEvent::Panicked) => Outcome::Panicked,
            Request::Power(PowerEvent::Reset) if self.config.no_reboot => Outcome::Reset,
            Request::TripleFault if self.config.no_reboot => Outcome::TripleFault,
            Request::Power(PowerEvent::Reset) | Request::TripleFault => {
                self.reset()?;
                return Ok(None);
            }
            Request::Power(PowerEvent::Suspend) => return self.suspend(),
            Request::Power(PowerEvent::Wake) => return Ok(None),
            Request::Switch(to) => {
                self.switch(to);
                return Ok(None);
            }
        };
        Ok(Some(outcome))
    }

    /// Lets debuggers look at the machine, which is stopped, for as long as they want.
    fn serve_debugger(&self) {
        self.clock.stop();
        desk::lock(&self.desk).serve();
        self.clock.resume();
    }

    /// The next request while no CPU runs; debuggers are served meanwhile.
    fn next_request(&self) -> Request {
        loop {
            match self.wait_for_request() {
                Request::Debug => self.serve_debugger(),
                request => return request,
            }
        }
    }

    fn wait_for_request(&self) -> Request {
        match self.config.scheduler {
            Scheduler::Parallel => self.control.wait_for_request(self.config.cpus),
            Scheduler::Serial => loop {
                self.timers.run_expired();
                if let Some(request) = self.control.take_request() {
                    return request;
                }
                serial_scheduler::pass_time(&self.clock, &self.timers);
            },
        }
    }

    fn wait_for_quit(&self) -> Outcome {
        loop {
            if let Request::Quit(quit) = self.next_request() {
                return Outcome::Quit(quit);
            }
        }
    }

    /// Suspended to RAM: nothing runs until something wakes the machine.
    fn suspend(&self) -> Result<Option<Outcome>> {
        log::info!("the guest is suspended to RAM");
        loop {
            match self.next_request() {
                Request::Power(PowerEvent::Wake) => break,
                request @ Request::Quit(_) => return self.act(request),
                Request::Switch(to) => self.switch(to),
                _ => {}
            }
        }
        self.reset_cpus();
        match self.pc.resume() {
            Some(state) => self.enter(&state),
            None => self.reset()?,
        }
        Ok(None)
    }

    /// Moves all CPUs to the engine `to`.
    fn switch(&self, to: EngineKind) {
        self.change_engine(to);
        if let Some(timetable) = self.timetable.get() {
            timetable.note_change(self.clock.now_ns());
        }
    }

    fn change_engine(&self, to: EngineKind) {
        if self.first_cpu().is_some_and(|engine| engine.kind() == to) {
            return;
        }
        let is_refused = |cpu: &SharedCpu| lock(cpu).check_debug_points_on(to).err();
        if let Some(reason) = self.cpus.iter().find_map(is_refused) {
            log::error!("the guest stays where it is, for a debugger is attached: {reason}");
            return;
        }
        let started = Instant::now();
        for cpu in &self.cpus {
            lock(cpu).switch(to);
        }
        log::info!("the guest goes on on the engine {to}");
        self.changes.note(started.elapsed());
    }

    fn reset(&self) -> Result<()> {
        log::info!("the guest resets");
        self.keep_names()?;
        self.pc.reset();
        self.reset_cpus();
        self.load()
    }

    /// Names what the profile has and saves the names, while the kernel is there that they are of.
    fn keep_names(&self) -> Result<()> {
        let Some(mut cpu) = self.first_cpu() else { return Ok(()) };
        if let Some(profile) = &self.profile {
            profile.fold(cpu.cpu_mut());
        }
        if let Some(path) = &self.config.save_symbols {
            let names = self.machine.names();
            names.settle(cpu.cpu_mut());
            names.save(path)?;
        }
        Ok(())
    }

    fn reset_cpus(&self) {
        for cpu in &self.cpus {
            lock(cpu).cpu_mut().reset();
        }
    }
}

/// What each CPU of the board is put into.
fn environments<'a>(
    pc: &'a Pc,
    platform: &'a Arc<MachinePlatform>,
    mailboxes: &'a Mailboxes,
    policy: &'a Arc<CpuidPolicy>,
) -> impl Iterator<Item = Environment> + 'a {
    let apics = (0u32..).zip(pc.apics().apics()).zip(mailboxes.all().iter());
    apics.map(move |((index, lapic), events)| Environment {
        index,
        cpu_count: pc.config().cpu_count,
        space: Arc::clone(pc.space()),
        ports: Arc::clone(pc.ports()),
        platform: Arc::clone(platform) as _,
        lapic: Arc::new(ChipLapic(Arc::clone(lapic))),
        events: Arc::clone(events),
        cpuid: Arc::clone(policy),
        all_events: Arc::clone(mailboxes.all()),
    })
}

/// Where debuggers are served, and the monitors that listen. A machine that is to begin paused
/// stands from here on.
fn open_desk(
    config: &Config,
    inbox: Arc<Inbox>,
    backends: &Backends,
    machine: &Arc<Machine>,
) -> Result<(Desk, Vec<monitor::Socket>)> {
    let audience: Arc<Audience> = Arc::default();
    let desk = Desk::open(config.gdb.as_ref(), &inbox, machine, &audience)?;
    let office = Office { inbox, machine: Arc::downgrade(machine), audience };
    let monitors = start_monitors(config, backends, &office)?;
    if config.is_paused {
        pause(config, backends, machine)?;
    }
    Ok((desk, monitors))
}

/// Starts the monitors of the terminal and of sockets.
fn start_monitors(
    config: &Config,
    backends: &Backends,
    office: &Office,
) -> Result<Vec<monitor::Socket>> {
    if let Some((output, side)) = backends.monitor() {
        let screen = Screen::new(Arc::clone(output), side.echo);
        let (keyboard, side) = (Arc::clone(&side.keyboard), side.clone());
        monitor::start(office.clone(), keyboard, screen, move || side.leave())
            .context("cannot start the monitor's thread")?;
    }
    let sockets = config.monitor.sockets.iter();
    sockets.map(|endpoint| monitor::Socket::start(endpoint, office.clone())).collect()
}

/// Has the machine stand before its first instruction.
fn pause(config: &Config, backends: &Backends, machine: &Machine) -> Result<()> {
    let has_monitor = backends.monitor().is_some() || !config.monitor.sockets.is_empty();
    if config.gdb.is_none() && !has_monitor {
        bail!(
            "--paused (-S): nothing could start the guest; give --gdb (-s) or --monitor (-monitor)"
        );
    }
    machine.set_halted(true);
    machine.board().control.request_debugger();
    Ok(())
}

/// The slice of a machine whose time is `time`.
fn slice(time: TimeBase) -> Arc<Slice> {
    let slice = Slice::default();
    if let TimeBase::Counted { ns_per_instruction } = time {
        slice.ns_per_instruction.store(ns_per_instruction, Ordering::Relaxed);
    }
    Arc::new(slice)
}

fn clock(time: TimeBase) -> Clock {
    match time {
        TimeBase::Host => Clock::host(cpu::native::ticks::host_ticks()),
        TimeBase::Counted { .. } => Clock::counted(COUNTED_EPOCH_UNIX_NS),
    }
}

/// The profile that is to be made, if one is.
fn profile(config: &Config, names: &Arc<Names>) -> Result<Option<Arc<Profile>>> {
    let make = |profile| Profile::new(profile, config.cpus, Arc::clone(names));
    config.profile.as_ref().map(make).transpose()
}

fn cpu_policy(config: &Config, engines: &Engines, tsc_hz: u64) -> Result<CpuidPolicy> {
    let machine = CpuidMachine { cpus: config.cpus, tsc_hz, apic_hz: LAPIC_TIMER_HZ };
    CpuidPolicy::new(&config.cpu_model, machine)
        .map_err(Error::new)
        .and_then(|policy| engines.limit(policy))
        .with_context(|| format!("--cpu {}", config.cpu_model))
}

/// What to add to the host's time-stamp counter so that the guest's was 0 at guest time 0.
fn host_tsc_base(clock: &Clock, tsc_hz: u64) -> u64 {
    ns_to_ticks(clock.now_ns(), tsc_hz).wrapping_sub(cpu::native::ticks::now())
}

/// Names the option where the host does not give what it asks for.
fn with_remedy(error: PcError, memory_bytes: u64) -> Error {
    let is_memory = matches!(error, PcError::Ram(_));
    let error = Error::new(error);
    if is_memory {
        error.context(format!("--memory {}M: take less", memory_bytes >> 20))
    } else {
        error
    }
}

fn board(
    config: &Config,
    files: &GuestFiles,
    backends: &Backends,
    policy: &CpuidPolicy,
) -> PcConfig {
    PcConfig {
        form: match config.form {
            Form::Q35 => layout::Form::Q35,
            Form::Pc => layout::Form::Pc,
        },
        rom_bytes: files.rom_bytes(),
        tsc_hz: policy.tsc_hz(),
        lapic_timer_hz: LAPIC_TIMER_HZ,
        physical_address_bits: policy.physical_bits() as u8,
        serial: backends.serial_outputs(),
        debugcon: backends.debugcon(),
        debug_exit: backends.debug_exit(),
        pc_testdev: config.has_device("pc-testdev").then_some(None),
        has_x2apic: policy.has(Feature::X2apic),
        has_pit: config.has_pit,
        has_pci_testdev: config.has_device("pci-testdev"),
        ..PcConfig::new(config.memory_bytes, config.cpus)
    }
}
