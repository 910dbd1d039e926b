//! The monitor on a listening socket: one client at a time, and the next one after it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::keyboard::{CTRL_C, Key, Keyboard};
use super::screen::{Echo, Screen};
use super::session::{self, Office};
use crate::chardev::input::read_pieces;
use crate::chardev::queue::OutputQueue;
use crate::config::Endpoint;
use crate::sockets::{Client, Listener, SocketFile};

/// How long a client may leave an answer unread before it counts as gone, and how long a session
/// may still answer when its client sends no more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked after then.
const LOOK_EACH: Duration = Duration::from_millis(5);

/// A listening socket.
pub(crate) struct Socket {
    _file: Option<SocketFile>,
}

impl Socket {
    /// Serves clients at `endpoint`.
    pub(crate) fn start(endpoint: &Endpoint, office: Office) -> Result<Self> {
        let Listener { acceptor, file } = Listener::at(endpoint)
            .with_context(|| format!("--monitor {endpoint}: cannot listen there"))?;
        std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || {
                while let Ok(client) = acceptor.accept() {
                    if let Err(error) = serve(client, office.clone()) {
                        log::debug!(target: "monitor", "a client could not be served: {error}");
                    }
                }
            })
            .context("--monitor: cannot start its thread")?;
        Ok(Self { _file: file })
    }
}

/// Reads what `client` sends for a session of its own, until one of them ends.
fn serve(mut client: Client, office: Office) -> std::io::Result<()> {
    client.limit_writes(PATIENCE)?;
    client.send_at_once()?;
    let (ended, closing) = (client.try_clone()?, client.try_clone()?);
    let output = OutputQueue::start("monitor", client.try_clone()?, move |_| ended.shut_down())?;
    let screen = Screen::new(Arc::clone(&output), Echo::Off);
    let keyboard: Arc<Keyboard> = Arc::default();
    keyboard.put(Key::Entered);
    let last = Arc::clone(&output);
    let on_end = move || {
        last.flush();
        closing.shut_down();
        false
    };
    let session = session::start(office, Arc::clone(&keyboard), screen, on_end)?;
    let read = read_pieces(&mut client, |bytes| {
        bytes.iter().for_each(|&byte| keyboard.put_in_time(Key::Byte(byte)));
    });
    if let Err(error) = read {
        log::debug!(target: "monitor", "the client cannot be read: {error}");
    }
    keyboard.close();
    // What was sent is answered, and no client leaves sessions behind.
    if !ends(&session) {
        client.shut_down();
        keyboard.put(Key::Byte(CTRL_C));
        ends(&session);
    }
    Ok(())
}

/// True if `session` ends soon.
fn ends(session: &JoinHandle<()>) -> bool {
    let started = Instant::now();
    while !session.is_finished() && started.elapsed() < PATIENCE {
        std::thread::sleep(LOOK_EACH);
    }
    session.is_finished()
}
