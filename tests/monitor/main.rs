//! The monitor of a running machine: on a socket, on a terminal, and for clients of bad faith.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot start is a failed test")]

#[path = "../gdb/check.rs"]
mod check;
#[expect(dead_code, reason = "its symbols are for gdb")]
#[path = "../gdb/guest.rs"]
mod guest;
mod hostile;
mod logging;
#[path = "../gdb/packets.rs"]
mod packets;
mod socket;
mod terminal;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use check::check;

/// Longer than any answer, or any machine that is to end, may take.
const LIMIT: Duration = Duration::from_secs(60);
const ENGINES: [&str; 2] = ["interp", "jit"];
const PROMPT: &str = "(volvelle) ";

/// A file of this test run.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A machine with a monitor on a socket, killed at the end.
struct Machine {
    child: Child,
    socket: PathBuf,
}

impl Machine {
    /// Starts one on `accel` with `words` more on its command line.
    fn start(name: &str, accel: &str, words: &[&str]) -> Self {
        let socket = path(&format!("monitor-{name}-{accel}.sock"));
        let _ = fs::remove_file(&socket);
        let child = Command::new(env!("CARGO_BIN_EXE_volvelle"))
            .args(["run", "--accel", accel, "--serial", "none", "--memory", "16M", "--monitor"])
            .arg(format!("unix:{}", socket.display()))
            .args(words)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// Starts one that counts for ever.
    fn counting(name: &str, accel: &str, words: &[&str]) -> Self {
        let rom = guest::rom(&format!("monitor-{name}-{accel}.rom"));
        let rom = rom.display().to_string();
        Self::start(name, accel, &[&["--bios", &rom], words].concat())
    }

    /// Starts one that counts on two processors for ever.
    fn counting_twice(name: &str, accel: &str, words: &[&str]) -> Self {
        let rom = guest::pair(&format!("monitor-{name}-{accel}.rom"));
        let rom = rom.display().to_string();
        Self::start(name, accel, &[&["--bios", &rom, "--cpus", "2"], words].concat())
    }

    /// A user of its monitor, as soon as it lets one in.
    fn connect(&self) -> User {
        let stream = connect(&self.socket);
        let mut user = User { stream };
        user.answer();
        user
    }

    /// The exit status, when the machine has ended.
    fn status(&mut self) -> Option<i32> {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < LIMIT, "the machine did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// A connection to the socket at `path`, which is waited for.
fn connect(path: &std::path::Path) -> UnixStream {
    let started = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            Err(error) => assert!(started.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody at the monitor.
struct User {
    stream: UnixStream,
}

impl User {
    /// What comes up to the next prompt, without it.
    fn answer(&mut self) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(PROMPT.as_bytes()) {
            match self.stream.read(&mut byte) {
                Ok(1) => text.push(byte[0]),
                other => panic!("{other:?} behind {}", String::from_utf8_lossy(&text)),
            }
        }
        text.truncate(text.len() - PROMPT.len());
        String::from_utf8(text).unwrap()
    }

    fn type_in(&mut self, keys: &str) {
        self.stream.write_all(keys.as_bytes()).unwrap();
    }

    /// What is answered to `line`.
    fn ask(&mut self, line: &str) -> String {
        self.type_in(&format!("{line}\n"));
        self.answer()
    }

    /// Fails unless the answer to `line` has all of `parts`, in this order.
    fn check(&mut self, line: &str, parts: &[&str]) {
        let text = self.ask(line);
        check(&format!("{line}: {text}"), parts);
    }
}
