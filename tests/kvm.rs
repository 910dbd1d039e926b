//! The built-in guest on the host's KVM beside the same on the interpreter. A host without KVM, or
//! with one that cannot run all of the guest, is named on standard error.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::io::Write;
use std::process::{Command, Output};

/// Steps that even a KVM without hardware under it gets through.
const STEPS_EVERYWHERE: usize = 20;

fn run(accel: &str, cpus: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volvelle"))
        .args(["run", "--accel", accel, "--cpus", cpus, "--no-reboot"])
        .output()
        .unwrap()
}

/// The names of the steps that passed.
fn steps(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let name = |line: &str| {
        let (name, _) = line.strip_prefix("volvelle: [")?.split_once(']')?;
        Some(name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

/// Says something past the harness, which shows what a test prints only if it fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

/// The processor says that it has virtualization, and is not itself a guest's.
fn has_hardware() -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    (has("vmx") || has("svm")) && !has("hypervisor")
}

#[test]
fn the_built_in_guest_does_on_kvm_what_it_does_elsewhere() {
    for cpus in ["1", "2"] {
        let expected = steps(&run("interp", cpus));
        let output = run("kvm", cpus);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("KVM cannot be used here") {
            assert_eq!(output.status.code(), Some(1));
            return say(&format!("skipped: {errors}"));
        }
        let passed = steps(&output);
        assert_eq!(expected[..passed.len().min(expected.len())], passed);
        if passed.len() < expected.len() {
            let next = &expected[passed.len()];
            assert!(!has_hardware(), "step {next} does not pass: {output:?}");
            assert!(passed.len() >= STEPS_EVERYWHERE, "{output:?}");
            say(&format!("skipped: from step {next} on, which this host's KVM does not pass"));
        } else {
            assert_eq!(output.status.code(), Some(0));
        }
    }
}
