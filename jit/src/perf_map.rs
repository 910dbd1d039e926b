//! The map of translated blocks that perf reads.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A file `/tmp/perf-PID.map` under construction.
#[derive(Debug)]
pub struct PerfMap {
    file: Mutex<File>,
}

impl PerfMap {
    /// Creates the file.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: Mutex::new(File::create(path)?) })
    }

    /// Adds `bytes` bytes of code at host address `start`, made from the guest's `rip`.
    pub(crate) fn add(&self, start: usize, bytes: usize, rip: u64) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(file, "{start:x} {bytes:x} guest_{rip:x}") {
            log::warn!(target: "jit", "cannot write the map for perf: {error}");
        }
    }
}
