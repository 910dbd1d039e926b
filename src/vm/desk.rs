//! Where debuggers are served: what gdb's client and monitors ask for, on a machine that stands.
//!
//! Everything comes by one [`Inbox`] and is done one thing after the other by the machine's owner,
//! for whom all CPUs are parked. A command of a monitor takes a moment, and then all go on, unless
//! the machine is *halted*: from a stop on, until gdb or a monitor lets it go on. While a client of
//! gdb's has it halted it alone does. One CPU may stand while others run: a monitor's user has
//! stopped it by its number, or a client of gdb's is in non-stop mode, in which a CPU that stops
//! stops alone.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use cpu::debugger::{DebugStop, Resume};

use super::control::{Control, Quit, Request};
use crate::config::GdbConfig;
use crate::debug::commands::{self, Context, Effect, Run};
use crate::debug::inbox::{Answered, Event, Inbox, Question};
use crate::debug::{Machine, StopReport};
use crate::gdb;
use crate::monitor::Audience;

/// What a monitor hears that wants what only gdb may do now.
const GDB_HAS_IT: &str = "gdb has stopped the machine; let it go on there\n";
/// What a monitor hears that wants one CPU to stand while gdb knows all of them as one.
const GDB_WAITS: &str =
    "gdb waits for the machine as a whole; take `stop`, or gdb's non-stop mode\n";

/// How long an ending machine waits for what a client has to say to that, and how often at most.
const LAST_PAUSE: Duration = Duration::from_millis(250);
const LAST_EVENTS_MAX: usize = 16;

/// A monitor's step that is under way.
struct Steps {
    cpu: usize,
    /// How many are to come.
    left: u64,
    context: Context,
    reply: Sender<Answered>,
}

/// See the head of this file.
pub(crate) struct Desk {
    machine: Arc<Machine>,
    inbox: Arc<Inbox>,
    gdb: Option<gdb::Server>,
    /// The monitors, who are told of stops.
    audience: Arc<Audience>,
    steps: Option<Steps>,
    /// The CPU that stopped last.
    reported: usize,
}

/// Locks the desk. A panic at it ends the machine's run anyway.
pub(crate) fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An inbox whose owner is `control`'s.
pub(crate) fn inbox(control: &Arc<Control>) -> Arc<Inbox> {
    let owner = Arc::downgrade(control);
    let inbox = Arc::new(Inbox::new(Box::new(move || {
        if let Some(control) = owner.upgrade() {
            control.request_debugger();
        }
    })));
    let quitting = Arc::clone(&inbox);
    control.on_quit(Box::new(move || quitting.put(Event::Quit)));
    inbox
}

impl Desk {
    /// A desk with a server of gdb's, if there is to be one.
    pub(crate) fn open(
        gdb: Option<&GdbConfig>,
        inbox: &Arc<Inbox>,
        machine: &Arc<Machine>,
        audience: &Arc<Audience>,
    ) -> Result<Self> {
        let gdb = gdb.map(|config| gdb::Server::start(config, inbox, Arc::clone(machine)));
        Ok(Self {
            machine: Arc::clone(machine),
            inbox: Arc::clone(inbox),
            gdb: gdb.transpose()?,
            audience: Arc::clone(audience),
            steps: None,
            reported: 0,
        })
    }

    fn control(&self) -> &Arc<Control> {
        &self.machine.board().control
    }

    /// Serves until the machine may go on, or has something else to do. All CPUs are stopped.
    pub(crate) fn serve(&mut self) {
        self.inbox.attend();
        self.report_stop();
        while self.machine.is_halted() || !self.inbox.leave() {
            match self.inbox.next() {
                Event::Connected(client) => {
                    self.end_steps("gdb stops the machine\n");
                    self.with_gdb(|gdb| gdb.begin(client));
                }
                Event::Bytes(bytes) => self.with_gdb(|gdb| gdb.take(&bytes)),
                Event::Closed => self.with_gdb(gdb::Server::vanish),
                Event::Asked(question) => self.answer(*question),
                Event::Interrupted => self.interrupt(),
                Event::Quit => return,
            }
            if self.control().has_request() {
                // That goes first; a halted machine comes back here behind it.
                self.control().request_debugger();
                return;
            }
        }
    }

    /// The machine has ended with exit status `status`: gdb's client is told, and monitors' users
    /// get the answers that are on their way.
    pub(crate) fn finish(&mut self, status: u8) {
        self.with_gdb(|gdb| gdb.finish(status));
        self.hear_gdb_out();
        self.audience.flush();
    }

    /// A client of gdb's in non-stop mode acknowledges the end, if it is quick about it.
    fn hear_gdb_out(&mut self) {
        for _ in 0..LAST_EVENTS_MAX {
            if !self.is_non_stop() {
                return;
            }
            match self.inbox.next_within(LAST_PAUSE) {
                Some(Event::Bytes(bytes)) => self.with_gdb(|gdb| gdb.take(&bytes)),
                Some(Event::Closed) | None => break,
                Some(_) => {}
            }
        }
        self.with_gdb(gdb::Server::close);
    }

    /// True if a client of gdb's lets CPUs go on one by one.
    fn is_non_stop(&self) -> bool {
        self.gdb.as_ref().is_some_and(gdb::Server::is_non_stop)
    }

    /// True if a client of gdb's has let the machine go on, and waits.
    fn is_gdb_waiting(&self) -> bool {
        self.gdb.as_ref().is_some_and(gdb::Server::is_waiting)
    }

    fn with_gdb(&mut self, act: impl FnOnce(&mut gdb::Server)) {
        if let Some(gdb) = &mut self.gdb {
            act(gdb);
        }
    }

    /// A CPU may have stopped: whoever waits for that is told.
    fn report_stop(&mut self) {
        if self.is_non_stop() {
            while let Some((cpu, stop)) = self.machine.take_stop() {
                self.stand(cpu, Some(stop));
            }
            return;
        }
        let Some((cpu, stop)) = self.machine.take_stop() else { return };
        if stop == DebugStop::Step
            && let Some(steps) = &mut self.steps
            && steps.left > 1
        {
            steps.left -= 1;
            return self.step_on();
        }
        self.halt(cpu, Some(stop));
    }

    /// The machine stands from here on; `stop` is none for a user's wish.
    fn halt(&mut self, cpu: usize, stop: Option<DebugStop>) {
        self.machine.set_halted(true);
        self.tell(cpu, stop);
    }

    /// CPU `cpu` stands from here on, and others may run; `stop` is none for a user's wish.
    fn stand(&mut self, cpu: usize, stop: Option<DebugStop>) {
        self.machine.hold(cpu, stop);
        self.tell(cpu, stop);
    }

    /// Tells whom it concerns that CPU `cpu` has stopped.
    fn tell(&mut self, cpu: usize, stop: Option<DebugStop>) {
        self.reported = cpu;
        let point = stop.as_ref().and_then(|stop| self.machine.point_of(cpu, stop));
        let is_caught = matches!(stop, Some(DebugStop::Caught(_)));
        let is_ours =
            is_caught || point.is_none_or(|point| self.machine.number_of(point).is_some());
        let is_gdbs = self.is_gdb_waiting() || self.is_non_stop();
        let report = StopReport::of(&self.machine, cpu, stop);
        let report = report.map(|report| report.to_string()).unwrap_or_default();
        self.with_gdb(|gdb| gdb.report_stop(cpu, stop));
        let is_stepped = self.steps.is_some();
        self.end_steps(&report);
        let concerns_all = !is_stepped && (!is_gdbs || is_ours && stop != Some(DebugStop::Step));
        if concerns_all && stop.is_some() {
            self.audience.tell(cpu, &report);
        }
    }

    /// A step that is under way ends with `text`.
    fn end_steps(&mut self, text: &str) {
        if let Some(Steps { cpu, mut context, reply, .. }) = self.steps.take() {
            context.cpu = cpu;
            respond(&reply, context, text.to_owned());
        }
    }

    /// A monitor's Ctrl-C.
    fn interrupt(&mut self) {
        if self.is_non_stop() {
            self.stop_each(None);
        } else if !self.machine.is_halted() {
            let cpu = self.steps.as_ref().map_or(self.reported, |steps| steps.cpu);
            self.halt(cpu, None);
        }
    }

    fn answer(&mut self, question: Question) {
        let Question { line, mut context, reply } = question;
        let text = match commands::run(&self.machine, &mut context, &line) {
            Ok(Effect::Reply(view)) => view.to_string(),
            Ok(Effect::Quit) => {
                self.control().request(Request::Quit(Quit::User));
                String::new()
            }
            Ok(Effect::Run(run)) => match self.run(run, context, &reply) {
                Some((back, text)) => {
                    context = back;
                    text
                }
                None => return,
            },
            Err(error) => format!("{error}\n"),
        };
        respond(&reply, context, text);
    }

    /// Stops the machine or lets it go on. The answer and the context; none if it comes later.
    fn run(
        &mut self,
        run: Run,
        context: Context,
        reply: &Sender<Answered>,
    ) -> Option<(Context, String)> {
        if self.gdb.as_ref().is_some_and(gdb::Server::has_the_machine) {
            return Some((context, GDB_HAS_IT.into()));
        }
        if self.is_non_stop() {
            return self.run_beside_gdb(run, context);
        }
        if self.steps.is_some() && run != Run::Stop(None) {
            return Some((context, "another monitor steps; `stop` ends that\n".into()));
        }
        match run {
            Run::Stop(Some(_)) if self.is_gdb_waiting() => Some((context, GDB_WAITS.into())),
            Run::Stop(one) => {
                let cpu = one.unwrap_or(context.cpu);
                match one {
                    _ if self.machine.is_halted() => {}
                    None => self.halt(cpu, None),
                    Some(cpu) => self.machine.hold(cpu, None),
                }
                Some((context, self.report(cpu)))
            }
            Run::Continue(Some(cpu)) => {
                if self.machine.stands(cpu) {
                    self.machine.release(cpu, Resume::Continue);
                }
                Some((context, String::new()))
            }
            Run::Continue(None) => {
                if self.machine.is_halted() {
                    self.machine.resume(self.reported, |_| Resume::Continue);
                }
                self.machine.go_on();
                Some((context, String::new()))
            }
            Run::Step(left) => {
                let cpu = context.cpu;
                self.steps = Some(Steps { cpu, left, context, reply: reply.clone() });
                self.step_on();
                None
            }
        }
    }

    /// The same beside a client of gdb's in non-stop mode. Whatever stands, it lets go on.
    fn run_beside_gdb(&mut self, run: Run, context: Context) -> Option<(Context, String)> {
        let is_gdbs = match run {
            Run::Stop(one) => {
                self.stop_each(one);
                let report = self.report(one.unwrap_or(context.cpu));
                return Some((context, report));
            }
            Run::Continue(Some(cpu)) => self.machine.stands(cpu),
            Run::Continue(None) => {
                (0..self.machine.cpu_count()).any(|cpu| self.machine.stands(cpu))
            }
            Run::Step(_) => true,
        };
        Some((context, if is_gdbs { GDB_HAS_IT.into() } else { String::new() }))
    }

    /// CPU `one`, or all, stop one by one, and gdb's client is told.
    fn stop_each(&mut self, one: Option<usize>) {
        for cpu in 0..self.machine.cpu_count() {
            if one.is_none_or(|one| one == cpu) && !self.machine.stands(cpu) {
                self.stand(cpu, None);
            }
        }
    }

    /// Where CPU `cpu` is.
    fn report(&self, cpu: usize) -> String {
        let report = StopReport::of(&self.machine, cpu, None);
        report.map(|report| report.to_string()).unwrap_or_default()
    }

    /// One instruction of the CPU that is stepped; the others stand still.
    fn step_on(&mut self) {
        let Some(cpu) = self.steps.as_ref().map(|steps| steps.cpu) else { return };
        let how = |index| if index == cpu { Resume::Step } else { Resume::Hold };
        self.machine.resume(cpu, how);
        self.machine.set_halted(false);
    }
}

/// A session that has gone needs no answer.
fn respond(reply: &Sender<Answered>, context: Context, text: String) {
    let _ = reply.send(Answered { text, context });
}
