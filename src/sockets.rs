//! Listening sockets of both kinds, and their clients.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Endpoint;

/// One client, of either kind.
pub(crate) enum Client {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Client {
    /// Another handle of the same connection.
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Lets a write fail that the client does not take for so long.
    pub(crate) fn limit_writes(&self, timeout: Duration) -> std::io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(Some(timeout)),
            Self::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
        }
    }

    /// Sends what is written at once, for conversations in small pieces.
    pub(crate) fn send_at_once(&self) -> std::io::Result<()> {
        match self {
            Self::Unix(_) => Ok(()),
            Self::Tcp(stream) => stream.set_nodelay(true),
        }
    }

    /// Ends the connection for every handle.
    pub(crate) fn shut_down(&self) {
        // A client that has gone already is what is wanted.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
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

/// Where clients come from.
pub(crate) enum Acceptor {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Acceptor {
    /// Waits for the next client.
    pub(crate) fn accept(&self) -> std::io::Result<Client> {
        match self {
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Client::Unix(stream)),
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Client::Tcp(stream)),
        }
    }
}

/// A listening socket.
pub(crate) struct Listener {
    pub(crate) acceptor: Acceptor,
    /// Apart, for an owner that outlives the thread that accepts.
    pub(crate) file: Option<SocketFile>,
}

impl Listener {
    /// Listens on either.
    pub(crate) fn at(endpoint: &Endpoint) -> std::io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Self::unix(path),
            Endpoint::Tcp(address) => Self::tcp(address),
        }
    }

    /// Listens on a Unix socket.
    pub(crate) fn unix(path: &Path) -> std::io::Result<Self> {
        let acceptor = Acceptor::Unix(UnixListener::bind(path)?);
        Ok(Self { acceptor, file: Some(SocketFile(path.to_owned())) })
    }

    /// Listens on `HOST:PORT`.
    pub(crate) fn tcp(address: &str) -> std::io::Result<Self> {
        Ok(Self { acceptor: Acceptor::Tcp(TcpListener::bind(address)?), file: None })
    }
}

/// A Unix socket's file, removed at the end.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}
