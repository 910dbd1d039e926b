//! Small guests for benches and whole-machine tests: one way into 64-bit mode, many bodies.

mod clocks;
mod echo;
mod idle;
mod integer_loop;
mod level;
mod relay;

use std::error::Error;

use iced_x86::code_asm::*;

use crate::rom::image::Image;
use crate::rom::layout::{
    GDT, GDT_TEMPLATE, GDTR, IDTR64, LONG_MODE, PROTECTED_MODE, REAL_MODE, RESET_VECTOR, ROM_BASE,
    SCRATCH, SECOND_CPU_LONG, STACK_TOP, selector,
};
use crate::rom::power_off::debug_exit;
use crate::rom::print::set_up_com1;
use crate::rom::real_mode::{CR0_PE, clear_mailbox, copy_table, reset_vector};
use crate::rom::smp::second_cpu_entry;
use crate::rom::stage::{Assembled, Emit, Stage, Width};
use crate::rom::{paging, tables, trap};

/// Emits what a guest does in one mode.
type Body = fn(&mut Stage) -> Emit;

/// A guest: its name, and what it does in real mode and then in 64-bit mode.
struct Guest {
    name: &'static str,
    real: Body,
    long: Body,
    /// What the other processors do in 64-bit mode, if it starts them.
    other: Option<Body>,
}

const GUESTS: [Guest; 8] = [
    Guest { name: "integer_loop_64", real: nothing, long: integer_loop::run_64, other: None },
    Guest {
        name: "integer_loop_16",
        real: integer_loop::run_16,
        long: integer_loop::report,
        other: None,
    },
    Guest { name: "idle", real: nothing, long: idle::run, other: None },
    Guest { name: "triple_fault", real: nothing, long: triple_fault, other: None },
    Guest { name: "echo", real: nothing, long: echo::run, other: None },
    Guest { name: "clocks", real: nothing, long: clocks::run, other: Some(clocks::run_other) },
    Guest { name: "level", real: nothing, long: level::run, other: None },
    Guest { name: "relay", real: nothing, long: relay::run, other: Some(relay::run_other) },
];

/// A guest's name and image.
type Named = (&'static str, Vec<u8>);

/// All of them, by name.
pub fn all() -> Result<Vec<Named>, Box<dyn Error>> {
    GUESTS.iter().map(|guest| Ok((guest.name, image(guest)?))).collect()
}

fn image(guest: &Guest) -> Result<Vec<u8>, Box<dyn Error>> {
    let long = long_stage(guest.long)?;
    let mut image = Image::new();
    tables::place_gdt(&mut image)?;
    tables::place_idt64(&mut image, &long)?;
    for stage in [real_stage(guest.real)?, protected_stage()?, long] {
        image.place(stage.offset, &stage.code)?;
    }
    if let Some(body) = guest.other {
        let mut stage = Stage::new(Width::Bits64, SECOND_CPU_LONG)?;
        body(&mut stage)?;
        let [real, protected] = second_cpu_entry()?;
        for stage in [real, protected, stage.finish()?] {
            image.place(stage.offset, &stage.code)?;
        }
    }
    image.place(RESET_VECTOR, &reset_vector()?)?;
    Ok(image.into_bytes())
}

fn nothing(_: &mut Stage) -> Emit {
    Ok(())
}

fn real_stage(body: Body) -> Result<Assembled, Box<dyn Error>> {
    let mut stage = Stage::new(Width::Bits16, REAL_MODE)?;
    let s = &mut stage;
    clear_mailbox(s)?;
    s.mov(ax, cs)?;
    s.mov(ds, ax)?;
    copy_table(s, GDT_TEMPLATE, GDT, tables::GDT_BYTES)?;
    s.xor(ax, ax)?;
    s.mov(ds, ax)?;
    body(s)?;
    s.lgdt(ptr(GDTR as u32).cs())?;
    s.mov(eax, cr0)?;
    s.or(eax, CR0_PE)?;
    s.mov(cr0, eax)?;
    s.enter(selector::CODE32, Width::Bits32, PROTECTED_MODE)?;
    Ok(stage.finish()?)
}

fn protected_stage() -> Result<Assembled, Box<dyn Error>> {
    let mut stage = Stage::new(Width::Bits32, PROTECTED_MODE)?;
    let s = &mut stage;
    s.mov(eax, u32::from(selector::DATA32))?;
    for segment in [ds, es, ss] {
        s.mov(segment, ax)?;
    }
    paging::build_four_level(s)?;
    paging::enable_long_mode(s)?;
    s.enter(selector::CODE64, Width::Bits64, LONG_MODE)?;
    Ok(stage.finish()?)
}

fn long_stage(body: Body) -> Result<Assembled, Box<dyn Error>> {
    let mut stage = Stage::new(Width::Bits64, LONG_MODE)?;
    let s = &mut stage;
    s.mov(esp, STACK_TOP)?;
    s.lidt(ptr(IDTR64 as u64 + u64::from(ROM_BASE)))?;
    set_up_com1(s)?;
    body(s)?;
    trap::handlers64(s)?;
    Ok(stage.finish_with_steps()?)
}

/// Ends the guest by isa-debug-exit with 0 (status 1), and by power-off where there is none.
fn end(s: &mut Stage) -> Emit {
    debug_exit(s, 0)?;
    let succeed = s.succeed;
    s.jmp(succeed)
}

/// An IDT without entries: the exception has no handler, nor has the double fault that follows.
fn triple_fault(s: &mut Stage) -> Emit {
    s.say("triple fault\r\n")?;
    s.mov(qword_ptr(SCRATCH), 0)?;
    s.mov(word_ptr(SCRATCH + 8), 0)?;
    s.lidt(ptr(SCRATCH))?;
    s.ud2()
}
