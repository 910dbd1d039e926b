//! The engine behind each CPU, and which one a machine gets.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cpu::cpuid::CpuidPolicy;
use cpu::engine::Vcpu;
use cpu::{Cpu, Environment, Handover};
use jit::{JitCpu, PerfMap};
use kvm::{Apics, Clocks, KvmCpu, KvmError, KvmVm};

use machine::lapic::ApicBorrower;

use super::adapters::KernelApics;
use crate::config::{Accel, Config, EngineKind, JitConfig, Scheduler, TimeBase};
use crate::doctor;

/// A CPU with what executes its instructions, and what else may.
pub(crate) struct Engine {
    runner: Runner,
    /// The other engines of the machine, each with a CPU that is nothing at the moment.
    others: Vec<Runner>,
}

/// A CPU on one engine.
enum Runner {
    /// The interpreter.
    Interp(Box<Cpu>),
    /// The translator.
    Jit(Box<JitCpu>),
    /// The host's virtualization.
    Kvm(Box<KvmCpu>),
}

impl Runner {
    fn kind(&self) -> EngineKind {
        match self {
            Self::Interp(_) => EngineKind::Interp,
            Self::Jit(_) => EngineKind::Jit,
            Self::Kvm(_) => EngineKind::Kvm,
        }
    }

    fn take_over(&mut self, handover: Handover) {
        match self {
            Self::Interp(cpu) => cpu.take_over(handover),
            Self::Jit(cpu) => cpu.take_over(handover),
            Self::Kvm(cpu) => cpu.take_over(handover),
        }
    }

    /// What `--stats` says of it.
    fn figures(&self) -> String {
        match self {
            Self::Interp(_) => String::new(),
            Self::Jit(cpu) => cpu.statistics().to_string(),
            Self::Kvm(cpu) => cpu.statistics().to_string(),
        }
    }
}

impl Engine {
    /// The engine as the owner of a vCPU's thread sees it.
    pub(crate) fn vcpu(&self) -> &dyn Vcpu {
        match &self.runner {
            Runner::Interp(cpu) => &**cpu,
            Runner::Jit(cpu) => &**cpu,
            Runner::Kvm(cpu) => &**cpu,
        }
    }

    /// The same, to run it.
    pub(crate) fn vcpu_mut(&mut self) -> &mut dyn Vcpu {
        match &mut self.runner {
            Runner::Interp(cpu) => &mut **cpu,
            Runner::Jit(cpu) => &mut **cpu,
            Runner::Kvm(cpu) => &mut **cpu,
        }
    }

    /// Whether the engine can stop at every breakpoint and watchpoint that the CPU has; why not.
    pub(crate) fn check_debug_points(&self) -> Result<(), &'static str> {
        self.check_debug_points_on(self.kind())
    }

    /// The same for another engine.
    pub(crate) fn check_debug_points_on(&self, kind: EngineKind) -> Result<(), &'static str> {
        match kind {
            EngineKind::Interp | EngineKind::Jit => Ok(()),
            EngineKind::Kvm => kvm::check_debug_points(self.cpu()),
        }
    }

    /// The CPU.
    pub(crate) fn cpu(&self) -> &Cpu {
        match &self.runner {
            Runner::Interp(cpu) => cpu,
            Runner::Jit(cpu) => cpu.cpu(),
            Runner::Kvm(cpu) => cpu.cpu(),
        }
    }

    /// The CPU, whatever of which may be changed while it does not run.
    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        match &mut self.runner {
            Runner::Interp(cpu) => cpu,
            Runner::Jit(cpu) => cpu.cpu_mut(),
            Runner::Kvm(cpu) => cpu.cpu_mut(),
        }
    }

    /// Which engine it is now.
    pub(crate) fn kind(&self) -> EngineKind {
        self.runner.kind()
    }

    /// The engine's own local APIC, if it has one, takes over the registers of the machine's. All
    /// CPUs are stopped.
    pub(crate) fn borrow_apic(&mut self) -> Result<()> {
        match &mut self.runner {
            Runner::Interp(_) | Runner::Jit(_) => Ok(()),
            Runner::Kvm(cpu) => cpu.borrow_apic().context("a local APIC cannot go to KVM"),
        }
    }

    /// The machine's local APIC has them again.
    pub(crate) fn return_apic(&mut self) -> Result<()> {
        match &mut self.runner {
            Runner::Interp(_) | Runner::Jit(_) => Ok(()),
            Runner::Kvm(cpu) => cpu.return_apic().context("a local APIC is lost in KVM"),
        }
    }

    /// Moves the CPU, which does not run and was left at a request, to the engine `to`. One that
    /// was not prepared leaves it where it is.
    pub(crate) fn switch(&mut self, to: EngineKind) {
        let Some(index) = self.others.iter().position(|other| other.kind() == to) else { return };
        let handover = self.cpu_mut().hand_over();
        std::mem::swap(&mut self.runner, &mut self.others[index]);
        self.runner.take_over(handover);
    }

    /// True if `kind` runs the CPU, or may.
    pub(crate) fn has(&self, kind: EngineKind) -> bool {
        self.kind() == kind || self.others.iter().any(|other| other.kind() == kind)
    }

    /// The translator, whether or not it runs the CPU now.
    pub(crate) fn translator(&self) -> Option<&JitCpu> {
        std::iter::once(&self.runner).chain(&self.others).find_map(|runner| match runner {
            Runner::Jit(cpu) => Some(&**cpu),
            Runner::Interp(_) | Runner::Kvm(_) => None,
        })
    }

    /// What `--stats` says of the engines.
    pub(crate) fn figures(&self) -> String {
        let all = std::iter::once(&self.runner).chain(&self.others).map(Runner::figures);
        all.filter(|figures| !figures.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// The engine for `accel` on a host where KVM and the translator can run, or cannot and why.
/// KVM is asked only if the answer counts, for that takes time.
fn choose(
    accel: Accel,
    kvm: impl FnOnce() -> Result<(), String>,
    translator: Result<(), String>,
) -> Result<EngineKind> {
    match (accel, translator) {
        (Accel::Interp, _) => Ok(EngineKind::Interp),
        (Accel::Jit, Ok(())) => Ok(EngineKind::Jit),
        (Accel::Jit, Err(reason)) => {
            bail!("the translator cannot run on this host ({reason}); take the engine interp")
        }
        (Accel::Kvm, _) => Ok(EngineKind::Kvm),
        (Accel::Auto, translator) => {
            let Err(reason) = kvm() else {
                log::info!("KVM runs the guest");
                return Ok(EngineKind::Kvm);
            };
            log::info!("KVM does not run the guest: {reason}");
            let Err(reason) = translator else { return Ok(EngineKind::Jit) };
            log::info!("the interpreter runs the guest, for the translator cannot: {reason}");
            Ok(EngineKind::Interp)
        }
    }
}

/// Whether KVM can run the machine of `config` on this host, and as well as it should.
fn kvm_serves(config: &Config) -> Result<(), String> {
    if is_counting(config) {
        return Err("it counts no instructions".into());
    }
    if config.jit != JitConfig::default() {
        return Err("there are options for the translator".into());
    }
    if config.trace.is_some() {
        return Err("it tells nobody what it executes, for --trace".into());
    }
    match doctor::Kvm::probe() {
        doctor::Kvm::Works => Ok(()),
        lack => Err(format!("/dev/kvm {lack}")),
    }
}

/// Makes the engines of a machine: on which it starts, and those that it may be moved to.
pub(crate) struct Engines {
    /// Each once, the first one first.
    kinds: Vec<EngineKind>,
    jit: Option<jit::Options>,
    kvm: Option<KvmMachine>,
}

/// A machine of KVM's.
struct KvmMachine {
    vm: Arc<KvmVm>,
    /// The rate of its CPUs' time-stamp counters.
    tsc_hz: u64,
}

impl Engines {
    /// What `config` asks for.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let first = choose(config.accel, || kvm_serves(config), jit::supported())?;
        let kinds = kinds(first, &config.switch_engines);
        let has = |kind| kinds.contains(&kind);
        let clocks = if kinds.len() == 1 { Clocks::Kernel } else { Clocks::Machine };
        if has(EngineKind::Jit) && first != EngineKind::Jit {
            choose(Accel::Jit, || Ok(()), jit::supported()).context("--switch-engines jit")?;
        }
        Ok(Self {
            jit: has(EngineKind::Jit).then(|| jit_options(config)).transpose()?,
            kvm: has(EngineKind::Kvm).then(|| kvm(first, clocks)).transpose()?,
            kinds,
        })
    }

    /// The engines, the one first on which the machine starts.
    pub(crate) fn kinds(&self) -> &[EngineKind] {
        &self.kinds
    }

    /// One CPU's engine.
    pub(crate) fn make(&self, environment: &Environment) -> Result<Engine> {
        let runners = self.kinds.iter().map(|&kind| self.runner(kind, environment.clone()));
        let mut runners = runners.collect::<Result<Vec<_>>>()?.into_iter();
        let runner = runners.next().context("a machine without an engine")?;
        Ok(Engine { runner, others: runners.collect() })
    }

    fn runner(&self, kind: EngineKind, environment: Environment) -> Result<Runner> {
        match (kind, &self.jit, &self.kvm) {
            (EngineKind::Jit, Some(options), _) => JitCpu::new(environment, options)
                .map(|cpu| Runner::Jit(Box::new(cpu)))
                .context("cannot make the translator"),
            (EngineKind::Kvm, _, Some(kvm)) => KvmCpu::new(&kvm.vm, environment)
                .map(|cpu| Runner::Kvm(Box::new(cpu)))
                .context(if self.kinds.len() > 1 {
                    "--switch-engines, --switch-to: KVM cannot be one of several engines here"
                } else {
                    "--accel kvm: cannot make a CPU"
                }),
            _ => Ok(Runner::Interp(Box::new(Cpu::new(environment)))),
        }
    }

    /// The frequency of the guest's time-stamp counter, if an engine has one of its own.
    pub(crate) fn tsc_hz(&self) -> Option<u64> {
        self.kvm.as_ref().map(|kvm| kvm.tsc_hz)
    }

    /// Who takes what the board sends to CPUs while they run on the engine `kind`, if not their
    /// local APICs in the machine.
    pub(crate) fn apic_borrower(&self, kind: EngineKind) -> Option<Arc<dyn ApicBorrower>> {
        let kvm = self.kvm.as_ref().filter(|kvm| kind == EngineKind::Kvm && kvm.vm.has_apics())?;
        Some(Arc::new(KernelApics(Arc::clone(&kvm.vm))))
    }

    /// True if the machine's time-stamp counter has to be the host's with something added.
    pub(crate) fn has_host_tsc(&self) -> bool {
        self.kvm.is_some() && self.kinds.len() > 1
    }

    /// The policy that all engines can keep. On KVM alone, its CPUs leave out what it lacks.
    pub(crate) fn limit(&self, policy: CpuidPolicy) -> Result<CpuidPolicy> {
        let Some(kvm) = self.kvm.as_ref().filter(|_| self.kinds.len() > 1) else {
            return Ok(policy);
        };
        Ok(policy
            .limited(|leaf, subleaf, register, bit| kvm.vm.gives(leaf, subleaf, register, bit))?)
    }

    /// True if the engines know how many instructions they retired. The translator counts only
    /// for those who need it, for it costs time.
    pub(crate) fn has_counts(&self) -> bool {
        self.kvm.is_none() && self.jit.as_ref().is_none_or(|options| options.counting)
    }
}

/// `first` and those of `others` that are not there yet.
fn kinds(first: EngineKind, others: &[EngineKind]) -> Vec<EngineKind> {
    others.iter().fold(vec![first], |mut kinds, kind| {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
        kinds
    })
}

fn kvm(first: EngineKind, clocks: Clocks) -> Result<KvmMachine> {
    let make = || -> Result<_, KvmError> {
        Ok(KvmMachine { vm: KvmVm::new(clocks, Apics::Kernel)?, tsc_hz: kvm::tsc_hz()? })
    };
    let (option, remedy) = if first == EngineKind::Kvm {
        ("--accel kvm", "take --accel jit")
    } else {
        ("--switch-engines kvm", "leave it out")
    };
    make().with_context(|| {
        format!("{option}: KVM cannot be used here (`volvelle doctor` says more); {remedy}")
    })
}

fn jit_options(config: &Config) -> Result<jit::Options> {
    let (wanted, default) = (&config.jit, jit::Options::default());
    Ok(jit::Options {
        cache_bytes: wanted.cpu_cache_bytes(config.cpus),
        block_size: wanted.block_size,
        superblock_after: wanted.superblock_after.unwrap_or(default.superblock_after),
        trash_helpers: wanted.trash_helpers,
        cross_check: wanted.cross_check,
        count_accesses: wanted.count_accesses,
        counting: is_counting(config),
        perf_map: wanted.perf_map.then(perf_map).transpose()?.map(Arc::new),
    })
}

/// Who needs the count of instructions: counted time, and the scheduler that gives slices of them.
fn is_counting(config: &Config) -> bool {
    config.scheduler == Scheduler::Serial || matches!(config.time, TimeBase::Counted { .. })
}

/// The file in which perf looks for the code of this process.
fn perf_map() -> Result<PerfMap> {
    let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    PerfMap::create(&path)
        .with_context(|| format!("--perf-map: cannot write to '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_best_that_can_run() {
        let here = Ok(());
        let kind = |accel, kvm: Result<(), &str>, translator: Result<(), &str>| {
            let [kvm, translator] = [kvm, translator].map(|it| it.map_err(str::to_owned));
            choose(accel, || kvm, translator).map_err(|error| error.to_string())
        };
        assert_eq!(kind(Accel::Auto, here, here), Ok(EngineKind::Kvm));
        assert_eq!(kind(Accel::Auto, here, Err("no SSE2")), Ok(EngineKind::Kvm));
        assert_eq!(kind(Accel::Auto, Err("slow"), here), Ok(EngineKind::Jit));
        assert_eq!(kind(Accel::Auto, Err("slow"), Err("no SSE2")), Ok(EngineKind::Interp));
        assert_eq!(kind(Accel::Jit, here, here), Ok(EngineKind::Jit));
        assert!(kind(Accel::Jit, here, Err("no SSE2")).unwrap_err().contains("no SSE2"));
        assert_eq!(kind(Accel::Interp, here, here), Ok(EngineKind::Interp));
        assert_eq!(kind(Accel::Kvm, Err("slow"), here), Ok(EngineKind::Kvm));
    }

    #[test]
    fn a_machine_has_each_of_its_engines_once() {
        use EngineKind::{Interp, Jit, Kvm};
        assert_eq!(kinds(Jit, &[]), [Jit]);
        assert_eq!(kinds(Kvm, &[Jit, Kvm, Interp, Jit]), [Kvm, Jit, Interp]);
    }

    #[test]
    fn auto_leaves_to_the_translator_what_kvm_cannot_do() {
        let counted =
            Config { time: TimeBase::Counted { ns_per_instruction: 1 }, ..Config::default() };
        let checked = JitConfig { cross_check: true, ..JitConfig::default() };
        let checked = Config { jit: checked, ..Config::default() };
        for (config, word) in [(counted, "counts"), (checked, "translator")] {
            let reason = kvm_serves(&config).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn instructions_are_counted_where_something_depends_on_it() {
        let counted = TimeBase::Counted { ns_per_instruction: 1 };
        for (scheduler, time, is_needed) in [
            (Scheduler::Parallel, TimeBase::Host, false),
            (Scheduler::Serial, TimeBase::Host, true),
            (Scheduler::Serial, counted, true),
        ] {
            let config = Config { scheduler, time, ..Config::default() };
            assert_eq!(is_counting(&config), is_needed, "{scheduler:?} {time:?}");
        }
    }
}
