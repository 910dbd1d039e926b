//! Breakpoints: before which instructions a CPU stops, and on which condition.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use memory::PAGE_SIZE;

use crate::Cpu;

/// What must hold at a breakpoint for the CPU to stop.
pub trait Condition: Send + Sync + fmt::Debug + fmt::Display {
    /// True if `cpu`, which is before the instruction, is to stop. Nothing that the guest could
    /// see may change.
    fn holds(&self, cpu: &mut Cpu) -> bool;
}

/// Where an instruction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CodeAddress {
    /// At this linear address, whatever is mapped there.
    Linear(u64),
    /// At this physical address, wherever that is mapped.
    Physical(u64),
}

/// A breakpoint. Several may be at one address, with numbers of their own.
#[derive(Clone, Debug)]
pub struct Breakpoint {
    /// Where it is.
    pub at: CodeAddress,
    /// Which of those there it is.
    pub number: u32,
    /// When it counts; always without one.
    pub condition: Option<Arc<dyn Condition>>,
}

impl Breakpoint {
    /// The one without a condition and with number 0.
    pub fn plain(linear: u64) -> Self {
        Self { at: CodeAddress::Linear(linear), number: 0, condition: None }
    }
}

/// The breakpoints of a CPU.
#[derive(Debug, Default)]
pub struct Breakpoints {
    all: BTreeMap<(CodeAddress, u32), Option<Arc<dyn Condition>>>,
}

impl Breakpoints {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them: where, which, and on which condition.
    pub fn iter(&self) -> impl Iterator<Item = (CodeAddress, u32, Option<&Arc<dyn Condition>>)> {
        self.all.iter().map(|(&(at, number), condition)| (at, number, condition.as_ref()))
    }

    /// The linear addresses that have some.
    pub fn linear(&self) -> BTreeSet<u64> {
        let linear = |&(at, _): &(CodeAddress, u32)| match at {
            CodeAddress::Linear(linear) => Some(linear),
            CodeAddress::Physical(_) => None,
        };
        self.all.keys().filter_map(linear).collect()
    }

    /// True if some are at physical addresses.
    pub fn has_physical(&self) -> bool {
        self.any_in(CodeAddress::Physical(0), CodeAddress::Physical(u64::MAX))
    }

    /// Adds one, or replaces the one of its number there.
    pub(super) fn insert(&mut self, breakpoint: Breakpoint) {
        self.all.insert((breakpoint.at, breakpoint.number), breakpoint.condition);
    }

    /// Takes one away. False if there was none.
    pub(super) fn remove(&mut self, at: CodeAddress, number: u32) -> bool {
        self.all.remove(&(at, number)).is_some()
    }

    /// True if the one of this number is there.
    pub(super) fn has(&self, at: CodeAddress, number: u32) -> bool {
        self.all.contains_key(&(at, number))
    }

    fn any_in(&self, first: CodeAddress, last: CodeAddress) -> bool {
        let range = (Bound::Included((first, 0)), Bound::Included((last, u32::MAX)));
        self.all.range(range).next().is_some()
    }

    fn is_at(&self, at: CodeAddress) -> bool {
        self.any_in(at, at)
    }

    fn at(&self, at: CodeAddress) -> Vec<Breakpoint> {
        let here = self.all.range((at, 0)..=(at, u32::MAX));
        let breakpoint = |(&(at, number), condition): (&(CodeAddress, u32), &Option<_>)| {
            Breakpoint { at, number, condition: condition.clone() }
        };
        here.map(breakpoint).collect()
    }
}

/// What a CPU finds where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No breakpoint.
    None,
    /// Some whose conditions do not hold.
    Passed,
    /// This one.
    Met(CodeAddress, u32),
}

impl Cpu {
    /// Where the instruction at `linear` is in memory, if somebody asks and it is mapped.
    fn physical_code(&self, linear: u64) -> Option<u64> {
        if !self.debugger.breakpoints.has_physical() {
            return None;
        }
        self.inspect(linear).found.map(|(at, _)| at.0)
    }

    /// True if the instruction at `linear` has a breakpoint, on whatever condition.
    pub(super) fn is_breakpoint(&self, linear: u64) -> bool {
        let breakpoints = &self.debugger.breakpoints;
        if breakpoints.is_empty() {
            return false;
        }
        breakpoints.is_at(CodeAddress::Linear(linear))
            || self
                .physical_code(linear)
                .is_some_and(|at| self.debugger.breakpoints.is_at(CodeAddress::Physical(at)))
    }

    /// True if the `bytes` bytes from `linear` on, or the rest of its page, may have a breakpoint.
    pub(super) fn is_near_breakpoint(&self, linear: u64, bytes: u64) -> bool {
        let last = CodeAddress::Linear(linear.saturating_add(bytes));
        self.debugger.breakpoints.any_in(CodeAddress::Linear(linear), last)
            || self.physical_code(linear).is_some_and(|at| {
                // A block ends with its page.
                let last = CodeAddress::Physical(at | (PAGE_SIZE - 1));
                self.debugger.breakpoints.any_in(CodeAddress::Physical(at), last)
            })
    }

    /// Looks for a breakpoint at `linear` whose condition holds.
    pub(super) fn find_breakpoint(&mut self, linear: u64) -> Found {
        if self.debugger.breakpoints.is_empty() {
            return Found::None;
        }
        let mut here = self.debugger.breakpoints.at(CodeAddress::Linear(linear));
        if let Some(at) = self.physical_code(linear) {
            here.extend(self.debugger.breakpoints.at(CodeAddress::Physical(at)));
        }
        let is_none = here.is_empty();
        let met = here.into_iter().find(|breakpoint| {
            breakpoint.condition.as_ref().is_none_or(|condition| condition.holds(self))
        });
        match met {
            Some(Breakpoint { at, number, .. }) => Found::Met(at, number),
            None if is_none => Found::None,
            None => Found::Passed,
        }
    }
}
