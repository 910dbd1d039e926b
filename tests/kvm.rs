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
/// What the guest may print on a KVM without hardware under it and not elsewhere: it is not
/// Volvelle's doing. On SVM that QEMU's TCG emulates, the guest prints the same in QEMU on that KVM
/// (`cargo xtask test-kvm` looks); the other KVM refuses CR0.PG.
const ONLY_ON_KVM: [&str; 2] = [
    "volvelle: [segment limit] not checked: this KVM is on QEMU's TCG",
    "volvelle: [32-bit paging] not offered: this KVM pages in long mode only",
];

fn volvelle(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volvelle")).args(words).output().unwrap()
}

fn run(accel: &str, cpus: &str) -> Output {
    volvelle(&["run", "--accel", accel, "--cpus", cpus, "--no-reboot"])
}

/// The lines of the steps that passed.
fn steps(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| line.starts_with("volvelle: ["));
    lines.map(|line| line.trim_end().to_owned()).collect()
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
fn the_built_in_guest_prints_on_kvm_what_it_prints_elsewhere() {
    for cpus in ["1", "2"] {
        let expected = steps(&run("interp", cpus));
        assert_eq!(steps(&run("jit", cpus)), expected);
        let output = run("kvm", cpus);
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("KVM cannot be used here") {
            assert_eq!(output.status.code(), Some(1));
            return say(&format!("skipped: {errors}"));
        }
        let mut passed = steps(&output);
        for (line, other) in passed.iter_mut().zip(&expected) {
            if ONLY_ON_KVM.contains(&line.as_str()) && !has_hardware() {
                say(&format!("on this KVM: {line}"));
                line.clone_from(other);
            }
        }
        assert_eq!(expected[..passed.len().min(expected.len())], passed);
        if passed.len() < expected.len() {
            let next = &expected[passed.len()];
            assert!(!has_hardware(), "it does not pass: {next}: {output:?}");
            assert!(passed.len() >= STEPS_EVERYWHERE, "{output:?}");
            say(&format!("skipped: from here on, which this host's KVM does not pass: {next}"));
        } else {
            assert_eq!(output.status.code(), Some(0));
        }
    }
}

/// What is wrong with a host, made by a shell in a mount namespace of its own, and words of the one
/// line that says so.
const POOR_HOSTS: [(&str, &[&str]); 4] = [
    ("mount -t tmpfs none /dev", &["KVM cannot be used here", "No such file", "--accel jit"]),
    // Not even root may open devices on such a file system.
    (
        "mount -t tmpfs -o nodev none /dev && mknod /dev/kvm c 10 232",
        &["KVM cannot be used here", "Permission denied", "--accel jit"],
    ),
    (
        "mount -o bind /dev/null /dev/kvm",
        &["KVM cannot be used here", "API version -1 instead of 12", "--accel jit"],
    ),
    ("ulimit -v 200000", &["--memory 512M: take less", "Cannot allocate memory"]),
];

/// A host that has no KVM to give, or no memory: one line, and the status of what cannot be done.
#[test]
fn what_a_host_lacks_is_said_in_one_line() {
    for (lack, words) in POOR_HOSTS {
        let run = "exec \"$0\" run --accel kvm --memory 512M --no-reboot";
        let script = format!("({lack}) >&2 || exit 99; {lack}; {run}");
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_volvelle")])
            .output();
        let Some(output) = output.ok().filter(|output| {
            let errors = String::from_utf8_lossy(&output.stderr);
            output.status.code() != Some(99) && !errors.starts_with("unshare: ")
        }) else {
            say(&format!("skipped: this host cannot be made one with `{lack}`"));
            continue;
        };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{lack}: {output:?}");
        assert_eq!(errors.lines().count(), 1, "{lack}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{lack}: no {word:?} in {errors}");
        }
        assert!(output.stdout.is_empty(), "{lack}: {output:?}");
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
