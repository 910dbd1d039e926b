//! Counted stacks, one a line as flame graph tools read them: `outer;inner;innermost 12`.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// Stacks that are kept apart at most: what comes later counts as one.
const STACKS_MAX: usize = 200_000;
/// Bytes of them at most: guests and traces say how deep stacks are and how long names.
const BYTES_MAX: usize = 256 << 20;
/// Where later ones go.
const OTHERS: &str = "[too many stacks]";

/// Stacks by the names of their functions, the outermost first, and how much each counts.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    counts: BTreeMap<String, u64>,
    bytes: usize,
    total: u64,
}

impl Folded {
    /// Adds `count` to a stack, whose functions are given from the outermost on.
    pub(crate) fn add<'a>(&mut self, functions: impl Iterator<Item = &'a str>, count: u64) {
        let mut key = String::new();
        for function in functions {
            if !key.is_empty() {
                key.push(';');
            }
            // The two characters that mean something in a line.
            key.extend(function.chars().map(|c| if matches!(c, ';' | '\n') { ':' } else { c }));
        }
        self.total = self.total.saturating_add(count);
        let sum = match self.counts.get_mut(&key) {
            Some(sum) => sum,
            None => {
                let is_room = self.counts.len() < STACKS_MAX && self.bytes + key.len() <= BYTES_MAX;
                self.bytes += if is_room { key.len() } else { 0 };
                self.counts.entry(if is_room { key } else { OTHERS.to_owned() }).or_default()
            }
        };
        *sum = sum.saturating_add(count);
    }

    /// All counts together.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The stacks with their counts.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(stack, count)| (stack.as_str(), *count))
    }

    /// Writes them.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.stacks().try_for_each(|(stack, count)| writeln!(out, "{stack} {count}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_of_the_same_functions_are_one_line() {
        let mut folded = Folded::default();
        folded.add(["main", "a;b"].into_iter(), 2);
        folded.add(["main"].into_iter(), 1);
        folded.add(["main", "a;b"].into_iter(), 3);
        let mut text = Vec::new();
        folded.write(&mut text).expect("a Vec takes all");
        assert_eq!(String::from_utf8_lossy(&text), "main 1\nmain;a:b 5\n");
        assert_eq!(folded.total(), 6);
    }

    #[test]
    fn stacks_without_end_are_counted_together() {
        let mut folded = Folded::default();
        for number in 0..STACKS_MAX + 10 {
            folded.add([number.to_string().as_str()].into_iter(), 1);
        }
        assert_eq!(folded.stacks().count(), STACKS_MAX + 1);
        assert!(folded.stacks().any(|stack| stack == (OTHERS, 10)));
    }

    #[test]
    fn names_without_end_are_counted_together() {
        let mut folded = Folded { bytes: BYTES_MAX - 4, ..Folded::default() };
        for name in ["main", "read", "main", "write"] {
            folded.add([name].into_iter(), 1);
        }
        assert_eq!(folded.stacks().collect::<Vec<_>>(), [(OTHERS, 2), ("main", 2)]);
    }
}
