//! A listening socket as a character device: one client at a time, and the next one after it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::input::Inlet;
use super::queue::OutputQueue;

/// One client, of either kind.
enum Client {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Client {
    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }
}

impl Read for Client {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

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
    /// The socket's file, removed at the end.
    path: Option<PathBuf>,
}

impl Socket {
    /// Listens on a Unix socket.
    pub(crate) fn unix(path: &Path) -> std::io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let accept = move || listener.accept().map(|(stream, _)| Client::Unix(stream));
        Self::start(accept, Some(path.to_owned()))
    }

    /// Listens on `HOST:PORT`.
    pub(crate) fn tcp(address: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let accept = move || listener.accept().map(|(stream, _)| Client::Tcp(stream));
        Self::start(accept, None)
    }

    fn start(
        accept: impl Fn() -> std::io::Result<Client> + Send + 'static,
        path: Option<PathBuf>,
    ) -> std::io::Result<Self> {
        let current = CurrentClient::default();
        let output = OutputQueue::start("socket", current.clone(), |_| {})?;
        let inlet: Arc<Inlet> = Arc::default();
        let sink = Arc::clone(&inlet);
        std::thread::Builder::new().name("listener".into()).spawn(move || {
            while let Ok(client) = accept() {
                if let Err(error) = serve(client, &current, &sink) {
                    log::debug!("serial client: {error}");
                }
            }
        })?;
        Ok(Self { output, inlet, path })
    }
}

fn serve(mut client: Client, current: &CurrentClient, inlet: &Inlet) -> std::io::Result<()> {
    let writer = client.try_clone()?;
    *current.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
    let mut bytes = [0; 4096];
    loop {
        let count = client.read(&mut bytes)?;
        if count == 0 {
            *current.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(());
        }
        inlet.send(bytes.get(..count).unwrap_or_default());
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}
