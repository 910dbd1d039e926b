//! The CPUs of a stopped machine, the points at which they stop, and the board around them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cpu::Cpu;
use cpu::debugger::{DebugStop, Resume, WatchHit};
use machine::pc::Pc;
use machine::timers::Timers;

use super::points::{Owner, Point, PointError, Points};
use crate::config::EngineKind;
use crate::vm::{Control, Engine, SharedCpu, Switcher, lock};

/// What is around the CPUs.
pub(crate) struct Board {
    /// The chips.
    pub(crate) pc: Arc<Pc>,
    /// Deadlines on the guest's clock.
    pub(crate) timers: Arc<Timers>,
    /// Who stops the machine.
    pub(crate) control: Arc<Control>,
    /// Who changes its engine.
    pub(crate) switcher: Switcher,
}

/// A machine. CPUs are to be touched by its owner, and only while all are stopped.
pub(crate) struct Machine {
    cpus: Vec<SharedCpu>,
    board: Board,
    points: Mutex<Points>,
    /// The last watchpoint that was met.
    last_watch: Mutex<Option<WatchHit>>,
    /// The machine stands until somebody lets it go on.
    is_halted: AtomicBool,
}

impl Machine {
    pub(crate) fn new(cpus: Vec<SharedCpu>, board: Board) -> Self {
        let is_halted = AtomicBool::new(false);
        Self { cpus, board, points: Mutex::default(), last_watch: Mutex::default(), is_halted }
    }

    /// What is around the CPUs.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// True while the machine stands until somebody lets it go on.
    pub(crate) fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
    }

    /// Has the machine stand, or lets it go on. Its owner looks at it before CPUs run again.
    pub(crate) fn set_halted(&self, is_halted: bool) {
        self.is_halted.store(is_halted, Ordering::Relaxed);
    }

    /// How many CPUs there are.
    pub(crate) fn cpu_count(&self) -> usize {
        self.cpus.len()
    }

    /// Does something with CPU `index`; `None` if there is none.
    pub(crate) fn with<T>(&self, index: usize, act: impl FnOnce(&mut Cpu) -> T) -> Option<T> {
        self.cpus.get(index).map(|cpu| act(lock(cpu).cpu_mut()))
    }

    /// The engine that the CPUs run on.
    pub(crate) fn engine(&self) -> Option<EngineKind> {
        self.cpus.first().map(|cpu| lock(cpu).kind())
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

    fn points(&self) -> MutexGuard<'_, Points> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops every CPU at `point`, for `owner`.
    pub(crate) fn add_point(&self, owner: Owner, point: Point) -> Result<(), PointError> {
        let mut points = self.points();
        if points.is_free(point) {
            self.change_points(|cpu| set(cpu, point), |cpu| unset(cpu, point))?;
        }
        points.add(owner, point);
        Ok(())
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

    /// Takes a point of `owner`'s away. False if it had set none there.
    pub(crate) fn remove_point(&self, owner: Owner, point: Point) -> bool {
        let removed = self.points().remove(owner, point);
        if removed == Some(true) {
            self.for_each(|_, engine| {
                unset(engine.cpu_mut(), point);
            });
        }
        removed.is_some()
    }

    /// The monitor's points by their numbers.
    pub(crate) fn numbered_points(&self) -> Vec<(u32, Point)> {
        self.points().numbered().iter().map(|(number, point)| (*number, *point)).collect()
    }

    /// The number that the monitor gave a point.
    pub(crate) fn number_of(&self, point: Point) -> Option<u32> {
        let is_it = |(number, numbered): (&u32, &Point)| (*numbered == point).then_some(*number);
        self.points().numbered().iter().find_map(is_it)
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
        let stop = self.cpus.iter().enumerate().find_map(|(i, cpu)| Some((i, stop_of(cpu)?)))?;
        if let (_, DebugStop::Watchpoint(hit)) = stop {
            *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(hit);
        }
        Some(stop)
    }

    /// The last watchpoint that was met.
    pub(crate) fn last_watch(&self) -> Option<WatchHit> {
        *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `owner`'s points away and lets every CPU run.
    pub(crate) fn detach(&self, owner: Owner) {
        let own = self.points().of(owner);
        for point in own {
            self.remove_point(owner, point);
        }
        let is_left = !self.points().is_empty();
        self.for_each(|_, engine| {
            if is_left {
                engine.cpu_mut().resume_debugged(Resume::Continue, false);
            } else {
                engine.cpu_mut().detach_debugger();
            }
        });
    }
}

fn set(cpu: &mut Cpu, point: Point) -> bool {
    match point {
        Point::Breakpoint(linear) => cpu.add_breakpoint(linear),
        Point::Watchpoint(watchpoint) => cpu.add_watchpoint(watchpoint),
    }
}

fn unset(cpu: &mut Cpu, point: Point) -> bool {
    match point {
        Point::Breakpoint(linear) => cpu.remove_breakpoint(linear),
        Point::Watchpoint(watchpoint) => cpu.remove_watchpoint(watchpoint),
    }
}
