//! The built-in guest on the host's KVM beside the same on the interpreter. A host without KVM, or
//! with one that cannot run all of the guest, is named on standard error.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use firmware::guests::{ClocksReport, LEVEL, LEVEL_REPORT, RelayReport, clocks, relay};

/// Steps that even a KVM without hardware under it gets through.
const STEPS_EVERYWHERE: usize = 20;
/// What the guest may print on a KVM without hardware under it and not elsewhere: it is not
/// Volvelle's doing. On SVM that QEMU's TCG emulates, the guest prints the same in QEMU on that KVM
/// (`cargo xtask test-kvm` looks); the other KVM refuses CR0.PG.
const ONLY_ON_KVM: [&str; 3] = [
    "volvelle: [segment limit] not checked: this KVM is on QEMU's TCG",
    "volvelle: [#GP] not checked: this KVM is on QEMU's TCG",
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
const POOR_HOSTS: [(&str, &[&str]); 7] = [
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
    // Busy: no descriptor is left for a virtual machine, for its first CPU, for another one.
    ("ulimit -n 4", &["KVM cannot be used here", "KVM_CREATE_VM", "Too many open", "--accel jit"]),
    ("ulimit -n 6", &["KVM cannot be used here", "KVM_CREATE_VCPU", "Too many open"]),
    ("ulimit -n 7", &["cannot make a CPU", "KVM_CREATE_VCPU", "Too many open"]),
];

/// A host that has no KVM to give, or no memory: one line, and the status of what cannot be done.
#[test]
fn what_a_host_lacks_is_said_in_one_line() {
    for (lack, words) in POOR_HOSTS {
        let run = "exec \"$0\" run --accel kvm --cpus 4 --memory 512M --no-reboot";
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

/// Writes a guest, and returns its path.
fn rom(name: &str, image: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-kvm.rom"));
    fs::write(&path, image).unwrap();
    path
}

/// The number before `words` in what the command said.
fn figure(errors: &str, words: &str) -> u64 {
    let before = errors.split_once(words).map(|(before, _)| before.trim_end());
    let number = before.and_then(|before| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A line that stays up interrupts again behind each EOI, and one that is down does not. With the
/// kernel's local APICs each EOI comes by an exit of its own.
#[test]
fn level_triggered_interrupts_come_as_often_as_they_should() {
    let rom = rom("level", LEVEL);
    for accel in ["interp", "jit", "kvm"] {
        let words = ["run", "--accel", accel, "--no-reboot", "--debug-exit", "--stats"];
        let output =
            volvelle(&[&words[..], &["--log", "info", "--bios", rom.to_str().unwrap()]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        if errors.contains("KVM cannot be used here") {
            return say(&format!("skipped: {errors}"));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!((text.trim_end(), output.status.code()), (LEVEL_REPORT, Some(1)), "{output:?}");
        let has_kernels = accel == "kvm" && !errors.contains("local APICs are the machine's own");
        let ends = errors.split_once(" EOI ").map(|(_, rest)| rest.split(' ').next());
        match ends.flatten().and_then(|count| count.parse::<u64>().ok()) {
            Some(ends) if has_kernels => assert_eq!(ends, 4, "{errors}"),
            _ if accel == "kvm" => say("skipped: EOIs of the kernel's local APICs, not here"),
            _ => {}
        }
    }
}

/// Runs a guest that is moved between KVM and the translator. `None`, and said, on a host whose KVM
/// cannot be one of several engines, which is one line.
fn moved(cpus: usize, rom: &Path) -> Option<Output> {
    let words = ["run", "--accel", "kvm", "--switch-engines", "jit", "--switch-every", "20ms"];
    let others = ["--no-reboot", "--debug-exit", "--stats", "--cpus", &cpus.to_string(), "--bios"];
    let output = volvelle(&[&words[..], &others, &[rom.to_str().unwrap()]].concat());
    if output.status.code() != Some(1) || !output.stdout.is_empty() {
        return Some(output);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("--accel kvm") || errors.contains("--switch-engines"), "{errors}");
    say(&format!("skipped: {errors}"));
    None
}

#[test]
fn the_engine_is_changed_between_kvm_and_the_translator() {
    let rom = rom("clocks", &clocks(3000));
    for cpus in [1, 2] {
        let Some(output) = moved(cpus, &rom) else { return };
        let reports = ClocksReport::read(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(reports.len(), cpus, "{output:?}");
        for report in reports {
            assert_eq!(report.check(2_000_000), Ok(()), "{report:?}");
        }
        assert!(figure(&String::from_utf8_lossy(&output.stderr), "changes of engine") > 0);
    }
}

/// Each interrupt of another CPU and of a timer comes once, on whichever engine.
#[test]
fn no_interrupt_is_lost_when_the_engine_is_changed() {
    let rom = rom("relay", &relay(3000));
    for cpus in [1, 2] {
        let Some(output) = moved(cpus, &rom) else { return };
        let report = RelayReport::read(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(report.map(|report| report.check(cpus)), Some(Ok(())), "{output:?}");
        assert!(figure(&String::from_utf8_lossy(&output.stderr), "changes of engine") > 0);
    }
}
