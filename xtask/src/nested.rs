//! The KVM engine on a real kernel's KVM, where the host has none to give: QEMU's TCG emulates a
//! processor with SVM, a Debian kernel in it loads `kvm-amd`, and Volvelle runs guests on that.
//!
//! QEMU has one processor: with more, its TCG takes interrupts between #VMEXIT and STGI, which
//! crashes the kernel that runs Volvelle.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use firmware::guests::{ClocksReport, clocks};

use crate::bench::emulator::{self, QEMU};
use crate::boot;
use crate::boot::console::{Console, PROMPT};
use crate::child::{self, Output};
use crate::guests::{File, Guests, Kernel};
use crate::linux;
use crate::tally::Tally;
use crate::workspace;

/// Everything, on a host that is busy.
const LIMIT: Duration = Duration::from_secs(1200);

/// Where QEMU comes from if it is not there, and how long that may take.
const QEMU_PACKAGE: &str = "qemu-system-x86";
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// A guest on the nested KVM.
struct Case {
    name: &'static str,
    /// Its kernel, in the first guest.
    kernel: &'static str,
    cpus: u32,
    /// What ends it, and the status that Volvelle ends with.
    end: (&'static str, i32),
}

const CASES: [Case; 3] = [
    Case { name: "bzImage, 1 CPU", kernel: "/kvm/vmlinuz", cpus: 1, end: ("poweroff", 0) },
    Case { name: "PVH, 2 CPUs", kernel: "/kvm/vmlinux", cpus: 2, end: ("poweroff", 0) },
    Case { name: "reboot, 2 CPUs", kernel: "/kvm/vmlinuz", cpus: 2, end: ("reboot", 3) },
];

/// Guest time in which the engine is changed, and how often: on TCG a change takes its time.
const CLOCKS_MILLISECONDS: u32 = 25_000;
const SWITCH_EVERY: &str = "100ms";
/// Changes that there must have been.
const CHANGES_MIN: u64 = 100;
/// What clocks may be apart behind them.
const TOLERANCE_NS: u64 = 2_000_000;

/// Runs all cases with a fresh release build. Returns the counts and what was skipped.
pub fn suite() -> Result<(Tally, Vec<String>)> {
    let skipped = |reason: String| (Tally { skipped: 1, ..Tally::default() }, vec![reason]);
    if emulator::qemu_version().is_err() && install_qemu().is_err() {
        return Ok(skipped(format!("KVM under {QEMU}, which is not installed and cannot be")));
    }
    linux::build()?;
    let guests = Guests::new();
    if let Err(error) = guests.download().and_then(|()| guests.kvm_modules().map(drop)) {
        return Ok(skipped(format!("KVM in a kernel that cannot be had: {error:#}")));
    }
    let mut console = Console::start(&mut qemu(&guests)?, LIMIT)?;
    let tally = run(&mut console);
    boot::keep_log("nested-kvm", &console.transcript());
    Ok((tally, Vec::new()))
}

/// Has apt install QEMU, which takes root and a network.
fn install_qemu() -> Result<()> {
    let steps: [&[&str]; 2] = [
        &["update", "--quiet"],
        &["install", "--quiet", "--yes", "--no-install-recommends", QEMU_PACKAGE],
    ];
    for words in steps {
        let mut command = Command::new("apt-get");
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive");
        let finished = child::capture(&mut command, Output::Kept, INSTALL_LIMIT)?;
        ensure!(finished.status.success(), "apt-get {words:?}: {}", finished.text);
    }
    emulator::qemu_version().map(drop)
}

fn qemu(guests: &Guests) -> Result<Command> {
    let mut command = Command::new(QEMU);
    command.args(["-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "1536M", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(guests.bzimage(Kernel::Cloud)?);
    command.arg("-initrd").arg(guests.initramfs_for_kvm(&files(guests)?)?);
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    Ok(command)
}

/// What the first guest needs: Volvelle with its libraries, KVM's modules, the guests' files.
fn files(guests: &Guests) -> Result<Vec<File>> {
    let binary = workspace::release_binary();
    let mut files = vec![File::program("kvm/volvelle", read(&binary)?)];
    for library in libraries(&binary)? {
        let path = library.to_string_lossy().trim_start_matches('/').to_owned();
        files.push(File::program(&path, read(&library)?));
    }
    for (name, path) in guests.kvm_modules()? {
        files.push(File::program(&format!("kvm/{name}.ko"), read(&path)?));
    }
    files.push(File::program("kvm/vmlinuz", read(&guests.bzimage(Kernel::Cloud)?)?));
    files.push(File::program("kvm/vmlinux", read(&guests.vmlinux(Kernel::Cloud)?)?));
    files.push(File::program("kvm/initrd", read(&guests.initramfs()?)?));
    files.push(File::program("kvm/clocks.rom", clocks(CLOCKS_MILLISECONDS)));
    Ok(files)
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The libraries that `binary` is loaded with, by their paths.
fn libraries(binary: &PathBuf) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    let finished = child::capture(command.arg(binary), Output::Kept, Duration::from_secs(60))?;
    ensure!(finished.status.success(), "`ldd {}`: {}", binary.display(), finished.text);
    let paths = finished.text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn run(console: &mut Console) -> Tally {
    let mut tally = Tally::default();
    if let Err(error) = load(console) {
        println!("nested KVM ... FAILED\n  {error:#}");
        boot::show_end(console.transcript().lines());
        return Tally { failed: 1, ..tally };
    }
    for case in &CASES {
        if !count(&mut tally, console, case.name, |console| play(console, case)) {
            // What the console shows next belongs to this case.
            return tally;
        }
    }
    for cpus in [1, 2] {
        let name = format!("changes of engine, {cpus} CPUs");
        if !count(&mut tally, console, &name, |console| change_engines(console, cpus)) {
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

/// A guest that computes and looks at its clocks is moved between KVM and the translator.
fn change_engines(console: &mut Console, cpus: usize) -> Result<()> {
    let text = console.shell(&format!(
        "/kvm/volvelle run --accel kvm --switch-engines jit --switch-every {SWITCH_EVERY} --stats \
         --cpus {cpus} --debug-exit --no-reboot --bios /kvm/clocks.rom 2>&1; test $? = 1"
    ))?;
    let reports = ClocksReport::read(&text);
    ensure!(reports.len() == cpus, "{text}");
    for report in reports {
        report.check(TOLERANCE_NS).map_err(Error::msg)?;
    }
    let changes = text.lines().find_map(|line| line.split_once(" changes of engine"));
    let changes = changes.and_then(|(count, _)| count.trim().parse::<u64>().ok());
    ensure!(changes >= Some(CHANGES_MIN), "{text}");
    println!("  {}", text.lines().find(|line| line.contains("changes of engine")).unwrap_or(""));
    Ok(())
}

fn load(console: &mut Console) -> Result<()> {
    console.expect(PROMPT)?;
    console.shell("for m in irqbypass kvm kvm-amd; do insmod /kvm/$m.ko || exit 1; done")?;
    console.shell("test -c /dev/kvm")?;
    console.shell("/kvm/volvelle doctor >&2")?;
    // The processor has virtualization, and the probe guest shows that it is good.
    console
        .shell("/kvm/volvelle run --accel auto --log info 2>&1 | grep -q 'KVM runs the guest'")?;
    Ok(())
}

fn play(console: &mut Console, case: &Case) -> Result<()> {
    let Case { kernel, cpus, end: (word, status), .. } = case;
    console.type_line(&format!(
        "/kvm/volvelle run --accel kvm --no-reboot --memory 256M --cpus {cpus} --kernel {kernel} \
         --initrd /kvm/initrd --append 'console=ttyS0 quiet'; echo \"(ended $?)\""
    ))?;
    console.expect("on Volvelle")?;
    console.expect(PROMPT)?;
    let found = console.shell("nproc")?;
    ensure!(found.trim() == cpus.to_string(), "{found} CPUs");
    console.shell("dmesg | grep -q 'kvm-clock: Using msrs'")?;
    console.type_line(word)?;
    console.expect("(ended ")?;
    let ended = console.expect(")")?;
    ensure!(ended == status.to_string(), "status {ended} instead of {status}");
    console.expect(PROMPT)?;
    Ok(())
}
