//! Conditions that the machine evaluates, and the monitor's own points, on both engines.

use crate::guest::{COUNTER, FIRST_NOP, TOP};
use crate::scripts::counting;
use crate::{Machine, check, engines, has_gdb, has_python, printed, software_engines};

#[test]
fn a_condition_holds_on_the_thousandth_hit() {
    for accel in &engines() {
        let machine = counting("condition", accel, &["--paused"]);
        let said = machine.gdb(&format!(
            "set breakpoint condition-evaluation target\nset breakpoint always-inserted on\n\
             break *{FIRST_NOP} if $rcx == 1000\ncontinue\np $rcx\n\
             monitor info breakpoints\n\
             condition 1 *(int*){COUNTER} >= 2000 && ($rcx & 0xf) == 3\ncontinue\np $rcx\n\
             info breakpoints\ndelete\n\
             hbreak *{TOP} if *(int*)0xe0000000 == 1\ncontinue\np $rcx",
        ));
        check(
            &said,
            &[
                "Breakpoint 1, 0x00000000000f0407",
                "$1 = 1000",
                "gdb break 0xf0407 if gdb's condition holds",
                "Breakpoint 1, 0x00000000000f0407",
                // The first number above 2000 that ends in 3.
                "$2 = 2003",
                "(target evals)",
                // A condition that cannot be evaluated stops.
                "Hardware assisted breakpoint 2",
            ],
        );
        assert_eq!(printed(&said, 3), 2003);
    }
}

/// Seconds that gdb takes to a breakpoint's hit number `hits`, where `side` evaluates.
fn seconds(machine: &Machine, side: &str, hits: u32) -> f64 {
    let said = machine.gdb(&format!(
        "set breakpoint condition-evaluation {side}\nset $last = $rcx + {hits}\n\
         python import time\npython last = int(gdb.parse_and_eval('$rcx')) + {hits}\n\
         python gdb.execute('break *{FIRST_NOP} if $rcx == %d' % last)\n\
         python started = time.time()\ncontinue\n\
         python print('took', time.time() - started)\np $rcx == $last\ndelete"
    ));
    check(&said, &["$1 = 1"]);
    let took = said.lines().find_map(|line| line.strip_prefix("took "));
    took.and_then(|took| took.parse().ok()).unwrap_or_else(|| panic!("no time in\n{said}"))
}

#[test]
fn conditions_cost_little_where_the_machine_evaluates_them() {
    if has_gdb() && has_python() {
        let machine = counting("evaluated", "jit", &["--paused"]);
        let (by_gdb, by_machine) =
            (seconds(&machine, "host", 1000), seconds(&machine, "target", 50_000));
        let ratio = by_gdb / 1000.0 / (by_machine / 50_000.0);
        crate::say(&format!("conditions: {ratio:.0} times as fast as gdb's"));
        assert!(ratio > 50.0, "{by_gdb} {by_machine}");
    }
}

#[test]
fn the_monitor_has_breakpoints_by_condition_physical_address_cr3_and_cpu() {
    for accel in &software_engines() {
        let machine = counting("monitor", accel, &["--paused"]);
        let said = machine.gdb(&format!(
            "monitor break {FIRST_NOP} if $rcx == 77 && dword[{COUNTER}] == 77\ncontinue\n\
             p $rcx\nmonitor info breakpoints\nmonitor delete 1\nmonitor delete 1\n\
             monitor break {FIRST_NOP}+1 phys cpu 0\ncontinue\np/x $rip\nsi\np/x $rip\n\
             monitor info breakpoints\nmonitor delete 2\n\
             monitor break {FIRST_NOP} cr3 0x5000\nmonitor break {FIRST_NOP}+2 cr3 0\ncontinue\n\
             p/x $rip\nmonitor delete\n\
             monitor break {FIRST_NOP} cpu 1\nmonitor break 1 if\nmonitor break phys\n\
             monitor watch/w {COUNTER} 4\ncontinue\nmonitor delete\nmonitor info breakpoints"
        ));
        check(
            &said,
            &[
                "1   break 0xf0407 if $rcx == 77 && dword[1536] == 77",
                "CPU 0: breakpoint 1",
                "received signal SIGTRAP",
                "$1 = 77",
                "1   break 0xf0407 if $rcx == 77 && dword[1536] == 77",
                "delete 1: no such point",
                "2   break 0xf0408 phys",
                "CPU 0: breakpoint 2",
                "$2 = 0xf0408",
                "$3 = 0xf0409",
                "2   break 0xf0408 phys",
                "4   break 0xf0409 cr3 0x0",
                "CPU 0: breakpoint 4",
                "$4 = 0xf0409",
                "cpu 1: no such CPU",
                "give a number",
                "say where",
                "5   watch 0x600, 4 bytes, Write",
                "CPU 0: watchpoint 5: an access at 0x600",
                "received signal SIGTRAP",
                "it stops nowhere",
            ],
        );
    }
}

#[test]
fn events_are_caught_and_named() {
    for accel in &software_engines() {
        let mut machine = Machine::start("catch", accel, &["--paused"]);
        let said = machine.gdb(
            "monitor catch mode\nmonitor catch exception 0\ncontinue\nmonitor info catch\n\
             monitor delete 2\ncontinue\nmonitor delete\n\
             monitor catch cr3\ncontinue\nmonitor delete\n\
             monitor catch msr 0xc0000080\ncontinue\nmonitor delete\n\
             monitor catch port 0x3f8-0x3ff\ncontinue\nmonitor delete\n\
             monitor catch exception 6\ncontinue\nmonitor delete\n\
             monitor catch mmio 0xfee00000-0xfee00fff\ncontinue\nmonitor delete\n\
             monitor catch fire\nmonitor info breakpoints\ncontinue",
        );
        check(
            &said,
            &[
                "1   catch mode",
                "2   catch exception 0",
                "caught exception 0 #DE at RIP 0x",
                "received signal SIGTRAP",
                "catch exception 0",
                "the last one was: exception 0 #DE",
                "caught change from real mode to protected mode",
                "caught load of CR3, from 0x",
                "caught write of MSR 0xc0000080, 0x",
                "caught read of port 0x3fd, 1 bytes, 0x",
                "caught exception 6 #UD at RIP 0x",
                "bytes at 0xfee00",
                "catch fire: take exception [N]",
                "it stops nowhere",
                "exited normally]",
            ],
        );
        assert_eq!(machine.status(), Some(0));
    }
}
