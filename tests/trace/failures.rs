//! Disks that are full, processes that are ended, and rings: what becomes of guest and file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use firmware::guests::{LoopWidth, integer_loop};
use rustix::process::{Pid, Signal, kill_process};
use trace::{Ending, Event, Item, Reader, TraceError};

use crate::temporary;

const LIMIT: Duration = Duration::from_secs(120);
const ENGINES: [&str; 2] = ["interp", "jit"];
/// So much is told that files grow fast.
const DETAILS: &str = "what=mem+regs";

fn rom(name: &str, image: &[u8]) -> String {
    let path = temporary(&format!("{name}.rom"));
    fs::write(&path, image).unwrap();
    path.display().to_string()
}

/// A file that may grow to about 5 or 10 MB, by the shell's unit, is as a full disk, but that the
/// kernel would end the process by SIGXFSZ. The translator's and the thunks' memory must fit too.
#[test]
fn a_full_disk_ends_the_trace_and_not_the_guest() {
    const LIMITED: &str = "ulimit -f 10000; exec \"$0\" \"$@\"";
    let rom = rom("full", &integer_loop(LoopWidth::Bits64, 300_000));
    let engines = [("interp", &[][..]), ("jit", &["--jit-cache", "4M"])];
    for (accel, words) in engines {
        let file = temporary(&format!("full-{accel}.trace"));
        let value = format!("{},{DETAILS}", file.display());
        let output = Command::new("sh")
            .args(["-c", LIMITED, env!("CARGO_BIN_EXE_volvelle"), "run", "--debug-exit"])
            .args(["--serial", "none", "--accel", accel, "--memory", "16M"])
            .args(words)
            .args(["--bios", &rom, "--trace", &value])
            .output()
            .unwrap();
        // The guest came to its end, and one line says why there is no more of the trace.
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("the trace ends here") && said.contains("too large"), "{said}");
        let read = read(&file);
        assert_eq!(read.ending, Ending::Cut, "{accel}");
        assert!(read.instructions > 100_000, "{accel}: {}", read.instructions);
        fs::remove_file(&file).unwrap();
    }
}

/// A guest that goes on until it is ended, traced to a file.
struct Running {
    child: Child,
    file: PathBuf,
}

impl Running {
    fn start(name: &str, accel: &str, keys: &str) -> Self {
        let file = temporary(&format!("{name}-{accel}.trace"));
        let _ = fs::remove_file(&file);
        let rom = rom(&format!("{name}-{accel}"), &integer_loop(LoopWidth::Bits64, u32::MAX));
        let child = Command::new(env!("CARGO_BIN_EXE_volvelle"))
            .args(["run", "--serial", "none", "--accel", accel, "--bios", &rom, "--trace"])
            .arg(format!("{},{keys}", file.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, file }
    }

    /// Bytes of the file.
    fn length(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |about| about.len())
    }

    fn wait_for_bytes(&mut self, bytes: u64) {
        let started = Instant::now();
        while self.length() < bytes {
            assert_eq!(self.child.try_wait().unwrap(), None);
            assert!(started.elapsed() < LIMIT, "{} bytes", self.length());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by a signal; the exit status.
    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

/// What a file has.
struct Read {
    ending: Ending,
    instructions: u64,
    /// How many instructions came before the first record.
    first_count: u64,
    last: Option<Event>,
}

fn read(file: &Path) -> Read {
    let reader = Reader::open(file).unwrap();
    let (mut instructions, mut first_count, mut last) = (0, None, None);
    for record in reader.cpu(0) {
        let record = record.unwrap();
        first_count.get_or_insert(record.count);
        last = match record.item {
            Item::Block(block) => {
                instructions += block.len() as u64;
                None
            }
            Item::Event(event) => Some(event),
        };
    }
    let ending = reader.ending().unwrap();
    Read { ending, instructions, first_count: first_count.unwrap_or(0), last }
}

#[test]
fn sigterm_ends_the_run_with_a_whole_trace() {
    for accel in ENGINES {
        let mut running = Running::start("term", accel, DETAILS);
        running.wait_for_bytes(200_000);
        assert_eq!(running.end(Signal::TERM), Some(143), "{accel}");
        let read = read(&running.file);
        assert_eq!((read.ending, read.last), (Ending::Closed, Some(Event::End)), "{accel}");
        assert!(read.instructions > 1000, "{accel}: {}", read.instructions);
    }
}

#[test]
fn what_a_killed_process_has_written_is_read_up_to_the_cut() {
    let mut running = Running::start("kill", "jit", DETAILS);
    running.wait_for_bytes(400_000);
    assert_eq!(running.end(Signal::KILL), None);
    let whole = read(&running.file);
    assert_eq!(whole.ending, Ending::Cut);
    assert!(whole.instructions > 1000, "{}", whole.instructions);
    // Wherever it is cut, what is before it is told; in the header it is none.
    let bytes = fs::read(&running.file).unwrap();
    for left in [bytes.len() - 1, bytes.len() - 50, bytes.len() / 2] {
        fs::write(&running.file, &bytes[..left]).unwrap();
        let part = read(&running.file);
        assert_eq!(part.ending, Ending::Cut);
        assert!(part.instructions <= whole.instructions);
    }
    fs::write(&running.file, &bytes[..20]).unwrap();
    let refused = Reader::open(&running.file).map(|_| ());
    assert!(matches!(refused, Err(TraceError::Header(_))), "{refused:?}");
}

#[test]
fn a_ring_stays_as_small_as_asked_and_has_what_was_last() {
    const RING: u64 = 1 << 20;
    /// The header.
    const MORE: u64 = 4096;
    let mut running = Running::start("ring", "jit", &format!("{DETAILS},size=1M"));
    running.wait_for_bytes(RING * 7 / 8);
    // It goes on for some more turns.
    for _ in 0..300 {
        assert!(running.length() <= RING + MORE, "{}", running.length());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running.end(Signal::TERM), Some(143));
    assert!(running.length() <= RING + MORE, "{}", running.length());
    let read = read(&running.file);
    assert_eq!((read.ending, read.last), (Ending::Closed, Some(Event::End)));
    assert!(read.instructions > 1000);
    assert!(read.first_count > 1000, "it has all from {} on", read.first_count);
}
