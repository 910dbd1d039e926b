//! gdb's non-stop mode: CPUs that stop one by one, while others run.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::guest::{self, COUNTER, FIRST_NOP, SECOND_COUNTER, SECOND_TOP};
use crate::packets::{ask, packet, reply};
use crate::{LIMIT, Machine, engines, printed};

/// Runs the guest that counts on two processors.
fn counting(name: &str, accel: &str, words: &[&str]) -> Machine {
    let rom = guest::pair(&format!("gdb-{name}-{accel}.rom"));
    let words = [&["--bios", rom.to_str().unwrap(), "--cpus", "2"], words].concat();
    Machine::start(name, accel, &words)
}

/// A gdb that is typed at, so that it hears of stops between two commands as it does with a user.
struct Dialogue {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<Vec<u8>>,
    /// What it has said and nobody has waited for.
    heard: String,
    /// How many commands were asked.
    asked: u32,
}

impl Dialogue {
    /// One in non-stop mode, connected to `machine`.
    fn start(machine: &Machine) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", "exec gdb -nx -q 2>&1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, said) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                let _ = sender.send(bytes[..count].to_vec());
            }
        });
        let mut this = Self { child, stdin, said, heard: String::new(), asked: 0 };
        for line in ["set width 0", "set pagination off", "set confirm off", "set non-stop on"] {
            this.ask(line);
        }
        this.ask("set architecture i386:x86-64");
        this.ask(&format!("target remote {}", machine.socket().display()));
        this
    }

    /// What it says up to `part`.
    fn until(&mut self, part: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(at) = self.heard.find(part) {
                let rest = self.heard.split_off(at + part.len());
                return std::mem::replace(&mut self.heard, rest);
            }
            match self.said.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.heard += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout) if started.elapsed() < LIMIT => {}
                Err(_) => panic!("no {part:?} in\n{}", self.heard),
            }
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// What it says to `line` before it takes the next command, with stops that come meanwhile.
    fn ask(&mut self, line: &str) -> String {
        self.asked += 1;
        let end = format!("that was {}", self.asked);
        self.say(line);
        self.say(&format!("echo {end}\\n"));
        self.until(&format!("{end}\n"))
    }

    /// Says `line` and waits for `part`, which may come long after the answer.
    fn expect(&mut self, line: &str, part: &str) {
        self.say(line);
        self.until(part);
    }

    /// The value of an expression.
    fn value(&mut self, expression: &str) -> u64 {
        let said = self.ask(&format!("printf \"value %lu.\\n\", (unsigned long)({expression})"));
        let value = said.split_once("value ").and_then(|(_, rest)| rest.split_once('.'));
        let value = value.and_then(|(value, _)| value.parse().ok());
        value.unwrap_or_else(|| panic!("{expression}: {said}"))
    }

    /// The word at an address.
    fn word(&mut self, address: u64) -> u64 {
        self.value(&format!("*(unsigned*){address}"))
    }

    /// Waits until gdb knows which threads run: stops are told when they come.
    fn until_running(&mut self, expected: [bool; 2]) {
        let started = Instant::now();
        loop {
            let said = self.ask("info threads");
            if [1, 2].map(|number| is_running(&said, number)) == expected {
                return;
            }
            assert!(started.elapsed() < LIMIT, "not {expected:?}:\n{said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails unless the words at `counting` change and those at `still` do not.
    fn check_counters(&mut self, counting: &[u64], still: &[u64]) {
        let mut words = |addresses: &[u64]| -> Vec<u64> {
            addresses.iter().map(|&address| self.word(address)).collect()
        };
        let (mut last, before) = (words(counting), words(still));
        let started = Instant::now();
        while !last.is_empty() {
            let now = words(counting);
            let is_same = |(last, now): (&u64, &u64)| last == now;
            if !last.iter().zip(&now).any(is_same) {
                break;
            }
            assert!(started.elapsed() < LIMIT, "nothing counts at {counting:x?}");
            last = now;
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(words(still), before, "something counts at {still:x?}");
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `said` has thread `number` running.
fn is_running(said: &str, number: usize) -> bool {
    let head = format!("Thread 1.{number} ");
    let line = said.lines().find(|line| line.contains(&head));
    line.unwrap_or_else(|| panic!("no {head}in\n{said}")).ends_with("(running)")
}

#[test]
fn one_cpu_stands_is_stepped_and_looked_at_while_the_other_counts() {
    for accel in &engines() {
        let mut machine = counting("non-stop", accel, &[]);
        let mut gdb = Dialogue::start(&machine);
        // Who connects finds both stopped.
        gdb.until_running([false, false]);
        gdb.check_counters(&[], &[COUNTER, SECOND_COUNTER]);
        gdb.ask("continue -a &");
        gdb.until_running([true, true]);
        // A breakpoint that is set while both run stops one of them.
        gdb.expect(&format!("break *{FIRST_NOP}"), "hit Breakpoint 1, ");
        gdb.until_running([false, true]);
        gdb.ask("thread 1");
        gdb.check_counters(&[SECOND_COUNTER], &[COUNTER]);
        assert_eq!(gdb.value("$rcx"), gdb.word(COUNTER));
        for step in 1..4 {
            gdb.ask("stepi");
            assert_eq!(gdb.value("$rip"), FIRST_NOP + step);
        }
        gdb.check_counters(&[SECOND_COUNTER], &[COUNTER]);
        // Round to the breakpoint once more: gdb gets over it while the other runs.
        let before = gdb.word(COUNTER);
        gdb.expect("continue &", "hit Breakpoint 1, ");
        assert_eq!(gdb.word(COUNTER), before + 1);
        gdb.ask("delete");
        // The other way round.
        gdb.ask("continue &");
        gdb.ask("interrupt -a");
        gdb.until_running([false, false]);
        gdb.ask("thread 1");
        gdb.ask("continue &");
        gdb.ask("thread 2");
        gdb.until_running([true, false]);
        gdb.check_counters(&[COUNTER], &[SECOND_COUNTER]);
        // A watchpoint, met by the one that runs.
        gdb.expect(&format!("watch *(unsigned*){COUNTER}"), "New value = ");
        gdb.check_counters(&[], &[COUNTER, SECOND_COUNTER]);
        gdb.ask("delete");
        gdb.expect("detach", "detached");
        drop(gdb);
        // All go on, and the next gdb may be another kind.
        let first = machine.gdb(&format!("p *(int*){COUNTER}\np *(int*){SECOND_COUNTER}\ndetach"));
        let again = machine.gdb(&format!(
            "p *(int*){COUNTER}\np *(int*){SECOND_COUNTER}\nbreak *{SECOND_TOP}\ncontinue\n\
             p $rcx == *(int*){SECOND_COUNTER}\nmonitor info status\nkill"
        ));
        for number in 1..3 {
            let (before, after) = (printed(&first, number), printed(&again, number));
            assert!(after > before, "{accel}: {first}\n{again}");
        }
        assert!(again.contains("Thread 2 hit Breakpoint 1, "), "{again}");
        assert_eq!(printed(&again, 3), 1);
        assert_eq!(machine.status(), Some(0));
    }
}

#[test]
fn the_end_of_the_guest_is_told() {
    for accel in &engines() {
        let mut machine = Machine::start("non-stop-end", accel, &["--paused", "--cpus", "2"]);
        let mut gdb = Dialogue::start(&machine);
        gdb.until_running([false, false]);
        gdb.ask("monitor catch mode");
        gdb.expect("continue -a &", "received signal SIGTRAP");
        gdb.until_running([false, true]);
        gdb.expect("info threads", "; stands: caught change from real mode to protected mode)");
        gdb.ask("monitor delete");
        gdb.expect("continue -a", "exited normally]");
        assert_eq!(machine.status(), Some(0));
    }
}

/// A client in non-stop mode that is no gdb.
struct Client(UnixStream);

impl Client {
    fn connect(machine: &Machine) -> Self {
        let mut this = Self(machine.connect());
        let offered = this.ask("qSupported:multiprocess+");
        assert!(offered.contains(";QNonStop+"), "{offered}");
        assert_eq!(this.ask("QNonStop:1"), "OK");
        this
    }

    fn ask(&mut self, body: &str) -> String {
        ask(&mut self.0, body.as_bytes()).unwrap_or_else(|| panic!("no reply to {body}"))
    }

    /// The next notification, which nothing else may come before.
    fn notice(&mut self) -> String {
        let mut text = Vec::new();
        while text.iter().rev().nth(2) != Some(&b'#') {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        let text = String::from_utf8(text).unwrap();
        let body = text.strip_prefix("%Stop:").unwrap_or_else(|| panic!("{text}"));
        body[..body.len() - 3].to_owned()
    }

    fn counter(&mut self, address: u64) -> u32 {
        let digits = self.ask(&format!("m{address:x},4"));
        u32::from_str_radix(&digits, 16).unwrap_or_else(|_| panic!("{digits}")).swap_bytes()
    }

    /// Waits until the word at `address` has changed.
    fn await_counting(&mut self, address: u64) {
        let (first, started) = (self.counter(address), Instant::now());
        while self.counter(address) == first {
            assert!(started.elapsed() < LIMIT, "nothing counts at {address:#x}");
        }
    }
}

const FIRST_STANDS: &str = "T00thread:p1.1;core:0;";
const SECOND_STANDS: &str = "T00thread:p1.2;core:1;";

#[test]
fn stops_are_told_one_by_one_and_running_cpus_keep_their_registers() {
    for accel in ["interp", "jit"] {
        let machine = counting("notices", accel, &[]);
        let mut client = Client::connect(&machine);
        assert_eq!(client.ask("vCont?"), "vCont;c;C;s;S;r;t");
        assert_eq!(client.ask("?"), FIRST_STANDS);
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.notice(), SECOND_STANDS);
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.ask("vCont;c"), "OK");
        assert_eq!(client.ask("?"), "OK");
        client.await_counting(SECOND_COUNTER);
        client.await_counting(COUNTER);
        // Registers of a CPU that runs are nobody's; memory is everybody's.
        assert_eq!(client.ask("Hgp1.1"), "OK");
        assert_eq!(client.ask("g"), "E10");
        assert_eq!(client.ask("p10"), "E10");
        assert_eq!(client.ask("P1=0000000000000000"), "E10");
        // Stops are told one by one, and a CPU whose stop is not known does not go on.
        assert_eq!(client.ask("vCont;t:p1.2"), "OK");
        assert_eq!(client.notice(), SECOND_STANDS);
        // `monitor cpu`: it is about the one that stopped.
        assert!(client.ask("qRcmd,637075").starts_with("O4350552031"));
        assert_eq!(reply(&mut client.0).as_deref(), Some("OK"));
        assert_eq!(client.ask("vCont;t"), "OK");
        for _ in 0..500 {
            assert_eq!(client.ask("vCont;c"), "OK");
        }
        let before = [COUNTER, SECOND_COUNTER].map(|at| client.counter(at));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!([COUNTER, SECOND_COUNTER].map(|at| client.counter(at)), before);
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.notice(), FIRST_STANDS);
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.ask("vStopped"), "OK");
        assert!(client.ask("p10").len() > 3);
    }
}

#[test]
fn every_reason_to_stop_is_told_with_its_cpu() {
    for accel in ["interp", "jit"] {
        let machine = counting("reasons", accel, &[]);
        let mut client = Client::connect(&machine);
        // A breakpoint, a step beside a CPU that runs, and a range.
        assert_eq!(client.ask(&format!("Z0,{FIRST_NOP:x},1")), "OK");
        assert_eq!(client.ask("vCont;c"), "OK");
        assert_eq!(client.notice(), "T05swbreak:;thread:p1.1;core:0;");
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.ask("vCont;s:p1.1"), "OK");
        assert_eq!(client.notice(), "T05thread:p1.1;core:0;");
        assert_eq!(client.ask("vStopped"), "OK");
        client.await_counting(SECOND_COUNTER);
        let range = format!("vCont;r{:x},{:x}:p1.1", FIRST_NOP, FIRST_NOP + 20);
        assert_eq!(client.ask(&range), "OK");
        assert_eq!(client.notice(), "T05thread:p1.1;core:0;");
        assert_eq!(client.ask("?"), "T05thread:p1.1;core:0;");
        assert_eq!(client.ask("vStopped"), "OK");
        // A watchpoint, with its address, and what is caught.
        assert_eq!(client.ask(&format!("Z2,{SECOND_COUNTER:x},4")), "OK");
        assert_eq!(client.notice(), "T05watch:604;thread:p1.2;core:1;");
        assert_eq!(client.ask("vStopped"), "OK");
        let said = client.ask("qThreadExtraInfo,p1.2");
        let said: Vec<u8> = (0..said.len() / 2)
            .map(|at| u8::from_str_radix(&said[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let said = String::from_utf8(said).unwrap();
        assert!(said.ends_with("; stands: access at 0x604"), "{said}");
    }
}

#[test]
fn ctrl_c_is_for_the_cpu_that_went_on_last_and_nonsense_is_refused() {
    for accel in ["interp", "jit"] {
        let machine = counting("ctrl-c", accel, &[]);
        let mut client = Client::connect(&machine);
        // As a packet, and as a byte.
        for round in 0..2 {
            assert_eq!(client.ask("vCont;c:p1.1"), "OK");
            if round == 0 {
                assert_eq!(client.ask("vCtrlC"), "OK");
            } else {
                client.0.write_all(&[3]).unwrap();
            }
            assert_eq!(client.notice(), "T02thread:p1.1;core:0;");
            assert_eq!(client.ask("vStopped"), "OK");
        }
        assert_eq!(client.ask("vCtrlC"), "OK");
        // What makes no sense is refused, and nothing has come of it.
        for body in
            ["vCont", "vCont;c:p1.3", "vCont;x", "vCont;c:p2.1", "c", "s", "C05", "vCont;r5"]
        {
            assert_eq!(client.ask(body), "E16", "{body}");
        }
        assert_eq!(client.ask("vStopped"), "OK");
        assert_eq!(client.ask("QNonStop:0"), "OK");
        assert_eq!(client.ask("?"), "T05thread:p01.01;");
        client.0.write_all(&packet(b"vCont;c")).unwrap();
        client.0.write_all(&packet(b"QNonStop:1")).unwrap();
        assert_eq!(reply(&mut client.0).as_deref(), Some("E16"));
    }
}

#[test]
fn who_goes_leaves_each_cpu_as_it_is_or_as_he_asked() {
    let machine = counting("gone", "jit", &[]);
    let mut client = Client::connect(&machine);
    // The first processor has to wake the second.
    assert_eq!(client.ask("vCont;c"), "OK");
    client.await_counting(SECOND_COUNTER);
    assert_eq!(client.ask("vCont;t:p1.1"), "OK");
    let before = [COUNTER, SECOND_COUNTER].map(|at| client.counter(at));
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    // The next one stops all; the first has stood, the second has not.
    let mut client = served(&machine);
    assert_eq!(client.counter(COUNTER), before[0]);
    assert!(client.counter(SECOND_COUNTER) > before[1]);
    // `monitor vanish continue`, with one that runs and one that stands.
    assert_eq!(client.ask("vCont;c:p1.2"), "OK");
    let line: String = b"vanish continue".iter().map(|byte| format!("{byte:02x}")).collect();
    client.ask(&format!("qRcmd,{line}"));
    assert_eq!(reply(&mut client.0).as_deref(), Some("OK"));
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    let mut client = served(&machine);
    assert!(client.counter(COUNTER) > before[0]);
    // All stand, one goes on, and `D` lets all go.
    assert_eq!(client.ask("vCont;c:p1.2"), "OK");
    assert_eq!(client.ask("D;1"), "OK");
    let mut client = served(&machine);
    let before = client.counter(COUNTER);
    assert_eq!(client.ask("vCont;c"), "OK");
    client.await_counting(COUNTER);
    assert!(client.counter(COUNTER) > before);
}

/// Connects, whenever the last client's leaving has been noticed.
fn served(machine: &Machine) -> Client {
    let started = Instant::now();
    while ask(&mut machine.connect(), b"QNonStop:0").is_none() {
        assert!(started.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    loop {
        let mut stream = machine.connect();
        if ask(&mut stream, b"qSupported:multiprocess+").is_some() {
            let mut client = Client(stream);
            assert_eq!(client.ask("QNonStop:1"), "OK");
            return client;
        }
    }
}

#[test]
fn a_flood_without_end_or_acknowledgement_is_borne() {
    let mut machine = counting("flood", "jit", &[]);
    let mut client = Client::connect(&machine);
    client.ask("?");
    let flood: Vec<u8> =
        [&b"vCont;c"[..], b"vCont;t", b"vCont;s:1", b"?", b"vCtrlC", b"QNonStop:1"]
            .iter()
            .flat_map(|body| packet(body))
            .chain([3, b'+', b'-'])
            .collect();
    let mut reader = client.0.try_clone().unwrap();
    let drain = std::thread::spawn(move || {
        let mut sink = [0; 4096];
        let mut count = 0;
        while let Ok(bytes @ 1..) = reader.read(&mut sink) {
            count += bytes;
        }
        count
    });
    for _ in 0..200 {
        // `-` asks for what is not kept: such a client is shown out, and that is an answer too.
        if client.0.write_all(&flood[..flood.len() - 1]).is_err() {
            break;
        }
    }
    let _ = client.0.write_all(&flood);
    let _ = client.0.shutdown(std::net::Shutdown::Write);
    assert!(drain.join().unwrap() > 1000);
    let mut client = served(&machine);
    assert_eq!(client.ask("vCont;c"), "OK");
    client.await_counting(SECOND_COUNTER);
    client.0.write_all(&packet(b"k")).unwrap();
    assert_eq!(machine.status(), Some(0));
}

#[test]
fn counted_time_and_one_thread_do_for_it_too() {
    let words = ["--sched", "serial", "--clock", "icount"];
    let machine = counting("serial-non-stop", "jit", &words);
    let mut client = Client::connect(&machine);
    for (runs, stands, thread) in [(COUNTER, SECOND_COUNTER, 1), (SECOND_COUNTER, COUNTER, 2)] {
        assert_eq!(client.ask(&format!("vCont;c:p1.{thread}")), "OK");
        // The second processor is woken by the first: until then nothing counts.
        if thread == 1 {
            client.await_counting(runs);
        }
        let before = client.counter(stands);
        client.await_counting(runs);
        assert_eq!(client.counter(stands), before);
        assert_eq!(client.ask("vCont;t"), "OK");
        assert_eq!(client.notice(), [FIRST_STANDS, SECOND_STANDS][thread - 1]);
        assert_eq!(client.ask("vStopped"), "OK");
    }
}
