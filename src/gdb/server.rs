//! The server: who is connected, and what becomes of the machine when something happens.
//!
//! The machine is *halted* for gdb from a stop until a client lets it go on or detaches. A client
//! that vanishes leaves it as it is, halted or running, without its breakpoints; with
//! `monitor vanish continue` it goes on. In non-stop mode that is so for each CPU.

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

use super::guard::{self, Guard, PACKET_BYTES, Piece, Verdict};
use super::non_stop::{self, NonStop};
use super::notices::Request as Packet;
use super::target::{GdbTarget, thread_of};
use crate::chardev::input::read_pieces;
use crate::config::GdbConfig;
use crate::debug::Machine;
use crate::debug::inbox::{Event, Inbox};
use crate::sockets::{Client, Listener, SocketFile};
use crate::vm::{Quit, Request};

/// Ctrl-C between packets.
const INTERRUPT: u8 = 3;
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
    agreed: Agreed,
    /// The client lets CPUs go on and has them stop one by one.
    non_stop: Option<NonStop>,
    _file: Option<SocketFile>,
}

/// What client and server have agreed on.
#[derive(Default)]
struct Agreed {
    /// Packets are not acknowledged.
    has_no_acks: bool,
    /// Threads are written with their process.
    has_processes: bool,
}

impl Agreed {
    /// Notes what the packet `body` brings about.
    fn note(&mut self, body: &[u8]) {
        if let Some(features) = body.strip_prefix(b"qSupported") {
            let mut features = features.split(|byte| b":;".contains(byte));
            self.has_processes = features.any(|feature| feature == b"multiprocess+");
        }
        self.has_no_acks |= body == b"QStartNoAckMode";
    }
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
            agreed: Agreed::default(),
            non_stop: None,
            _file: file,
        })
    }

    /// True if a client has stopped the machine, which goes on when the client says so.
    pub(crate) fn has_the_machine(&self) -> bool {
        matches!(self.session, Some(GdbStubStateMachine::Idle(_))) && !self.is_non_stop()
    }

    /// True if a client lets CPUs go on one by one. Those that stand are its own.
    pub(crate) fn is_non_stop(&self) -> bool {
        self.non_stop.is_some()
    }

    /// True if a client has let the machine go on, and waits.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.session, Some(GdbStubStateMachine::Running(_)))
    }

    /// Tells the client that the machine has ended with exit status `status`. One in non-stop mode
    /// is there until it acknowledges that and goes, or until [`Server::close`].
    pub(crate) fn finish(&mut self, status: u8) {
        if let Some(non_stop) = &mut self.non_stop {
            non_stop.end(status);
            return self.notify();
        }
        if let Some(GdbStubStateMachine::Running(running)) = self.session.take() {
            let ended =
                running.report_stop(&mut self.target, MultiThreadStopReason::Exited(status));
            if let Err(error) = ended {
                log::debug!(target: "gdb", "the end was not told: {error}");
            }
        }
        self.close();
    }

    /// Ends the connection.
    pub(crate) fn close(&mut self) {
        self.session = None;
        self.end_session();
    }

    /// Tells a client that waits why CPU `cpu` stopped; none for somebody else's wish.
    pub(crate) fn report_stop(&mut self, cpu: usize, stop: Option<DebugStop>) {
        if !self.is_waiting() && !self.is_non_stop() {
            return;
        }
        let interrupted =
            MultiThreadStopReason::SignalWithThread { tid: thread_of(cpu), signal: Signal::SIGINT };
        let reason = stop.map_or(interrupted, |stop| self.target.stop_reason(cpu, stop));
        if let Some(non_stop) = &mut self.non_stop {
            non_stop.stopped(cpu, &reason);
            return self.notify();
        }
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
                self.agreed = Agreed::default();
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
                None => {}
                Some(Piece::Loose(INTERRUPT)) if self.is_non_stop() => {
                    self.answer_non_stop(&Packet::Interrupt);
                    self.notify();
                }
                Some(Piece::Loose(byte)) => self.feed(&[byte]),
                Some(Piece::Packet(packet)) => self.take_packet(&packet),
                Some(Piece::TooLong) => return self.drop_for("it sends packets without end"),
            }
        }
    }

    /// The client has sent a packet.
    fn take_packet(&mut self, packet: &[u8]) {
        // The crate drops a client whose checksums are wrong.
        let Some(body) = guard::body(packet) else { return self.feed(packet) };
        if let Some(request) = Packet::read(body, self.is_non_stop()) {
            return self.take_request(&request);
        }
        match guard::judge(body) {
            Verdict::Pass => {}
            Verdict::Breakpoint(options) => self.target.take_options(options),
            Verdict::Refuse => {
                return self.drop_for("it asks for more memory than a reply holds");
            }
        }
        self.feed(packet);
        self.agreed.note(body);
    }

    /// The client has sent a packet that is not the crate's.
    fn take_request(&mut self, request: &Packet) {
        let answer = match request {
            // The crate's actions, and to stop.
            Packet::Actions => "vCont;c;C;s;S;r;t".into(),
            Packet::Mode { is_non_stop } => self.set_mode(*is_non_stop).into(),
            _ => self.answer_non_stop(request),
        };
        let ack = if self.agreed.has_no_acks { &b""[..] } else { b"+" };
        self.send(&[ack, &guard::packet(&answer)].concat());
        self.notify();
    }

    /// Has CPUs stop one by one from here on, or all at once. A client that waits for its guest
    /// cannot change its mind.
    fn set_mode(&mut self, is_non_stop: bool) -> &'static str {
        if self.is_waiting() {
            return non_stop::INVALID;
        }
        let has_processes = self.agreed.has_processes;
        self.target.machine().set_halted(true);
        self.non_stop = is_non_stop.then(|| NonStop::begin(&mut self.target, has_processes));
        "OK"
    }

    fn answer_non_stop(&mut self, request: &Packet) -> String {
        match &mut self.non_stop {
            Some(non_stop) => non_stop.answer(request, &mut self.target),
            None => non_stop::INVALID.into(),
        }
    }

    /// Tells a client in non-stop mode of a stop, if one is to be told.
    fn notify(&mut self) {
        let Some(non_stop) = &mut self.non_stop else { return };
        // There is no time at which such a client takes them.
        drop(self.target.take_messages());
        if let Some(due) = non_stop.take_due() {
            self.send(&guard::notification(&due));
        }
    }

    /// Sends what is not the crate's. A client that cannot hear it goes.
    fn send(&mut self, bytes: &[u8]) {
        let sent = self.client.as_mut().map(|client| client.write_all(bytes));
        if let Some(Err(error)) = sent {
            self.drop_for(&error.to_string());
        }
    }

    /// Hands bytes to the crate.
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
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
                self.target.machine().go_on();
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
            self.target.machine().go_on();
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
        self.non_stop = None;
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
