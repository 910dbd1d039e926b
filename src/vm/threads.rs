//! The parallel scheduler: one host thread a vCPU.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cpu::engine::VmExit;
use cpu::events::Events;

use super::control::{Control, Quit, Request};
use super::engine::Engine;
use super::halt_poll::HaltPoll;
use super::mailboxes::Mailboxes;
use crate::profile::Profile;

/// A CPU that its thread holds while it runs and the machine's owner while all are parked.
pub(crate) type SharedCpu = Arc<Mutex<Engine>>;

/// Locks a CPU. A thread that died holding it has asked for the machine's end already.
pub(crate) fn lock(cpu: &SharedCpu) -> MutexGuard<'_, Engine> {
    cpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts one thread for each CPU.
pub(crate) fn start(
    cpus: &[SharedCpu],
    control: &Arc<Control>,
    mailboxes: &Arc<Mailboxes>,
    profile: Option<&Arc<Profile>>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    (0u32..)
        .zip(cpus)
        .map(|(index, cpu)| {
            let worker = Worker {
                index,
                cpu: Arc::clone(cpu),
                control: Arc::clone(control),
                mailboxes: Arc::clone(mailboxes),
                profile: profile.cloned(),
            };
            std::thread::Builder::new().name(format!("vcpu{index}")).spawn(move || worker.serve())
        })
        .collect()
}

struct Worker {
    index: u32,
    cpu: SharedCpu,
    control: Arc<Control>,
    mailboxes: Arc<Mailboxes>,
    profile: Option<Arc<Profile>>,
}

/// Ends the machine if its thread unwinds: a machine with a dead CPU must not look alive.
struct Alarm<'a>(&'a Control);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.request(Request::Quit(Quit::Internal));
            while self.0.park() {}
        }
    }
}

impl Worker {
    fn serve(&self) {
        let _alarm = Alarm(&self.control);
        self.mailboxes.serve_from_here(self.index);
        let mut poll = HaltPoll::default();
        while self.control.park() {
            self.run_until_stopped(&mut poll);
        }
    }

    /// Runs the CPU until something needs its thread. A profile asks for that by an exit.
    fn run(&self, engine: &mut Engine) -> VmExit {
        let Some(profile) = &self.profile else { return engine.vcpu_mut().run(u64::MAX) };
        profile.enter(self.index);
        let exit = engine.vcpu_mut().run(u64::MAX);
        profile.leave(self.index, engine, exit);
        exit
    }

    /// Runs the CPU until the machine stops.
    fn run_until_stopped(&self, poll: &mut HaltPoll) {
        let mut engine = lock(&self.cpu);
        loop {
            match self.run(&mut engine) {
                VmExit::Requested => return,
                VmExit::Budget => {}
                VmExit::Debug => {
                    self.control.request_debugger();
                    self.mailboxes.sleep(self.index, Events::EXIT);
                }
                VmExit::Held => self.mailboxes.sleep(self.index, Events::EXIT),
                VmExit::Halt { wake } => self.mailboxes.halt(self.index, wake, poll),
                VmExit::WaitForSipi => {
                    let bits = Events::SIPI | Events::INIT | Events::EXIT;
                    self.mailboxes.sleep(self.index, bits);
                }
                VmExit::Failed => {
                    self.control.request(Request::Quit(Quit::Internal));
                    self.mailboxes.sleep(self.index, Events::EXIT);
                }
                VmExit::Shutdown => {
                    self.control.request(Request::TripleFault);
                    self.mailboxes.sleep(self.index, Events::EXIT | Events::INIT);
                }
            }
        }
    }
}
