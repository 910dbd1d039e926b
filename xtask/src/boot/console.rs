//! A machine with its serial console, driven like a person would drive it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::child;

/// What the guest's shell writes when it takes a line (`guests/profile.sh` puts it in `/root`).
pub const PROMPT: &str = "/root # ";

/// Fails unless `texts` are in what was said, in this order.
pub fn check(said: &str, texts: &[&str]) -> Result<()> {
    let mut rest = said;
    for text in texts {
        let (_, behind) = rest
            .split_once(text)
            .with_context(|| format!("no {text:?} where it is due in\n{said}"))?;
        rest = behind;
    }
    Ok(())
}
/// How long the process may take to end once its guest has.
const END_LIMIT: Duration = Duration::from_secs(120);

/// A running machine. It is ended when this is dropped.
pub struct Console {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// What the program, not its guest, has said on standard error.
    remarks: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
    transcript: Vec<u8>,
    /// How much of the transcript has been matched.
    seen: usize,
    deadline: Instant,
}

impl Console {
    /// Starts the command. Everything until the machine's end must fit into `limit`.
    pub fn start(command: &mut Command, limit: Duration) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", child::describe(command)))?;
        let (sender, output) = mpsc::channel();
        if let Some(pipe) = child.stdout.take() {
            forward(pipe, move |bytes| sender.send(bytes.to_vec()).is_ok());
        }
        let remarks: Arc<Mutex<Vec<u8>>> = Arc::default();
        let listener = child.stderr.take().map(|pipe| {
            let remarks = Arc::clone(&remarks);
            forward(pipe, move |bytes| {
                lock(&remarks).extend_from_slice(bytes);
                true
            })
        });
        let input = child.stdin.take().context("the machine has no stdin")?;
        let deadline = Instant::now() + limit;
        let transcript = Vec::new();
        Ok(Self { child, input, output, remarks, listener, transcript, seen: 0, deadline })
    }

    /// The process of the machine.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything the machine has written so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.transcript).into_owned()
    }

    /// Everything the program has said on standard error so far.
    pub fn remarks(&self) -> String {
        String::from_utf8_lossy(&lock(&self.remarks)).into_owned()
    }

    /// Waits until the machine writes a text, and returns what came before it.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        // A serial port may give a byte at a time: what was searched is not searched again.
        let mut from = self.seen;
        loop {
            if let Some(start) = find(&self.transcript[from..], text.as_bytes()) {
                let before = &self.transcript[self.seen..from + start];
                let before = String::from_utf8_lossy(before).into_owned();
                self.seen = from + start + text.len();
                return Ok(before);
            }
            from = from.max((self.transcript.len() + 1).saturating_sub(text.len()));
            self.read().with_context(|| format!("waiting for {text:?}"))?;
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).context("typing to the machine")?;
        self.input.flush().context("typing to the machine")
    }

    /// Has the guest's shell, which has shown its prompt, run a line that must succeed. Returns its
    /// output once the prompt is there again: what is typed earlier would be echoed twice.
    pub fn shell(&mut self, line: &str) -> Result<String> {
        // The echo of what is typed holds `$?`, so only the shell's answer can match.
        self.type_line(&format!("{line}; echo \"(status $?)\""))?;
        self.expect("(status $?)\"")?;
        let output = self.expect("(status ")?;
        let status = self.expect(")")?;
        if status != "0" {
            bail!("`{line}` in the guest ended with {status}: {output}");
        }
        self.expect(PROMPT)?;
        Ok(output.replace('\r', ""))
    }

    /// Waits for the process to end by itself.
    pub fn end(&mut self) -> Result<ExitStatus> {
        while self.read().is_ok() {}
        if Instant::now() >= self.deadline {
            bail!("the machine is still running");
        }
        let status = child::wait(&mut self.child, END_LIMIT)?;
        if let Some(listener) = self.listener.take() {
            listener.join().map_err(|_| anyhow!("nobody read standard error"))?;
        }
        Ok(status)
    }

    fn read(&mut self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => self.transcript.extend_from_slice(&bytes),
            Err(RecvTimeoutError::Timeout) => bail!("nothing more came in time"),
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the machine has ended")),
        }
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Hands on what comes out of a pipe until `take` wants no more.
fn forward(
    mut pipe: impl Read + Send + 'static,
    take: impl Fn(&[u8]) -> bool + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = pipe.read(&mut buffer)
            && count > 0
            && take(&buffer[..count])
        {}
    })
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell_of_the_host() -> Console {
        let mut command = Command::new("sh");
        // Like a terminal, show what is typed before what comes of it.
        let script =
            r#"while printf '/root # '; read -r line; do echo "$line"; eval "$line"; done"#;
        let mut console =
            Console::start(command.args(["-c", script]), Duration::from_secs(60)).unwrap();
        console.expect(PROMPT).unwrap();
        console
    }

    #[test]
    fn the_answer_is_told_from_the_echo() {
        let mut console = shell_of_the_host();
        assert_eq!(console.shell("echo $((6*7))").unwrap().trim(), "42");
        assert!(console.shell("false").is_err());
        console.expect(PROMPT).unwrap();
        console.type_line("exit 3").unwrap();
        assert_eq!(console.end().unwrap().code(), Some(3));
    }

    #[test]
    fn a_text_that_comes_in_pieces_is_found() {
        let mut command = Command::new("sh");
        command.args(["-c", "for piece in ab cd ef gh; do printf $piece; sleep 0.05; done"]);
        let mut console = Console::start(&mut command, Duration::from_secs(60)).unwrap();
        assert_eq!(console.expect("cdefg").unwrap(), "ab");
        assert_eq!(console.expect("h").unwrap(), "");
    }

    #[test]
    fn remarks_are_no_part_of_what_the_machine_writes() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf one; echo remark >&2; printf two"]);
        let mut console = Console::start(&mut command, Duration::from_secs(60)).unwrap();
        assert!(console.end().unwrap().success());
        assert_eq!((console.transcript(), console.remarks()), ("onetwo".into(), "remark\n".into()));
    }

    #[test]
    fn a_machine_that_ends_early_is_an_error_and_no_wait() {
        let mut console = shell_of_the_host();
        console.type_line("exit").unwrap();
        let error = format!("{:#}", console.expect("login:").unwrap_err());
        assert_eq!(error, "waiting for \"login:\": the machine has ended");
    }

    #[test]
    fn a_silent_machine_runs_into_its_limit() {
        let mut command = Command::new("sleep");
        let mut console = Console::start(command.arg("600"), Duration::from_millis(50)).unwrap();
        assert!(console.expect("anything").is_err());
        assert!(console.end().is_err());
    }
}
