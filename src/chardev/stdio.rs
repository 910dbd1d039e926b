//! Standard input and output as a character device, which the guest and the monitor share: what is
//! typed goes to one of them, and Ctrl-A c changes which; what they write is shown as it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender};

use super::escape::{Command, Escape, Typed};
use super::input::{Inlet, read_pieces};
use super::queue::OutputQueue;
use super::terminal::RawTerminal;
use crate::monitor::Echo;
use crate::monitor::keyboard::{Key, Keyboard};

/// Called with what the user asked for by a terminal escape.
pub(crate) type OnCommand = Arc<dyn Fn(Command) + Send + Sync>;

/// Reads of a terminal that may wait for the guest, so that escapes do not.
const READS_MAX: usize = 64;

/// Who shares standard input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The guest has them alone.
    Guest,
    /// The guest, and on a terminal the monitor.
    MonitorOnTerminal,
    /// The guest and the monitor.
    Both,
    /// The monitor has them alone.
    Monitor,
}

/// Standard input and output.
pub(crate) struct Stdio {
    /// Where output goes.
    pub(crate) output: Arc<OutputQueue>,
    /// Where the user's input for the guest goes.
    pub(crate) inlet: Arc<Inlet>,
    /// The monitor's side, if it has one.
    pub(crate) monitor: Option<MonitorSide>,
    _terminal: Option<RawTerminal>,
}

/// The monitor's side of standard input and output.
#[derive(Clone)]
pub(crate) struct MonitorSide {
    /// What is typed at it.
    pub(crate) keyboard: Arc<Keyboard>,
    /// Whether that is to be shown.
    pub(crate) echo: Echo,
    focus: Arc<Focus>,
}

impl MonitorSide {
    /// Gives what is typed to the guest again. False if it is the monitor's alone.
    pub(crate) fn leave(&self) -> bool {
        self.focus.is_shared && {
            self.focus.is_monitor.store(false, Ordering::Relaxed);
            true
        }
    }
}

/// Whose is what is typed.
struct Focus {
    /// The guest's too, at times.
    is_shared: bool,
    is_monitor: AtomicBool,
}

impl Stdio {
    /// Starts reading and writing. A closed standard output only stops the output.
    pub(crate) fn start(sharing: Sharing, on_command: OnCommand) -> std::io::Result<Self> {
        let output = OutputQueue::start("stdout", std::io::stdout(), |error| {
            log::debug!("standard output is closed: {error}");
        })?;
        let terminal = RawTerminal::enter();
        let is_terminal = terminal.is_some();
        let has_monitor = match sharing {
            Sharing::Guest => false,
            Sharing::MonitorOnTerminal => is_terminal,
            Sharing::Both | Sharing::Monitor => true,
        };
        let is_alone = sharing == Sharing::Monitor;
        let monitor = has_monitor.then(|| MonitorSide {
            keyboard: Arc::default(),
            echo: if is_terminal { Echo::On } else { Echo::Off },
            focus: Arc::new(Focus { is_shared: !is_alone, is_monitor: AtomicBool::new(is_alone) }),
        });
        let inlet: Arc<Inlet> = Arc::default();
        let reader = Reader {
            inlet: Arc::clone(&inlet),
            monitor: monitor.clone(),
            on_command: (is_terminal || sharing == Sharing::Both).then_some(on_command),
            guest: (is_terminal || has_monitor).then(|| feed(&inlet)).transpose()?,
        };
        if let Some(side) = &monitor
            && is_alone
        {
            side.keyboard.put(Key::Entered);
        }
        std::thread::Builder::new().name("stdin".into()).spawn(move || reader.read())?;
        Ok(Self { output, inlet, monitor, _terminal: terminal })
    }
}

/// Input for the guest.
enum Input {
    Bytes(Vec<u8>),
    Break,
}

/// Hands input to the guest at its pace, on a thread of its own.
fn feed(inlet: &Arc<Inlet>) -> std::io::Result<SyncSender<Input>> {
    let (sender, inputs) = mpsc::sync_channel(READS_MAX);
    let inlet = Arc::clone(inlet);
    std::thread::Builder::new().name("stdin feed".into()).spawn(move || {
        for input in inputs {
            match input {
                Input::Bytes(bytes) => inlet.send(&bytes),
                Input::Break => inlet.send_break(),
            }
        }
    })?;
    Ok(sender)
}

/// Reads standard input.
struct Reader {
    inlet: Arc<Inlet>,
    monitor: Option<MonitorSide>,
    /// Escapes exist on a terminal, and where the monitor was asked for: the bytes of any other
    /// pipe are all the guest's.
    on_command: Option<OnCommand>,
    /// Where the guest's input goes that must not keep the reader waiting.
    guest: Option<SyncSender<Input>>,
}

impl Reader {
    /// Reads until the end of input, which is not the guest's end.
    fn read(&self) {
        let mut escape = Escape::default();
        let read = read_pieces(std::io::stdin(), |typed| match &self.on_command {
            Some(on_command) => self.take_typed(typed, &mut escape, on_command),
            None => self.pass(typed),
        });
        if let Err(error) = read {
            log::debug!("standard input: {error}");
        }
        if let Some(side) = &self.monitor {
            side.keyboard.close();
        }
    }

    fn take_typed(&self, typed: &[u8], escape: &mut Escape, on_command: &OnCommand) {
        let mut plain = Vec::with_capacity(typed.len());
        for &byte in typed {
            match escape.take(byte) {
                Typed::Byte(byte) => plain.push(byte),
                Typed::Nothing => {}
                Typed::Command(command) => {
                    self.pass(&std::mem::take(&mut plain));
                    match (command, &self.monitor) {
                        (Command::Break, _) => self.send(Input::Break),
                        (Command::Monitor, Some(side)) => self.turn(side),
                        (command, _) => on_command(command),
                    }
                }
            }
        }
        self.pass(&plain);
    }

    /// Gives what is typed to the other one.
    fn turn(&self, side: &MonitorSide) {
        if !side.focus.is_shared {
            return;
        }
        let is_monitor = side.focus.is_monitor.load(Ordering::Relaxed);
        if is_monitor {
            side.keyboard.put(Key::Left);
            side.leave();
        } else {
            side.focus.is_monitor.store(true, Ordering::Relaxed);
            side.keyboard.put(Key::Entered);
        }
    }

    /// Hands plain bytes to whom they are for.
    fn pass(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let side = self.monitor.as_ref();
        match side.filter(|side| side.focus.is_monitor.load(Ordering::Relaxed)) {
            Some(side) => bytes.iter().for_each(|&byte| self.type_at(side, byte)),
            None => self.send(Input::Bytes(bytes.to_vec())),
        }
    }

    /// A key for the monitor. On a terminal, where nobody types ahead so far, one without room is
    /// dropped; a pipe's waits.
    fn type_at(&self, side: &MonitorSide, byte: u8) {
        let key = Key::Byte(byte);
        match side.echo {
            Echo::On => drop(side.keyboard.put(key)),
            Echo::Off => side.keyboard.put_in_time(key),
        }
    }

    fn send(&self, input: Input) {
        match (&self.guest, input) {
            // The feeder ends with the process.
            (Some(guest), input) => drop(guest.send(input)),
            (None, Input::Bytes(bytes)) => self.inlet.send(&bytes),
            (None, Input::Break) => self.inlet.send_break(),
        }
    }
}
