//! What people do with gdb, on both engines.

use std::time::{Duration, Instant};

use crate::guest::{self, COUNTER, FIRST_NOP, NOPS, TOP};
use crate::{Machine, check, engines, has_gdb, has_python, printed, software_engines};

/// Runs the counting guest, stopped before its first instruction.
pub fn counting(name: &str, accel: &str, words: &[&str]) -> Machine {
    let rom = guest::rom(&format!("gdb-{name}-{accel}.rom"));
    Machine::start(name, accel, &[&["--bios", rom.to_str().unwrap()], words].concat())
}

#[test]
fn the_built_in_guest_is_stepped_through_its_modes() {
    for accel in &engines() {
        let mut machine = Machine::start("modes", accel, &["--paused"]);
        let said = machine.gdb(
            "p/x $rip\np/x $cs_base\nmonitor x/1i\nx/1xb $cs_base+$pc\nsi\np/x $rip\nmonitor x/1i\n\
             find /b 0xf1000, 0xf2fff, 0x0f, 0x22, 0xc0\nbreak *$_\ncontinue\n\
             monitor x/1i\nsi\nmonitor info cpus\nsi\nsi\nsi\nsi\nmonitor x/1i\np/x $cs\ndelete\n\
             break *0xf3000\ncontinue\np/x $cs\nmonitor x/2i\nsi\np/x $rip\ndelete\n\
             hbreak *0xf5000\ncontinue\np/x $efer\nmonitor info cpus\nx/2i $pc\n\
             monitor translate 0xf5000\nmonitor info mem\nmonitor info jit\nsi\np/x $rip\n\
             delete\ncontinue",
        );
        check(
            &said,
            &[
                "0x000000000000fff0 in ?? ()",
                "$1 = 0xfff0",
                "$2 = 0xffff0000",
                "0xfffffff0: ea001000f0",
                "jmp 0xf000:0x1000",
                "0xfffffff0:",
                "0xea",
                "$3 = 0x1000",
                "0xf1000: fa                   cli",
                "received signal SIGTRAP",
                "mov cr0, eax",
                "CPU 0: active, protected mode",
                "$4 = 0x8",
                "Breakpoint 2, 0x00000000000f3000",
                "$5 = 0x18",
                "0xf3000: b820000000           mov eax, 0x20",
                "0xf3005: 668ed8               mov ds, ax",
                "$6 = 0xf3005",
                "Breakpoint 3, 0x00000000000f5000",
                "$7 = 0xd01",
                "CPU 0: active, 64-bit mode, CPL 0, RIP 0xf5000",
                "=> 0xf5000:\tmov    $0x38,%eax",
                "bit 21 up: entry at",
                "0xf5000 is at 0xf5000, in a page of 2048 KiB",
                "0x0000000000000000-0x",
                "urwx",
                if accel == "jit" { "blocks " } else { "without the translator" },
                "$8 = 0xf5005",
                "[Inferior 1 (process 1) exited normally]",
            ],
        );
        assert_eq!(machine.status(), Some(0));
    }
}

#[test]
fn symbols_breakpoints_conditions_and_variables() {
    for accel in &engines() {
        let machine = counting("symbols", accel, &["--paused"]);
        let symbols = guest::symbols(&format!("gdb-symbols-{accel}.elf"));
        let said = machine.gdb(&format!(
            "file {}\nbreak loop_top\ncontinue\np (int)counter\ncondition 1 $rcx == 30\ncontinue\n\
             p (int)counter\ndelete\nwatch *(int*)&counter\ncontinue\n\
             p (long)$rip - (long)&loop_top\n\
             monitor info watch\ndelete\nrwatch *(int*)&counter\nawatch *(short*)0x602\n\
             info breakpoints",
            symbols.display()
        ));
        check(
            &said,
            &[
                "Breakpoint 1, ",
                "loop_top ()",
                "$1 = 0",
                "Breakpoint 1, ",
                "$2 = 30",
                "Hardware watchpoint 2: *(int*)&counter",
                "Old value = 30",
                "New value = 31",
                "$3 = 7",
                // A debug register does not know what was there.
                if accel == "kvm" {
                    "at 0x600 was unknown, is 0x1f"
                } else {
                    "at 0x600 was 0x1e, is 0x1f"
                },
                "read watchpoint",
                "acc watchpoint",
            ],
        );
    }
}

#[test]
fn registers_and_memory_are_written_and_what_cannot_be_is_refused() {
    for accel in &engines() {
        let machine = counting("writes", accel, &["--paused"]);
        let said = machine.gdb(&format!(
            "break *{FIRST_NOP}\ncontinue\nset $rcx = 1000\nset {{int}}0x700 = 0x11223344\n\
             set $xmm1.uint128 = 5\nset $ymm2.v4_int64[3] = 6\nset $k3 = 7\nset $st0 = 1.5\n\
             set $dr0 = 8\nset $lstar = 9\nset $fs_base = 0x1234\nset $mxcsr = 0x1fa0\n\
             set $cr0 = 0x80000000\nset $mxcsr = 0xffff0000\nset $rip = 0x123456789a\n\
             continue\np $rcx\np {{int}}{COUNTER}\np/x {{int}}0x700\np $xmm1.uint128\n\
             p $ymm2.v4_int64[3]\np $k3\np $st0\np $dr0\np $lstar\np/x $fs_base\np/x $mxcsr\n\
             set {{char}}{TOP} = 0x90\ncontinue\np $rcx\nset {{char}}{TOP} = 0x41\ncontinue\n\
             p $rcx\np/x $pc\nx/1xb 0xe0000000",
        ));
        check(
            &said,
            &[
                "Could not write register \"cr0\"",
                "Could not write register \"mxcsr\"",
                "Could not write register \"rip\"",
                "$1 = 1001",
                "$2 = 1001",
                "$3 = 0x11223344",
                "$4 = 5",
                "$5 = 6",
                "$6 = 7",
                "$7 = 1.5",
                "$8 = 8",
                "$9 = 9",
                "$10 = 0x1234",
                "$11 = 0x1fa0",
                // The patched instruction counts no more, and then again.
                "$12 = 1001",
                "$13 = 1002",
                "$14 = 0xf0407",
                "Cannot access memory at address 0xe0000000",
            ],
        );
    }
}

#[test]
fn two_hundred_breakpoints_and_fifty_watchpoints() {
    for accel in &software_engines() {
        let machine = counting("many", accel, &["--paused"]);
        // Not where the watched word has just been written: gdb would tell of one of the two.
        let breaks: String =
            (1..NOPS).map(|number| format!("break *{}\n", FIRST_NOP + number)).collect();
        let watches: String =
            (1..50).map(|number| format!("watch *(long*){}\n", COUNTER + 0x800 * number)).collect();
        let continues = "continue\n".repeat(NOPS as usize - 1);
        let said = machine.gdb(&format!(
            "{breaks}{watches}watch *(int*){COUNTER}\nset breakpoint always-inserted on\n\
             continue\np/x $pc\nmonitor info breakpoints\n{continues}p/x $pc\ncontinue\n\
             p $rcx\np/x $pc",
        ));
        check(
            &said,
            &[
                "Breakpoint 200 at",
                "Hardware watchpoint 250",
                "Old value = 0",
                "New value = 1",
                "$1 = 0xf0407",
                "break 0xf0408\n",
                "break 0xf04cf\n",
                "watch 0x18e00, 8 bytes, Write",
            ],
        );
        // All 200 in a row, and then the word again.
        check(&said, &["Breakpoint 200, ", "Old value = 1", "New value = 2", "$3 = 2"]);
    }
}

#[test]
fn of_two_cpus_one_is_stopped_while_the_other_steps() {
    for accel in &engines() {
        let mut machine = Machine::start("cpus", accel, &["--paused", "--cpus", "2"]);
        let said = machine.gdb(
            "info threads\nbreak *0xf0000\ncontinue\nbreak *0xf0200\ncontinue\nthread\n\
             set scheduler-locking on\nthread 1\nset $first = $rip\nthread 2\nsi\nsi\nsi\n\
             p $rip != 0xf0200\nthread 1\np $rip == $first\nset scheduler-locking off\n\
             delete\ncontinue",
        );
        check(
            &said,
            &[
                "Thread 1.1 (CPU 0: active, real mode",
                "Thread 1.2 (CPU 1: waits for a start-up IPI",
                "Thread 2 received signal SIGTRAP",
                "Thread 2 hit Breakpoint 2",
                "[Current thread is 2 (Thread 1.2)]",
                "$1 = 1",
                "$2 = 1",
                "exited normally]",
            ],
        );
        assert_eq!(machine.status(), Some(0));
    }
}

#[test]
fn both_schedulers_stop_and_step() {
    if has_gdb() {
        let words = ["--paused", "--cpus", "2", "--sched", "serial", "--clock", "icount"];
        let mut machine = Machine::start("serial", "jit", &words);
        let said = machine.gdb(
            "break *0xf5000\ncontinue\nsi\np/x $rip\nwatch *(int*)0x558\ncontinue\n\
             delete\ncontinue",
        );
        check(&said, &["hit Breakpoint 1", "$1 = 0xf5005", "New value = 1", "exited normally]"]);
        assert_eq!(machine.status(), Some(0));
    }
}

#[test]
fn a_running_guest_is_attached_detached_and_attached_again() {
    for accel in &engines() {
        let mut machine = counting("attach", accel, &[]);
        let first = machine.gdb(&format!("p *(int*){COUNTER}\ndetach"));
        let again = machine.gdb(&format!(
            "p *(int*){COUNTER}\nbreak *{TOP}\ncontinue\np $rcx == *(int*){COUNTER}\ndetach"
        ));
        assert!(printed(&again, 1) > printed(&first, 1), "{first}\n{again}");
        check(&again, &["Breakpoint 1, ", "$2 = 1", "detached"]);
        let last = machine.gdb(&format!("p *(int*){COUNTER}\nmonitor info breakpoints\nkill"));
        assert!(printed(&last, 1) > printed(&again, 1), "{again}\n{last}");
        check(&last, &["it stops nowhere"]);
        assert_eq!(machine.status(), Some(0));
    }
}

#[test]
fn ctrl_c_stops_a_guest_that_runs() {
    for accel in engines().iter().filter(|_| has_python()) {
        let machine = counting("interrupt", accel, &["--paused"]);
        let started = Instant::now();
        let said = machine.gdb(
            "python import threading, os, signal\n\
             python threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n\
             continue\np $rcx > 1000\nsi\nmonitor vanish continue",
        );
        check(&said, &["received signal SIGINT", "$1 = 1", "continue"]);
        assert!(started.elapsed() > Duration::from_millis(500));
    }
}

#[test]
fn the_script_shows_every_mode_as_the_cpu_decodes_it() {
    for accel in engines().iter().filter(|_| has_python()) {
        let machine = Machine::start("script", accel, &["--paused"]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/share/volvelle-gdb.py");
        let said = machine.gdb(&format!(
            "source {script}\nvx 2\np/x $linear(0x10)\nvbreak 0xf000:0x1001\ncontinue\ndelete\n\
             break *0xf3005\ncontinue\nvx\ndelete\nbreak *0xf5005\ncontinue\nvx 2",
        ));
        check(
            &said,
            &[
                "0xfffffff0: ea001000f0           jmp 0xf000:0x1000",
                "$1 = 0xffff0010",
                "Breakpoint 1 at 0xf1001",
                "0xf1001: fc                   cld",
                "the CPU is in 32-bit protected mode",
                "0xf3005: 668ed8               mov ds, ax",
                "the CPU is in 64-bit mode",
                "0xf5005: 668ed8",
            ],
        );
    }
}

#[test]
fn the_script_gives_gdb_the_names_that_the_machine_has() {
    for accel in engines().iter().filter(|_| has_python()) {
        let file = guest::symbols(&format!("gdb-names-{accel}.elf"));
        // What is told where it is gdb does not take by itself.
        let place = format!("{}@{TOP:#x}", file.display());
        let machine = counting("names", accel, &["--paused", "--symbols", &place]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/share/volvelle-gdb.py");
        // The second time replaces what the first one gave.
        let said = machine.gdb(&format!(
            "source {script}\nbreak loop_top\nvsymbols\nvsymbols\nbreak loop_top\ncontinue\n\
             info symbol $pc+7\nx/2i $pc\np &counter\np *(int*)&counter\nbt 1\n\
             remove-symbol-file -a loop_top\ninfo symbol $pc\nvsymbols\ninfo symbol $pc",
        ));
        let name = format!("gdb-names-{accel}.elf: 2 symbols\n");
        check(
            &said,
            &[
                "No symbol table is loaded",
                &name,
                &name,
                "Breakpoint 1 at 0xf0400",
                "Breakpoint 1, 0x00000000000f0400 in loop_top ()",
                "loop_top + 7 in section .text",
                "=> 0xf0400 <loop_top>:",
                "(not text or data), no debug info> *) 0x600",
                "= 0",
                "#0  0x00000000000f0400 in loop_top ()",
                "No symbol matches $pc",
                &name,
                "loop_top in section .text",
            ],
        );
    }
}

#[test]
fn gdb_takes_the_file_of_symbols_for_the_program_and_all_memory_for_ram() {
    for accel in &software_engines() {
        let file = guest::symbols(&format!("gdb-program-{accel}.elf"));
        let words = ["--paused", "--symbols", file.to_str().unwrap()];
        let machine = counting("program", accel, &words);
        let said = machine.gdb(
            "info mem\nx/1xb $cs_base+$pc\nx/1xb 0xe0000000\nbreak loop_top\nhbreak *0xf0100\n\
             continue\ncontinue\nset {int}&counter = 77\np (int)counter\nx/i $pc\ndetach",
        );
        check(
            &said,
            &[
                "0x0000000000000000 0x8000000000000000 rw",
                "0x8000000000000000 0x10000000000000000 rw",
                "0xea",
                "Cannot access memory at address 0xe0000000",
                "Breakpoint 1 at 0xf0400",
                "Breakpoint 2, ",
                "Breakpoint 1, ",
                "= 77",
                "<loop_top>:",
            ],
        );
        // It opened the file where it runs, and nobody gave it any bytes.
        assert!(said.contains("attempting to access files from local filesystem"), "{said}");
    }
}
