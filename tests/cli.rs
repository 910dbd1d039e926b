//! The command as its users meet it: what it says, and the status it ends with.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A ROM whose code at the reset vector is `code`.
fn rom(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 65536];
    let vector = image.len() - 16;
    image[vector..vector + code.len()].copy_from_slice(code);
    image
}

/// `mov al, 5; out 0xf4, al; hlt`: asks for status 11.
const DEBUG_EXIT_5: &[u8] = &[0xb0, 5, 0xe6, 0xf4, 0xf4];
/// `mov al, 0xfe; out 0x64, al; hlt`: the keyboard controller pulls the reset line.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// `lidt cs:[0xff00]; int3`: an empty vector table leaves no way to deliver anything.
const TRIPLE_FAULT: &[u8] = &[0x2e, 0x0f, 0x01, 0x1e, 0x00, 0xff, 0xcc];
/// `mov al, 'x'; mov dx, 0x3f8; out dx, al; hlt; jmp hlt`.
const PRINT_AND_SLEEP: &[u8] = &[0xb0, b'x', 0xba, 0xf8, 0x03, 0xee, 0xf4, 0xeb, 0xfd];
/// The same with `jmp out` instead of sleep.
const PRINT_FOR_EVER: &[u8] = &[0xb0, b'x', 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd];
/// The same with `mov al, 0; out 0xf4, al` instead of sleep: status 1.
const PRINT_AND_EXIT: &[u8] = &[0xb0, b'x', 0xba, 0xf8, 0x03, 0xee, 0xb0, 0, 0xe6, 0xf4, 0xf4];

/// A file of this test run with `content`.
fn file(name: &str, content: &[u8]) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn volvelle(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volvelle"));
    command.args(words).stdin(Stdio::null());
    command
}

fn run(words: &[&str]) -> Output {
    volvelle(words).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Fails with `status` and one line that holds all of `named`.
fn check_refusal(words: &[&str], status: i32, named: &[&str]) {
    let output = run(words);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{words:?}: {message}");
    assert_eq!(message.lines().count(), 1, "{words:?}: {message}");
    assert!(message.starts_with("volvelle: "), "{message}");
    for name in named {
        assert!(message.contains(name), "{words:?}: '{message}' lacks '{name}'");
    }
}

/// A bzImage of protocol 2.15 that asks for `init_bytes` of memory and holds no code.
fn bzimage(init_bytes: u32) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 4;
    const SECTOR: usize = 512;
    const CODE_BYTES: usize = 16 * SECTOR;
    let mut image = vec![0; (1 + usize::from(SETUP_SECTORS)) * SECTOR + CODE_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &(CODE_BYTES as u32 / 16).to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &init_bytes.to_le_bytes());
    image
}

#[test]
fn files_that_cannot_be_booted_are_named_with_their_option() {
    let kernel = file("good.bzImage", &bzimage(1 << 20));
    let greedy = file("greedy.bzImage", &bzimage(1 << 30));
    let cut = file("cut.bzImage", &bzimage(1 << 20)[..3000]);
    let text = file("text", b"no kernel at all\n");
    let empty = file("empty", b"");
    let directory = env!("CARGO_TARGET_TMPDIR");
    let initrd = file("large.cpio", &vec![0; 40 << 20]);
    let missing = "/nonexistent/volvelle";
    #[rustfmt::skip]
    let rows: &[(&[&str], &[&str])] = &[
        (&["--kernel", &text],                          &["--kernel", &text, "not a kernel"]),
        (&["--kernel", &empty],                         &["--kernel", &empty, "empty"]),
        (&["--kernel", &cut],                           &["--kernel", &cut, "truncated"]),
        (&["--kernel", missing],                        &["--kernel", missing, "No such file"]),
        (&["--kernel", directory],                      &["--kernel", directory, "directory"]),
        (&["--kernel", &greedy, "--memory", "64M"],     &["--kernel", &greedy, "memory"]),
        (&["--kernel", &kernel, "--initrd", missing],   &["--initrd", missing, "No such file"]),
        (&["--kernel", &kernel, "--initrd", &initrd, "--memory", "32M"], &["initrd", "memory"]),
        (&["--bios", &empty],                           &["--bios", &empty]),
        (&["--bios", missing],                          &["--bios", missing, "No such file"]),
    ];
    for (words, named) in rows {
        let words: Vec<&str> = ["run", "--serial", "none"].iter().chain(*words).copied().collect();
        check_refusal(&words, 1, named);
    }
    check_refusal(&["qemu", "-nodefaults", "-kernel", &text], 1, &[&text, "not a kernel"]);
}

#[test]
fn command_lines_that_make_no_sense_are_usage_errors_and_qemus_are_failures() {
    check_refusal(&["run", "--kernle", "x"], 2, &["--kernle", "--kernel"]);
    check_refusal(&["run", "--memory", "1M"], 2, &["--memory", "1M", "2M"]);
    check_refusal(&["run", "--cpu", "i860"], 1, &["i860", "x86-64-v3"]);
    check_refusal(&["run", "--accel", "hvf"], 2, &["--accel", "hvf", "kvm"]);
    let interp = ["run", "--accel", "interp"];
    check_refusal(&[&interp[..], &["--perf-map"]].concat(), 2, &["--perf-map", "--accel jit"]);
    check_refusal(&[&interp[..], &["--jit-cache", "1G"]].concat(), 2, &["--jit-cache"]);
    check_refusal(&["run", "--gdb", "localhost:1"], 2, &["--gdb", "tcp:HOST:PORT"]);
    check_refusal(&["run", "--paused"], 1, &["--paused", "--gdb", "--monitor"]);
    check_refusal(&["run", "--monitor", "vc"], 2, &["--monitor", "vc", "stdio"]);
    check_refusal(&["run", "--monitor", "unix:/no/folder/s"], 1, &["--monitor", "/no/folder/s"]);
    check_refusal(&["run", "--gdb", "unix:/no/folder/s"], 1, &["--gdb", "/no/folder/s"]);
    check_refusal(&["qemu", "-S"], 1, &["-S", "-s", "-monitor"]);
    check_refusal(&["bench", "--seconds", "0"], 2, &["--seconds", "3600"]);
    check_refusal(&["bench", "--filter", "teapot"], 1, &["--filter", "syscall"]);
    check_refusal(&["qemu", "-drive", "file=x"], 1, &["-drive"]);
    check_refusal(
        &["run", "--log-file", "/nonexistent/log"],
        1,
        &["--log-file", "/nonexistent/log"],
    );
}

#[test]
fn the_way_a_guest_ends_is_the_exit_status() {
    // ROM, option, status of ours, status of QEMU's.
    for (name, code, option, native, qemu) in [
        ("exit5", DEBUG_EXIT_5, "--debug-exit", 11, 11),
        ("reset", RESET, "--no-reboot", 3, 0),
        ("triple", TRIPLE_FAULT, "--no-reboot", 4, 0),
    ] {
        let rom = file(&format!("{name}.rom"), &rom(code));
        let output = run(&["run", "--bios", &rom, option]);
        assert_eq!(output.status.code(), Some(native), "{name}: {}", stderr(&output));
        let output = run(&[
            "qemu",
            "-bios",
            &rom,
            "-no-reboot",
            "-display",
            "none",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]);
        assert_eq!(output.status.code(), Some(qemu), "{name}: {}", stderr(&output));
    }
}

#[test]
fn every_engine_and_every_way_to_translate_runs_a_guest() {
    let rom = file("engines.rom", &rom(DEBUG_EXIT_5));
    for words in [
        &["--accel", "auto"][..],
        &["--accel", "interp"],
        &["--accel", "jit"],
        &["--accel", "jit", "--jit-cache", "8M", "--jit-block-size", "1"],
        &["--accel", "jit", "--jit-trash-helpers", "--jit-cross-check"],
        &["--accel", "jit", "--clock", "icount"],
    ] {
        let output = run(&[&["run", "--debug-exit", "--bios", &rom], words].concat());
        assert_eq!(output.status.code(), Some(11), "{words:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{words:?}");
    }
    let qemu = ["qemu", "-nodefaults", "-device", "isa-debug-exit,iobase=0xf4", "-bios", &rom];
    for accel in ["tcg", "tcg,tb-size=32,one-insn-per-tb=on", "tcg,thread=single", "interp"] {
        let output = run(&[&qemu[..], &["-accel", accel]].concat());
        assert_eq!(output.status.code(), Some(11), "{accel}: {}", stderr(&output));
    }
}

#[test]
fn figures_name_instructions_only_where_they_are_counted() {
    let rom = file("figures.rom", &rom(DEBUG_EXIT_5));
    for (words, has_counts) in [
        (&["--accel", "interp"][..], true),
        (&["--accel", "jit", "--sched", "serial"], true),
        (&["--accel", "jit"], false),
    ] {
        let output = run(&[&["run", "--stats", "--debug-exit", "--bios", &rom], words].concat());
        let figures = stderr(&output);
        assert!(figures.contains("s of processor time ("), "{words:?}: {figures}");
        assert_eq!(figures.contains("MIPS"), has_counts, "{words:?}: {figures}");
        assert_eq!(figures.contains("instructions, trace 0x"), has_counts, "{figures}");
    }
}

#[test]
fn perf_finds_translated_code_by_the_process() {
    let rom = file("perf.rom", &rom(DEBUG_EXIT_5));
    let words = ["run", "--accel", "jit", "--perf-map", "--debug-exit", "--bios", &rom];
    let mut child = volvelle(&words).spawn().unwrap();
    let map = PathBuf::from(format!("/tmp/perf-{}.map", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(11));
    assert!(map.exists(), "{}", map.display());
    fs::remove_file(map).unwrap();
}

#[test]
fn every_bench_has_a_figure_for_each_engine() {
    let output = run(&["bench", "--seconds", "0.05"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(rows.len() > 15, "{table}");
    for row in &rows {
        let &[_, unit, interp, jit, native] = row.as_slice() else { panic!("{row:?}") };
        assert!(["MIPS", "ns"].contains(&unit), "{row:?}");
        for figure in [interp, jit] {
            assert!(figure.parse::<f64>().is_ok_and(|figure| figure > 0.0), "{row:?}");
        }
        assert!(native == "-" || native.parse::<f64>().is_ok(), "{row:?}");
    }
    assert!(rows.iter().any(|row| row.ends_with(&["-"])) && table.contains("Native is"), "{table}");
    let calls = run(&["bench", "--seconds", "0.01", "--filter", "call"]);
    let calls = String::from_utf8(calls.stdout).unwrap();
    assert_eq!(calls.lines().take_while(|line| !line.is_empty()).count(), 3, "{calls}");
}

#[test]
fn the_programs_name_decides_whose_command_line_it_takes() {
    let output = Command::new(env!("CARGO_BIN_EXE_volvelle"))
        .arg0("/usr/bin/qemu-system-x86_64")
        .arg("--version")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"QEMU emulator version "));
}

#[test]
fn output_is_complete_and_a_signal_ends_the_run_in_order() {
    let rom = file("sleep.rom", &rom(PRINT_AND_SLEEP));
    for (words, status) in
        [(&["run", "--bios"][..], 143), (&["qemu", "-nographic", "-bios"][..], 0)]
    {
        let mut child = volvelle(words).arg(&rom).stdout(Stdio::piped()).spawn().unwrap();
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{words:?}");
    }
}

#[test]
fn a_reader_that_does_not_read_cannot_hold_the_run() {
    let rom = file("flood.rom", &rom(PRINT_FOR_EVER));
    let mut child = volvelle(&["run", "--bios", &rom]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    // Time for the guest to fill the pipe and the queue; with less the test only tests less.
    std::thread::sleep(std::time::Duration::from_secs(2));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_closed_standard_output_is_no_error() {
    let rom = file("print.rom", &rom(PRINT_AND_EXIT));
    for (words, status) in [
        (&["--help"][..], 0),
        (&["doctor"][..], 0),
        (&["run", "--debug-exit", "--bios", &rom][..], 1),
    ] {
        let mut child =
            volvelle(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}");
        assert_eq!(stderr(&output), "", "{words:?}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = volvelle(&["--version"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output"));
}

#[test]
fn the_end_of_input_is_not_the_guests_end() {
    let rom = file("quiet.rom", &rom(PRINT_AND_SLEEP));
    let mut child = volvelle(&["run", "--bios", &rom])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\x01x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(child.try_wait().unwrap(), None);
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(129));
}
