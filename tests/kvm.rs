//! The built-in guest on the host's KVM beside the same on the interpreter. A host without KVM, or
//! with one that cannot run all of the guest, is named on standard error.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};

use firmware::guests::{ClocksReport, clocks};

/// Steps that even a KVM without hardware under it gets through.
const STEPS_EVERYWHERE: usize = 20;

fn volvelle(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volvelle")).args(words).output().unwrap()
}

fn run(accel: &str, cpus: &str) -> Output {
    volvelle(&["run", "--accel", accel, "--cpus", cpus, "--no-reboot"])
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

/// The probe decides alike for `auto` and for `doctor`; the guest gets through on what it takes.
#[test]
fn auto_takes_kvm_where_the_probe_guest_passes_and_says_why_not() {
    let output = volvelle(&["run", "--accel", "auto", "--no-reboot", "--log", "info"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let is_taken = errors.contains("KVM runs the guest");
    assert_ne!(is_taken, errors.contains("KVM does not run the guest: /dev/kvm "), "{errors}");
    let report = volvelle(&["doctor"]);
    let report = String::from_utf8_lossy(&report.stdout);
    let row = if is_taken { "Engine          kvm" } else { "but the probe guest" };
    assert!(report.contains(row) || report.contains("cannot be opened"), "{report}");
}

/// Between KVM and the translator, or one line that says why this host's KVM cannot be one of
/// several engines.
#[test]
fn the_engine_is_changed_between_kvm_and_the_translator() {
    let rom = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clocks-kvm.rom");
    fs::write(&rom, clocks(3000)).unwrap();
    for cpus in [1, 2] {
        let (count, rom) = (cpus.to_string(), rom.to_str().unwrap());
        let output = volvelle(&[
            "run",
            "--accel",
            "kvm",
            "--switch-engines",
            "jit",
            "--switch-every",
            "20ms",
            "--no-reboot",
            "--debug-exit",
            "--stats",
            "--cpus",
            &count,
            "--bios",
            rom,
        ]);
        let errors = String::from_utf8_lossy(&output.stderr);
        let reports = ClocksReport::read(&String::from_utf8_lossy(&output.stdout));
        if reports.is_empty() {
            assert_eq!((output.status.code(), errors.lines().count()), (Some(1), 1), "{errors}");
            assert!(errors.contains("--accel kvm") || errors.contains("--switch-engines"));
            return say(&format!("skipped: {errors}"));
        }
        assert_eq!(reports.len(), cpus, "{output:?}");
        for report in reports {
            assert_eq!(report.check(2_000_000), Ok(()), "{report:?}");
        }
        assert!(errors.contains("changes of engine"), "{errors}");
    }
}
