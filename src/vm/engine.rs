//! The engine behind each CPU, and which one a machine gets.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use cpu::engine::Vcpu;
use cpu::{Cpu, Environment};
use jit::{JitCpu, PerfMap};
use kvm::{KvmCpu, KvmVm};

use crate::config::{Accel, Config, JitConfig, Scheduler, TimeBase};
use crate::doctor;

/// A CPU with what executes its instructions.
pub(crate) enum Engine {
    /// The interpreter.
    Interp(Box<Cpu>),
    /// The translator.
    Jit(Box<JitCpu>),
    /// The host's virtualization.
    Kvm(Box<KvmCpu>),
}

impl Engine {
    /// The engine as the owner of a vCPU's thread sees it.
    pub(crate) fn vcpu(&self) -> &dyn Vcpu {
        match self {
            Self::Interp(cpu) => &**cpu,
            Self::Jit(cpu) => &**cpu,
            Self::Kvm(cpu) => &**cpu,
        }
    }

    /// The same, to run it.
    pub(crate) fn vcpu_mut(&mut self) -> &mut dyn Vcpu {
        match self {
            Self::Interp(cpu) => &mut **cpu,
            Self::Jit(cpu) => &mut **cpu,
            Self::Kvm(cpu) => &mut **cpu,
        }
    }

    /// The CPU.
    pub(crate) fn cpu(&self) -> &Cpu {
        match self {
            Self::Interp(cpu) => cpu,
            Self::Jit(cpu) => cpu.cpu(),
            Self::Kvm(cpu) => cpu.cpu(),
        }
    }

    /// The CPU, whatever of which may be changed while it does not run.
    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        match self {
            Self::Interp(cpu) => cpu,
            Self::Jit(cpu) => cpu.cpu_mut(),
            Self::Kvm(cpu) => cpu.cpu_mut(),
        }
    }
}

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Interp,
    Jit,
    Kvm,
}

/// The engine for `accel` on a host where KVM and the translator can run, or cannot and why.
/// KVM is asked only if the answer counts, for that takes time.
fn choose(
    accel: Accel,
    kvm: impl FnOnce() -> Result<(), String>,
    translator: Result<(), String>,
) -> Result<Kind> {
    match (accel, translator) {
        (Accel::Interp, _) => Ok(Kind::Interp),
        (Accel::Jit, Ok(())) => Ok(Kind::Jit),
        (Accel::Jit, Err(reason)) => {
            bail!("the translator cannot run on this host ({reason}); take the engine interp")
        }
        (Accel::Kvm, _) => Ok(Kind::Kvm),
        (Accel::Auto, translator) => {
            let Err(reason) = kvm() else {
                log::info!("KVM runs the guest");
                return Ok(Kind::Kvm);
            };
            log::info!("KVM does not run the guest: {reason}");
            let Err(reason) = translator else { return Ok(Kind::Jit) };
            log::info!("the interpreter runs the guest, for the translator cannot: {reason}");
            Ok(Kind::Interp)
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
    match doctor::Kvm::probe() {
        doctor::Kvm::Works => Ok(()),
        lack => Err(format!("/dev/kvm {lack}")),
    }
}

/// Makes the engines of a machine, all of one kind.
pub(crate) enum Engines {
    /// Interpreters.
    Interp,
    /// Translators that work like this.
    Jit(jit::Options),
    /// CPUs of a machine of KVM's, with the frequency of their time-stamp counters.
    Kvm(Arc<KvmVm>, u64),
}

impl Engines {
    /// What `config` asks for.
    pub(crate) fn new(config: &Config) -> Result<Self> {
        match choose(config.accel, || kvm_serves(config), jit::supported())? {
            Kind::Interp => Ok(Self::Interp),
            Kind::Jit => Ok(Self::Jit(jit_options(config)?)),
            Kind::Kvm => kvm().context(
                "--accel kvm: KVM cannot be used here (`volvelle doctor` \
                says more); take --accel jit",
            ),
        }
    }

    /// One CPU's engine.
    pub(crate) fn make(&self, environment: Environment) -> Result<Engine> {
        match self {
            Self::Interp => Ok(Engine::Interp(Box::new(Cpu::new(environment)))),
            Self::Jit(options) => JitCpu::new(environment, options)
                .map(|cpu| Engine::Jit(Box::new(cpu)))
                .context("cannot make the translator"),
            Self::Kvm(vm, _) => KvmCpu::new(vm, environment)
                .map(|cpu| Engine::Kvm(Box::new(cpu)))
                .context("--accel kvm: cannot make a CPU"),
        }
    }

    /// The frequency of the guest's time-stamp counter, if the engine has one of its own.
    pub(crate) fn tsc_hz(&self) -> Option<u64> {
        match self {
            Self::Interp | Self::Jit(_) => None,
            Self::Kvm(_, tsc_hz) => Some(*tsc_hz),
        }
    }

    /// True if the engines know how many instructions they retired. The translator counts only
    /// for those who need it, for it costs time.
    pub(crate) fn has_counts(&self) -> bool {
        match self {
            Self::Interp => true,
            Self::Jit(options) => options.counting,
            Self::Kvm(..) => false,
        }
    }
}

fn kvm() -> Result<Engines> {
    Ok(Engines::Kvm(KvmVm::new()?, kvm::tsc_hz()?))
}

fn jit_options(config: &Config) -> Result<jit::Options> {
    let wanted = &config.jit;
    Ok(jit::Options {
        cache_bytes: wanted.cpu_cache_bytes(config.cpus),
        block_size: wanted.block_size,
        superblock_after: wanted.superblock_after,
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
        assert_eq!(kind(Accel::Auto, here, here), Ok(Kind::Kvm));
        assert_eq!(kind(Accel::Auto, here, Err("no SSE2")), Ok(Kind::Kvm));
        assert_eq!(kind(Accel::Auto, Err("slow"), here), Ok(Kind::Jit));
        assert_eq!(kind(Accel::Auto, Err("slow"), Err("no SSE2")), Ok(Kind::Interp));
        assert_eq!(kind(Accel::Jit, here, here), Ok(Kind::Jit));
        assert!(kind(Accel::Jit, here, Err("no SSE2")).unwrap_err().contains("no SSE2"));
        assert_eq!(kind(Accel::Interp, here, here), Ok(Kind::Interp));
        assert_eq!(kind(Accel::Kvm, Err("slow"), here), Ok(Kind::Kvm));
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
