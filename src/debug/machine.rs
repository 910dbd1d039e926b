//! The CPUs of a stopped machine, the points at which they stop, and the board around them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cpu::Cpu;
use cpu::debugger::{Breakpoint, Caught, DebugStop, Resume, WatchHit};
use machine::pc::Pc;
use machine::timers::Timers;

use super::points::{Kind, Owner, Point, PointError, Points};
use crate::config::EngineKind;
use crate::names::Names;
use crate::vm::{Control, Engine, SharedCpu, Switcher, Tracer, lock};

/// The machine was moved to the translator, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved(&'static str);

impl fmt::Display for Moved {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the guest goes on on the engine {}: {}", EngineKind::Jit, self.0)
    }
}

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
    /// Who traces it.
    pub(crate) tracer: Arc<Tracer>,
    /// Names of the guest's addresses.
    pub(crate) names: Arc<Names>,
    /// The size of the guest's memory.
    pub(crate) memory_bytes: u64,
}

/// A machine. CPUs are to be touched by its owner, and only while all are stopped.
pub(crate) struct Machine {
    cpus: Vec<SharedCpu>,
    board: Board,
    points: Mutex<Points>,
    /// The last watchpoint that was met.
    last_watch: Mutex<Option<WatchHit>>,
    /// What was caught last.
    last_caught: Mutex<Option<Caught>>,
    /// The machine stands until somebody lets it go on.
    is_halted: AtomicBool,
    /// CPUs that stand while others may run, and what stopped them; none for somebody's wish.
    held: Mutex<BTreeMap<usize, Option<DebugStop>>>,
}

impl Machine {
    pub(crate) fn new(cpus: Vec<SharedCpu>, board: Board) -> Self {
        let is_halted = AtomicBool::new(false);
        Self {
            cpus,
            board,
            points: Mutex::default(),
            last_watch: Mutex::default(),
            last_caught: Mutex::default(),
            is_halted,
            held: Mutex::default(),
        }
    }

    /// What is around the CPUs.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// Names of the guest's addresses.
    pub(crate) fn names(&self) -> &Arc<Names> {
        &self.board.names
    }

    /// True while the machine stands until somebody lets it go on.
    pub(crate) fn is_halted(&self) -> bool {
        self.is_halted.load(Ordering::Relaxed)
    }

    /// Has the machine stand, or lets it go on. Its owner looks at it before CPUs run again.
    pub(crate) fn set_halted(&self, is_halted: bool) {
        self.is_halted.store(is_halted, Ordering::Relaxed);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<usize, Option<DebugStop>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if CPU `index` stands until somebody lets it go on.
    pub(crate) fn stands(&self, index: usize) -> bool {
        self.is_halted() || self.held().contains_key(&index)
    }

    /// Why CPU `index` stands by itself, if it does; none for somebody's wish.
    pub(crate) fn why_held(&self, index: usize) -> Option<Option<DebugStop>> {
        self.held().get(&index).copied()
    }

    /// The CPUs that stand by themselves.
    pub(crate) fn all_held(&self) -> Vec<usize> {
        self.held().keys().copied().collect()
    }

    /// Has CPU `index` stand, while others may run on. With the last one the machine stands.
    pub(crate) fn hold(&self, index: usize, why: Option<DebugStop>) {
        let Some(cpu) = self.cpus.get(index) else { return };
        keep_still(lock(cpu).cpu_mut());
        let mut held = self.held();
        held.insert(index, why);
        if held.len() == self.cpus.len() {
            self.set_halted(true);
        }
    }

    /// Lets CPU `index` go on, which stood: where the machine did, it alone.
    pub(crate) fn release(&self, index: usize, how: Resume) {
        if self.is_halted() {
            for other in 0..self.cpus.len() {
                let why = self.why_held(other).flatten();
                self.hold(other, why);
            }
        }
        if self.held().remove(&index).is_some() {
            // Who lets it go on has seen where it stands.
            self.with(index, |cpu| cpu.resume_debugged(how, true));
        }
        self.set_halted(false);
    }

    /// Lets the machine go on, and all CPUs that stand by themselves.
    pub(crate) fn go_on(&self) {
        let held = std::mem::take(&mut *self.held());
        for index in held.into_keys() {
            self.with(index, |cpu| cpu.resume_debugged(Resume::Continue, true));
        }
        self.set_halted(false);
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
    pub(crate) fn add_point(
        &self,
        owner: Owner,
        point: Point,
    ) -> Result<Option<Moved>, PointError> {
        let mut points = self.points();
        let mut moved = None;
        if points.is_free(point) {
            moved = self.change_points(|_, cpu| set(cpu, point), |cpu| unset(cpu, point))?;
        }
        points.add(owner, point);
        Ok(moved)
    }

    /// Stops CPU `only`, or all, at a breakpoint of `owner`'s, in place of its kind's there.
    pub(crate) fn add_breakpoint(
        &self,
        owner: Owner,
        breakpoint: &Breakpoint,
        only: Option<usize>,
    ) -> Result<Option<Moved>, PointError> {
        let Breakpoint { at, number, .. } = *breakpoint;
        let mut points = self.points();
        let change = |index, cpu: &mut Cpu| {
            if only.is_none_or(|only| only == index) {
                return cpu.set_breakpoint(breakpoint.clone());
            }
            cpu.clear_breakpoint(at, number);
            true
        };
        let moved = self.change_points(change, |cpu| cpu.clear_breakpoint(at, number));
        let point = Point::Breakpoint(at, Kind::of(number));
        match moved {
            Ok(_) => points.add(owner, point),
            // What it was to replace is gone with it.
            Err(_) => drop(points.remove(owner, point)),
        }
        moved
    }

    /// Changes the points of every CPU. Where the engine cannot follow, the machine is moved to the
    /// translator if it was made with it; else the change is taken back.
    fn change_points(
        &self,
        change: impl Fn(usize, &mut Cpu) -> bool,
        undo: impl Fn(&mut Cpu) -> bool,
    ) -> Result<Option<Moved>, PointError> {
        let mut outcome = Ok(None);
        self.for_each(|index, engine| {
            if !change(index, engine.cpu_mut()) {
                outcome = Err(PointError::Refused);
            } else if let Err(reason) = engine.check_debug_points()
                && outcome.is_ok()
            {
                outcome = Err(PointError::Engine(reason));
            }
        });
        if let Err(PointError::Engine(reason)) = outcome
            && self.move_to_translator()
        {
            let moved = Moved(reason);
            log::info!("{moved}");
            return Ok(Some(moved));
        }
        if outcome.is_err() {
            self.for_each(|_, engine| {
                undo(engine.cpu_mut());
            });
        }
        outcome
    }

    /// Moves all CPUs to the translator. False if the machine was made without it.
    fn move_to_translator(&self) -> bool {
        let is_prepared = self.cpus.iter().all(|cpu| lock(cpu).has(EngineKind::Jit));
        if is_prepared {
            self.for_each(|_, engine| engine.switch(EngineKind::Jit));
        }
        is_prepared
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

    /// Says how each CPU goes on, those too that stood by themselves. At `reported` a debugger has
    /// seen CPU and instruction: its breakpoint there does not count again.
    pub(crate) fn resume(&self, reported: usize, how: impl Fn(usize) -> Resume) {
        let held = std::mem::take(&mut *self.held());
        self.for_each(|index, engine| {
            let is_passing = index == reported || held.contains_key(&index);
            engine.cpu_mut().resume_debugged(how(index), is_passing);
        });
    }

    /// The first CPU that stopped, and why. The others keep what they have to say.
    pub(crate) fn take_stop(&self) -> Option<(usize, DebugStop)> {
        let stop_of = |cpu: &SharedCpu| lock(cpu).cpu_mut().take_debug_stop();
        let stop = self.cpus.iter().enumerate().find_map(|(i, cpu)| Some((i, stop_of(cpu)?)))?;
        match stop.1 {
            DebugStop::Watchpoint(hit) => {
                *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(hit);
            }
            DebugStop::Caught(caught) => {
                *self.last_caught.lock().unwrap_or_else(PoisonError::into_inner) = Some(caught);
            }
            DebugStop::Breakpoint(_) | DebugStop::Step => {}
        }
        Some(stop)
    }

    /// What was caught last.
    pub(crate) fn last_caught(&self) -> Option<Caught> {
        *self.last_caught.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The point that CPU `index` stopped at, if it was one. Whose an event is nobody asks.
    pub(crate) fn point_of(&self, index: usize, stop: &DebugStop) -> Option<Point> {
        match stop {
            DebugStop::Breakpoint(_) => {
                let (at, number) = self.with(index, |cpu| cpu.debugger().met())??;
                Some(Point::Breakpoint(at, Kind::of(number)))
            }
            DebugStop::Watchpoint(hit) => Some(Point::Watchpoint(hit.watchpoint)),
            DebugStop::Caught(_) | DebugStop::Step => None,
        }
    }

    /// True if `owner` has set `point`.
    pub(crate) fn has_point(&self, owner: Owner, point: Point) -> bool {
        self.points().has(owner, point)
    }

    /// The last watchpoint that was met.
    pub(crate) fn last_watch(&self) -> Option<WatchHit> {
        *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `owner`'s points away and lets every CPU run that does not stand by itself.
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
        self.all_held().into_iter().for_each(|index| {
            self.with(index, keep_still);
        });
    }
}

/// A CPU that has nothing to say stands from here on; one that has does once it was heard.
fn keep_still(cpu: &mut Cpu) {
    if cpu.debugger().stop().is_none() {
        cpu.resume_debugged(Resume::Hold, false);
    }
}

fn set(cpu: &mut Cpu, point: Point) -> bool {
    match point {
        Point::Breakpoint(at, kind) => {
            cpu.set_breakpoint(Breakpoint { at, number: kind as u32, condition: None })
        }
        Point::Watchpoint(watchpoint) => cpu.add_watchpoint(watchpoint),
        Point::Catchpoint(catchpoint) => cpu.add_catchpoint(catchpoint),
    }
}

fn unset(cpu: &mut Cpu, point: Point) -> bool {
    match point {
        Point::Breakpoint(at, kind) => cpu.clear_breakpoint(at, kind as u32),
        Point::Watchpoint(watchpoint) => cpu.remove_watchpoint(watchpoint),
        Point::Catchpoint(catchpoint) => cpu.remove_catchpoint(catchpoint),
    }
}
