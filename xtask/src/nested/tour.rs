//! One Linux guest on all three engines: what its shell shows of the machine must be the same on
//! KVM, in the first guest, as on the translator and on the interpreter, which run here.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{InThere, at_prompt, power_off, widen};
use crate::boot::console::{Console, PROMPT};
use crate::guests::Kernel;

/// A boot on the interpreter, on a busy host.
const LIMIT: Duration = Duration::from_secs(1200);
const WORDS: &str = "console=ttyS0 quiet";
/// Lines for the shell. Left out is what moves from boot to boot (time, where the kernel has put
/// itself, how many interrupts there were), and CPUID, of which KVM gives what its host has.
const LINES: [&str; 9] = [
    "uname -srm; nproc; cat /proc/cmdline",
    "grep MemTotal /proc/meminfo",
    "cat /proc/ioports",
    "grep -v Kernel /proc/iomem",
    "cut -b 1-5,17- /proc/interrupts | grep -E '^ *[0-9]+:'",
    "(cd /sys/bus/pci/devices; for d in *; do echo $d $(cat $d/vendor $d/device $d/class); done)",
    "cat /sys/class/dmi/id/sys_vendor /sys/class/rtc/rtc0/name; ls /sys/firmware/acpi/tables",
    "ls -lR /bin /etc | md5sum; seq 20000 | md5sum; seq 3000 | gzip | zcat | sort -r | md5sum",
    "awk 'BEGIN { for (i = 1; i < 3000; i++) s += 1 / i / i; printf \"%.15f\\n\", s }'",
];
/// What the guest shows on each engine is compared.
pub fn compare(console: &mut Console, in_there: &InThere) -> Result<()> {
    let words = arguments("kvm").join(" ");
    let line = format!(
        "/kvm/volvelle {words} --kernel /kvm/vmlinuz --initrd /kvm/initrd --append '{WORDS}'"
    );
    at_prompt(console, &line)?;
    let found = tour(console)?;
    power_off(console, "poweroff", 0)?;
    for accel in ["jit", "interp"] {
        let expected = here(in_there, accel).with_context(|| format!("on {accel}, here"))?;
        for ((line, one), other) in LINES.iter().zip(&expected).zip(&found) {
            ensure!(one == other, "`{line}` shows on {accel}\n{one}\nand on KVM\n{other}");
        }
    }
    println!("  {} lines for the shell show the same on three engines", LINES.len());
    Ok(())
}

/// The model is one that every host has, so that programs choose alike.
fn arguments(accel: &str) -> [&str; 8] {
    ["run", "--accel", accel, "--cpu", "x86-64-v2", "--memory", "256M", "--no-reboot"]
}

fn here(in_there: &InThere, accel: &str) -> Result<Vec<String>> {
    let mut command = Command::new(&in_there.volvelle);
    command.args(arguments(accel)).args(["--append", WORDS]);
    command.arg("--kernel").arg(in_there.guests.bzimage(Kernel::Cloud)?);
    command.arg("--initrd").arg(in_there.guests.initramfs()?);
    let mut console = Console::start(&mut command, LIMIT)?;
    console.expect(PROMPT)?;
    widen(&mut console)?;
    let found = tour(&mut console)?;
    console.type_line("poweroff -f")?;
    let status = console.end()?;
    ensure!(status.success(), "{status}");
    Ok(found)
}

fn tour(console: &mut Console) -> Result<Vec<String>> {
    LINES.iter().map(|line| console.shell(line)).collect()
}
