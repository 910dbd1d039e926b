//! Who set which point: gdb and the monitor may stop CPUs at the same place, and each takes away
//! its own.

use std::collections::{BTreeMap, BTreeSet};

use cpu::debugger::{Catchpoint, CodeAddress, Watchpoint};

/// Why a point cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PointError {
    /// There are as many as a CPU keeps, or the range of a watchpoint is empty or has no end.
    Refused,
    /// The engine cannot stop there, and why.
    Engine(&'static str),
}

/// Who set a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// gdb, by its packets.
    Gdb,
    /// A monitor. Its points are the machine's: they stay when the monitor's user goes.
    Monitor,
}

/// Where CPUs stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// Before the instruction there. A place has one of each kind, and each its condition.
    Breakpoint(CodeAddress, Kind),
    /// Behind an access that meets this.
    Watchpoint(Watchpoint),
    /// At such an event.
    Catchpoint(Catchpoint),
}

/// Kinds of breakpoints at one address; as a number that CPUs tell them apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// gdb's software breakpoint.
    Software = 0,
    /// gdb's hardware breakpoint.
    Hardware = 1,
    /// The monitor's.
    Monitor = 2,
}

impl Kind {
    /// The kind with this number.
    pub(crate) fn of(number: u32) -> Self {
        match number {
            0 => Self::Software,
            1 => Self::Hardware,
            _ => Self::Monitor,
        }
    }
}

/// The points of a machine. Those of the monitor have numbers, from 1 on.
#[derive(Default)]
pub(super) struct Points {
    owners: BTreeMap<Point, BTreeSet<Owner>>,
    numbers: BTreeMap<u32, Point>,
    last_number: u32,
}

impl Points {
    /// True if nobody has set `point`.
    pub(super) fn is_free(&self, point: Point) -> bool {
        !self.owners.contains_key(&point)
    }

    /// True if `owner` has set `point`.
    pub(super) fn has(&self, owner: Owner, point: Point) -> bool {
        self.owners.get(&point).is_some_and(|owners| owners.contains(&owner))
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Notes that `owner` has set `point`.
    pub(super) fn add(&mut self, owner: Owner, point: Point) {
        let is_new = self.owners.entry(point).or_default().insert(owner);
        if is_new && owner == Owner::Monitor {
            self.last_number = self.last_number.wrapping_add(1);
            self.numbers.insert(self.last_number, point);
        }
    }

    /// Notes that `owner` takes `point` away: none if it had not set it, else whether nobody else
    /// has.
    pub(super) fn remove(&mut self, owner: Owner, point: Point) -> Option<bool> {
        let owners = self.owners.get_mut(&point).filter(|owners| owners.contains(&owner))?;
        owners.remove(&owner);
        let is_free = owners.is_empty();
        if is_free {
            self.owners.remove(&point);
        }
        if owner == Owner::Monitor {
            self.numbers.retain(|_, numbered| *numbered != point);
        }
        Some(is_free)
    }

    /// What `owner` has set.
    pub(super) fn of(&self, owner: Owner) -> Vec<Point> {
        let has_set =
            |(point, owners): (&Point, &BTreeSet<Owner>)| owners.contains(&owner).then_some(*point);
        self.owners.iter().filter_map(has_set).collect()
    }

    /// The monitor's points by their numbers.
    pub(super) fn numbered(&self) -> &BTreeMap<u32, Point> {
        &self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stays_until_its_last_owner_takes_it_away() {
        let breakpoint = |linear| Point::Breakpoint(CodeAddress::Linear(linear), Kind::Monitor);
        let (mut points, point) = (Points::default(), breakpoint(0x1000));
        assert!(points.is_free(point));
        points.add(Owner::Monitor, point);
        points.add(Owner::Monitor, point);
        points.add(Owner::Gdb, point);
        assert_eq!(points.numbered().iter().collect::<Vec<_>>(), [(&1, &point)]);
        assert_eq!(points.of(Owner::Gdb), [point]);
        assert_eq!(points.remove(Owner::Gdb, point), Some(false));
        assert_eq!(points.remove(Owner::Gdb, point), None);
        assert_eq!(points.remove(Owner::Monitor, point), Some(true));
        assert!(points.is_free(point) && points.numbered().is_empty());
        points.add(Owner::Monitor, breakpoint(0));
        assert!(points.numbered().contains_key(&2));
    }
}
