//! `-monitor`, `-mon` and `-serial mon:stdio`: where monitors are.

use super::Stop;
use super::chardev;
use super::draft::{Draft, Plug};
use super::key_values::KeyValues;
use crate::config::{Backend, Config, Endpoint, MonitorConfig, StdioMonitor};

const PLACES: &str = "take stdio, none, unix:PATH,server, tcp:[HOST]:PORT,server or chardev:ID";

/// `-monitor DEVICE`. Who connects has the whole machine: an empty host is this one alone.
pub(super) fn monitor(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let text = match text.strip_prefix("tcp::") {
        Some(rest) => format!("tcp:localhost:{rest}"),
        None => text.to_owned(),
    };
    let plug = chardev::plug(&text)?;
    if matches!(plug, Plug::Own(Backend::File(_))) || text.starts_with("mon:") {
        return Err(format!("{text}: not supported; {PLACES}").into());
    }
    draft.monitors.push(plug);
    Ok(())
}

/// `-mon [chardev=]ID[,mode=readline]`.
pub(super) fn mon(draft: &mut Draft, text: &str) -> Result<(), Stop> {
    let mut keys = KeyValues::parse(text, "chardev");
    let id = keys.take("chardev").ok_or("needs chardev=ID")?;
    match keys.take("mode").as_deref() {
        None | Some("readline") => {}
        Some(mode) => return Err(format!("mode={mode}: not supported yet; take readline").into()),
    }
    keys.finish()?;
    draft.monitors.push(Plug::Chardev(id));
    Ok(())
}

/// What monitors there are. A chardev that is a monitor's alone leaves `config`.
pub(super) fn settle(monitors: Vec<Plug>, config: &mut Config) -> Result<MonitorConfig, Stop> {
    if monitors.is_empty() {
        return Ok(MonitorConfig::default());
    }
    let mut settled = MonitorConfig { stdio: StdioMonitor::Never, sockets: Vec::new() };
    for plug in monitors {
        let backend = match plug {
            Plug::Nothing => Backend::Null,
            Plug::Own(backend) => backend,
            Plug::Chardev(id) => take_chardev(&id, config)?,
        };
        if backend == Backend::Stdio {
            settled.stdio = StdioMonitor::Always;
        }
        settled.sockets.extend(Endpoint::of(&backend));
    }
    Ok(settled)
}

fn take_chardev(id: &str, config: &mut Config) -> Result<Backend, Stop> {
    let is_it = |known: &str| known == id;
    let index = config.backends.iter().position(|backend| is_it(&backend.id));
    let index = index.ok_or_else(|| format!("-mon: chardev={id} is not given by -chardev"))?;
    let has_user = config
        .devices
        .iter()
        .any(|device| device.properties.get("chardev").is_some_and(|known| is_it(known)));
    let backend = config.backends.get(index).map(|known| known.backend.clone());
    let backend = backend.unwrap_or(Backend::Null);
    match (&backend, has_user) {
        (Backend::File(_), _) => Err(format!("-mon: chardev={id} is a file; {PLACES}").into()),
        // The terminal's escapes tell the two apart.
        (Backend::Stdio, true) => Ok(backend),
        (_, true) => Err(format!("-mon: chardev={id} has another user").into()),
        (_, false) => {
            config.backends.remove(index);
            Ok(backend)
        }
    }
}
