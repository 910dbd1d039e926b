//! The guests under QEMU's TCG, where it is installed: an implementation of the architecture and of
//! a PC that is not ours says that what the guests expect is right.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::{env, fs, process};

use firmware::guests::{self, LoopWidth, integer_loop, integer_loop_outcome};
use firmware::{IMAGE, deviations};

const QEMU: &str = "qemu-system-x86_64";
/// Longest run; a guest takes a second or two.
const TIMEOUT_SECONDS: &str = "60";

/// Runs `image` with `input` on COM1; `None`, loudly, without QEMU.
fn run(name: &str, image: &[u8], input: &[u8], options: &[&str]) -> Option<Output> {
    if Command::new(QEMU).arg("--version").output().is_err() {
        eprintln!("SKIPPED: {name}: {QEMU} is not installed");
        return None;
    }
    let path: PathBuf = env::temp_dir().join(format!("{name}-{}.rom", process::id()));
    fs::write(&path, image).unwrap();
    let mut child = Command::new("timeout")
        .args([TIMEOUT_SECONDS, QEMU, "-accel", "tcg", "-display", "none", "-monitor", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4"])
        .arg("-bios")
        .arg(&path)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // COM1 drops what arrives before the guest sets it up, so the input waits for the first line;
    // and QEMU drops what comes with the pipe's end, so the pipe outlives the guest.
    let mut to_guest = child.stdin.take().unwrap();
    let mut from_guest = BufReader::new(child.stdout.take().unwrap());
    let mut stdout = Vec::new();
    from_guest.read_until(b'\n', &mut stdout).unwrap();
    to_guest.write_all(input).unwrap();
    from_guest.read_to_end(&mut stdout).unwrap();
    let status = child.wait().unwrap();
    drop(to_guest);
    fs::remove_file(path).unwrap();
    Some(Output { status, stdout, stderr: Vec::new() })
}

#[test]
fn the_built_in_guest_passes_on_both_boards_with_one_to_three_processors() {
    for (machine, processors) in [("q35", 1), ("q35", 2), ("pc", 3)] {
        let smp = processors.to_string();
        let options = ["-M", machine, "-cpu", "max", "-smp", &smp];
        let Some(output) = run("guest", IMAGE, b"", &options) else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        let known = ["[segment limit]: [segment limit] not checked: this is QEMU's TCG"];
        assert_eq!(deviations(&text, processors), known, "{machine} {processors}:\n{text}");
        assert_eq!(output.status.code(), Some(0), "ACPI power-off on {machine}");
    }
}

#[test]
fn the_integer_loops_come_to_what_their_model_says() {
    for (width, iterations) in [(LoopWidth::Bits16, 70_001), (LoopWidth::Bits64, 100_001)] {
        let image = integer_loop(width, iterations);
        let name = format!("loop-{width:?}");
        let Some(output) = run(&name, &image, b"", &["-M", "q35"]) else { return };
        let expected = integer_loop_outcome(width, iterations).checksum;
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim_end(), format!("checksum {expected:X}"));
        assert_eq!(output.status.code(), Some(1), "isa-debug-exit with 0");
    }
}

#[test]
fn the_echo_guest_numbers_its_input_and_powers_off() {
    let Some(output) = run("echo", guests::ECHO, b"ab\x04", &["-M", "q35"]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "0 1 2 3 4 5 6 7 8 9 \r\n1:a 2:b ");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_triple_fault_guest_shuts_the_machine_down() {
    let Some(output) = run("triple", guests::TRIPLE_FAULT, b"", &["-M", "q35"]) else { return };
    assert_eq!(output.stdout, b"triple fault\r\n");
    assert_eq!(output.status.code(), Some(0));
}
