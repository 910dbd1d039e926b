//! The change of engine under a running guest: who may ask for it, and when by itself.
//!
//! All CPUs stop at an instruction boundary, each hands what it is to its other engine, and all go
//! on there ([`super::Vm`] does it, by `Engine::switch`). The engines that a machine may be moved
//! to are settled before it is made, for CPUID and the rate of the time-stamp counter are.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use machine::timers::{Timer, TimerTarget, Timers};

use super::control::Control;
use crate::config::{EngineKind, SwitchPlan};

/// Why an engine cannot be changed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPrepared(EngineKind);

impl fmt::Display for NotPrepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(engine) = self;
        write!(
            f,
            "the machine was made without the engine {engine}; start it with --switch-engines \
             {engine}"
        )
    }
}

impl Error for NotPrepared {}

/// Asks for changes of engine, from any thread.
#[derive(Clone)]
pub(crate) struct Switcher {
    control: Arc<Control>,
    engines: Arc<[EngineKind]>,
}

impl Switcher {
    /// For a machine that can be moved to `engines`.
    pub(crate) fn new(control: &Arc<Control>, engines: &[EngineKind]) -> Self {
        Self { control: Arc::clone(control), engines: engines.into() }
    }

    /// Moves the machine to the engine `to` as soon as all its CPUs have stopped. A request that
    /// comes before an earlier one was acted on replaces it.
    pub(crate) fn switch(&self, to: EngineKind) -> Result<(), NotPrepared> {
        if !self.engines.contains(&to) {
            return Err(NotPrepared(to));
        }
        self.control.switch_engine(to);
        Ok(())
    }
}

/// What comes next of a plan.
struct Course {
    plan: SwitchPlan,
    /// Changes asked for so far.
    done: usize,
}

impl Course {
    /// The next change behind guest time `now_ns`: when, and to which of `engines`.
    fn next(&self, now_ns: u64, engines: &[EngineKind]) -> Option<(u64, EngineKind)> {
        match &self.plan {
            SwitchPlan::Never => None,
            SwitchPlan::At(changes) => changes.get(self.done).copied(),
            SwitchPlan::Every(ns) => {
                // The first of the set is the one that the machine starts on.
                let to = engines.get((self.done + 1) % engines.len().max(1))?;
                Some((now_ns.saturating_add(*ns), *to))
            }
        }
    }
}

/// Changes the engine at the times of the command line. A cycle goes on when a change is done, for
/// on a slow host it may take as long as what is to be between two, and guests are to go on too.
pub(super) struct Timetable {
    switcher: Switcher,
    course: Mutex<(Course, Option<Timer>)>,
}

impl Timetable {
    /// Starts the plan, in guest time.
    pub(super) fn start(plan: SwitchPlan, switcher: Switcher, timers: &Arc<Timers>) -> Arc<Self> {
        let course = Mutex::new((Course { plan, done: 0 }, None));
        let table = Arc::new(Self { switcher, course });
        let target = Arc::downgrade(&table);
        let timer = timers.register(target);
        table.lock().1 = Some(timer);
        table.arm(timers.clock().now_ns());
        table
    }

    fn lock(&self) -> MutexGuard<'_, (Course, Option<Timer>)> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change that was asked for, here or elsewhere, is done, or was refused.
    pub(super) fn note_change(&self, now_ns: u64) {
        if self.is_cycle() {
            self.arm(now_ns);
        }
    }

    fn is_cycle(&self) -> bool {
        matches!(self.lock().0.plan, SwitchPlan::Every(_))
    }

    fn arm(&self, now_ns: u64) {
        let (next, timer) = {
            let (course, timer) = &*self.lock();
            (course.next(now_ns, &self.switcher.engines), timer.clone())
        };
        if let (Some((deadline_ns, _)), Some(timer)) = (next, timer) {
            timer.arm(deadline_ns);
        }
    }
}

impl TimerTarget for Timetable {
    fn expire(&self, now_ns: u64) {
        let to = {
            let (course, _) = &mut *self.lock();
            let next = course.next(now_ns, &self.switcher.engines);
            course.done += 1;
            next.map(|(_, to)| to)
        };
        if let Some(to) = to
            && let Err(error) = self.switcher.switch(to)
        {
            log::error!("{error}");
        }
        if !self.is_cycle() {
            self.arm(now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EngineKind::{Interp, Jit, Kvm};

    fn course(plan: SwitchPlan, engines: &[EngineKind]) -> Vec<(u64, EngineKind)> {
        let mut course = Course { plan, done: 0 };
        let mut now_ns = 100;
        let next = || {
            let change = course.next(now_ns, engines)?;
            course.done += 1;
            now_ns = change.0;
            Some(change)
        };
        std::iter::from_fn(next).take(4).collect()
    }

    #[test]
    fn a_plan_is_followed_in_order_and_a_cycle_has_no_end() {
        assert_eq!(course(SwitchPlan::Never, &[Jit]), []);
        let changes = vec![(200, Kvm), (300, Jit)];
        assert_eq!(course(SwitchPlan::At(changes.clone()), &[Jit, Kvm]), changes);
        assert_eq!(
            course(SwitchPlan::Every(50), &[Jit, Interp, Kvm]),
            [(150, Interp), (200, Kvm), (250, Jit), (300, Interp)]
        );
    }

    #[test]
    fn an_engine_that_was_not_prepared_is_refused_by_name() {
        let control = Control::new(super::super::mailboxes::Mailboxes::new(1));
        let switcher = Switcher::new(&control, &[Jit, Interp]);
        assert_eq!(switcher.switch(Interp), Ok(()));
        let error = switcher.switch(Kvm).unwrap_err();
        assert!(error.to_string().contains("--switch-engines kvm"), "{error}");
    }
}
