//! Standard input and output as a character device.

use std::io::Read;
use std::sync::Arc;

use super::escape::{Command, Escape, Typed};
use super::input::Inlet;
use super::queue::OutputQueue;
use super::terminal::RawTerminal;

/// Called with what the user asked for by a terminal escape.
pub(crate) type OnCommand = Arc<dyn Fn(Command) + Send + Sync>;

/// Standard input and output.
pub(crate) struct Stdio {
    /// Where the guest's output goes.
    pub(crate) output: Arc<OutputQueue>,
    /// Where the user's input goes.
    pub(crate) inlet: Arc<Inlet>,
    _terminal: Option<RawTerminal>,
}

impl Stdio {
    /// Starts reading and writing. A closed standard output only stops the output.
    pub(crate) fn start(on_command: OnCommand) -> std::io::Result<Self> {
        let output = OutputQueue::start("stdout", std::io::stdout(), |error| {
            log::debug!("standard output is closed: {error}");
        })?;
        let terminal = RawTerminal::enter();
        let inlet: Arc<Inlet> = Arc::default();
        let reader = Arc::clone(&inlet);
        let has_escape = terminal.is_some();
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || read(&reader, has_escape.then_some(on_command)))?;
        Ok(Self { output, inlet, _terminal: terminal })
    }
}

/// Reads until the end of input, which is not the guest's end. Escapes exist on a terminal only: a
/// pipe's bytes are all the guest's.
fn read(inlet: &Inlet, on_command: Option<OnCommand>) {
    let mut escape = Escape::default();
    let mut bytes = [0; 4096];
    loop {
        let count = match std::io::stdin().lock().read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return log::debug!("standard input: {error}"),
        };
        let typed = bytes.get(..count).unwrap_or_default();
        let Some(on_command) = &on_command else {
            inlet.send(typed);
            continue;
        };
        let mut plain = Vec::with_capacity(typed.len());
        for &byte in typed {
            match escape.take(byte) {
                Typed::Byte(byte) => plain.push(byte),
                Typed::Command(Command::Break) => {
                    inlet.send(&std::mem::take(&mut plain));
                    inlet.send_break();
                }
                Typed::Command(command) => on_command(command),
                Typed::Nothing => {}
            }
        }
        inlet.send(&plain);
    }
}
