//! What is logged, changed while the guest runs.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::{ENGINES, LIMIT, Machine, User, path};

/// How many lines of the log's file are of `target`.
fn lines(file: &Path, target: &str) -> usize {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.contains(&format!(" {target}] "))).count()
}

fn wait_for(file: &Path, target: &str, more_than: usize) {
    let started = Instant::now();
    while lines(file, target) <= more_than {
        assert!(started.elapsed() < LIMIT, "{target} is not told");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Lets the guest go on for some blocks.
fn go_on(user: &mut User) {
    for _ in 0..20 {
        user.check("info cpus", &["CPU 0: active"]);
    }
}

#[test]
fn blocks_are_logged_from_when_they_are_asked_for_until_they_are_not() {
    for accel in ENGINES {
        let file = path(&format!("monitor-log-{accel}.log"));
        let name = file.display().to_string();
        let machine = Machine::counting("logs", accel, &["--log-file", &name]);
        let mut user = machine.connect();
        while !user.ask("info cpus").contains("protected mode") {}
        assert_eq!(lines(&file, "DEBUG cpu::exec"), 0);
        // Twice: what was translated in between must be told, and must end.
        for _ in 0..2 {
            let before = lines(&file, "DEBUG cpu::exec");
            user.check("log exec", &[]);
            user.check("log", &["cpu::exec=debug"]);
            wait_for(&file, "DEBUG cpu::exec", before + 10);
            user.check("log none", &[]);
            go_on(&mut user);
            let after = lines(&file, "DEBUG cpu::exec");
            go_on(&mut user);
            assert_eq!(lines(&file, "DEBUG cpu::exec"), after, "{accel}");
        }
    }
}

#[test]
fn a_translation_is_listed_when_listings_were_asked_for_meanwhile() {
    let file = path("monitor-listing.log");
    let name = file.display().to_string();
    let machine = Machine::counting("listing", "jit", &["--log-file", &name, "--paused"]);
    let mut user = machine.connect();
    user.check("log in_asm,out_asm,cr", &[]);
    user.check("log", &["jit::in_asm=debug", "jit::out_asm=debug", "cpu::cr=debug"]);
    user.check("cont", &[]);
    for target in ["DEBUG jit::in_asm", "DEBUG jit::out_asm", "DEBUG cpu::cr"] {
        wait_for(&file, target, 0);
    }
    user.check("log nonsense", &["nonsense"]);
}
