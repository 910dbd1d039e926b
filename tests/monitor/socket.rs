//! Commands on a socket, and what they do to the machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::guest::{COUNTER, FIRST_NOP, SECOND_COUNTER, SECOND_TOP, TOP};
use crate::packets::{ask, packet, reply};
use crate::{ENGINES, Machine, User, check, connect, path};

/// The guest's counter.
fn counter(user: &mut User) -> u64 {
    word(user, COUNTER)
}

/// The word at a physical address.
fn word(user: &mut User, address: u64) -> u64 {
    let text = user.ask(&format!("xp/uw {address}"));
    text.trim().rsplit(' ').next().unwrap().parse().unwrap()
}

/// What comes behind `line`, up to `part`: a stop is told when it comes.
fn told(user: &mut User, line: &str, part: &str) -> String {
    let mut text = user.ask(line);
    while !text.contains(part) {
        text += &user.answer();
    }
    text
}

#[test]
fn the_guest_runs_on_while_it_is_looked_at() {
    for accel in ENGINES {
        let machine = Machine::counting("looks", accel, &[]);
        let mut user = machine.connect();
        user.check("info status", &["running"]);
        while !user.ask("info cpus").contains("protected mode") {}
        user.check("info cpus", &["CPU 0: active, protected mode, CPL 0"]);
        user.check("x/i $pc", &["0xf0"]);
        let (first, mut second) = (counter(&mut user), 0);
        for _ in 0..1000 {
            second = counter(&mut user);
            if second != first {
                break;
            }
        }
        assert_ne!(first, second, "{accel}");
    }
}

#[test]
fn it_is_stopped_stepped_and_let_go_on() {
    for accel in ENGINES {
        let machine = Machine::counting("stops", accel, &[]);
        let mut user = machine.connect();
        let told = told(&mut user, &format!("break {TOP}"), "breakpoint 1");
        check(&told, &["1   break 0xf0400", "CPU 0: breakpoint 1", "0xf0400: ", "inc"]);
        user.check("info status", &["paused"]);
        let stopped = counter(&mut user);
        assert_eq!(counter(&mut user), stopped);
        user.check("step", &["CPU 0:", "0xf0401: ", "mov"]);
        assert_eq!(counter(&mut user), stopped);
        user.check("step", &[&format!("{FIRST_NOP:#x}: ")]);
        assert_eq!(counter(&mut user), stopped + 1);
        user.check("step 3", &[&format!("{:#x}: ", FIRST_NOP + 3)]);
        // Past the breakpoint it stands at, and once around.
        self::told(&mut user, "cont", "breakpoint 1");
        assert_eq!(counter(&mut user), stopped + 1);
        user.check("delete 1", &[]);
        user.check("delete 1", &["no such point"]);
        user.check("info breakpoints", &["it stops nowhere"]);
        user.check("cont", &[]);
        user.check("info status", &["running"]);
        user.check("stop", &["CPU 0: stopped", "0xf0"]);
        user.check("info status", &["paused"]);
    }
}

/// Waits until the word at `address` has changed.
fn await_counting(user: &mut User, address: u64) {
    let first = word(user, address);
    while word(user, address) == first {}
}

#[test]
fn one_cpu_stands_while_the_other_runs() {
    for accel in ENGINES {
        let machine = Machine::counting_twice("one", accel, &[]);
        let mut user = machine.connect();
        await_counting(&mut user, SECOND_COUNTER);
        user.check("stop 1", &["CPU 1: stopped", "0xf0"]);
        user.check("info status", &["running", "CPU 1 stands"]);
        user.check("info cpus", &["CPU 0: active", "CPU 1: active", "; stands"]);
        let stands = word(&mut user, SECOND_COUNTER);
        await_counting(&mut user, COUNTER);
        assert_eq!(word(&mut user, SECOND_COUNTER), stands);
        // The other one stands as well: then the machine does, and one goes on alone.
        user.check("stop 0", &["CPU 0: stopped"]);
        user.check("info status", &["paused"]);
        user.check("cont 1", &[]);
        user.check("info status", &["running", "CPU 0 stands"]);
        let stands = counter(&mut user);
        await_counting(&mut user, SECOND_COUNTER);
        assert_eq!(counter(&mut user), stands);
        // Out of a machine that stands, too; and all of it.
        user.check("stop", &["stopped"]);
        user.check("cont 0", &[]);
        await_counting(&mut user, COUNTER);
        user.check("info status", &["running", "CPU 1 stands"]);
        user.check("cont", &[]);
        await_counting(&mut user, SECOND_COUNTER);
        await_counting(&mut user, COUNTER);
        assert!(!user.ask("info status").contains("stands"));
        user.check("stop 2", &["no such CPU; there are 0 to 1"]);
    }
}

#[test]
fn a_watchpoint_says_what_met_it() {
    let machine = Machine::counting("watches", "jit", &["--paused"]);
    let mut user = machine.connect();
    user.check(&format!("watch {COUNTER} 4"), &["1   watch 0x600, 4 bytes, Write"]);
    let told = told(&mut user, "cont", "watchpoint 1");
    check(&told, &["CPU 0: watchpoint 1: an access at 0x600; at 0x600 was 0x0", "0xf0407: "]);
    user.check("info watch", &["an access at 0x600", "was 0x0"]);
    user.check("info breakpoints", &["1   watch 0x600"]);
    user.check("print/x $rcx+1", &["0x"]);
}

#[test]
fn it_begins_before_the_first_instruction() {
    let machine = Machine::counting("paused", "jit", &["--paused", "--cpus", "2"]);
    let mut user = machine.connect();
    user.check("info status", &["paused"]);
    user.check("x/i", &["0xfffffff0: ", "jmp 0xf000:"]);
    user.check("info cpus", &["CPU 0: active, real mode", "CPU 1: waits for a start-up IPI"]);
    user.check("cpu 1", &["CPU 1"]);
    user.check("cpu 2", &["0 to 1"]);
    user.check("cpu 0", &["CPU 0"]);
    user.check("step 2", &["CPU 0:", "0xf0001: "]);
    user.check("cont", &[]);
    user.check("info status", &["running"]);
}

#[test]
fn a_step_that_does_not_come_back_ends_by_ctrl_c() {
    // CPU 1 has not been started, and nobody starts it.
    let machine = Machine::counting("stuck", "jit", &["--cpus", "2"]);
    let mut user = machine.connect();
    user.check("cpu 1", &["CPU 1"]);
    user.type_in("step\n");
    let mut other = User { stream: connect(&machine.socket) };
    std::thread::sleep(std::time::Duration::from_millis(300));
    user.type_in("\x03");
    check(&user.answer(), &["CPU 1: stopped"]);
    user.check("info status", &["paused"]);
    drop(user);
    // The next one was waiting for its turn.
    check(&other.answer(), &["Volvelle"]);
    other.check("info status", &["paused"]);
}

#[test]
fn a_step_that_does_not_come_back_ends_by_another_monitors_stop_too() {
    let second = path("monitor-second.sock");
    let _ = std::fs::remove_file(&second);
    let place = format!("unix:{}", second.display());
    let machine = Machine::counting("stopped", "jit", &["--cpus", "2", "--monitor", &place]);
    let mut user = machine.connect();
    user.check("cpu 1", &["CPU 1"]);
    user.check("stop", &["stopped"]);
    user.type_in("step\n");
    let mut other = User { stream: connect(&second) };
    other.answer();
    while !other.ask("info status").contains("running") {}
    other.check("step", &["another monitor steps; `stop` ends that"]);
    other.check("stop", &["CPU 0: stopped"]);
    check(&user.answer(), &["CPU 0: stopped"]);
    user.check("info status", &["paused"]);
}

#[test]
fn the_engine_is_changed_and_one_that_was_not_prepared_is_refused() {
    let machine = Machine::counting("accel", "interp", &["--switch-engines", "jit"]);
    let mut user = machine.connect();
    user.check("accel", &["interp"]);
    user.check("accel jit", &[]);
    let mut engine = String::new();
    for _ in 0..1000 {
        engine = user.ask("accel");
        if engine == "jit\n" {
            break;
        }
    }
    assert_eq!(engine, "jit\n");
    user.check("info jit", &["blocks"]);
    user.check("stop", &["stopped"]);
    user.check("accel interp", &[]);
    user.check("accel", &["interp"]);
    user.check("info status", &["paused"]);
    user.check("accel kvm", &["without the engine kvm", "--switch-engines kvm"]);
    user.check("accel tcg", &["kvm, jit or interp"]);
}

#[test]
fn the_machine_is_reset_and_ended() {
    let mut machine = Machine::counting("reset", "jit", &["--no-reboot"]);
    machine.connect().type_in("system_reset\n");
    assert_eq!(machine.status(), Some(3));
    // A machine that stands is reset and stands.
    let mut machine = Machine::counting("again", "jit", &["--paused"]);
    let mut user = machine.connect();
    user.check("step 4", &["CPU 0:"]);
    user.check("system_reset", &[]);
    user.check("x/i", &["0xfffffff0: "]);
    user.check("info status", &["paused"]);
    user.type_in("info version\nquit\n");
    assert_eq!(machine.status(), Some(0));
    let mut text = String::new();
    user.stream.read_to_string(&mut text).unwrap();
    check(&text, &["Volvelle"]);
}

#[test]
fn what_is_piped_in_is_answered_in_order_up_to_the_end() {
    let machine = Machine::counting("piped", "jit", &["--paused"]);
    let mut stream = connect(&machine.socket);
    stream.write_all(b"step\nx/i\nstep\nx/i\ninfo status\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    check(&text, &["0xf0000: ", "0xf0000: ", "0xf0001: ", "0xf0001: ", "VM status: paused"]);
    let mut next = machine.connect();
    next.type_in("info status\n\x04");
    let mut text = String::new();
    next.stream.read_to_string(&mut text).unwrap();
    check(&text, &["paused"]);
}

/// A socket for gdb that is not there yet, and how the command line names it.
fn gdb_socket(name: &str) -> (PathBuf, String) {
    let socket = path(name);
    let _ = std::fs::remove_file(&socket);
    let place = format!("unix:{}", socket.display());
    (socket, place)
}

#[test]
fn gdb_and_the_monitor_agree_on_who_has_the_machine() {
    let (gdb, place) = gdb_socket("monitor-both.gdb");
    let machine = Machine::counting("both", "jit", &["--gdb", &place]);
    let mut user = machine.connect();
    let mut gdb = connect(&gdb);
    check(&ask(&mut gdb, b"?").unwrap(), &["T05"]);
    user.check("info status", &["paused"]);
    user.check("cont", &["gdb has stopped the machine"]);
    user.check("step", &["gdb has stopped the machine"]);
    gdb.write_all(&packet(b"vCont;c")).unwrap();
    // gdb waits, and hears of what the monitor does.
    while !user.ask("info status").contains("running") {}
    user.check("stop", &["CPU 0: stopped"]);
    check(&stop(&mut gdb), &["T02"]);
    user.check("cont", &["gdb has stopped the machine"]);
    // A breakpoint of both is there until both have taken it away.
    user.check(&format!("break {TOP}"), &["1   break"]);
    for change in [format!("Z1,{TOP:x},1"), format!("z1,{TOP:x},1")] {
        check(&ask(&mut gdb, change.as_bytes()).unwrap(), &["OK"]);
    }
    gdb.write_all(&packet(b"vCont;c")).unwrap();
    check(&stop(&mut gdb), &["T05"]);
    check(&user.answer(), &["CPU 0: breakpoint 1", "0xf0400: "]);
    check(&ask(&mut gdb, b"D").unwrap(), &["OK"]);
    // Without gdb it is the monitor's alone, and is met again.
    told(&mut user, "info breakpoints", "1   break 0xf0400");
}

#[test]
fn beside_gdb_in_non_stop_mode_the_monitor_stops_and_gdb_lets_go_on() {
    let (gdb, place) = gdb_socket("monitor-non-stop.gdb");
    let machine = Machine::counting_twice("non-stop", "jit", &["--gdb", &place]);
    let mut user = machine.connect();
    await_counting(&mut user, SECOND_COUNTER);
    let mut gdb = connect(&gdb);
    let mut gdb = |body: &str| ask(&mut gdb, body.as_bytes()).unwrap();
    check(&gdb("QNonStop:1"), &["OK"]);
    user.check("info status", &["paused"]);
    for line in ["cont", "cont 1", "step"] {
        user.check(line, &["gdb has stopped the machine"]);
    }
    check(&gdb("vCont;c"), &["OK"]);
    user.check("info status", &["running"]);
    user.check("step", &["gdb has stopped the machine"]);
    user.check("stop 1", &["CPU 1: stopped"]);
    user.check("info status", &["running", "CPU 1 stands"]);
    user.check("cont 1", &["gdb has stopped the machine"]);
    await_counting(&mut user, COUNTER);
    check(&gdb("?"), &["T02thread:2;core:1;"]);
    check(&gdb("vStopped"), &["OK"]);
    check(&gdb("vCont;c:2"), &["OK"]);
    await_counting(&mut user, SECOND_COUNTER);
    // The monitor's breakpoint stops one, for gdb.
    let told = told(&mut user, &format!("break {SECOND_TOP}"), "breakpoint 1");
    check(&told, &["CPU 1: breakpoint 1", "0xf0800: "]);
    user.check("info status", &["running", "CPU 1 stands"]);
    user.check("info cpus", &["CPU 1: active", "; stands: breakpoint"]);
    check(&gdb("?"), &["T05thread:2;core:1;"]);
    user.check("delete", &[]);
    check(&gdb("D"), &["OK"]);
    await_counting(&mut user, SECOND_COUNTER);
    await_counting(&mut user, COUNTER);
    assert!(!user.ask("info status").contains("stands"));
}

/// The next packet that is no text: what the machine says on gdb's console comes before the stop
/// that it is about.
fn stop(gdb: &mut UnixStream) -> String {
    loop {
        let text = reply(gdb).unwrap();
        if !text.starts_with('O') {
            return text;
        }
    }
}
