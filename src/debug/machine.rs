//! The CPUs of a stopped machine, and the points at which they stop.

use cpu::Cpu;
use cpu::debugger::{DebugStop, Resume, Watchpoint};

use crate::vm::{Engine, SharedCpu, lock};

/// Why a breakpoint or a watchpoint cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PointError {
    /// There are as many as a CPU keeps, or the range of a watchpoint is empty or has no end.
    Refused,
    /// The engine cannot stop there, and why.
    Engine(&'static str),
}

/// The CPUs of a machine. To be used by its owner, and only while all are stopped.
pub(crate) struct Machine {
    cpus: Vec<SharedCpu>,
}

impl Machine {
    pub(crate) fn new(cpus: Vec<SharedCpu>) -> Self {
        Self { cpus }
    }

    /// How many CPUs there are.
    pub(crate) fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// Does something with CPU `index`; `None` if there is none.
    pub(crate) fn with<T>(&self, index: usize, act: impl FnOnce(&mut Cpu) -> T) -> Option<T> {
        self.cpus.get(index).map(|cpu| act(lock(cpu).cpu_mut()))
    }

    /// What the translator of CPU `index` tells of itself.
    pub(crate) fn engine_figures(&self, index: usize) -> Option<String> {
        let cpu = lock(self.cpus.get(index)?);
        let figures = match cpu.translator() {
            Some(translator) => translator.statistics().to_string(),
            None => "the machine was made without the translator".into(),
        };
        Some(figures + "\n")
    }

    fn for_each(&self, mut act: impl FnMut(usize, &mut Engine)) {
        self.cpus.iter().enumerate().for_each(|(index, cpu)| act(index, &mut lock(cpu)));
    }

    /// Changes the points of every CPU, and takes the change back where one cannot follow.
    fn change_points(
        &self,
        change: impl Fn(&mut Cpu) -> bool,
        undo: impl Fn(&mut Cpu) -> bool,
    ) -> Result<(), PointError> {
        let mut outcome = Ok(());
        self.for_each(|_, engine| {
            if !change(engine.cpu_mut()) {
                outcome = Err(PointError::Refused);
            } else if let Err(reason) = engine.check_debug_points() {
                outcome = Err(PointError::Engine(reason));
            }
        });
        if outcome.is_err() {
            self.for_each(|_, engine| {
                undo(engine.cpu_mut());
            });
        }
        outcome
    }

    /// Stops every CPU before the instruction at a linear address.
    pub(crate) fn add_breakpoint(&self, linear: u64) -> Result<(), PointError> {
        self.change_points(|cpu| cpu.add_breakpoint(linear), |cpu| cpu.remove_breakpoint(linear))
    }

    /// Takes a breakpoint away. False if there was none.
    pub(crate) fn remove_breakpoint(&self, linear: u64) -> bool {
        let mut is_removed = false;
        self.for_each(|_, engine| is_removed |= engine.cpu_mut().remove_breakpoint(linear));
        is_removed
    }

    /// Stops every CPU behind an access that meets `watchpoint`.
    pub(crate) fn add_watchpoint(&self, watchpoint: Watchpoint) -> Result<(), PointError> {
        let undo = |cpu: &mut Cpu| cpu.remove_watchpoint(watchpoint);
        self.change_points(|cpu| cpu.add_watchpoint(watchpoint), undo)
    }

    /// Takes a watchpoint away. False if there was none.
    pub(crate) fn remove_watchpoint(&self, watchpoint: Watchpoint) -> bool {
        let mut is_removed = false;
        self.for_each(|_, engine| is_removed |= engine.cpu_mut().remove_watchpoint(watchpoint));
        is_removed
    }

    /// Says how each CPU goes on. At `reported` a debugger has seen CPU and instruction: its
    /// breakpoint there does not count again.
    pub(crate) fn resume(&self, reported: usize, how: impl Fn(usize) -> Resume) {
        self.for_each(|index, engine| {
            engine.cpu_mut().resume_debugged(how(index), index == reported);
        });
    }

    /// The first CPU that stopped, and why. The others keep what they have to say.
    pub(crate) fn take_stop(&self) -> Option<(usize, DebugStop)> {
        let stop_of = |cpu: &SharedCpu| lock(cpu).cpu_mut().take_debug_stop();
        self.cpus.iter().enumerate().find_map(|(index, cpu)| Some((index, stop_of(cpu)?)))
    }

    /// Takes all points away and lets every CPU run.
    pub(crate) fn detach(&self) {
        self.for_each(|_, engine| engine.cpu_mut().detach_debugger());
    }
}
