//! A gdb that is told what to do line by line, while its guest runs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::boot::console::Console;
use crate::child::{self, Output};
use crate::workspace;

/// One session with gdb, whatever it waits for.
const LIMIT: Duration = Duration::from_secs(600);

/// A gdb that is connected.
pub struct Gdb {
    console: Console,
    /// Lines that it was given.
    lines: u32,
}

impl Gdb {
    /// Starts one that is connected to the machine at `socket`, with Volvelle's commands.
    pub fn attach(socket: &Path) -> Result<Self> {
        let script = workspace::root().join("share/volvelle-gdb.py");
        let mut command = Command::new("sh");
        // What the monitor says is on its standard error, and to be seen in its order.
        command.args(["-c", "exec gdb -nx -q \"$@\" 2>&1", "gdb"]);
        let connect = format!("target remote {}", socket.display());
        let source = format!("source {}", script.display());
        let architecture = "set architecture i386:x86-64";
        for line in ["set width 0", "set height 0", architecture, &connect, &source] {
            command.args(["-ex", line]);
        }
        let mut gdb = Self { console: Console::start(&mut command, LIMIT)?, lines: 0 };
        gdb.tell("echo connected\\n")?;
        gdb.answer().context("connecting")?;
        Ok(gdb)
    }

    /// Gives it a line, and does not wait for what comes of it.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.console.type_line(line)?;
        self.lines += 1;
        self.console.type_line(&format!("echo [line {}]\\n", self.lines))
    }

    /// What it says to the line that it was given last.
    pub fn answer(&mut self) -> Result<String> {
        self.console.expect(&format!("[line {}]", self.lines))
    }

    /// Gives it a line, and waits for what it says.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.tell(line)?;
        self.answer().with_context(|| format!("gdb: {line}"))
    }

    /// All that it has said.
    pub fn transcript(&self) -> String {
        self.console.transcript()
    }
}

/// Why no gdb can be driven here, if so.
pub fn lacks() -> Option<&'static str> {
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-ex", "python print(6*7)"]);
    match child::capture(&mut command, Output::Kept, Duration::from_secs(60)) {
        Ok(finished) if finished.text.starts_with("42") => None,
        Ok(_) => Some("this gdb has no Python"),
        Err(_) => Some("there is no gdb on this host"),
    }
}
