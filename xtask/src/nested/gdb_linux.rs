//! gdb on a Linux guest that KVM runs on two CPUs: attached while it runs, and attached again.

use anyhow::{Context, Result, ensure};

use super::InThere;
use super::monitors::{Linux, Monitor};
use crate::boot::console::{Console, PROMPT, check};

const GUEST: Linux = Linux { kernel: "/kvm/vmlinuz", cpus: 2, words: "" };
const SOCKET: &str = "/tmp/linux.gdb";
/// What the guest's shell is told, and what it says.
const INPUT: &str = "/tmp/linux.in";
const OUTPUT: &str = "/tmp/linux.out";
/// System calls on both CPUs, without an end.
const WORK: &str =
    "while :; do read x < /proc/uptime; done & while :; do read x < /proc/uptime; done &";
/// Where they come by, and a variable that is written all the time.
const FUNCTION: &str = "do_sys_openat2";
const VARIABLE: &str = "jiffies_64";
/// Steps of one CPU while the other is held.
const STEPS: u32 = 40;
/// Seconds for a session, and for an answer in it: the kernel's names are searched for once.
const SESSION_LIMIT: u32 = 900;
const ANSWER_LIMIT: u32 = 300;

/// Breakpoint, watchpoint and steps in a kernel that goes on whenever gdb leaves.
pub fn debug(console: &mut Console, in_there: &InThere) -> Result<()> {
    if !in_there.has_gdb {
        return Ok(());
    }
    start(console)?;
    let [function, variable] = addresses(console)?;
    let value = format!("*(unsigned long*){variable}");
    let said = session(
        console,
        &[
            "monitor accel",
            &format!("hbreak *{function}"),
            "continue",
            &format!("p $rip == {function}"),
            "delete",
            &format!("watch {value}"),
            "continue",
            "delete",
            "set scheduler-locking on",
            "thread 1",
            "set $held = $rip",
            "thread 2",
            &format!("stepi {STEPS}"),
            "thread 1",
            "p $held == $rip",
            "set scheduler-locking off",
            &format!("hbreak *{function} if $rip == {function} && {value} % 8 == 5"),
            "continue",
            &format!("p {value} % 8"),
            "monitor accel",
        ],
    )?;
    check(
        &said,
        &[
            "kvm",
            "hit Breakpoint 1",
            "$1 = 1",
            "Old value = ",
            "New value = ",
            "$2 = 1",
            "hit Breakpoint 3",
            "$3 = 5",
            "kvm",
        ],
    )?;
    // It went on, and stops nowhere.
    let before = number(&session(console, &[&format!("p {value}")])?)?;
    console.shell("sleep 2")?;
    let said = session(console, &["monitor info breakpoints", &format!("p {value}")])?;
    check(&said, &["it stops nowhere"])?;
    ensure!(number(&said)? > before, "the guest stood still: {said}");
    console.shell("echo poweroff >&3; wait %1")?;
    console.shell("exec 3>&-").map(drop)
}

/// Starts the guest in the background, and has its shell work.
fn start(console: &mut Console) -> Result<()> {
    let line = Monitor::Volvelle.linux(GUEST);
    console.shell(&format!("rm -f {INPUT}; mkfifo {INPUT} && exec 3<>{INPUT}"))?;
    console.shell(&format!("{{ {line} --gdb unix:{SOCKET} <{INPUT} >{OUTPUT} 2>&1 & }}"))?;
    // The console's own limit ends this.
    console.shell(&format!("until grep -q '{}' {OUTPUT}; do sleep 1; done", PROMPT.trim()))?;
    console.shell(&format!("echo '{WORK}' >&3")).map(drop)
}

/// Where the function and the variable are, by the names that the guest itself has.
fn addresses(console: &mut Console) -> Result<[String; 2]> {
    let said = session(
        console,
        &[&format!("monitor info address {FUNCTION}"), &format!("monitor info address {VARIABLE}")],
    )?;
    let address = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(&format!("{name} is ")))?;
        line.split_whitespace().find(|word| word.starts_with("0x")).map(str::to_owned)
    };
    let found = address(FUNCTION).zip(address(VARIABLE));
    found.map(<[String; 2]>::from).with_context(|| format!("no addresses in {said}"))
}

/// What gdb says from connecting to leaving.
fn session(console: &mut Console, commands: &[&str]) -> Result<String> {
    let target = format!("target remote {SOCKET}");
    let patience = format!("set remotetimeout {ANSWER_LIMIT}");
    let before = ["set width 0", "set architecture i386:x86-64", &patience, &target];
    let words: String = before
        .iter()
        .chain(commands)
        .chain(&["detach"])
        .map(|command| format!(" -ex '{command}'"))
        .collect();
    console.shell(&format!("timeout {SESSION_LIMIT} gdb -nx -batch{words} 2>&1"))
}

/// The first number that gdb printed.
fn number(said: &str) -> Result<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("$1 = "));
    line.and_then(|value| value.parse().ok()).with_context(|| format!("no number in {said}"))
}
