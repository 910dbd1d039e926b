//! Volvelle: an x86-64 PC in software. This is the command.
#![forbid(unsafe_code)]

mod chardev;
mod config;
mod vm;

fn main() {}
