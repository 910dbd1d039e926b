//! A client in non-stop mode: it lets CPUs go on and has them stop one by one.
//!
//! The `gdbstub` crate knows no such mode. For it the machine stands all the while, so it answers
//! what is read and written; what resumes and what tells of stops is done here. Packets are served
//! while all CPUs are parked for a moment, those that run too: so a point that is set counts for
//! all from the next instruction on, and memory can be read through the paging of any CPU.

use std::collections::BTreeMap;

use cpu::debugger::Resume;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;

use super::notices::{Notices, Plan, Request};
use super::target::{GdbTarget, thread_of};

/// The answer to what makes no sense.
pub(super) const INVALID: &str = "E16";
/// A stop because the client wants it, which is no signal.
const ASKED_FOR: &str = "T00";
/// A stop for somebody's Ctrl-C.
const INTERRUPTED: &str = "T02";

/// Whose stop the end of all is.
const NO_CPU: usize = usize::MAX;

/// See the head of this file.
pub(super) struct NonStop {
    /// Threads are written with their process.
    has_processes: bool,
    notices: Notices,
    /// Why each CPU stopped last, in the client's words.
    reasons: BTreeMap<usize, String>,
    /// The CPU that went on last, the first of several: Ctrl-C is for it.
    foreground: usize,
}

impl NonStop {
    /// For a client that has the machine, all of which stands.
    pub(super) fn begin(target: &mut GdbTarget, has_processes: bool) -> Self {
        let notices = Notices::default();
        let mut this = Self { has_processes, notices, reasons: BTreeMap::new(), foreground: 0 };
        // Others than the one that stopped the machine may have something to say.
        while let Some((cpu, stop)) = target.machine().take_stop() {
            target.machine().hold(cpu, Some(stop));
            let reason = target.stop_reason(cpu, stop);
            this.note(cpu, &reason);
        }
        this
    }

    /// Does what `request` asks for. The answer.
    pub(super) fn answer(&mut self, request: &Request, target: &mut GdbTarget) -> String {
        let machine = target.machine();
        let answer = match request {
            Request::Stopped => {
                let standing = (0..machine.cpu_count()).filter(|&cpu| machine.stands(cpu));
                let stops: Vec<_> = standing.map(|cpu| (cpu, self.reply(cpu))).collect();
                self.notices.begin(stops.into_iter())
            }
            Request::Known => {
                self.notices.acknowledge();
                None
            }
            Request::Interrupt => {
                self.interrupt(target);
                None
            }
            Request::Resume(plan) if plan.is_within(machine.cpu_count()) => {
                self.resume(plan, target);
                None
            }
            _ => Some(INVALID),
        };
        answer.unwrap_or("OK").to_owned()
    }

    /// CPU `cpu` has stopped: the client is to be told.
    pub(super) fn stopped(&mut self, cpu: usize, reason: &MultiThreadStopReason<u64>) {
        self.note(cpu, reason);
        self.notices.put(cpu, self.reply(cpu));
    }

    /// The notification that is due, if one is.
    pub(super) fn take_due(&mut self) -> Option<String> {
        self.notices.take_due().map(|reply| format!("Stop:{reply}"))
    }

    /// The machine has ended with exit status `status`: the client is to be told.
    pub(super) fn end(&mut self, status: u8) {
        let process = if self.has_processes { ";process:1" } else { "" };
        self.notices.put(NO_CPU, format!("W{status:02x}{process}"));
    }

    fn note(&mut self, cpu: usize, reason: &MultiThreadStopReason<u64>) {
        self.reasons.insert(cpu, head(reason));
    }

    /// How the client is told that CPU `cpu` stands.
    fn reply(&self, cpu: usize) -> String {
        let head = self.reasons.get(&cpu).map_or(ASKED_FOR, String::as_str);
        let process = if self.has_processes { "p1." } else { "" };
        format!("{head}thread:{process}{:x};core:{cpu:x};", thread_of(cpu))
    }

    /// Has a CPU stand for the client, who hears of it, if it runs.
    fn stop(&mut self, cpu: usize, head: &str, target: &mut GdbTarget) {
        if !target.machine().stands(cpu) {
            target.machine().hold(cpu, None);
            target.turn_to(cpu);
            self.reasons.insert(cpu, head.to_owned());
            self.notices.put(cpu, self.reply(cpu));
        }
    }

    /// Ctrl-C stops one CPU, as a signal would one thread.
    fn interrupt(&mut self, target: &mut GdbTarget) {
        let machine = target.machine();
        let mut all = std::iter::once(self.foreground).chain(0..machine.cpu_count());
        if let Some(cpu) = all.find(|&cpu| !machine.stands(cpu)) {
            self.stop(cpu, INTERRUPTED, target);
        }
    }

    fn resume(&mut self, plan: &Plan, target: &mut GdbTarget) {
        let mut foreground = None;
        for cpu in 0..target.machine().cpu_count() {
            match plan.action(cpu) {
                None => {}
                Some(Resume::Hold) => self.stop(cpu, ASKED_FOR, target),
                // What the client does not know to have stopped it means to be running.
                Some(_) if self.notices.has(cpu) || !target.machine().stands(cpu) => {}
                Some(how) => {
                    self.reasons.remove(&cpu);
                    foreground.get_or_insert(cpu);
                    target.machine().release(cpu, how);
                }
            }
        }
        self.foreground = foreground.unwrap_or(self.foreground);
    }
}

/// The beginning of a stop reply: the signal, and what is told beside it.
fn head(reason: &MultiThreadStopReason<u64>) -> String {
    match reason {
        MultiThreadStopReason::SignalWithThread { signal, .. } => format!("T{:02x}", signal.0),
        MultiThreadStopReason::SwBreak(_) => "T05swbreak:;".into(),
        MultiThreadStopReason::HwBreak(_) => "T05hwbreak:;".into(),
        MultiThreadStopReason::Watch { kind, addr, .. } => {
            let word = match kind {
                WatchKind::Write => "watch",
                WatchKind::Read => "rwatch",
                WatchKind::ReadWrite => "awatch",
            };
            format!("T05{word}:{addr:x};")
        }
        _ => "T05".into(),
    }
}
