//! The guests under QEMU's TCG, where it is installed: an implementation of the architecture and of
//! a PC that is not ours says that what the guests expect is right.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use firmware::guests::{self, LoopWidth, integer_loop, integer_loop_outcome};
use firmware::{IMAGE, deviations};

const QEMU: &str = "qemu-system-x86_64";
/// What the guest may say of TCG: no version checks limits of data segments, and 7.2 has the wrong
/// error code for a vector beyond the IDT.
const KNOWN: [&str; 2] = [
    "[segment limit]: [segment limit] not checked: this is QEMU's TCG",
    "[#GP]: [#GP] not checked: this is QEMU's TCG",
];
/// Longest run; a guest takes a second or two on a host that has nothing else to do.
const TIMEOUT_SECONDS: &str = "300";
/// Options of the usual board.
const Q35: &[&str] = &["-M", "q35"];

/// QEMU running a guest, with its COM1 on pipes.
struct Run {
    child: Child,
    rom: PathBuf,
    to_guest: ChildStdin,
    from_guest: BufReader<ChildStdout>,
}

/// Starts `image`; `None`, loudly, without QEMU.
fn start(name: &str, image: &[u8], options: &[&str]) -> Option<Run> {
    if Command::new(QEMU).arg("--version").output().is_err() {
        eprintln!("SKIPPED: {name}: {QEMU} is not installed");
        return None;
    }
    let rom = env::temp_dir().join(format!("{name}-{}.rom", process::id()));
    fs::write(&rom, image).unwrap();
    let mut child = Command::new("timeout")
        .args([TIMEOUT_SECONDS, QEMU, "-accel", "tcg", "-display", "none", "-monitor", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4"])
        .arg("-bios")
        .arg(&rom)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let to_guest = child.stdin.take().unwrap();
    let from_guest = BufReader::new(child.stdout.take().unwrap());
    Some(Run { child, rom, to_guest, from_guest })
}

impl Run {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from_guest.read_line(&mut line).unwrap();
        line
    }

    /// Reads to the end; what was read, and the exit status. QEMU drops input that comes with its
    /// pipe's end, so the pipe outlives the guest.
    fn end(mut self) -> (String, Option<i32>) {
        let mut text = String::new();
        self.from_guest.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        drop(self.to_guest);
        fs::remove_file(self.rom).unwrap();
        (text, status.code())
    }
}

#[test]
fn the_built_in_guest_passes_on_both_boards_with_one_to_three_processors() {
    for (machine, processors) in [("q35", 1), ("q35", 2), ("pc", 3)] {
        let smp = processors.to_string();
        let options = ["-M", machine, "-cpu", "max", "-smp", &smp];
        let Some(run) = start("guest", IMAGE, &options) else { return };
        let (text, status) = run.end();
        let found = deviations(&text, processors);
        let is_known = |line: &String| KNOWN.contains(&line.as_str());
        assert!(found.iter().all(is_known), "{machine} {processors}: {found:?}:\n{text}");
        assert_eq!(status, Some(0), "ACPI power-off on {machine}");
    }
}

#[test]
fn the_integer_loops_come_to_what_their_model_says() {
    for (width, iterations) in [(LoopWidth::Bits16, 70_001), (LoopWidth::Bits64, 100_001)] {
        let image = integer_loop(width, iterations);
        let Some(run) = start(&format!("loop-{width:?}"), &image, Q35) else { return };
        let expected = integer_loop_outcome(width, iterations).checksum;
        // isa-debug-exit with 0 is status 1.
        assert_eq!(run.end(), (format!("checksum {expected:X}\r\n"), Some(1)));
    }
}

#[test]
fn the_echo_guest_numbers_its_input_and_powers_off() {
    let Some(mut run) = start("echo", guests::ECHO, Q35) else { return };
    assert_eq!(run.line(), "0 1 2 3 4 5 6 7 8 9 \r\n");
    run.to_guest.write_all(b"ab\x04").unwrap();
    assert_eq!(run.end(), ("1:a 2:b ".to_owned(), Some(0)));
}

#[test]
fn the_triple_fault_guest_shuts_the_machine_down() {
    let Some(run) = start("triple", guests::TRIPLE_FAULT, Q35) else { return };
    assert_eq!(run.end(), ("triple fault\r\n".to_owned(), Some(0)));
}

#[test]
fn the_idle_guest_gets_its_ticks() {
    // From before QEMU starts: this thread may stand still for longer than the guest runs.
    let before = Instant::now();
    let Some(mut run) = start("idle", guests::IDLE, Q35) else { return };
    assert_eq!((run.line(), run.line()), ("idle\r\n".to_owned(), "ticking\r\n".to_owned()));
    // Ten ticks of 10 ms; a busy host delivers them late, never early by more than the first.
    assert!(before.elapsed() >= Duration::from_millis(80), "{:?}", before.elapsed());
    Command::new("kill").arg(run.child.id().to_string()).status().unwrap();
    assert_eq!(run.end().0, "");
}
