//! Unsafe code stays on its islands.

use crate::assert_none;
use crate::sources::{self, Source, has_word};

/// Where unsafe code may be. ARCHITECTURE.md, "Unsafe islands", says what each is for.
const ISLANDS: &[&str] = &[
    "memory/src/ram.rs",
    "cpu/src/native/",
    "cpu/tests/differential/host.rs",
    "jit/src/code_memory.rs",
    "jit/src/host.rs",
    "jit/src/runtime.rs",
    "kvm/src/calls.rs",
    "kvm/src/kick.rs",
    "kvm/src/run_page.rs",
    "kvm/src/slots.rs",
    "kvm/src/standstill.rs",
    "kvm/src/xsave.rs",
];

/// Crates that hold an island. All others forbid unsafe code, so that nothing in them can opt in.
const CRATES_WITH_ISLANDS: &[&str] = &["cpu/", "jit/", "kvm/", "memory/"];

/// How far above an unsafe block its proof may start.
const PROOF_LINES: usize = 25;

fn is_island(source: &Source) -> bool {
    ISLANDS.iter().any(|island| source.path.starts_with(island))
}

fn uses_unsafe(source: &Source) -> bool {
    source.code().any(|(_, line)| has_word(&line, "unsafe"))
}

#[test]
fn unsafe_code_is_on_an_island() {
    let sources = sources::all();
    let strays = sources.iter().filter(|source| !is_island(source) && uses_unsafe(source));
    assert_none(
        &strays
            .map(|source| format!("{}: unsafe off the islands", source.path))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn island_files_say_why_they_need_it() {
    let sources = sources::all();
    let silent = sources.iter().filter(|source| {
        is_island(source) && uses_unsafe(source) && !source.text.contains("\n// UNSAFETY: ")
    });
    assert_none(
        &silent.map(|source| format!("{}: no `// UNSAFETY:`", source.path)).collect::<Vec<_>>(),
    );
}

#[test]
fn each_unsafe_block_has_its_proof() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        let text: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code() {
            let opens = line.contains("unsafe {") || line.contains("unsafe impl");
            let above = &text[number.saturating_sub(PROOF_LINES)..number];
            if opens && !above.iter().any(|line| line.trim_start().starts_with("// SAFETY:")) {
                complaints.push(format!("{}:{number}: no `// SAFETY:`", source.path));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn every_island_is_there() {
    let sources = sources::all();
    let sunken = ISLANDS.iter().filter(|island| {
        !sources.iter().any(|source| source.path.starts_with(**island) && uses_unsafe(source))
    });
    assert_none(
        &sunken
            .map(|island| format!("{island}: an island without unsafe code"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn crates_without_an_island_forbid_unsafe_code() {
    let sources = sources::all();
    let lax = sources.iter().filter(|source| {
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| source.path.ends_with(root));
        let has_island = CRATES_WITH_ISLANDS.iter().any(|name| source.path.starts_with(name));
        is_root && !has_island && !source.text.contains("#![forbid(unsafe_code)]")
    });
    let complaints = lax.map(|source| format!("{}: no #![forbid(unsafe_code)]", source.path));
    assert_none(&complaints.collect::<Vec<_>>());
}
