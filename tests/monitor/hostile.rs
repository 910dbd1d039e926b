//! Users of bad faith: the machine goes on, and the next user is served.

use std::io::Write;
use std::time::Instant;

use crate::{LIMIT, Machine, check, connect};

#[test]
fn a_line_without_an_end_has_one() {
    let machine = Machine::counting("long", "jit", &[]);
    let mut user = machine.connect();
    for _ in 0..64 {
        user.type_in(&"x".repeat(16 << 10));
    }
    user.type_in("\n");
    check(&user.answer(), &["no such command"]);
    user.check("info status", &["running"]);
}

#[test]
fn who_asks_and_does_not_read_is_shown_out() {
    let machine = Machine::counting("deaf", "jit", &[]);
    let mut stream = connect(&machine.socket);
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    let started = Instant::now();
    // Both directions fill, and then the connection ends.
    while stream.write_all(b"xp/4096xg 0\n").is_ok() {
        assert!(started.elapsed() < LIMIT);
    }
    machine.connect().check("info status", &["running"]);
}

#[test]
fn who_goes_in_the_middle_leaves_the_machine_as_it_is() {
    let machine = Machine::counting("gone", "jit", &[]);
    for part in ["", "info", "xp/4096xg 0\nxp/4096", "step\nstep\nst", "stop\ncont\n\x04"] {
        let mut stream = connect(&machine.socket);
        stream.write_all(part.as_bytes()).unwrap();
        drop(stream);
    }
    let mut user = machine.connect();
    user.check("stop", &["CPU 0: stopped"]);
    user.check("cont", &[]);
    user.check("info status", &["running"]);
}

#[test]
fn who_types_on_behind_the_end_is_not_waited_for() {
    let machine = Machine::counting("behind", "jit", &[]);
    let mut stream = connect(&machine.socket);
    // More than the session's keyboard has room for. The connection may end in the middle.
    let _ = stream.write_all(&[&b"\x04"[..], &[b'x'; 64 << 10]].concat());
    machine.connect().check("info status", &["running"]);
}

#[test]
fn random_bytes_are_answered_or_ignored() {
    let machine = Machine::counting("random", "jit", &["--paused"]);
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4 {
        let mut stream = connect(&machine.socket);
        let bytes: Vec<u8> = (0..20_000)
            .map(|_| if next() % 20 == 0 { b'\n' } else { (next() >> 32) as u8 })
            // Ctrl-D and `q` would end it.
            .filter(|byte| ![4, b'q'].contains(byte))
            .collect();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    }
    machine.connect().check("info status", &["VM status"]);
}
