//! Where things are: the checkout, its target folder, its release binary.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout this program was built from.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder, `CARGO_TARGET_DIR` included.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The release build of the command.
pub fn release_binary() -> PathBuf {
    target().join("release/volvelle")
}

/// The cargo that runs us, started in the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
