//! What the translator makes of guest code, instruction by instruction, as text files that reviews
//! can read: one file per family of instructions, and a ledger of how many host instructions each
//! family costs.
//!
//! `BLESS=1 cargo test -p jit --test golden` rewrites the files and `docs/translator-ledger.md`.
#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod block;
mod entry;
mod families;
mod ledger;
mod listing;
mod names;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::entry::Family;
use crate::ledger::Line;
use crate::names::Names;

/// What separates two entries of a file.
const SEPARATOR: &str = "\n\n";

/// Host features without which other code would come out.
fn host_is_common() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("fma")
}

fn golden_path(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{family}.txt"))
}

fn ledger_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/translator-ledger.md")
}

/// The text of a family's file, and what it costs.
fn describe(family: &Family, names: &Names) -> (String, Line) {
    let mut line = Line::new(family.name, family.about);
    let mut text = format!("# {}", family.about);
    for entry in &family.entries {
        let listing = listing::of(entry, names);
        line.guest += listing.guest;
        line.host += listing.host;
        write!(text, "{SEPARATOR}{}", listing.text).expect("text");
    }
    text.push('\n');
    (text, line)
}

/// The first entry in which two texts differ, side by side.
fn first_difference(family: &str, committed: &str, now: &str) -> String {
    let mut pairs = committed.split(SEPARATOR).zip(now.split(SEPARATOR));
    let Some((before, after)) = pairs.find(|(before, after)| before != after) else {
        return format!("{family}: the entries are not the same ones");
    };
    let (before, after): (Vec<&str>, Vec<&str>) =
        (before.lines().collect(), after.lines().collect());
    let head = before.iter().zip(&after).take_while(|(b, a)| b == a).count();
    let ends = before[head..].iter().rev().zip(after[head..].iter().rev());
    let tail = ends.take_while(|(b, a)| b == a).count();
    let mut text = format!("{family}:\n");
    let mut put = |mark: char, lines: &[&str]| {
        for line in lines {
            writeln!(text, "{mark} {line}").expect("text");
        }
    };
    put(' ', &before[..head]);
    put('-', &before[head..before.len() - tail]);
    put('+', &after[head..after.len() - tail]);
    put(' ', &before[before.len() - tail..]);
    text
}

#[test]
fn translated_code_is_what_was_reviewed() {
    if !host_is_common() {
        println!("left out: the code is that of a host with AVX2, BMI2 and FMA");
        return;
    }
    let is_blessing = std::env::var_os("BLESS").is_some();
    let names = names::find();
    let mut differences = Vec::new();
    let mut lines = Vec::new();
    let mut check = |name: &str, path: &Path, now: &str| {
        if is_blessing {
            fs::write(path, now).expect("a file");
        }
        let committed = fs::read_to_string(path).unwrap_or_default();
        if committed != now {
            differences.push(first_difference(name, &committed, now));
        }
    };
    for family in families::all() {
        let (text, line) = describe(&family, &names);
        check(family.name, &golden_path(family.name), &text);
        lines.push(line);
    }
    check("ledger", &ledger_path(), &ledger::page(&lines));
    assert!(
        differences.is_empty(),
        "{} files differ (BLESS=1 cargo test -p jit --test golden):\n{}",
        differences.len(),
        differences.join("\n")
    );
}

#[test]
fn no_file_is_left_over() {
    let names: Vec<&str> = families::all().iter().map(|family| family.name).collect();
    let folder = golden_path("x").parent().expect("a folder").to_path_buf();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_golden = path.extension().is_some_and(|extension| extension == "txt");
        assert!(!is_golden || names.contains(&stem), "{} is no family's", path.display());
    }
}

#[test]
fn a_difference_shows_its_entry() {
    let shown = first_difference("mov", "# a\n\n== x\n1\n2\n3", "# a\n\n== x\n1\n4\n3");
    assert_eq!(shown, "mov:\n  == x\n  1\n- 2\n+ 4\n  3\n");
}
