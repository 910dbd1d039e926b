//! Opens what the configuration's devices are connected to.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use machine::pc::{DebugExitPorts, Pc};
use machine::serial_backend::{SerialBackend, Unplugged};

use crate::chardev::escape::Command;
use crate::chardev::input::Inlet;
use crate::chardev::queue::OutputQueue;
use crate::chardev::socket::Socket;
use crate::chardev::stdio::{MonitorSide, Sharing, Stdio};
use crate::config::{Backend, Config, DeviceConfig, StdioMonitor};
use crate::sockets::Listener;

use super::control::{Control, Quit, Request};

/// QEMU's default ports of isa-debug-exit.
const DEBUG_EXIT_PORT: u16 = 0x501;
const DEBUG_EXIT_COUNT: u32 = 2;
/// The debug console's usual port.
const DEBUGCON_PORT: u16 = 0xe9;

/// An open back-end.
enum Open {
    Null,
    Stdio(Stdio),
    File(Arc<OutputQueue>),
    Socket(Socket),
}

impl Open {
    fn output(&self) -> Arc<dyn SerialBackend> {
        match self {
            Self::Null => Arc::new(Unplugged),
            Self::Stdio(stdio) => Arc::clone(&stdio.output) as _,
            Self::File(queue) => Arc::clone(queue) as _,
            Self::Socket(socket) => Arc::clone(&socket.output) as _,
        }
    }

    fn inlet(&self) -> Option<&Arc<Inlet>> {
        match self {
            Self::Null | Self::File(_) => None,
            Self::Stdio(stdio) => Some(&stdio.inlet),
            Self::Socket(socket) => Some(&socket.inlet),
        }
    }

    fn queue(&self) -> Option<&Arc<OutputQueue>> {
        match self {
            Self::Null => None,
            Self::Stdio(stdio) => Some(&stdio.output),
            Self::File(queue) => Some(queue),
            Self::Socket(socket) => Some(&socket.output),
        }
    }
}

/// The open back-ends by name, and which devices use them.
pub(super) struct Backends {
    open: BTreeMap<String, Open>,
    /// Standard input and output where the monitor has them alone.
    monitor: Option<Stdio>,
    /// The back-ends of COM1, COM2, in that order.
    serial: Vec<String>,
    debugcon: Option<(u16, String)>,
    debug_exit: Option<DebugExitPorts>,
}

impl Backends {
    /// Opens every back-end.
    pub(super) fn open(config: &Config, control: &Arc<Control>) -> Result<Self> {
        let mut open = BTreeMap::new();
        let sharing = match config.monitor.stdio {
            StdioMonitor::Never => Sharing::Guest,
            StdioMonitor::OnTerminal => Sharing::MonitorOnTerminal,
            StdioMonitor::Always => Sharing::Both,
        };
        for backend in &config.backends {
            let opened = open_one(&backend.backend, control, sharing)?;
            if let Some(queue) = opened.queue().map(Arc::downgrade) {
                control.on_quit(Box::new(move || {
                    if let Some(queue) = queue.upgrade() {
                        queue.abandon();
                    }
                }));
            }
            open.insert(backend.id.clone(), opened);
        }
        let has_stdio = config.backends.iter().any(|known| known.backend == Backend::Stdio);
        let is_alone = config.monitor.stdio == StdioMonitor::Always && !has_stdio;
        let monitor = is_alone.then(|| open_stdio(control, Sharing::Monitor)).transpose()?;
        let mut this = Self { open, monitor, serial: Vec::new(), debugcon: None, debug_exit: None };
        for device in &config.devices {
            this.add(device)?;
        }
        Ok(this)
    }

    fn add(&mut self, device: &DeviceConfig) -> Result<()> {
        match device.driver.as_str() {
            "isa-serial" => {
                let backend = self.chardev(device)?;
                self.serial.push(backend);
            }
            "isa-debugcon" => {
                let port = u16::try_from(number(device, "iobase", u32::from(DEBUGCON_PORT))?)?;
                self.debugcon = Some((port, self.chardev(device)?));
            }
            "isa-debug-exit" => {
                let first = u16::try_from(number(device, "iobase", u32::from(DEBUG_EXIT_PORT))?)?;
                let count = number(device, "iosize", DEBUG_EXIT_COUNT)?;
                self.debug_exit = Some(DebugExitPorts { first, count });
            }
            "pc-testdev" | "pci-testdev" => {}
            driver => bail!("device {driver}: there is no such device"),
        }
        Ok(())
    }

    fn chardev(&self, device: &DeviceConfig) -> Result<String> {
        let id = device.properties.get("chardev").cloned().unwrap_or_default();
        if self.open.contains_key(&id) {
            return Ok(id);
        }
        Err(anyhow!("device {}: chardev={id} names no character device", device.driver))
    }

    /// Where the serial ports' output goes.
    pub(super) fn serial_outputs(&self) -> Vec<Arc<dyn SerialBackend>> {
        self.serial.iter().filter_map(|id| self.open.get(id)).map(Open::output).collect()
    }

    /// The debug console's port and output.
    pub(super) fn debugcon(&self) -> Option<(u16, Arc<dyn SerialBackend>)> {
        let (port, id) = self.debugcon.as_ref()?;
        Some((*port, self.open.get(id)?.output()))
    }

    /// Where isa-debug-exit is.
    pub(super) fn debug_exit(&self) -> Option<DebugExitPorts> {
        self.debug_exit
    }

    /// Lets input flow into the board's serial ports.
    pub(super) fn connect(&self, pc: &Pc) {
        for (index, id) in self.serial.iter().enumerate() {
            if let Some(inlet) = self.open.get(id).and_then(Open::inlet)
                && let Some(port) = pc.uart(index)
            {
                inlet.connect(port);
            }
        }
    }

    /// The monitor's side of standard input and output, and where it writes, if it has one.
    pub(super) fn monitor(&self) -> Option<(&Arc<OutputQueue>, &MonitorSide)> {
        let opened = self.open.values().filter_map(|open| match open {
            Open::Stdio(stdio) => Some(stdio),
            _ => None,
        });
        let mut all = opened.chain(&self.monitor);
        all.find_map(|stdio| Some((&stdio.output, stdio.monitor.as_ref()?)))
    }

    /// Waits until the guest's output is written, and the monitor's.
    pub(super) fn flush(&self) {
        self.open.values().filter_map(Open::queue).for_each(|queue| queue.flush());
        self.monitor.iter().for_each(|stdio| stdio.output.flush());
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.open.values().filter_map(Open::inlet).for_each(|inlet| inlet.close());
    }
}

fn number(device: &DeviceConfig, property: &str, default: u32) -> Result<u32> {
    let Some(text) = device.properties.get(property) else { return Ok(default) };
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("device {}: {property}={text} is no number", device.driver))
}

fn open_one(backend: &Backend, control: &Arc<Control>, sharing: Sharing) -> Result<Open> {
    Ok(match backend {
        Backend::Null => Open::Null,
        Backend::Stdio => Open::Stdio(open_stdio(control, sharing)?),
        Backend::File(path) => {
            let name = path.display();
            let file = File::create(path).with_context(|| format!("{name}: cannot write it"))?;
            let shown = name.to_string();
            let queue = OutputQueue::start("file", file, move |error| {
                log::error!("{shown}: {error}; output to it is lost from here");
            })?;
            Open::File(queue)
        }
        Backend::Unix(path) => Open::Socket(
            Listener::unix(path)
                .and_then(Socket::start)
                .with_context(|| format!("unix:{}: cannot listen there", path.display()))?,
        ),
        Backend::Tcp(address) => Open::Socket(
            Listener::tcp(address)
                .and_then(Socket::start)
                .with_context(|| format!("tcp:{address}: cannot listen there"))?,
        ),
    })
}

/// What Ctrl-A h says.
const HELP: &str = "\n\
    Ctrl-A h  this help\n\
    Ctrl-A x  leave\n\
    Ctrl-A b  send a break\n\
    Ctrl-A c  the monitor, and back\n\
    Ctrl-A Ctrl-A  send Ctrl-A\n";

fn open_stdio(control: &Arc<Control>, sharing: Sharing) -> Result<Stdio> {
    let control = Arc::downgrade(control);
    let on_command = Arc::new(move |command| match command {
        Command::Leave => {
            if let Some(control) = control.upgrade() {
                control.request(Request::Quit(Quit::User));
            }
        }
        Command::Help => eprint!("{HELP}"),
        // The reader turns to the monitor itself, where there is one.
        Command::Monitor => eprintln!("\nthe monitor is not here; Ctrl-A h lists what there is"),
        // The reader of the terminal sends it itself, in order with what is typed.
        Command::Break => {}
    });
    Stdio::start(sharing, on_command).context("cannot use standard input and output")
}
