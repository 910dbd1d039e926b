//! `docs/outline.md`: every source file with the first sentence of its own header.

use std::fmt::Write;
use std::fs;

use crate::sources::{self, Source, root};

const PATH: &str = "docs/outline.md";
const HEAD: &str = "# Outline\n\n\
    Every source file with its first sentence, written by `cargo xtask bless`.\n";

#[test]
fn the_outline_is_what_the_files_say() {
    let outline = outline(&sources::all());
    let path = root().join(PATH);
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, outline).unwrap();
        return;
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    let stale = outline.lines().find(|line| !committed.lines().any(|other| other == *line));
    assert!(outline == committed, "{PATH} is stale (`cargo xtask bless`), see {stale:?}");
}

fn outline(sources: &[Source]) -> String {
    let mut text = HEAD.to_owned();
    let mut folder = "";
    // The tests of a module say nothing that the module does not.
    for source in sources.iter().filter(|source| !source.path.ends_with("/tests.rs")) {
        let (first, _) = source.path.split_once('/').unwrap();
        if first != folder {
            folder = first;
            write!(text, "\n## {folder}\n\n").unwrap();
        }
        writeln!(text, "- `{}`: {}", source.path, first_sentence(&source.text)).unwrap();
    }
    text
}

fn first_sentence(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//! "));
    let paragraph = lines.collect::<Vec<_>>().join(" ").replace("[`", "`").replace("`]", "`");
    match paragraph.split_once(". ") {
        Some((sentence, _)) => format!("{sentence}."),
        None => paragraph,
    }
}

#[test]
fn a_sentence_ends_at_its_full_stop_even_over_lines() {
    let header = "//! One chip of\n//! [`two`]. And more.\n//!\n//! Else.\n";
    assert_eq!(first_sentence(header), "One chip of `two`.");
}
