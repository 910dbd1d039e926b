//! Counts of tests, out of what test runners print.

use std::ops::AddAssign;

/// How many tests had which end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Tally {
    /// Adds up the summary lines of `cargo test` and `cargo nextest run` in a text.
    pub fn parse(text: &str) -> Self {
        let mut sum = Self::default();
        for line in text.lines() {
            // What nextest repeats of a failed test's own runner is indented.
            if line.starts_with("test result: ") || line.trim_start().starts_with("Summary [") {
                sum += Self::parse_summary(line);
            }
        }
        sum
    }

    /// Reads pairs of a number and what it counts.
    fn parse_summary(line: &str) -> Self {
        let mut tally = Self::default();
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].trim_start_matches('(').parse::<u64>() else { continue };
            match pair[1].trim_end_matches([',', ';', ':', ')']) {
                "passed" => tally.passed += count,
                // nextest: "1 timed out", "1 exec failed".
                "failed" | "timed" | "exec" => tally.failed += count,
                "ignored" | "skipped" => tally.skipped += count,
                _ => {}
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(Tally::parse(text), Tally { passed, failed, skipped }, "{text}");
    }

    #[test]
    fn the_binaries_of_cargo_test_are_added_up() {
        let binary = "test result: ok. 9 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out";
        let broken = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured";
        check(&format!("{binary}\nother lines\n{broken}\n"), 12, 1, 2);
    }

    #[test]
    fn nextest_counts_time_outs_as_failures() {
        check("     Summary [   0.5s] 12 tests run: 12 passed (2 slow), 1 skipped", 12, 0, 1);
        check("     Summary [  9.1s] 7/9 tests run: 4 passed, 2 failed, 1 timed out", 4, 3, 0);
    }

    #[test]
    fn a_failure_that_nextest_shows_in_full_counts_once() {
        let own = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured";
        check(&format!("{own}\n     Summary [   0.5s] 3 tests run: 2 passed, 1 failed"), 2, 1, 0);
    }

    #[test]
    fn a_test_that_prints_such_words_is_not_counted() {
        check("7 passed, 3 failed", 0, 0, 0);
    }
}
