//! Size and shape of files. (The length of functions is clippy's `too_many_lines`.)

use crate::assert_none;
use crate::sources;

/// A file this long holds more than one idea.
const MAX_LINES: usize = 800;
/// rustfmt's `max_width`, which it does not apply to comments, strings and skipped tables.
const MAX_COLUMNS: usize = 100;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[(
    "jit/tests/differential/generate.rs",
    "one generator: each shape of operand beside the others",
)];
/// Files that may be wider, and why.
const WIDE_FILES: &[(&str, &str)] =
    &[("decoder/tests/facts.rs", "a table of instructions, one a line")];

/// Words of unfinished work, put together here so that this file does not hold them.
const UNFINISHED: &[&str] = &[concat!("todo", "!("), concat!("FIX", "ME"), concat!("dbg", "!(")];

#[test]
fn files_are_short() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        let lines = source.text.lines().count();
        let excepted = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        if lines > MAX_LINES && !excepted {
            complaints.push(format!("{}: {lines} lines, at most {MAX_LINES}", source.path));
        }
        if lines <= MAX_LINES && excepted {
            complaints.push(format!("{}: needs no exception any more", source.path));
        }
    }
    assert_none(&complaints);
}

#[test]
fn lines_are_narrow() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        if WIDE_FILES.iter().any(|(path, _)| *path == source.path) {
            continue;
        }
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS {
                complaints.push(format!("{}:{}: {columns} columns", source.path, index + 1));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let sources = sources::all();
    // `mod tests` in a file of its own is still a part of its module.
    let silent = sources
        .iter()
        .filter(|source| !source.text.starts_with("//! ") && !source.path.ends_with("/tests.rs"));
    assert_none(&silent.map(|source| format!("{}: no `//!`", source.path)).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_unfinished() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
                complaints.push(format!("{}:{}: {word}", source.path, index + 1));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn lints_are_expected_not_allowed() {
    let mut complaints = Vec::new();
    for source in sources::all() {
        for (number, line) in source.code() {
            if line.contains('#') && sources::has_word(&line, "allow") {
                complaints.push(format!("{}:{number}: `expect` with a reason", source.path));
            }
        }
    }
    assert_none(&complaints);
}
