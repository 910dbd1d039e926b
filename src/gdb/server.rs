//! The server: who is connected, and what becomes of the machine when something happens.
//!
//! The machine is *halted* for gdb from a stop until a client lets it go on or detaches. A client
//! that vanishes leaves it as it is, halted or running, without its breakpoints; with
//! `monitor vanish continue` it goes on.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use cpu::debugger::DebugStop;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStubBuilder, MultiThreadStopReason};

use super::guard::{self, Guard, PACKET_BYTES, Verdict};
use super::target::{GdbTarget, thread_of};
use crate::chardev::input::read_pieces;
use crate::config::GdbConfig;
use crate::debug::Machine;
use crate::debug::inbox::{Event, Inbox};
use crate::sockets::{Client, Listener, SocketFile};
use crate::vm::{Quit, Request};

/// How long a client may leave a reply unread before it counts as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

type Session = GdbStubStateMachine<'static, GdbTarget, Reply>;

/// Replies on their way, sent when a packet is complete.
struct Reply {
    client: Client,
    bytes: Vec<u8>,
}

impl Connection for Reply {
    type Error = std::io::Error;

    fn write(&mut self, byte: u8) -> Result<(), Self::Error> {
        self.bytes.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        let bytes = guard::complete(std::mem::take(&mut self.bytes));
        self.client.write_all(&bytes)
    }
}

/// The server of one machine.
pub(crate) struct Server {
    target: GdbTarget,
    session: Option<Session>,
    /// Another handle of the session's connection, to end it.
    client: Option<Client>,
    guard: Guard,
    _file: Option<SocketFile>,
}

impl Server {
    /// Listens. What clients do goes into `inbox`.
    pub(crate) fn start(
        config: &GdbConfig,
        inbox: &Arc<Inbox>,
        machine: Arc<Machine>,
    ) -> Result<Self> {
        let endpoint = &config.endpoint;
        let Listener { acceptor, file } = Listener::at(endpoint)
            .with_context(|| format!("--gdb {endpoint}: cannot listen there"))?;
        let reading = Arc::clone(inbox);
        std::thread::Builder::new()
            .name("gdb".into())
            .spawn(move || accept(|| acceptor.accept(), &reading))
            .context("--gdb: cannot start its thread")?;
        Ok(Self {
            target: GdbTarget::new(machine),
            session: None,
            client: None,
            guard: Guard::default(),
            _file: file,
        })
    }

    /// True if a client has stopped the machine, which goes on when the client says so.
    pub(crate) fn has_the_machine(&self) -> bool {
        matches!(self.session, Some(GdbStubStateMachine::Idle(_)))
    }

    /// True if a client has let the machine go on, and waits.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.session, Some(GdbStubStateMachine::Running(_)))
    }

    /// Tells the client that the machine has ended with exit status `status`.
    pub(crate) fn finish(&mut self, status: u8) {
        if let Some(GdbStubStateMachine::Running(running)) = self.session.take() {
            let ended =
                running.report_stop(&mut self.target, MultiThreadStopReason::Exited(status));
            if let Err(error) = ended {
                log::debug!(target: "gdb", "the end was not told: {error}");
            }
        }
        self.end_session();
    }

    /// Tells a client that waits why CPU `cpu` stopped; none for somebody else's wish.
    pub(crate) fn report_stop(&mut self, cpu: usize, stop: Option<DebugStop>) {
        if !self.is_waiting() {
            return;
        }
        let interrupted =
            MultiThreadStopReason::SignalWithThread { tid: thread_of(cpu), signal: Signal::SIGINT };
        let reason = stop.map_or(interrupted, |stop| self.target.stop_reason(cpu, stop));
        self.say();
        self.advance(|session, target| match session {
            GdbStubStateMachine::Running(running) => {
                running.report_stop(target, reason).map_err(|error| error.to_string())
            }
            other => Ok(other),
        });
    }

    /// Tells the client what has happened, in words: it listens while the guest runs.
    fn say(&mut self) {
        for message in self.target.take_messages() {
            let Some(client) = &mut self.client else { return };
            if let Err(error) = client.write_all(&guard::console_packet(&message)) {
                log::debug!(target: "gdb", "the client does not hear: {error}");
            }
        }
    }

    /// A client is there, and finds the machine stopped.
    pub(crate) fn begin(&mut self, client: Client) {
        let made = client.try_clone().and_then(|other| {
            other.limit_writes(WRITE_TIMEOUT)?;
            other.send_at_once()?;
            Ok(Reply { client: other, bytes: Vec::new() })
        });
        let session = made.map_err(|error| error.to_string()).and_then(|reply| {
            let builder = GdbStubBuilder::new(reply).packet_buffer_size(PACKET_BYTES);
            let stub = builder.build().map_err(|error| error.to_string())?;
            stub.run_state_machine(&mut self.target).map_err(|error| error.to_string())
        });
        match session {
            Ok(session) => {
                log::info!(target: "gdb", "a client is connected");
                self.target.begin();
                (self.session, self.client) = (Some(session), Some(client));
                self.guard = Guard::default();
                self.target.machine().set_halted(true);
            }
            Err(error) => {
                log::warn!(target: "gdb", "a client could not be served: {error}");
                client.shut_down();
            }
        }
    }

    /// The client has sent `bytes`.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.session.is_none() {
                return;
            }
            match self.guard.take(byte) {
                Verdict::Pass => {}
                Verdict::Breakpoint(options) => self.target.take_options(&options),
                Verdict::Refuse => {
                    return self.drop_for("it asks for more memory than a reply holds");
                }
            }
            self.advance(|session, target| match session {
                GdbStubStateMachine::Idle(idle) => {
                    idle.incoming_data(target, byte).map_err(|error| error.to_string())
                }
                GdbStubStateMachine::Running(running) => {
                    running.incoming_data(target, byte).map_err(|error| error.to_string())
                }
                other => Ok(other),
            });
        }
    }

    /// Moves the session on, and does what its new state asks for.
    fn advance(&mut self, step: impl FnOnce(Session, &mut GdbTarget) -> Result<Session, String>) {
        let Some(session) = self.session.take() else { return };
        match step(session, &mut self.target) {
            Ok(GdbStubStateMachine::CtrlCInterrupt(interrupted)) => {
                let reason = MultiThreadStopReason::SignalWithThread {
                    tid: thread_of(self.target.reported()),
                    signal: Signal::SIGINT,
                };
                self.target.machine().set_halted(true);
                match interrupted.interrupt_handled(&mut self.target, Some(reason)) {
                    Ok(session) => self.session = Some(session),
                    Err(error) => self.drop_for(&error.to_string()),
                }
            }
            Ok(GdbStubStateMachine::Disconnected(ended)) => {
                if ended.get_reason() == DisconnectReason::Kill {
                    self.target.control().request(Request::Quit(Quit::User));
                }
                self.target.detach();
                self.target.machine().set_halted(false);
                self.end_session();
            }
            Ok(session) => {
                if self.target.take_resumed() {
                    self.target.machine().set_halted(false);
                    self.say();
                }
                self.session = Some(session);
            }
            Err(error) => self.drop_for(&error),
        }
    }

    fn drop_for(&mut self, error: &str) {
        log::warn!(target: "gdb", "the client is dropped: {error}");
        self.drop_session();
    }

    /// The client is gone, as far as we care.
    fn drop_session(&mut self) {
        self.session = None;
        self.end_session();
        self.target.detach();
        if self.target.goes_on_alone() {
            self.target.machine().set_halted(false);
        }
    }

    /// The client's connection has ended.
    pub(crate) fn vanish(&mut self) {
        if self.session.is_some() {
            log::info!(target: "gdb", "the client has gone");
            self.drop_session();
        }
    }

    fn end_session(&mut self) {
        if let Some(client) = self.client.take() {
            client.shut_down();
        }
    }
}

/// Lets in one client at a time; another one finds the door shut.
fn accept(next: impl Fn() -> std::io::Result<Client>, inbox: &Arc<Inbox>) {
    let is_busy = Arc::new(AtomicBool::new(false));
    while let Ok(client) = next() {
        if is_busy.swap(true, Ordering::AcqRel) {
            log::warn!(target: "gdb", "a second client is sent away: one is connected");
            client.shut_down();
            continue;
        }
        let (inbox, busy) = (Arc::clone(inbox), Arc::clone(&is_busy));
        let reader = std::thread::Builder::new().name("gdb client".into());
        let started = reader.spawn(move || {
            read(client, &inbox);
            busy.store(false, Ordering::Release);
        });
        if let Err(error) = started {
            log::error!(target: "gdb", "cannot start a thread for the client: {error}");
            is_busy.store(false, Ordering::Release);
        }
    }
}

/// Puts what `client` sends into `inbox` until it goes.
fn read(client: Client, inbox: &Inbox) {
    match client.try_clone() {
        Ok(other) => inbox.put(Event::Connected(other)),
        Err(error) => return log::warn!(target: "gdb", "a client could not be served: {error}"),
    }
    if let Err(error) = read_pieces(client, |bytes| inbox.put(Event::Bytes(bytes.to_vec()))) {
        log::debug!(target: "gdb", "the client cannot be read: {error}");
    }
    inbox.put(Event::Closed);
}
