//! A real gdb on the interpreter and on the translator, driven by scripts; and clients that are no
//! gdb at all. Without a gdb on this host its tests are named on standard error and left out.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot start is a failed test")]

mod check;
mod guest;
mod hostile;
mod kvm;
mod non_stop;
mod packets;
mod points;
mod scripts;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use check::check;

/// Longer than any gdb, or any guest that is to end, may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The variable that names the engines to be tested, separated by commas.
const ENGINES: &str = "VOLVELLE_TEST_ENGINES";

/// A file of this test run.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A machine that serves gdb, killed at the end.
struct Machine {
    child: Child,
    name: String,
}

impl Machine {
    /// Starts one on `accel` with `words` more on its command line.
    fn start(name: &str, accel: &str, words: &[&str]) -> Self {
        let name = format!("gdb-{name}-{accel}");
        let socket = path(&format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let child = Command::new(env!("CARGO_BIN_EXE_volvelle"))
            .args(["run", "--accel", accel, "--serial", "none", "--memory", "16M", "--gdb"])
            .arg(format!("unix:{}", socket.display()))
            .args(words)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let mut this = Self { child, name };
        // A machine that cannot be made ends before. The socket listens a moment after it is there.
        while !socket.exists() && this.is_running() && started.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(50));
        this
    }

    fn socket(&self) -> PathBuf {
        path(&format!("{}.sock", self.name))
    }

    /// What gdb says when it is connected and does what `script` says.
    fn gdb(&self, script: &str) -> String {
        let target = format!("target remote {}", self.socket().display());
        let before = ["set width 0", "set architecture i386:x86-64", &target];
        // One by one: a script would end at the first command that fails.
        let commands = before.into_iter().chain(script.lines()).flat_map(|line| ["-ex", line]);
        // What the monitor says is on its standard error, and to be seen in its order.
        let mut child = Command::new("sh")
            .args(["-c", "exec gdb -nx -batch \"$@\" 2>&1", "gdb"])
            .args(commands)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            text
        });
        let is_done = wait(&mut child);
        let text = reader.join().unwrap();
        assert!(is_done, "gdb did not end: {text}");
        text
    }

    /// A connection without gdb.
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// The exit status, when the machine has ended.
    fn status(&mut self) -> Option<i32> {
        assert!(wait(&mut self.child), "the machine did not end");
        self.child.wait().unwrap().code()
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(self.socket());
    }
}

/// Waits for a process's end, at most [`LIMIT`]; then it is killed, and the answer false.
fn wait(child: &mut Child) -> bool {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// The engines that gdb is to be tried on, none without a gdb: those that [`ENGINES`] names, or the
/// interpreter and the translator, and KVM where it runs guests. KVM is left out where its debug
/// registers do not stop guests.
fn engines() -> Vec<String> {
    if !has_gdb() {
        return Vec::new();
    }
    let doctor = Command::new(env!("CARGO_BIN_EXE_volvelle")).arg("doctor").output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    let named = std::env::var(ENGINES).unwrap_or_else(|_| {
        let has_kvm = doctor.contains("Engine          kvm");
        if has_kvm { "interp,jit,kvm" } else { "interp,jit" }.to_owned()
    });
    let mut engines: Vec<String> = named.split(',').map(str::to_owned).collect();
    if engines.iter().any(|engine| engine == "kvm") && !doctor.contains("on KVM four\n") {
        say("skipped: KVM without hardware under it does not stop at code and data");
        engines.retain(|engine| engine != "kvm");
    }
    engines
}

/// The same without KVM, for what its debug registers do not hold.
fn software_engines() -> Vec<String> {
    engines().into_iter().filter(|engine| engine != "kvm").collect()
}

/// True if gdb has Python, which not every one has.
fn has_python() -> bool {
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-ex", "python print(6*7)"]);
    let has = command.output().is_ok_and(|output| output.stdout.starts_with(b"42"));
    if !has {
        say("skipped: this gdb has no Python");
    }
    has
}

/// True if there is a gdb.
fn has_gdb() -> bool {
    let version = Command::new("gdb").arg("--version").stdout(Stdio::null()).status();
    let has = version.is_ok_and(|status| status.success());
    if !has {
        say("skipped: there is no gdb on this host");
    }
    has
}

/// Says something past the harness, which shows only what fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

/// The number that gdb printed behind `$N = `.
fn printed(text: &str, number: usize) -> u64 {
    let head = format!("${number} = ");
    let line = text.lines().find_map(|line| line.strip_prefix(head.as_str()));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {head} in\n{text}"))
}
