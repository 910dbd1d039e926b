//! The boots: what is started, what is done there, how it must end.

use std::time::Duration;

use super::console;
use crate::guests::Kernel;

/// What the machine starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The guest that Volvelle brings along.
    BuiltIn,
    /// The small guest that answers what is typed.
    Echo,
    /// A distribution's kernel by the Linux boot protocol.
    Bz(Kernel),
    /// The same kernel unpacked, by its PVH entry.
    Pvh(Kernel),
}

/// One thing to do at the console.
#[derive(Clone, Copy)]
pub enum Step {
    /// Wait until the guest writes this.
    Expect(&'static str),
    /// Type a line and wait for nothing.
    Type(&'static str),
    /// Have the shell run a line, and compare its output.
    Shell(&'static str, &'static str),
    /// Read the kernel's log, which must hold no complaint.
    QuietLog,
    /// Have the kernel say what its symbols are, which must be those that are saved at the end.
    SameNames,
    /// Read what the built-in guest printed, which must be each of its steps.
    Passed,
}

/// Exit statuses of `volvelle run`, README.md, "Exit status".
pub const POWERED_OFF: i32 = 0;
pub const RESET: i32 = 3;

/// One boot.
pub struct Case {
    pub name: &'static str,
    pub image: Image,
    pub cpus: u32,
    /// Words added to the kernel's command line.
    pub words: &'static str,
    /// Further options of `volvelle run`.
    pub options: &'static [&'static str],
    pub steps: &'static [Step],
    pub status: i32,
    /// How often it is run, and how each time.
    pub runs: &'static [Run],
}

/// One run of a case. All must show the same on their consoles, and execute the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The engine, if a certain one.
    pub accel: Option<&'static str>,
    /// What is traced (keys of `--trace`), to be compared with the other runs that have one.
    pub trace: Option<&'static str>,
}

const ONCE: &[Run] = &[Run { accel: None, trace: None }];
/// Each engine traced, and one twice without. A trace of everything would be no problem but for the
/// time that the interpreter takes for it: most of the boot of CPU 0, and all that CPU 1 does.
const REPEATED: &[Run] = &[
    Run { accel: Some("interp"), trace: Some(TRACED) },
    Run { accel: Some("jit"), trace: Some(TRACED) },
    Run { accel: Some("jit"), trace: None },
    Run { accel: Some("jit"), trace: None },
];
const COUNTED: &[&str] = &["--sched", "serial", "--clock", "icount", "--stats"];
const TRACED: &str = "what=insn+int+io+cr+msr,to=400000000";

use Image::{BuiltIn, Bz, Echo, Pvh};
use Kernel::{Cloud, General};
use Step::{Expect, Passed, QuietLog, SameNames, Shell, Type};

/// Time from the start of the process to its end, on a busy machine.
pub fn limit(image: Image) -> Duration {
    match image {
        BuiltIn | Echo => Duration::from_secs(300),
        Bz(_) | Pvh(_) => Duration::from_secs(1200),
    }
}

const PROMPT: Step = Expect(console::PROMPT);
const ARITHMETIC: Step = Shell("echo $((6*7))", "42");
const ONE_CPU: Step = Shell("nproc", "1");
const TWO_CPUS: Step = Shell("nproc", "2");

/// A tour of a one-CPU guest that ends with the shutdown a person would ask for.
const TOUR_1: &[Step] =
    &[PROMPT, ARITHMETIC, ONE_CPU, QuietLog, Type("poweroff"), Expect("reboot: Power down")];
/// The same with two CPUs, and with the shutdown that asks no process.
const TOUR_2: &[Step] = &[
    PROMPT,
    ARITHMETIC,
    TWO_CPUS,
    QuietLog,
    SameNames,
    Type("poweroff -f"),
    Expect("reboot: Power down"),
];

/// The guest counts, answers each byte with its number and itself, and leaves at Ctrl-D.
const ECHO: &[Step] = &[
    Expect("0 1 2 3 4 5 6 7 8 9 "),
    Expect("\n"),
    Type("ab"),
    Expect("1:a 2:b 3:"),
    Type("\u{4}"),
];
const REBOOT: &[Step] = &[PROMPT, Type("reboot"), Expect("reboot: Restarting system")];
const REBOOT_AND_AGAIN: &[Step] = &[
    PROMPT,
    Type("reboot"),
    Expect("reboot: Restarting system"),
    PROMPT,
    Type("poweroff -f"),
    Expect("reboot: Power down"),
];
const PANIC: &[Step] = &[
    PROMPT,
    Type("echo c > /proc/sysrq-trigger"),
    Expect("Kernel panic - not syncing: sysrq triggered crash"),
];

const fn boot(name: &'static str, image: Image, cpus: u32, steps: &'static [Step]) -> Case {
    Case { name, image, cpus, words: "", options: &[], steps, status: POWERED_OFF, runs: ONCE }
}

const fn built_in(name: &'static str, cpus: u32, options: &'static [&'static str]) -> Case {
    Case { options, ..boot(name, BuiltIn, cpus, &[Expect("steps passed"), Passed]) }
}

/// Every boot of the suite.
pub const CASES: &[Case] = &[
    built_in("built-in guest, interp, 1 CPU", 1, &["--accel", "interp"]),
    built_in("built-in guest, interp, 2 CPUs", 2, &["--accel", "interp"]),
    built_in("built-in guest, auto, 1 CPU", 1, &["--accel", "auto"]),
    boot("typed input", Echo, 1, ECHO),
    boot("cloud kernel, bzImage, 1 CPU", Bz(Cloud), 1, TOUR_1),
    boot("cloud kernel, bzImage, 2 CPUs", Bz(Cloud), 2, TOUR_2),
    boot("cloud kernel, PVH, 1 CPU", Pvh(Cloud), 1, TOUR_1),
    boot("cloud kernel, PVH, 2 CPUs", Pvh(Cloud), 2, TOUR_2),
    boot("general kernel, bzImage, 1 CPU", Bz(General), 1, TOUR_1),
    boot("general kernel, bzImage, 2 CPUs", Bz(General), 2, TOUR_2),
    boot("general kernel, PVH, 1 CPU", Pvh(General), 1, TOUR_1),
    boot("general kernel, PVH, 2 CPUs", Pvh(General), 2, TOUR_2),
    boot("reboot", Bz(Cloud), 1, REBOOT_AND_AGAIN),
    Case {
        options: &["--no-reboot"],
        status: RESET,
        ..boot("reboot with --no-reboot", Bz(Cloud), 2, REBOOT)
    },
    Case {
        words: "panic=-1",
        options: &["--no-reboot"],
        status: RESET,
        ..boot("kernel panic", Bz(Cloud), 1, PANIC)
    },
    Case { runs: REPEATED, ..built_in("exact repetition, built-in guest, 2 CPUs", 2, COUNTED) },
    Case {
        words: "volvelle.leave",
        options: COUNTED,
        runs: REPEATED,
        ..boot("exact repetition", Bz(Cloud), 2, &[Expect("reboot: Power down")])
    },
];
