//! The KVM engine on a real kernel's KVM, where the host has none to give: QEMU's TCG emulates a
//! processor with SVM, a Debian kernel in it loads `kvm-amd`, and Volvelle runs guests on that,
//! beside a QEMU that does the same.
//!
//! The outer QEMU has one processor: with more, its TCG takes interrupts between #VMEXIT and STGI,
//! which crashes the kernel that runs Volvelle. It checks no limits of data segments, in a guest's
//! guest neither.

mod beside_qemu;
mod files;
mod gdb_linux;
mod monitors;
mod peer;
mod switching;
mod test_binaries;
mod tour;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail, ensure};

use crate::bench::emulator::QEMU;
use crate::boot;
use crate::boot::console::{Console, PROMPT};
use crate::guests::{File, Guests, Kernel};
use crate::linux;
use crate::tally::Tally;
use crate::workspace;
use files::Tests;
use monitors::{Linux, Monitor};

/// Everything, on a host that is busy.
const LIMIT: Duration = Duration::from_secs(1800);

/// Where it is in the first guest.
const QEMU_IN_THERE: &str = "/kvm/qemu-system-x86_64";

/// What to run in there.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Run only cases whose name contains one of these.
    filter: Vec<String>,
    /// Program to test instead of the release build.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Boot a guest on Volvelle and on QEMU in turn, this often, and print what it takes.
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = "5")]
    time: Option<u32>,
}

/// A guest, or a comparison of several, on the nested KVM.
struct Case {
    name: &'static str,
    run: fn(&mut Console, &InThere) -> Result<()>,
}

/// What the first guest has beside the guests' files.
struct InThere {
    guests: Guests,
    volvelle: PathBuf,
    tests: Tests,
    has_gdb: bool,
}

const CASES: &[Case] = &[
    Case { name: "doctor and the probe guest", run: |console, _| doctor(console) },
    Case { name: "bzImage, 1 CPU", run: |console, _| boot_linux(console, BZIMAGE, "poweroff", 0) },
    Case {
        name: "PVH, 2 CPUs",
        run: |console, _| {
            boot_linux(console, Linux { kernel: "/kvm/vmlinux", cpus: 2, words: "" }, "poweroff", 0)
        },
    },
    Case {
        name: "reboot, 2 CPUs",
        run: |console, _| boot_linux(console, Linux { cpus: 2, ..BZIMAGE }, "reboot", 3),
    },
    Case { name: "complaints, 1 CPU", run: |console, _| beside_qemu::complaints(console, 1) },
    Case { name: "complaints, 2 CPUs", run: |console, _| beside_qemu::complaints(console, 2) },
    Case { name: "the built-in guest, 1 CPU", run: |console, _| built_in(console, 1) },
    Case { name: "the built-in guest, 2 CPUs", run: |console, _| built_in(console, 2) },
    Case { name: "a tour of Linux", run: tour::compare },
    Case { name: "the engine's own tests", run: |console, _| test_binaries::engine(console) },
    Case { name: "the command's tests", run: test_binaries::command },
    Case { name: "gdb", run: test_binaries::gdb },
    Case { name: "gdb on Linux, 2 CPUs", run: gdb_linux::debug },
    Case { name: "changes of engine, 1 CPU", run: |console, _| switching::clocks(console, 1) },
    Case { name: "changes of engine, 2 CPUs", run: |console, _| switching::clocks(console, 2) },
    Case {
        name: "changes of engine under interrupts, 1 CPU",
        run: |console, _| switching::relay(console, 1),
    },
    Case {
        name: "changes of engine under interrupts, 2 CPUs",
        run: |console, _| switching::relay(console, 2),
    },
    Case {
        name: "changes of engine under Linux, 2 CPUs",
        run: |console, _| switching::linux(console),
    },
];
const BZIMAGE: Linux = Linux { kernel: "/kvm/vmlinuz", cpus: 1, words: "" };

/// Where the built-in guest may fall short on this KVM, which hangs on the version of QEMU's TCG.
/// It is not Volvelle that does: on QEMU it prints the same there.
const BUILT_IN_DEVIATIONS: [&str; 2] = [
    "[segment limit]: [segment limit] not checked: this KVM is on QEMU's TCG",
    "[#GP]: [#GP] not checked: this KVM is on QEMU's TCG",
];

/// Runs all cases with a fresh release build. Returns the counts and what was skipped.
pub fn suite() -> Result<(Tally, Vec<String>)> {
    chosen(&Options::default())
}

/// Runs the cases that a person asked for.
pub fn chosen(options: &Options) -> Result<(Tally, Vec<String>)> {
    let skipped = |reason: String| (Tally { skipped: 1, ..Tally::default() }, vec![reason]);
    if let Err(error) = peer::ensure_installed() {
        return Ok(skipped(format!("KVM under {QEMU}, which cannot be had: {error:#}")));
    }
    let guests = Guests::new();
    if let Err(error) = guests.download().and_then(|()| guests.kvm_modules().map(drop)) {
        return Ok(skipped(format!("KVM in a kernel that cannot be had: {error:#}")));
    }
    let mut skips = Vec::new();
    let gdb = guests.gdb().and_then(|gdb| files::libraries(&gdb).map(|_| gdb));
    if let Err(error) = &gdb {
        skips.push(format!("gdb on KVM, which cannot be had: {error:#}"));
    }
    let volvelle = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            linux::build()?;
            workspace::release_binary()
        }
    };
    let tests = if options.time.is_some() { Tests::default() } else { Tests::build()? };
    let in_there = InThere { guests, volvelle, tests, has_gdb: gdb.is_ok() };
    let packed = files::all(&in_there, gdb.ok().as_deref())?;
    let mut console = Console::start(&mut qemu(&in_there.guests, &packed)?, LIMIT)?;
    let tally = run(&mut console, &in_there, options);
    boot::keep_log("nested-kvm", &console.transcript());
    Ok((tally, skips))
}

fn qemu(guests: &Guests, packed: &[File]) -> Result<Command> {
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "2G", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(guests.bzimage(Kernel::Cloud)?);
    command.arg("-initrd").arg(guests.initramfs_for_kvm(packed)?);
    // On a busy host the kernel comes to mistrust the time stamp, and with it KVM's clocks.
    command.args(["-append", "console=ttyS0 quiet panic=-1 tsc=reliable"]);
    Ok(command)
}

fn run(console: &mut Console, in_there: &InThere, options: &Options) -> Tally {
    let mut tally = Tally::default();
    if !count(&mut tally, console, "kvm-amd", load) {
        return tally;
    }
    if let Some(rounds) = options.time {
        count(&mut tally, console, "times", |console| beside_qemu::times(console, rounds));
        return tally;
    }
    let wanted = |case: &&Case| {
        let filter = &options.filter;
        filter.is_empty() || filter.iter().any(|part| case.name.contains(part))
    };
    for case in CASES.iter().filter(wanted) {
        if !count(&mut tally, console, case.name, |console| (case.run)(console, in_there)) {
            // What the console shows next belongs to this case.
            break;
        }
    }
    tally
}

/// Counts what `case` comes to. False if it fails.
fn count(
    tally: &mut Tally,
    console: &mut Console,
    name: &str,
    case: impl FnOnce(&mut Console) -> Result<()>,
) -> bool {
    let started = Instant::now();
    let outcome = case(console);
    let seconds = started.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => {
            println!("nested KVM: {name} ... ok ({seconds:.1} s)");
            tally.passed += 1;
        }
        Err(error) => {
            println!("nested KVM: {name} ... FAILED ({seconds:.1} s)\n  {error:#}");
            boot::show_end(console.transcript().lines());
            tally.failed += 1;
        }
    }
    outcome.is_ok()
}

fn load(console: &mut Console) -> Result<()> {
    console.expect(PROMPT)?;
    widen(console)?;
    console.shell("for m in irqbypass kvm kvm-amd; do insmod /kvm/$m.ko || exit 1; done")?;
    // The kernel's remarks would come between what is read here.
    console.shell("dmesg -n 1; test -c /dev/kvm")?;
    Ok(())
}

/// Has the shell not break lines, which are longer here than a terminal's.
fn widen(console: &mut Console) -> Result<()> {
    console.shell("stty cols 2000").map(drop)
}

/// The processor has virtualization, and the probe guest shows that it is good; that it is slow may
/// be what else this host has to do.
fn doctor(console: &mut Console) -> Result<()> {
    const SLOW: [&str; 2] = ["not done in 50 ms", "a loop takes"];
    let mut said = String::new();
    for _ in 0..5 {
        console.shell("/kvm/volvelle doctor >&2")?;
        said = console.shell("/kvm/volvelle run --accel auto --log info 2>&1 | grep KVM")?;
        if said.contains("KVM runs the guest") {
            return Ok(());
        }
        ensure!(SLOW.iter().any(|reason| said.contains(reason)), "{said}");
    }
    println!("  skipped: this host is too busy for the probe guest: {}", said.trim());
    Ok(())
}

/// Starts a Linux guest by `line` and waits for its shell.
fn at_prompt(console: &mut Console, line: &str) -> Result<()> {
    console.type_line(&format!("{line}; echo \"(ended $?)\""))?;
    console.expect("on Volvelle")?;
    console.expect(PROMPT)?;
    widen(console)
}

/// Ends it by `word` in its shell; `status` is what its monitor ends with. Returns what both say
/// meanwhile.
fn power_off(console: &mut Console, word: &str, status: i32) -> Result<String> {
    console.type_line(word)?;
    let said = console.expect("(ended ")?;
    let ended = console.expect(")")?;
    ensure!(ended == status.to_string(), "status {ended} instead of {status}");
    console.expect(PROMPT)?;
    Ok(said)
}

fn boot_linux(console: &mut Console, guest: Linux, word: &str, status: i32) -> Result<()> {
    at_prompt(console, &Monitor::Volvelle.linux(guest))?;
    let found = console.shell("nproc")?;
    ensure!(found.trim() == guest.cpus.to_string(), "{found} CPUs");
    console.shell("dmesg | grep -q 'kvm-clock: Using msrs'")?;
    power_off(console, word, status).map(drop)
}

/// The built-in guest prints the same on all engines, but for [`BUILT_IN_DEVIATIONS`] on KVM.
fn built_in(console: &mut Console, cpus: u32) -> Result<()> {
    let mut run = |monitor: Monitor, accel| {
        let text = console.shell(&monitor.built_in(accel, cpus))?;
        Ok::<_, Error>((firmware::deviations(&text, cpus), text))
    };
    let (deviations, interpreted) = run(Monitor::Volvelle, "interp")?;
    ensure!(deviations.is_empty(), "on the interpreter: {}", deviations.join("\n  "));
    let (on_qemu, _) = run(Monitor::Qemu, "kvm")?;
    let is_known = |line: &String| BUILT_IN_DEVIATIONS.contains(&line.as_str());
    ensure!(on_qemu.iter().all(is_known), "on QEMU: {}", on_qemu.join("\n  "));
    for accel in ["jit", "kvm"] {
        let (deviations, text) = run(Monitor::Volvelle, accel)?;
        let allowed: &[String] = if accel == "kvm" { &on_qemu } else { &[] };
        ensure!(deviations == allowed, "on {accel}: {}", deviations.join("\n  "));
        let differs = |(one, other): &(&str, &str)| {
            one != other
                && !allowed.iter().any(|line| line.contains(other.trim_start_matches("volvelle: ")))
        };
        if let Some((one, other)) = interpreted.lines().zip(text.lines()).find(differs) {
            bail!("the interpreter prints {one:?}, {accel} {other:?}");
        }
        ensure!(interpreted.lines().count() == text.lines().count(), "{accel} prints: {text}");
    }
    Ok(())
}
