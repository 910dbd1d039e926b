//! `-chardev`, and the device that `-serial`, `-debugcon` and `-monitor` name.

use super::Stop;
use super::draft::{Draft, Plug};
use super::key_values::KeyValues;
use crate::cli::values;
use crate::config::{Backend, BackendConfig, Endpoint};

const PLUGS: &str =
    "take stdio, null, none, file:PATH, unix:PATH,server, tcp:HOST:PORT,server or chardev:ID";

/// What a device that is named stands for.
pub(super) fn plug(text: &str) -> Result<Plug, Stop> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("none", "") => Ok(Plug::Nothing),
        ("null", "") => Ok(Plug::Own(Backend::Null)),
        ("stdio", "") => Ok(Plug::Own(Backend::Stdio)),
        ("file" | "unix" | "tcp" | "chardev", "") => Err(format!("{text}: {PLUGS}").into()),
        ("chardev", id) => Ok(Plug::Chardev(id.to_owned())),
        ("file", path) => Ok(Plug::Own(Backend::File(path.into()))),
        ("unix", socket) => {
            let mut keys = KeyValues::parse(socket, "path");
            let path = keys.take("path").unwrap_or_default();
            listening(keys)?;
            Ok(Plug::Own(Backend::Unix(path.into())))
        }
        ("tcp", socket) => {
            let mut keys = KeyValues::parse(socket, "address");
            let address = keys.take("address").unwrap_or_default();
            listening(keys)?;
            Ok(Plug::Own(tcp(&address)?))
        }
        _ => Err(format!("{text}: not supported; {PLUGS}").into()),
    }
}

/// What the device of `-serial` stands for, which may share standard input and output with the
/// monitor.
pub(super) fn serial(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let device = match text.strip_prefix("mon:") {
        Some("stdio") => {
            draft.monitors.push(Plug::Own(Backend::Stdio));
            "stdio"
        }
        Some(_) => return Err(format!("{text}: not supported; only stdio is shared").into()),
        None => text,
    };
    draft.serials.push(plug(device)?);
    Ok(())
}

/// An empty host means every address of this machine, as with QEMU.
fn tcp(address: &str) -> Result<Backend, Stop> {
    let address = match address.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => address.to_owned(),
    };
    match values::is_host_and_port(&address) {
        true => Ok(Backend::Tcp(address)),
        false => Err(format!("{address}: give HOST:PORT").into()),
    }
}

/// Sockets listen; the guest starts without waiting for a client, with `wait=on` too.
fn listening(mut keys: KeyValues) -> Result<(), Stop> {
    if keys.take_switch("server")? != Some(true) {
        return Err("sockets only listen here; add server=on".into());
    }
    take_waits(keys)
}

fn take_waits(mut keys: KeyValues) -> Result<(), Stop> {
    keys.take_switch("wait")?;
    keys.take_switch("nowait")?;
    Ok(keys.finish()?)
}

/// `-gdb DEVICE`. Who connects has the whole machine: an empty host is this one alone.
pub(super) fn gdb(text: &str) -> Result<Option<Endpoint>, Stop> {
    let (kind, socket) = text.split_once(':').unwrap_or((text, ""));
    match (kind, socket) {
        ("none", "") => Ok(None),
        ("tcp", socket) if !socket.is_empty() => {
            let mut keys = KeyValues::parse(socket, "address");
            let address = keys.take("address").unwrap_or_default();
            if keys.take_switch("server")? == Some(false) {
                return Err(format!("{text}: sockets only listen here").into());
            }
            take_waits(keys)?;
            let address = match address.strip_prefix(':') {
                Some(port) => format!("localhost:{port}"),
                None => address,
            };
            match values::is_host_and_port(&address) {
                true => Ok(Some(Endpoint::Tcp(address))),
                false => Err(format!("{address}: give HOST:PORT").into()),
            }
        }
        ("unix", socket) if !socket.is_empty() => {
            let mut keys = KeyValues::parse(socket, "path");
            let path = keys.take("path").unwrap_or_default();
            listening(keys)?;
            Ok(Some(Endpoint::Unix(path.into())))
        }
        _ => Err(format!("{text}: take tcp:[HOST]:PORT, unix:PATH,server=on or none").into()),
    }
}

/// `-chardev KIND,id=ID,...`.
pub(super) fn chardev(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "backend");
    let kind = keys.take("backend").unwrap_or_default();
    let id = keys.take("id").filter(|id| is_id(id)).ok_or("needs id=NAME")?;
    // Standard input and output are shared where they have two users, and nothing else is.
    keys.take_switch("mux")?;
    let backend = match kind.as_str() {
        "null" => Backend::Null,
        "stdio" => {
            // Ctrl-C is the guest's either way.
            keys.take_switch("signal")?;
            Backend::Stdio
        }
        "file" => {
            if keys.take_switch("append")? == Some(true) {
                return Err("append=on: not supported yet".into());
            }
            Backend::File(keys.take("path").ok_or("file needs path=PATH")?.into())
        }
        "socket" => return socket(draft, id, keys),
        _ => return Err(format!("{kind}: not supported; take null, stdio, file or socket").into()),
    };
    keys.finish()?;
    draft.config.backends.push(BackendConfig { id, backend });
    Ok(())
}

fn socket(draft: &mut Draft, id: String, mut keys: KeyValues) -> Result<(), Stop> {
    let backend = match (keys.take("path"), keys.take("host"), keys.take("port")) {
        (Some(path), None, None) => Backend::Unix(path.into()),
        (None, host, Some(port)) => tcp(&format!("{}:{port}", host.unwrap_or_default()))?,
        _ => return Err("socket needs path=PATH, or host=HOST,port=PORT".into()),
    };
    listening(keys)?;
    draft.config.backends.push(BackendConfig { id, backend });
    Ok(())
}

/// QEMU's rule for names: a letter, then letters, digits, `-`, `.` and `_`.
pub(super) fn is_id(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}
