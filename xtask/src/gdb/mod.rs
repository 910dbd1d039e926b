//! gdb against a Debian that boots and runs, with the kernel's own names.
//!
//! Interpreter and translator each have a guest of their own. It boots on the translator, for the
//! interpreter would take a minute, and changes to the interpreter where that is tested.

mod client;
mod sessions;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::boot::console::{Console, check};
use crate::boot::{keep_log, kernel_log, show_end};
use crate::guests::{Guests, Kernel};
use crate::linux;
use crate::tally::Tally;
use crate::workspace;
use client::Gdb;
use sessions::{SESSIONS, Step};

/// One guest with all its sessions, on a busy host.
const LIMIT: Duration = Duration::from_secs(1200);
const ENGINES: [&str; 2] = ["jit", "interp"];
/// The engine that the guests boot on.
const FIRST_ENGINE: &str = "jit";
const MACHINE: &[&str] = &["run", "--accel", FIRST_ENGINE, "--switch-engines", "interp"];

/// What to drive.
#[derive(clap::Args)]
pub struct Options {
    /// Program to test instead of the release build.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Drives gdb with a fresh release build. Returns the counts and what was skipped.
pub fn suite() -> Result<(Tally, Vec<String>)> {
    chosen(&Options { binary: None })
}

/// The same with the program that a person has chosen.
pub fn chosen(options: &Options) -> Result<(Tally, Vec<String>)> {
    let skip = |reason: String| {
        (Tally { skipped: 1, ..Tally::default() }, vec![format!("gdb on Debian: {reason}")])
    };
    if let Some(reason) = client::lacks() {
        return Ok(skip(reason.to_owned()));
    }
    let guests = Guests::new();
    if let Err(error) = guests.download() {
        return Ok(skip(format!("no kernel can be had: {error:#}")));
    }
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            linux::build()?;
            workspace::release_binary()
        }
    };
    let mut tally = Tally::default();
    for engine in ENGINES {
        tally += run(&binary, &guests, engine)?;
    }
    Ok((tally, Vec::new()))
}

/// A guest, and the gdb that is connected to it.
struct Bench {
    console: Console,
    gdb: Option<Gdb>,
    socket: PathBuf,
    engine: &'static str,
    /// What gdb said in sessions that are over.
    said: String,
}

/// Runs all sessions with one guest. Behind one that fails nothing is known of the guest.
fn run(binary: &Path, guests: &Guests, engine: &'static str) -> Result<Tally> {
    let mut bench = Bench::start(binary, guests, engine)?;
    let mut tally = Tally::default();
    for (name, steps) in SESSIONS {
        let started = Instant::now();
        let done = steps.iter().try_for_each(|step| bench.step(*step));
        let seconds = started.elapsed().as_secs_f64();
        match done {
            Ok(()) => {
                println!("gdb on Debian, {engine}: {name} ... ok ({seconds:.1} s)");
                tally.passed += 1;
            }
            Err(error) => {
                println!("gdb on Debian, {engine}: {name} ... FAILED ({seconds:.1} s)");
                println!("  {error:#}");
                tally.failed += 1;
                bench.show();
                return Ok(tally);
            }
        }
    }
    match bench.power_off() {
        Ok(()) => tally.passed += 1,
        Err(error) => {
            println!("gdb on Debian, {engine}: the end ... FAILED\n  {error:#}");
            tally.failed += 1;
        }
    }
    Ok(tally)
}

impl Bench {
    fn start(binary: &Path, guests: &Guests, engine: &'static str) -> Result<Self> {
        let name = format!("gdb-{engine}-{}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut command = Command::new(binary);
        command.args(MACHINE).args(["--cpus", "2", "--memory", "512M", "--paused", "--gdb"]);
        command.arg(format!("unix:{}", socket.display()));
        command.arg("--kernel").arg(guests.bzimage(Kernel::Cloud)?);
        command.arg("--initrd").arg(guests.initramfs()?);
        command.args(["--append", "console=ttyS0 quiet"]);
        let console = Console::start(&mut command, LIMIT)?;
        let started = Instant::now();
        while !socket.exists() && started.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { console, gdb: None, socket, engine, said: String::new() })
    }

    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Attach => self.gdb = Some(Gdb::attach(&self.socket)?),
            Step::Gdb(line, texts) => {
                let said = self.gdb()?.ask(line)?;
                check(&said, texts).with_context(|| format!("gdb: {line}"))?;
            }
            Step::Go(line) => self.gdb()?.tell(line)?,
            Step::Stopped(texts) => check(&self.gdb()?.answer()?, texts)?,
            Step::Detach => {
                let said = self.gdb()?.ask("detach")?;
                check(&said, &["Detaching"])?;
                self.said += &self.gdb.take().map(|gdb| gdb.transcript()).unwrap_or_default();
            }
            Step::Engine => self.change_to(self.engine)?,
            Step::FirstEngine => self.change_to(FIRST_ENGINE)?,
            Step::Expect(text) => drop(self.console.expect(text)?),
            Step::Type(line) => self.console.type_line(line)?,
            Step::Shell(line, answer) => {
                let output = self.console.shell(line)?;
                ensure!(output.trim() == answer, "`{line}` gave {output:?}");
            }
            Step::QuietLog => {
                let log = self.console.shell("dmesg -r")?;
                let complaints = kernel_log::complaints(&log);
                ensure!(complaints.is_empty(), "in dmesg:\n  {}", complaints.join("\n  "));
            }
        }
        Ok(())
    }

    fn gdb(&mut self) -> Result<&mut Gdb> {
        self.gdb.as_mut().context("no gdb is connected")
    }

    /// Has the guest go on on `engine`.
    fn change_to(&mut self, engine: &str) -> Result<()> {
        let gdb = self.gdb()?;
        let said = gdb.ask("monitor accel")?;
        if !said.contains(engine) {
            gdb.ask(&format!("monitor accel {engine}"))?;
        }
        Ok(())
    }

    fn power_off(&mut self) -> Result<()> {
        self.console.type_line("poweroff -f")?;
        let status = self.console.end()?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    /// Shows how far it came, and keeps all of it.
    fn show(&mut self) {
        if let Some(gdb) = &self.gdb {
            self.said += &gdb.transcript();
        }
        let text =
            format!("{}\n{}\n{}", self.console.transcript(), self.console.remarks(), self.said);
        show_end(text.lines());
        let log = keep_log(&format!("gdb-on-Debian-{}", self.engine), &text);
        println!("  all that was said: {}", log.display());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
