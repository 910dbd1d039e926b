//! Segmentation, paging and memory accesses, against the manual's rules.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod access;
mod cache;
mod paged;
mod rights;
mod segments;
mod walk;
