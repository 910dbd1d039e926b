//! The monitor on a terminal that the guest has too: a real pty.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::{LIMIT, PROMPT, check, guest};

const CTRL_A_C: &str = "\x01c";

/// A machine on a terminal.
struct Terminal {
    child: Child,
    keys: File,
    /// The other side, kept open so that its modes can be looked at.
    line: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(words: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let line = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let side = || Stdio::from(line.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_volvelle"))
            .args(["run", "--memory", "16M"])
            .args(words)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let keys = File::from(master);
        let mut reader = keys.try_clone().unwrap();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = reader.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keys, line: line.into(), output, seen: String::new() }
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// What is shown up to `part`, which is waited for.
    fn until(&mut self, part: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(at) = self.seen.find(part) {
                let rest = self.seen.split_off(at + part.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = LIMIT.saturating_sub(started.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("{error}: no {part:?} in {:?}", self.seen),
            }
        }
    }

    /// What is answered to `line`, its echo included.
    fn ask(&mut self, line: &str) -> String {
        self.type_in(&format!("{line}\r"));
        self.until(PROMPT)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.line.as_fd()).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    fn status(&mut self) -> Option<i32> {
        let started = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < LIMIT, "the machine did not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn counting(name: &str, words: &[&str]) -> Terminal {
    let rom = guest::rom(&format!("monitor-terminal-{name}.rom"));
    let rom = rom.display().to_string();
    Terminal::start(&[&["--bios", &rom], words].concat())
}

#[test]
fn ctrl_a_c_goes_to_the_monitor_and_back_and_the_terminal_is_put_back() {
    let mut terminal = counting("keys", &[]);
    // There is nothing to be seen of this guest: the first key is waited for by the terminal.
    terminal.type_in(CTRL_A_C);
    check(&terminal.until(PROMPT), &["Volvelle", "`help`"]);
    assert!(terminal.is_raw());
    check(&terminal.ask("info status"), &["info status", "running"]);
    // Edited, dropped, and called back.
    check(&terminal.ask("infx\x7fo  vers\x15info version"), &["\x08 \x08", "Volvelle"]);
    terminal.type_in("stop\x03");
    check(&terminal.until(PROMPT), &["^C"]);
    check(&terminal.ask("\x1b[A\x1b[A"), &["info version", "info status", "running"]);
    // Stopped, it does not take what is typed at it, and the escapes work all the same.
    check(&terminal.ask("stop"), &["CPU 0: stopped"]);
    terminal.type_in(CTRL_A_C);
    terminal.type_in(&"x".repeat(3000));
    terminal.type_in(CTRL_A_C);
    terminal.until(PROMPT);
    check(&terminal.ask("info status"), &["paused"]);
    terminal.type_in("\x04");
    terminal.until("\n");
    terminal.type_in("yy");
    terminal.type_in(CTRL_A_C);
    terminal.until(PROMPT);
    check(&terminal.ask("cont"), &["cont"]);
    // The stop is shown above the line that is being typed.
    terminal.type_in(&format!("break {}\r", guest::TOP));
    terminal.until("CPU 0: breakpoint 1");
    check(&terminal.until(PROMPT), &["inc"]);
    terminal.type_in("quit\r");
    assert_eq!(terminal.status(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn signals_put_the_terminal_back_too() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut terminal = counting(&status.to_string(), &[]);
        terminal.type_in(CTRL_A_C);
        terminal.until(PROMPT);
        assert!(terminal.is_raw());
        let pid = Pid::from_child(&terminal.child);
        kill_process(pid, signal).unwrap();
        assert_eq!(terminal.status(), Some(status));
        assert!(!terminal.is_raw());
    }
}

#[test]
fn the_guests_output_is_shown_while_the_monitor_is_typed_at() {
    let mut terminal = Terminal::start(&["--paused"]);
    terminal.type_in(CTRL_A_C);
    terminal.until(PROMPT);
    check(&terminal.ask("info status"), &["paused"]);
    terminal.type_in("cont\r");
    terminal.until("[real mode]");
    // The built-in guest ends by powering off.
    assert_eq!(terminal.status(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn without_a_monitor_ctrl_a_c_says_so_and_ctrl_a_x_leaves() {
    let mut terminal = counting("none", &["--monitor", "none"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.type_in(CTRL_A_C);
    terminal.until("the monitor is not here");
    terminal.type_in("\x01x");
    assert_eq!(terminal.status(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn the_monitor_has_a_pipe_alone_or_with_the_guest() {
    let rom = guest::rom("monitor-pipe.rom");
    let run = |words: &[&str], input: &str| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_volvelle"))
            .args(["run", "--memory", "16M", "--monitor", "stdio", "--bios"])
            .arg(&rom)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (status, text) = run(&["--serial", "none"], "info status\nstop\nquit\n");
    assert_eq!(status, Some(0));
    check(&text, &[PROMPT, "VM status: running", PROMPT, "CPU 0: stopped", PROMPT]);
    assert!(!text.contains("info status"), "{text}");
    let (status, text) = run(&[], "for the guest\x01cinfo status\nquit\n");
    assert_eq!(status, Some(0));
    check(&text, &["VM status: running"]);
}
