//! Assembles the ROM images that the library embeds.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

#[path = "rom/mod.rs"]
mod rom;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=rom");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("guest.rom"), rom::guest()?)?;
    for (name, image) in rom::guests::all()? {
        fs::write(out.join(name).with_extension("rom"), image)?;
    }
    Ok(())
}
