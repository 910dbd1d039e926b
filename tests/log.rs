//! `--log`: each item tells what it is called by, to a file and to standard error.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const BOTH: &[&str] = &["interp", "jit"];
const TRANSLATOR: &[&str] = &["jit"];
/// Items, on which engines they tell something, the target and a part of some line of it. The
/// built-in guest goes through the processor's modes, raises exceptions and wakes a second CPU.
const ITEMS: &[(&str, &[&str], &str, &str)] = &[
    ("in_asm", TRANSLATOR, "DEBUG jit::in_asm", "block at 0x"),
    ("out_asm", TRANSLATOR, "DEBUG jit::out_asm", "code of the block at 0x"),
    ("exec", BOTH, "DEBUG cpu::exec", "CPU 0: 0xfffffff0"),
    ("exec", BOTH, "DEBUG cpu::exec", "CPU 1: 0x"),
    ("int", BOTH, "DEBUG cpu::irq", "interrupt 0x40 (External) at 0x"),
    ("int", BOTH, "TRACE cpu::exception", "PageFault"),
    ("exceptions", BOTH, "TRACE cpu::exception", "DivideError"),
    ("mmu", BOTH, "TRACE cpu::mmu", "#PF at 0x140000128, code 0x2"),
    ("io", BOTH, "TRACE cpu::io", "port 0xcf8: Write 0x80000b00, 4 bytes"),
    ("msr", BOTH, "TRACE cpu::msr", "MSR 0xc0000080: Write 0x901"),
    ("cr", BOTH, "DEBUG cpu::cr", "CR4 is 0x20 at 0x"),
    ("irq", BOTH, "DEBUG cpu::irq", "interrupt 0x60 (Software) at 0x"),
];

fn temporary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn volvelle(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_volvelle")).args(words).output().unwrap()
}

/// The log of the built-in guest in a file for `items`.
fn log(accel: &str, items: &str) -> String {
    let file = temporary(&format!("{accel}-{items}.log"));
    let name = file.display().to_string();
    let words = ["run", "--accel", accel, "--cpus", "2", "--serial", "none", "--log", items];
    let output = volvelle(&[&words[..], &["--log-file", &name]].concat());
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{output:?}");
    fs::read_to_string(file).unwrap()
}

fn has_line(text: &str, target: &str, part: &str) -> bool {
    text.lines().any(|line| line.contains(&format!("{target}] ")) && line.contains(part))
}

#[test]
fn each_item_alone_tells_its_own_to_a_file() {
    let mut items: Vec<&str> = ITEMS.iter().map(|(item, ..)| *item).collect();
    items.dedup();
    for accel in BOTH {
        for &item in &items {
            let text = log(accel, item);
            let mut targets = Vec::new();
            for (_, engines, target, part) in ITEMS.iter().filter(|row| row.0 == item) {
                let is_told = engines.contains(accel);
                assert_eq!(has_line(&text, target, part), is_told, "{accel} {item}: {part}");
                targets.push(format!(" {target}] "));
            }
            // A listing has lines behind the one with the target.
            let stray = text.lines().find(|line| {
                line.starts_with('[') && !targets.iter().any(|target| line.contains(target))
            });
            assert_eq!(stray, None, "{accel} {item}");
        }
    }
}

#[test]
fn listings_have_the_instructions_of_guest_and_host() {
    let text = log("jit", "in_asm,out_asm");
    // mov esp, 7000h: what the guest's 32-bit code begins with.
    assert!(text.lines().any(|line| line.starts_with("  0x") && line.ends_with("mov esp,7000h")));
    let host = text.split("code of the block").nth(1).unwrap();
    assert!(host.lines().skip(1).take_while(|line| line.starts_with("  0x")).count() > 3, "{host}");
}

#[test]
fn items_together_go_to_standard_error_without_a_file() {
    // Blocks are logged by the interpreter alone, so nothing is translated meanwhile.
    let rows: Vec<_> = ITEMS.iter().filter(|(item, ..)| *item != "exec").collect();
    let items = rows.iter().map(|(item, ..)| *item).collect::<Vec<_>>().join(",");
    for accel in BOTH {
        let words = ["run", "--accel", accel, "--cpus", "2", "--serial", "none", "--log", &items];
        let output = volvelle(&words);
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8_lossy(&output.stderr);
        for (item, engines, target, part) in &rows {
            let is_told = engines.contains(accel);
            assert_eq!(has_line(&text, target, part), is_told, "{accel} {item}: {part}");
        }
    }
}

/// A ROM whose code, in real mode at F000:0000, gives fw_cfg an address of a command that is
/// nowhere, and ends the run by the port of `--debug-exit`.
fn mistaken() -> Vec<u8> {
    let mut image = vec![0; 0x1_0000];
    image[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    #[rustfmt::skip]
    let code = [
        0xba, 0x14, 0x05,       // mov dx, 0x514
        0x66, 0x83, 0xc8, 0xff, // or eax, -1
        0x66, 0xef,             // out dx, eax
        0xba, 0x18, 0x05,       // mov dx, 0x518
        0x66, 0xef,             // out dx, eax
        0xb0, 0, 0xe6, 0xf4,    // mov al, 0; out 0xf4, al
        0xf4,                   // hlt
    ];
    image[..code.len()].copy_from_slice(&code);
    image
}

#[test]
fn mistakes_of_the_guest_are_told_by_either_name() {
    let rom = temporary("mistaken.rom");
    fs::write(&rom, mistaken()).unwrap();
    let rom = rom.display().to_string();
    for accel in BOTH {
        let words = ["run", "--accel", accel, "--debug-exit", "--serial", "none", "--bios", &rom];
        let silent = volvelle(&words);
        assert_eq!((silent.status.code(), &*silent.stderr), (Some(1), &b""[..]));
        let output = volvelle(&[&words[..], &["--log", "guest_error"]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(has_line(&text, "DEBUG guest_error", "is not in RAM"), "{accel}: {text}");
    }
}

#[test]
fn qemus_names_ask_for_the_same() {
    let file = temporary("qemu.log");
    for (items, rows) in
        [("in_asm,out_asm", &ITEMS[..2]), ("exec,nochain", &ITEMS[2..4]), ("int,mmu", &ITEMS[4..6])]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volvelle"));
        command.args(["qemu", "-display", "none", "-serial", "none", "-smp", "2", "-d", items]);
        let output = command.arg("-D").arg(&file).output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{output:?}");
        let text = fs::read_to_string(&file).unwrap();
        for (item, _, target, part) in rows {
            assert!(has_line(&text, target, part), "{item}: {part}");
        }
    }
}
