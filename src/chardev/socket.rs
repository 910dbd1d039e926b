//! A listening socket as a character device: one client at a time, and the next one after it.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use super::input::{Inlet, read_pieces};
use super::queue::OutputQueue;
use crate::sockets::{Client, Listener, SocketFile};

/// Writes to whoever is connected; output without a client is dropped, as by an unplugged cable.
#[derive(Clone, Default)]
struct CurrentClient(Arc<Mutex<Option<Client>>>);

impl Write for CurrentClient {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut client = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = client.as_mut()
            && stream.write_all(bytes).is_err()
        {
            *client = None;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A listening socket.
pub(crate) struct Socket {
    /// Where the guest's output goes.
    pub(crate) output: Arc<OutputQueue>,
    /// Where the client's input goes.
    pub(crate) inlet: Arc<Inlet>,
    _file: Option<SocketFile>,
}

impl Socket {
    /// Serves the clients of `listener`.
    pub(crate) fn start(listener: Listener) -> std::io::Result<Self> {
        let Listener { acceptor, file } = listener;
        let current = CurrentClient::default();
        let output = OutputQueue::start("socket", current.clone(), |_| {})?;
        let inlet: Arc<Inlet> = Arc::default();
        let sink = Arc::clone(&inlet);
        std::thread::Builder::new().name("listener".into()).spawn(move || {
            while let Ok(client) = acceptor.accept() {
                if let Err(error) = serve(client, &current, &sink) {
                    log::debug!("serial client: {error}");
                }
            }
        })?;
        Ok(Self { output, inlet, _file: file })
    }
}

fn serve(client: Client, current: &CurrentClient, inlet: &Inlet) -> std::io::Result<()> {
    let writer = client.try_clone()?;
    *current.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    let read = read_pieces(client, |bytes| inlet.send(bytes));
    *current.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    read
}
