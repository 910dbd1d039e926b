//! The files under the rules.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold sources of ours.
const FOLDERS: &[&str] = &[
    "src", "cpu", "decoder", "firmware", "fuzz", "jit", "kvm", "machine", "memory", "tests",
    "symbols", "trace", "xtask",
];

/// A source file, with its path from the checkout's root.
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    /// The code that is shipped: lines before the test module, without comments and strings.
    pub fn code(&self) -> impl Iterator<Item = (usize, String)> {
        let lines = self.text.lines().take_while(|line| *line != "#[cfg(test)]");
        lines.enumerate().map(|(index, line)| (index + 1, without_comment_and_strings(line)))
    }

    /// Whether the file is a test, a bench or a fuzz target.
    pub fn is_test(&self) -> bool {
        ["tests", "benches", "fuzz"].iter().any(|part| self.path.split('/').any(|p| p == *part))
            || self.path.ends_with("/tests.rs")
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every Rust file of ours.
pub fn all() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for folder in FOLDERS {
        collect(&root, &root.join(folder), &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 10, "the sources were not found below {}", root.display());
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != "corpus" && name != "artifacts" {
                collect(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
}

/// Blanks string literals and drops a line comment. A literal that spans lines is seen as code,
/// which can only complain too much.
fn without_comment_and_strings(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars().peekable();
    let mut in_string = false;
    while let Some(char) = chars.next() {
        match char {
            '\\' if in_string => {
                chars.next();
            }
            '"' => in_string = !in_string,
            '\'' if !in_string && chars.peek() == Some(&'"') => {
                chars.next();
            }
            '/' if !in_string && chars.peek() == Some(&'/') => break,
            _ if in_string => {}
            _ => out.push(char),
        }
    }
    out
}

/// Whether a word stands in a line of code, not as a part of a longer one.
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_part(before) && !is_part(after)
    })
}

#[test]
fn comments_and_strings_are_no_code() {
    assert_eq!(without_comment_and_strings("a(\"unsafe \\\" b\"); // unsafe"), "a(); ");
    assert!(has_word("unsafe { x }", "unsafe"));
    assert!(!has_word("#![deny(unsafe_code)]", "unsafe"));
}
