//! The packets of gdb's non-stop mode, and the stops that a client is still to be told of.
//!
//! In this mode a packet that resumes is answered at once, and a stop is told by a notification,
//! which the client acknowledges by `vStopped`; only then comes another one. So one is under way at
//! a time, and what waits is a stop of each CPU at most: a CPU whose stop was not acknowledged does
//! not go on.
//!
//! The protocol would have the next stop as the answer to `vStopped`, and all that stand behind
//! `?`. gdb 13 fails an assertion of its own when it hears of two that way while it connects
//! (`remote_target::wait`), so each is told by a notification of its own.

use std::collections::VecDeque;

use cpu::debugger::Resume;

/// A packet that is answered here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// CPUs are to stop one by one from here on, or all at once.
    Mode {
        /// One by one.
        is_non_stop: bool,
    },
    /// What may be done to threads.
    Actions,
    /// Which CPUs stand, and why.
    Stopped,
    /// The stop that was told is known.
    Known,
    /// Some CPU is to stop.
    Interrupt,
    /// CPUs are to go on, and others to stop.
    Resume(Plan),
    /// It makes no sense, or not in this mode.
    Invalid,
}

impl Request {
    /// The request that the packet `body` is; none if it is the `gdbstub` crate's to answer.
    pub(super) fn read(body: &[u8], is_non_stop: bool) -> Option<Self> {
        Some(match body {
            b"QNonStop:0" => Self::Mode { is_non_stop: false },
            b"QNonStop:1" => Self::Mode { is_non_stop: true },
            b"vCont?" => Self::Actions,
            _ if !is_non_stop => return None,
            b"?" => Self::Stopped,
            b"vStopped" => Self::Known,
            b"vCtrlC" => Self::Interrupt,
            [b'c' | b'C' | b's' | b'S', ..] => Self::Invalid,
            _ => {
                let plan = body.strip_prefix(b"vCont")?;
                Plan::read(plan).map_or(Self::Invalid, Self::Resume)
            }
        })
    }
}

/// Whom an action is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    All,
    Cpu(usize),
}

impl Whom {
    /// A thread as packets write it, with a process before it or without.
    fn read(text: &str) -> Option<Self> {
        let Some(ids) = text.strip_prefix('p') else { return Self::thread(text) };
        let (process, thread) = ids.split_once('.').unwrap_or((ids, "-1"));
        matches!(process, "-1" | "0" | "1" | "01").then(|| Self::thread(thread))?
    }

    fn thread(text: &str) -> Option<Self> {
        match text {
            "-1" | "0" => Some(Self::All),
            // Threads are numbered from 1 on.
            _ => Some(Self::Cpu(number(text)?.checked_sub(1)?.try_into().ok()?)),
        }
    }
}

/// A hexadecimal number and nothing else.
fn number(text: &str) -> Option<u64> {
    let has_digit = text.starts_with(|first: char| first.is_ascii_hexdigit());
    has_digit.then(|| u64::from_str_radix(text, 16).ok())?
}

/// What each CPU is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan(Vec<(Resume, Whom)>);

impl Plan {
    /// Reads `;ACTION[:THREAD]...`.
    fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.strip_prefix(';')?;
        let actions = text.split(';').map(|action| {
            let (action, whom) = match action.split_once(':') {
                Some((action, thread)) => (action, Whom::read(thread)?),
                None => (action, Whom::All),
            };
            Some((resume(action)?, whom))
        });
        Some(Self(actions.collect::<Option<_>>()?))
    }

    /// What CPU `cpu` is to do: the first action that is for it.
    pub(super) fn action(&self, cpu: usize) -> Option<Resume> {
        let is_for = |whom: Whom| whom == Whom::All || whom == Whom::Cpu(cpu);
        self.0.iter().find_map(|&(resume, whom)| is_for(whom).then_some(resume))
    }

    /// True if it names CPUs below `count` only.
    pub(super) fn is_within(&self, count: usize) -> bool {
        self.0.iter().all(|&(_, whom)| !matches!(whom, Whom::Cpu(cpu) if cpu >= count))
    }
}

/// How a CPU goes on by `action`. Guests know no signals: those that come along are left out.
fn resume(action: &str) -> Option<Resume> {
    let (kind, rest) = action.split_at_checked(1)?;
    match kind {
        "c" if rest.is_empty() => Some(Resume::Continue),
        "s" if rest.is_empty() => Some(Resume::Step),
        "t" if rest.is_empty() => Some(Resume::Hold),
        "C" => number(rest).map(|_| Resume::Continue),
        "S" => number(rest).map(|_| Resume::Step),
        "r" => {
            let (start, end) = rest.split_once(',')?;
            Some(Resume::StepInside { start: number(start)?, end: number(end)? })
        }
        _ => None,
    }
}

/// The stops that a client is still to be told of, in their order.
#[derive(Default)]
pub(super) struct Notices {
    waiting: VecDeque<(usize, String)>,
    /// The first was told and is not acknowledged.
    is_told: bool,
}

impl Notices {
    /// CPU `cpu` has stopped, which is told by `reply`.
    pub(super) fn put(&mut self, cpu: usize, reply: String) {
        if !self.has(cpu) {
            self.waiting.push_back((cpu, reply));
        }
    }

    /// True if the client does not know yet that CPU `cpu` has stopped.
    pub(super) fn has(&self, cpu: usize) -> bool {
        self.waiting.iter().any(|&(waiting, _)| waiting == cpu)
    }

    /// The stop that is to be told now, if one is.
    pub(super) fn take_due(&mut self) -> Option<&str> {
        if self.is_told {
            return None;
        }
        let (_, reply) = self.waiting.front()?;
        self.is_told = true;
        Some(reply)
    }

    /// The client knows the stop that it was told of.
    pub(super) fn acknowledge(&mut self) {
        if std::mem::take(&mut self.is_told) {
            self.waiting.pop_front();
        }
    }

    /// The client wants to know all from the first on: `stops`. The one to begin with.
    pub(super) fn begin(&mut self, stops: impl Iterator<Item = (usize, String)>) -> Option<&str> {
        *self = Self { waiting: stops.collect(), is_told: false };
        self.take_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &[u8]) -> Option<Plan> {
        match Request::read(text, true) {
            Some(Request::Resume(plan)) => Some(plan),
            _ => None,
        }
    }

    #[test]
    fn the_first_action_for_a_cpu_counts() {
        use Resume::{Continue, Hold, Step, StepInside};
        let inside = StepInside { start: 0x10, end: 0x1f };
        #[rustfmt::skip]
        let rows: [(&[u8], [Option<Resume>; 3]); 9] = [
            (b"vCont;c", [Some(Continue); 3]),
            (b"vCont;s:2", [None, Some(Step), None]),
            (b"vCont;s:p1.2;c:p1.-1", [Some(Continue), Some(Step), Some(Continue)]),
            (b"vCont;c:-1;s:2", [Some(Continue); 3]),
            (b"vCont;t:p1.3;C05:01;S5:2", [Some(Continue), Some(Step), Some(Hold)]),
            (b"vCont;r10,1f:1;t", [Some(inside), Some(Hold), Some(Hold)]),
            (b"vCont;t:p1", [Some(Hold); 3]),
            (b"vCont;c:0", [Some(Continue); 3]),
            (b"vCont;c:a", [None; 3]),
        ];
        for (text, expected) in rows {
            let plan = plan(text).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(text)));
            assert_eq!([0, 1, 2].map(|cpu| plan.action(cpu)), expected, "{plan:?}");
            assert_eq!(plan.is_within(3), !text.ends_with(b"a"));
        }
    }

    #[test]
    fn what_is_no_plan_is_invalid_and_what_is_no_request_is_not_taken() {
        #[rustfmt::skip]
        let invalid = [
            &b"vCont"[..], b"vCont;", b"vContc", b"vCont;x", b"vCont;c:", b"vCont;c:g", b"vCont;C",
            b"vCont;c5", b"vCont;r5", b"vCont;r5,", b"vCont;c;", b"vCont;c:p2.1", b"vCont;c:p",
            b"vCont;c:+1", b"vCont;c:-2", b"vCont;s:ffffffffffffffffff", b"vCont;\xff", b"c",
            b"S05", b"vCont;r+1,2:1", b"s1000",
        ];
        for text in invalid {
            let request = Request::read(text, true);
            assert_eq!(request, Some(Request::Invalid), "{}", String::from_utf8_lossy(text));
        }
        for text in [&b""[..], b"g", b"vStoppedx", b"QNonStop", b"QNonStop:2", b"vMustReplyEmpty"] {
            assert_eq!(Request::read(text, true), None);
        }
        for text in [&b"?"[..], b"vStopped", b"vCtrlC", b"vCont;c", b"c", b"S05"] {
            assert_eq!(Request::read(text, false), None);
        }
    }

    #[test]
    fn one_stop_of_each_cpu_is_told_at_a_time() {
        let mut notices = Notices::default();
        notices.acknowledge();
        for round in 0..3 {
            notices.put(1, format!("b{round}"));
            assert_eq!(notices.take_due(), Some(format!("b{round}")).as_deref());
            notices.put(0, "a".into());
            notices.put(0, "again".into());
            notices.put(1, "again".into());
            assert_eq!(notices.take_due(), None);
            assert!(notices.has(0) && notices.has(1));
            notices.acknowledge();
            assert!(notices.has(0) && !notices.has(1));
            notices.acknowledge();
            assert_eq!(notices.take_due(), Some("a"));
            notices.acknowledge();
            assert_eq!(notices.take_due(), None);
            assert!(!notices.has(0));
        }
        // What was under way is forgotten by who begins anew.
        notices.put(1, "b".into());
        assert_eq!(notices.take_due(), Some("b"));
        assert_eq!(notices.begin([(0, "a".into()), (1, "b".into())].into_iter()), Some("a"));
        assert_eq!(notices.take_due(), None);
        notices.acknowledge();
        assert_eq!(notices.take_due(), Some("b"));
        assert_eq!(notices.begin(std::iter::empty()), None);
        assert_eq!(notices.take_due(), None);
    }
}
