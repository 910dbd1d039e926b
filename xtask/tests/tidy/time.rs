//! One guest time: nobody but the `Clock` asks the host.

use crate::assert_none;
use crate::sources;

/// Crates that make up the machine, where the host's time may enter by one door only.
const GUARDED: &[&str] =
    &["cpu/src/", "decoder/src/", "firmware/src/", "machine/src/", "memory/src/"];
/// Who may ask, and what for.
const DOORS: &[(&str, &str)] = &[
    ("machine/src/clock.rs", "it is the Clock"),
    ("machine/src/host_time.rs", "it is the Clock's time while the host's is"),
    ("cpu/src/native/ticks.rs", "the Clock is made with it"),
    ("machine/src/device_fuzz.rs", "measures how long an access holds up the host"),
    ("machine/src/board_fuzz.rs", "measures how long an access holds up the host"),
    ("cpu/src/testing/fuzz.rs", "measures how long a run holds up the host"),
];
const QUESTIONS: &[&str] = &["Instant::now", "SystemTime::now", "clock_gettime", "_rdtsc"];

fn is_door(path: &str) -> bool {
    DOORS.iter().any(|(door, _)| *door == path)
}

#[test]
fn only_the_clock_asks_the_host_for_time() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        let guarded = GUARDED.iter().any(|folder| source.path.starts_with(folder));
        if !guarded || is_door(&source.path) || source.is_test() {
            continue;
        }
        for (number, line) in source.code() {
            if let Some(question) = QUESTIONS.iter().find(|question| line.contains(**question)) {
                complaints.push(format!("{}:{number}: {question}; take the Clock", source.path));
            }
        }
    }
    assert_none(&complaints);
}
