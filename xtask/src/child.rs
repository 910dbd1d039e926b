//! Child processes, each with a time limit: nothing a chore starts may hang it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a running child is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a child has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// What becomes of a child's output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Collected and not shown.
    Kept,
    /// Shown line by line as it comes, and collected.
    Shown,
}

/// A child that ended within its time.
pub struct Finished {
    pub status: ExitStatus,
    /// Standard output, then standard error.
    pub text: String,
}

/// Runs a child that talks to the terminal itself.
pub fn run(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = spawn(command)?;
    wait(&mut child, limit).with_context(|| describe(command))
}

/// Runs a child that must succeed and talks to the terminal itself.
pub fn check(command: &mut Command, limit: Duration) -> Result<()> {
    let status = run(command, limit)?;
    if !status.success() {
        bail!("`{}` ended with {status}", describe(command));
    }
    Ok(())
}

/// Runs a child without input and collects what it writes.
pub fn capture(command: &mut Command, output: Output, limit: Duration) -> Result<Finished> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let readers = [
        child.stdout.take().map(|pipe| collect(pipe, output)),
        child.stderr.take().map(|pipe| collect(pipe, output)),
    ];
    let status = wait(&mut child, limit).with_context(|| describe(command))?;
    let text = readers.into_iter().flatten().filter_map(|reader| reader.join().ok()).collect();
    Ok(Finished { status, text })
}

/// Waits for a child to end, and ends it when its time is up.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    if let Some(status) = wait_until(child, Instant::now() + limit)? {
        return Ok(status);
    }
    // SIGTERM first: cargo-nextest ends its tests on it, Volvelle restores the terminal.
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).ok();
    }
    if wait_until(child, Instant::now() + GRACE)?.is_none() {
        child.kill().ok();
        child.wait()?;
    }
    bail!("not done after {} s", limit.as_secs());
}

fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start `{}`", describe(command)))
}

/// Reads a pipe to its end on a thread of its own, so that two full pipes cannot block each other.
fn collect(pipe: impl Read + Send + 'static, output: Output) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            let decoded = String::from_utf8_lossy(&line);
            if output == Output::Shown {
                // A reader of ours that has gone away is no reason to stop the child.
                std::io::stdout().write_all(decoded.as_bytes()).ok();
            }
            text.push_str(&decoded);
            line.clear();
        }
        text
    })
}

/// The command line as a person would type it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_overstays_is_ended() {
        let started = Instant::now();
        let result = run(Command::new("sleep").arg("600"), Duration::from_millis(50));
        assert!(format!("{:#}", result.unwrap_err()).starts_with("sleep 600: not done"));
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn both_pipes_are_collected_with_the_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let finished = capture(&mut command, Output::Kept, Duration::from_secs(60)).unwrap();
        assert_eq!(finished.text, "out\nerr\n");
        assert_eq!(finished.status.code(), Some(3));
    }
}
