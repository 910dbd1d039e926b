//! Who may run: the requests that stop the machine, and the parking of the vCPU threads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cpu::events::Events;
use machine::signals::{PowerEvent, PowerSink};

use super::mailboxes::Mailboxes;
use crate::config::EngineKind;

/// Why the machine's owner has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The guest asked for it through a chip.
    Power(PowerEvent),
    /// A CPU shut down by a triple fault.
    TripleFault,
    /// The user or a signal asked the machine to end.
    Quit(Quit),
    /// The machine is to go on on this engine.
    Switch(EngineKind),
    /// A debugger is to be served.
    Debug,
}

/// Why the user's side ends the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quit {
    /// The terminal escape, or the monitor.
    User,
    /// This signal.
    Signal(i32),
    /// A thread of ours died: a bug, reported on its way.
    Internal,
}

const SUSPEND: Request = Request::Power(PowerEvent::Suspend);
const WAKE: Request = Request::Power(PowerEvent::Wake);

#[derive(Default)]
struct Shared {
    /// The first request that was not taken yet; later ones are dropped, for the machine stops.
    request: Option<Request>,
    /// What woke the machine before its suspension was acted on.
    wake: Option<Request>,
    /// The engine that was asked for last, if it was not acted on yet. Nothing else is dropped for
    /// it.
    switch: Option<EngineKind>,
    /// A debugger has something to say or to hear; it waits behind the other requests.
    wants_debugger: bool,
    /// vCPU threads leave their CPU and wait.
    is_stopping: bool,
    /// vCPU threads end.
    is_over: bool,
    /// How many vCPU threads wait.
    parked: u32,
}

impl Shared {
    fn take(&mut self) -> Option<Request> {
        let request = self.request.take();
        self.request = self.wake.take();
        request
            .or_else(|| self.switch.take().map(Request::Switch))
            .or_else(|| std::mem::take(&mut self.wants_debugger).then_some(Request::Debug))
    }

    /// True if a request came since the last one was taken.
    fn is_asked(&self) -> bool {
        self.request.is_some() || self.switch.is_some() || self.wants_debugger
    }
}

/// The switchboard between vCPU threads, chips and the machine's owner.
pub(crate) struct Control {
    mailboxes: Arc<Mailboxes>,
    shared: Mutex<Shared>,
    changed: Condvar,
    quit_hooks: Mutex<Vec<QuitHook>>,
}

/// Lets go whoever waits for the outside, such as a CPU for a reader of its output.
type QuitHook = Box<dyn Fn() + Send + Sync>;

impl Control {
    pub(crate) fn new(mailboxes: Arc<Mailboxes>) -> Arc<Self> {
        Arc::new(Self {
            mailboxes,
            shared: Mutex::default(),
            changed: Condvar::new(),
            quit_hooks: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, shared: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
        self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the owner to move the machine to the engine `to`.
    pub(crate) fn switch_engine(&self, to: EngineKind) {
        self.request(Request::Switch(to));
    }

    /// Asks the owner to act; every CPU leaves the guest as soon as it can.
    pub(crate) fn request(&self, request: Request) {
        let mut shared = self.lock();
        match (shared.request, request) {
            (_, Request::Switch(to)) => shared.switch = Some(to),
            // What the user wants goes before what the guest wants.
            (None, _) | (_, Request::Quit(_)) => shared.request = Some(request),
            (Some(SUSPEND), WAKE) => shared.wake = Some(WAKE),
            _ => {}
        }
        shared.is_stopping = true;
        drop(shared);
        self.changed.notify_all();
        self.mailboxes.post_all(Events::EXIT);
        if matches!(request, Request::Quit(_)) {
            let hooks = self.quit_hooks.lock().unwrap_or_else(PoisonError::into_inner);
            hooks.iter().for_each(|hook| hook());
        }
    }

    /// Asks the owner to serve the debugger; every CPU leaves the guest as soon as it can.
    pub(crate) fn request_debugger(&self) {
        let mut shared = self.lock();
        shared.wants_debugger = true;
        shared.is_stopping = true;
        drop(shared);
        self.changed.notify_all();
        self.mailboxes.post_all(Events::EXIT);
    }

    /// True if the machine's owner has to act for somebody who is no debugger.
    pub(crate) fn has_request(&self) -> bool {
        let shared = self.lock();
        shared.request.is_some() || shared.switch.is_some()
    }

    /// Has `hook` called when the user's side ends the machine. It must not wait.
    pub(crate) fn on_quit(&self, hook: QuitHook) {
        self.quit_hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    /// Takes the request that waits, if one does.
    pub(crate) fn take_request(&self) -> Option<Request> {
        self.lock().take()
    }

    /// Waits for a request, and then until all `cpus` vCPU threads are parked.
    pub(crate) fn wait_for_request(&self, cpus: u32) -> Request {
        let mut shared = self.lock();
        loop {
            if shared.parked == cpus
                && let Some(request) = shared.take()
            {
                return request;
            }
            shared = self.wait(shared);
        }
    }

    /// Lets the parked vCPU threads go on, unless the next request is there already.
    pub(crate) fn resume(&self) {
        let mut shared = self.lock();
        shared.is_stopping = shared.is_asked();
        drop(shared);
        self.changed.notify_all();
    }

    /// Ends the parked vCPU threads.
    pub(crate) fn finish(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    /// A vCPU thread's pause: returns at once unless the machine stops, else when it goes on.
    /// False if the thread is to end.
    pub(crate) fn park(&self) -> bool {
        let mut shared = self.lock();
        shared.parked += 1;
        self.changed.notify_all();
        while shared.is_stopping && !shared.is_over {
            shared = self.wait(shared);
        }
        shared.parked -= 1;
        !shared.is_over
    }
}

impl PowerSink for Control {
    fn power(&self, event: PowerEvent) {
        self.request(Request::Power(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_parks_every_thread_and_a_resume_lets_them_go() {
        let mailboxes = Mailboxes::new(2);
        let control = Control::new(Arc::clone(&mailboxes));
        let threads: Vec<_> = (0..2)
            .map(|cpu| {
                let (control, mailboxes) = (Arc::clone(&control), Arc::clone(&mailboxes));
                std::thread::spawn(move || {
                    mailboxes.serve_from_here(cpu);
                    let mut rounds = 0;
                    while control.park() {
                        mailboxes.sleep(cpu, Events::EXIT);
                        mailboxes.all()[cpu as usize].take(Events::EXIT);
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        for _ in 0..3 {
            control.request(Request::TripleFault);
            assert_eq!(control.wait_for_request(2), Request::TripleFault);
            control.resume();
        }
        control.request(Request::Quit(Quit::User));
        assert_eq!(control.wait_for_request(2), Request::Quit(Quit::User));
        control.finish();
        for thread in threads {
            assert!(thread.join().expect("the thread ends") <= 4);
        }
    }

    #[test]
    fn the_debugger_takes_nothing_from_the_guest() {
        let control = Control::new(Mailboxes::new(1));
        control.request_debugger();
        control.request(Request::TripleFault);
        control.request_debugger();
        assert_eq!(control.take_request(), Some(Request::TripleFault));
        control.resume();
        assert!(control.lock().is_stopping);
        assert_eq!(control.take_request(), Some(Request::Debug));
        assert_eq!(control.take_request(), None);
        control.resume();
        assert!(!control.lock().is_stopping);
    }

    #[test]
    fn the_user_goes_before_the_guest() {
        let control = Control::new(Mailboxes::new(1));
        control.request(Request::Power(PowerEvent::Reset));
        control.request(Request::Quit(Quit::Signal(15)));
        control.request(Request::Power(PowerEvent::PowerOff));
        assert_eq!(control.take_request(), Some(Request::Quit(Quit::Signal(15))));
        assert_eq!(control.take_request(), None);
    }

    #[test]
    fn a_change_of_engine_drops_nothing_and_is_not_dropped() {
        let control = Control::new(Mailboxes::new(1));
        control.request(Request::Switch(EngineKind::Jit));
        control.request(Request::Power(PowerEvent::Reset));
        control.request(Request::Switch(EngineKind::Interp));
        assert_eq!(control.take_request(), Some(Request::Power(PowerEvent::Reset)));
        assert_eq!(control.take_request(), Some(Request::Switch(EngineKind::Interp)));
        assert_eq!(control.take_request(), None);
    }

    #[test]
    fn what_is_asked_for_while_the_owner_acts_is_acted_on() {
        let control = Control::new(Mailboxes::new(0));
        control.request(Request::Power(PowerEvent::Reset));
        assert_eq!(control.wait_for_request(0), Request::Power(PowerEvent::Reset));
        control.request(Request::Quit(Quit::User));
        control.resume();
        assert!(control.lock().is_stopping);
        assert_eq!(control.wait_for_request(0), Request::Quit(Quit::User));
        control.resume();
        assert!(!control.lock().is_stopping);
    }

    #[test]
    fn an_alarm_that_comes_while_the_machine_falls_asleep_still_wakes_it() {
        let taken = |requests: &[Request]| -> Vec<Request> {
            let control = Control::new(Mailboxes::new(1));
            requests.iter().for_each(|&request| control.request(request));
            std::iter::from_fn(|| control.take_request()).collect()
        };
        assert_eq!(taken(&[SUSPEND, WAKE, WAKE]), [SUSPEND, WAKE]);
        assert_eq!(taken(&[SUSPEND]), [SUSPEND]);
        assert_eq!(taken(&[Request::TripleFault, WAKE]), [Request::TripleFault]);
    }
}
