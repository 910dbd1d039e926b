//! Host signals that end the machine.

use std::sync::Arc;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::control::{Control, Quit, Request};

/// Starts a thread that turns SIGINT, SIGTERM and SIGHUP into requests to end. On a raw terminal
/// Ctrl-C is the guest's; SIGINT then comes from elsewhere only.
pub(super) fn watch(control: &Arc<Control>) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    let control = Arc::downgrade(control);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in &mut signals {
                let Some(control) = control.upgrade() else { return };
                control.request(Request::Quit(Quit::Signal(signal)));
            }
        })
        .context("cannot start the signal thread")?;
    Ok(())
}
