//! The rules of this project that neither the compiler nor clippy knows.
//!
//! Each rule is a test whose message says which file breaks it and how. Exceptions are rows of a
//! table, each with its reason; a row that is no longer needed fails too.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test reports by panicking")]

mod crates;
mod names;
mod outline;
mod shape;
mod sources;
mod time;
mod unsafety;

/// Fails with all complaints at once, one a line.
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
