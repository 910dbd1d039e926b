//! gdb on KVM: what its four debug registers hold, and what becomes of the rest.

use std::process::Command;

use crate::guest::{COUNTER, TOP};
use crate::scripts::counting;
use crate::{Machine, check, has_gdb, printed};

/// A machine on KVM, or none, loudly.
fn on_kvm(name: &str, words: &[&str]) -> Option<Machine> {
    if !has_gdb() {
        return None;
    }
    let mut machine = counting(name, "kvm", words);
    if !machine.is_running() {
        crate::say("skipped: KVM cannot be used here");
        return None;
    }
    Some(machine)
}

/// What needs no debug register, and works on every KVM.
#[test]
fn kvm_steps_and_shows_and_writes_as_the_other_engines_do() {
    let Some(machine) = on_kvm("kvm-steps", &["--paused", "--cpus", "2"]) else { return };
    let said = machine.gdb(
        "info threads\np/x $rip\np/x $cs_base\nmonitor x/1i\nsi\np/x $rip\nsi 5\n\
         monitor info cpus\nset $rcx = 0x1234\nset $xmm1.uint128 = 5\nset $lstar = 9\n\
         set $dr0 = 8\nset $cr0 = 0x80000000\nset {int}0x700 = 0x11223344\nsi\np/x $rip\n\
         p/x {int}0x700\np/x $rcx\np $xmm1.uint128\np $lstar\np $dr0\np/x $cs\n\
         thread 2\np/x $rip\nset $rcx = 77\np $rcx\nthread 1\np/x $rcx",
    );
    check(
        &said,
        &[
            "Thread 1.1 (CPU 0: active, real mode",
            "Thread 1.2 (CPU 1: waits for a start-up IPI",
            "$1 = 0xfff0",
            "$2 = 0xffff0000",
            "0xfffffff0: ea000000f0",
            "$3 = 0x0",
            "CPU 0: active, protected mode",
            "Could not write register \"cr0\"",
            "$4 = 0xf0100",
            "$5 = 0x11223344",
            "$6 = 0x1234",
            "$7 = 5",
            "$8 = 9",
            "$9 = 8",
            "$10 = 0x8",
            "$11 = 0xfff0",
            "$12 = 77",
            "$13 = 0x1234",
        ],
    );
}

/// A guest that runs on KVM is stopped by who connects, and goes on when he leaves.
#[test]
fn kvm_is_attached_while_the_guest_runs() {
    let Some(mut machine) = on_kvm("kvm-attach", &[]) else { return };
    let counter = format!("p *(int*){COUNTER}");
    let first = machine.gdb(&format!("{counter}\ndetach"));
    // Three hundred steps are less than two rounds.
    let again = machine.gdb(&format!(
        "{counter}\nset $rcx = 5\nsi 300\np/x $cs\np $rcx > 5 && $rcx < 8\n\
         p $rcx == *(int*){COUNTER} || $rcx == *(int*){COUNTER} + 1\ndetach"
    ));
    assert!(printed(&again, 1) > printed(&first, 1), "{first}\n{again}");
    check(&again, &["$2 = 0x8", "$3 = 1", "$4 = 1", "detached"]);
    let last = machine.gdb(&format!("{counter}\nmonitor info breakpoints\nkill"));
    check(&last, &["it stops nowhere"]);
    assert_eq!(machine.status(), Some(0));
}

/// As many points as there are registers that stop, and a refusal for the rest.
#[test]
fn kvm_stops_by_its_four_debug_registers_and_says_so() {
    if !has_gdb() {
        return;
    }
    let mut machine = Machine::start("kvm", "kvm", &["--paused"]);
    if !machine.is_running() {
        return crate::say("skipped: KVM cannot be used here");
    }
    let doctor = Command::new(env!("CARGO_BIN_EXE_volvelle")).arg("doctor").output().unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    if doctor.contains("on KVM none") {
        let said = machine.gdb("hbreak *0xf3000\ncontinue\ndelete\nsi\np/x $rip");
        check(&said, &["Cannot insert hardware breakpoint", "$1 = 0x1000"]);
        return crate::say("skipped: KVM without hardware under it stops at nothing");
    }
    let said = machine.gdb(
        "hbreak *0xf3000\ncontinue\nsi\np/x $rip\nhbreak *0xf5000\ncontinue\nmonitor info cpus\n\
         hbreak *1\nhbreak *2\nhbreak *3\ncontinue\ndelete\nrwatch *(int*)0x500\ncontinue\n\
         delete\nwatch *(int*)0x500\ncontinue",
    );
    check(
        &said,
        &[
            "Breakpoint 1, 0x00000000000f3000",
            "$1 = 0xf3005",
            "Breakpoint 2, 0x00000000000f5000",
            "CPU 0: active, 64-bit mode",
            "Cannot insert hardware breakpoint",
            "Could not insert hardware watchpoint",
        ],
    );
    if doctor.contains("at code alone") {
        check(&said, &["hardware watchpoint 6.", "Could not insert hardware watchpoint 7."]);
        crate::say("skipped: KVM without hardware under it does not stop at data");
    } else {
        check(&said, &["Old value = ", "New value = "]);
    }
}

/// What the debug registers do not hold, and why. The guest stops at each once.
const TOO_MUCH: [(&str, &str); 5] = [
    ("monitor catch mode", "KVM does not tell of events"),
    ("monitor break 0xf0407 phys", "KVM stops at linear addresses"),
    ("rwatch *(int*)0xf0200", "no debug register stops at reads alone"),
    (
        "hbreak *0xf0407\nhbreak *0xf0900\nhbreak *0xf0901\nhbreak *0xf0902\nhbreak *0xf0903",
        "KVM has four debug registers",
    ),
    ("watch *(int*)0x600\nwatch *(char(*)[28])0x604", "KVM has four debug registers"),
];

/// gdb is told when it listens: at once by the monitor, else when the guest stops.
#[test]
fn what_the_registers_do_not_hold_moves_the_machine_to_the_translator() {
    for (script, reason) in TOO_MUCH {
        let words = ["--paused", "--switch-engines", "jit"];
        let Some(machine) = on_kvm("kvm-moved", &words) else { return };
        let said = machine.gdb(&format!(
            "monitor accel\n{script}\ncontinue\nmonitor accel\ndelete\nmonitor delete\n\
             break *{TOP}\ncontinue\ncontinue\np $rcx > 0 && $rcx == *(int*){COUNTER}\n\
             p/x $rip\nmonitor info jit",
        ));
        let moved = format!("the guest goes on on the engine jit: {reason}");
        check(&said, &["kvm", &moved, "jit", "$1 = 1", "$2 = 0xf0400", "blocks "]);
    }
}

#[test]
fn without_the_translator_that_is_refused() {
    let Some(machine) = on_kvm("kvm-unmoved", &["--paused"]) else { return };
    for (script, _) in TOO_MUCH {
        let (script, refusal) = match script.starts_with("monitor") {
            true => (script.to_owned(), "--accel jit"),
            false => (format!("{script}\ncontinue"), "Could not insert"),
        };
        check(&machine.gdb(&script), &[refusal]);
    }
}
