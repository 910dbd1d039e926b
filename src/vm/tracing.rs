//! A trace of a running machine: its file, and who tells it what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Error, Result, bail};
use cpu::recording::Trigger;
use symbols::Symbols;
use trace::{Clock, Filters, Header, Recording, Writer};

use super::engine::Engines;
use super::threads::{SharedCpu, lock};
use crate::cli::resolve_trace;
use crate::config::{Config, EngineKind, TimeBase, TraceConfig};

/// The traces of a machine, one at a time. To be used by who has stopped all CPUs.
pub(crate) struct Tracer {
    cpus: Vec<SharedCpu>,
    engines: Vec<EngineKind>,
    has_counts: bool,
    is_checked: bool,
    /// The machine, in words.
    machine: String,
    clock: Clock,
    recording: Mutex<Option<Recording>>,
}

impl Tracer {
    /// No trace yet, of the machine that `config` describes.
    pub(super) fn new(config: &Config, engines: &Engines, cpus: Vec<SharedCpu>) -> Arc<Self> {
        Arc::new(Self {
            cpus,
            engines: engines.kinds().to_vec(),
            has_counts: engines.has_counts(),
            is_checked: config.jit.cross_check,
            machine: format!(
                "{:?}, {} MiB, CPU model {}",
                config.form,
                config.memory_bytes >> 20,
                config.cpu_model
            ),
            clock: match config.time {
                TimeBase::Host => Clock::Host,
                TimeBase::Counted { ns_per_instruction } => Clock::Counted { ns_per_instruction },
            },
            recording: Mutex::new(None),
        })
    }

    /// Begins the trace `wanted`, whose names are those of `symbols`, behind the end of another.
    pub(crate) fn start(&self, wanted: &TraceConfig, symbols: &Symbols) -> Result<()> {
        let wanted = &resolve_trace(wanted, symbols).map_err(Error::msg)?;
        self.check(wanted)?;
        self.stop();
        let path = wanted.path.display().to_string();
        let writer = Writer::create(&wanted.path, &self.header(wanted), wanted.ring_bytes)
            .with_context(|| format!("cannot write to '{path}'"))?;
        let failed = move |error| {
            log::error!("the trace ends here, for '{path}' cannot be written to: {error}");
        };
        let recording =
            Recording::start(writer, failed).context("cannot start the trace's thread")?;
        for (number, cpu) in (0..).zip(&self.cpus) {
            if wanted.cpu.is_none_or(|only| only == number) {
                let (recorder, wishes) = (recording.recorder(number), wanted.wishes.clone());
                lock(cpu).cpu_mut().start_recording(recorder, wishes, self.has_counts);
            }
        }
        *self.lock() = Some(recording);
        Ok(())
    }

    /// Ends the trace; false if there is none.
    pub(crate) fn stop(&self) -> bool {
        let Some(mut recording) = self.lock().take() else { return false };
        for cpu in &self.cpus {
            lock(cpu).cpu_mut().stop_recording();
        }
        recording.finish();
        true
    }

    /// True while a trace is written.
    pub(crate) fn is_on(&self) -> bool {
        self.lock().as_ref().is_some_and(|recording| !recording.is_closed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Recording>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says why there can be no such trace.
    fn check(&self, wanted: &TraceConfig) -> Result<()> {
        if self.engines.contains(&EngineKind::Kvm) {
            bail!("KVM tells nobody what it executes; take --accel jit");
        }
        if self.is_checked {
            bail!("not together with --jit-cross-check, which executes everything twice");
        }
        if let Some(cpu) = wanted.cpu.filter(|cpu| usize::from(*cpu) >= self.cpus.len()) {
            bail!("there is no processor {cpu} among {}", self.cpus.len());
        }
        let triggers = [wanted.wishes.from, wanted.wishes.to];
        let has_count = triggers.iter().any(|trigger| matches!(trigger, Some(Trigger::Count(_))));
        if has_count && !self.has_counts {
            bail!(
                "from and to take a count where instructions are counted; add --sched serial or \
                 take --accel interp"
            );
        }
        Ok(())
    }

    fn header(&self, wanted: &TraceConfig) -> Header {
        let wishes = &wanted.wishes;
        let engine = self.cpus.first().map(|cpu| lock(cpu).kind().to_string());
        Header {
            machine: self.machine.clone(),
            engine: engine.unwrap_or_default(),
            cpus: self.cpus.len() as u16,
            clock: self.clock,
            what: wishes.kinds,
            filters: Filters {
                range: wishes.range.clone(),
                cpu: wanted.cpu,
                cpl: wishes.cpl,
                cr3: wishes.cr3,
                from: wanted.from.clone(),
                to: wanted.to.clone(),
            },
            slot_bytes: None,
        }
    }
}
