//! Tests as cargo compiles them, run in the first guest: there they find a KVM.

use anyhow::{Result, ensure};

use super::InThere;
use super::files::Tests;
use crate::boot::console::Console;
use crate::tally::Tally;

/// What a test says that finds less than it wants.
const SKIPPED: &str = "skipped: ";
/// What may be skipped in there all the same, and why: the gdb that is packed is the small one, and
/// a KVM on TCG is not hardware.
const MAY_BE_SKIPPED: [&str; 2] =
    ["skipped: this gdb has no Python", "skipped: KVM without hardware under it"];

/// The tests of the `kvm` crate: state in and out, small guests.
pub fn engine(console: &mut Console) -> Result<()> {
    run(console, "kvm", "kvm")
}

/// `tests/kvm.rs`. The changes of engine have cases of their own, for longer, and so has the probe,
/// which a busy host may find slow at one time and not at another.
pub fn command(console: &mut Console, in_there: &InThere) -> Result<()> {
    make_folder(console, in_there)?;
    run(console, "command", "command-kvm --skip engine_is_changed --skip auto_takes")
}

/// What is about KVM in `tests/gdb`, and what people do with gdb on every engine.
pub fn gdb(console: &mut Console, in_there: &InThere) -> Result<()> {
    // Not those of the built-in guest, `the_built_in_guest_is_stepped` and `of_two_cpus`: the outer
    // QEMU, 10.0.2, does not live through them; in the first it ends by a segmentation fault. Two
    // CPUs are in `gdb_linux`.
    const TESTS: [&str; 5] = [
        "kvm::",
        "symbols_breakpoints_conditions",
        "registers_and_memory_are_written",
        "a_running_guest_is_attached",
        "a_condition_holds",
    ];
    if !in_there.has_gdb {
        return Ok(());
    }
    make_folder(console, in_there)?;
    run(console, "gdb", &format!("command-gdb {}", TESTS.join(" ")))
}

fn make_folder(console: &mut Console, in_there: &InThere) -> Result<()> {
    console.shell(&format!("mkdir -p {}", in_there.tests.folder.display())).map(drop)
}

/// Runs the binary and the tests that `words` name.
fn run(console: &mut Console, what: &str, words: &str) -> Result<()> {
    let line = format!("VOLVELLE_TEST_ENGINES=kvm {} --test-threads 1 2>&1", Tests::path(words));
    let text = console.shell(&line)?;
    let tally = Tally::parse(&text);
    ensure!(tally.passed > 0 && tally.failed == 0, "{what}: {text}");
    let skips = text.lines().filter(|line| line.contains(SKIPPED));
    let unexpected: Vec<&str> =
        skips.filter(|line| !MAY_BE_SKIPPED.iter().any(|skip| line.contains(skip))).collect();
    ensure!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    println!("  {} tests of {what} passed in there", tally.passed);
    Ok(())
}
