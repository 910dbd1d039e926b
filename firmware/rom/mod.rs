//! Assembles the built-in guest: one 64 KiB ROM image that ends at 4 GiB and at 1 MiB.
//!
//! Each *stage* is code of one width with a place of its own in the ROM and its entry at its first
//! byte, so stages find each other by the constants of [`layout`] and need no linker. What cannot
//! be known before assembly, the addresses of interrupt handlers, goes from the assembled stages
//! into the ROM's tables ([`tables`]).

mod arithmetic;
mod faults;
pub mod guests;
mod hypervisor;
mod image;
mod layout;
mod local_apic;
mod long_mode;
mod page_faults;
mod paging;
mod power_off;
mod print;
mod protected_mode;
mod real_mode;
mod ring3;
mod smp;
mod stage;
mod tables;
mod trap;

use std::error::Error;

use image::Image;

/// The built-in guest.
pub fn guest() -> Result<Vec<u8>, Box<dyn Error>> {
    let real = real_mode::stage()?;
    let protected = protected_mode::stage()?;
    let long = long_mode::stage()?;
    let mut image = Image::new();
    tables::place(&mut image, &real, &protected, &long)?;
    for stage in [real, protected, long] {
        image.place(stage.offset, &stage.code)?;
    }
    for stage in smp::second_cpu_stages()? {
        image.place(stage.offset, &stage.code)?;
    }
    image.place(layout::RESET_VECTOR, &real_mode::reset_vector()?)?;
    Ok(image.into_bytes())
}
