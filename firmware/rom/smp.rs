//! Starting the other processors (SDM Vol. 3A, "MP Initialization Protocol Algorithm") and counting
//! with them.
//!
//! They start at F000:0000, in the ROM, so nothing is copied. They use the first processor's tables
//! and no stack.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::rom::layout::{
    COUNT_NOW, CPU_COUNT, CPUS_ARRIVED, CPUS_DONE, GDTR, ROM_SEGMENT, SECOND_CPU_LONG,
    SECOND_CPU_PROTECTED, SECOND_CPU_REAL, SHARED_COUNTER, port, selector,
};
use crate::rom::local_apic::{register, wait_until, write};
use crate::rom::paging::enable_long_mode;
use crate::rom::power_off::halt_forever;
use crate::rom::print::print_decimal;
use crate::rom::real_mode::CR0_PE;
use crate::rom::stage::{Assembled, Emit, Stage, Step, Width};

/// How often each processor increments the shared counter.
const INCREMENTS: u32 = 1000;
/// fw_cfg: the signature's selector.
const FW_CFG_SIGNATURE: u32 = 0x0000;
/// fw_cfg: the number of processors' selector.
const FW_CFG_NB_CPUS: u32 = 0x0005;
/// ICR: INIT, level assert, to all but this processor.
const INIT_OTHERS: u32 = 0b11 << 18 | 1 << 14 | 0b101 << 8;
/// ICR: start-up at F000:0000, to all but this processor.
const STARTUP_OTHERS: u32 = 0b11 << 18 | 1 << 14 | 0b110 << 8 | (ROM_SEGMENT as u32 >> 8);
/// Rounds of a PAUSE loop between INIT and SIPI, and between the two SIPIs.
const STARTUP_DELAY: u32 = 20_000;

/// The other processors' way from the SIPI to 64-bit mode, and what they do there.
pub fn second_cpu_stages() -> Result<[Assembled; 3], IcedError> {
    let [real, protected] = second_cpu_entry()?;
    Ok([real, protected, second_cpu_long()?])
}

/// The other processors' way from the SIPI to a stage at [`SECOND_CPU_LONG`].
pub fn second_cpu_entry() -> Result<[Assembled; 2], IcedError> {
    Ok([second_cpu_real()?, second_cpu_protected()?])
}

fn second_cpu_real() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits16, SECOND_CPU_REAL)?;
    let s = &mut stage;
    s.cli()?;
    s.lgdt(ptr(GDTR as u32).cs())?;
    s.mov(eax, cr0)?;
    s.or(eax, CR0_PE)?;
    s.mov(cr0, eax)?;
    s.enter(selector::CODE32, Width::Bits32, SECOND_CPU_PROTECTED)?;
    stage.finish()
}

fn second_cpu_protected() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits32, SECOND_CPU_PROTECTED)?;
    let s = &mut stage;
    s.mov(eax, u32::from(selector::DATA32))?;
    for segment in [ds, es, ss] {
        s.mov(segment, ax)?;
    }
    enable_long_mode(s)?;
    s.enter(selector::CODE64, Width::Bits64, SECOND_CPU_LONG)?;
    stage.finish()
}

/// Waits until all are here, so that they count at once.
fn second_cpu_long() -> Result<Assembled, IcedError> {
    let mut stage = Stage::new(Width::Bits64, SECOND_CPU_LONG)?;
    let s = &mut stage;
    arrive(s)?;
    count(s)?;
    halt_forever(s)?;
    stage.finish()
}

/// Says that this processor is here, and waits for the word to begin.
pub fn arrive(s: &mut Stage) -> Emit {
    let mut wait = s.create_label();
    s.lock().inc(dword_ptr(CPUS_ARRIVED))?;
    s.set_label(&mut wait)?;
    s.pause()?;
    s.cmp(dword_ptr(COUNT_NOW), 0)?;
    s.je(wait)
}

/// What every processor does: counts, then tells that it is done.
fn count(s: &mut Stage) -> Emit {
    let mut again = s.create_label();
    s.mov(ecx, INCREMENTS)?;
    s.set_label(&mut again)?;
    s.lock().inc(dword_ptr(SHARED_COUNTER))?;
    s.dec(ecx)?;
    s.jne(again)?;
    s.lock().inc(dword_ptr(CPUS_DONE))
}

/// The step: all processors count at once, and no increment is lost.
pub fn step(s: &mut Stage) -> Emit {
    let step = Step::new(s, "processors");
    let mut alone = s.create_label();
    read_cpu_count(s)?;
    s.cmp(dword_ptr(CPU_COUNT), 1)?;
    s.je(alone)?;
    start_others(s)?;
    s.mov(ebx, dword_ptr(CPU_COUNT))?;
    s.dec(ebx)?;
    wait_until(s, &step, |s| s.cmp(dword_ptr(CPUS_ARRIVED), ebx))?;
    s.set_label(&mut alone)?;
    s.mov(dword_ptr(COUNT_NOW), 1)?;
    count(s)?;
    s.mov(ebx, dword_ptr(CPU_COUNT))?;
    wait_until(s, &step, |s| s.cmp(dword_ptr(CPUS_DONE), ebx))?;
    s.imul_3(eax, ebx, INCREMENTS)?;
    s.cmp(dword_ptr(SHARED_COUNTER), eax)?;
    s.jne(step.failed)?;
    step.passed_with(s, |s| {
        s.mov(eax, ebx)?;
        print_decimal(s)?;
        s.say(" in long mode, the shared counter is ")?;
        s.mov(eax, dword_ptr(SHARED_COUNTER))?;
        print_decimal(s)
    })
}

/// Starts all others; the local APIC's base is in R12. The second SIPI is the protocol's; a
/// processor that the first one started ignores it.
pub fn start_others(s: &mut Stage) -> Emit {
    for command in [INIT_OTHERS, STARTUP_OTHERS, STARTUP_OTHERS] {
        write(s, register::ICR_LOW, command)?;
        delay(s)?;
    }
    Ok(())
}

fn delay(s: &mut Stage) -> Emit {
    let mut again = s.create_label();
    s.mov(ecx, STARTUP_DELAY)?;
    s.set_label(&mut again)?;
    s.pause()?;
    s.dec(ecx)?;
    s.jne(again)
}

/// Stores the number of processors that fw_cfg tells; 1 where there is no fw_cfg.
pub fn read_cpu_count(s: &mut Stage) -> Emit {
    let mut known = s.create_label();
    s.mov(dword_ptr(CPU_COUNT), 1)?;
    select(s, FW_CFG_SIGNATURE)?;
    for byte in b"QEMU" {
        s.in_(al, dx)?;
        s.cmp(al, u32::from(*byte))?;
        s.jne(known)?;
    }
    select(s, FW_CFG_NB_CPUS)?;
    s.in_(al, dx)?;
    s.mov(byte_ptr(CPU_COUNT), al)?;
    s.in_(al, dx)?;
    s.mov(byte_ptr(CPU_COUNT + 1), al)?;
    s.set_label(&mut known)?;
    s.nop()
}

/// Selects a fw_cfg item and leaves the data port in DX.
fn select(s: &mut Stage, item: u32) -> Emit {
    s.mov(eax, item)?;
    s.mov(edx, u32::from(port::FW_CFG_SELECTOR))?;
    s.out(dx, ax)?;
    s.mov(edx, u32::from(port::FW_CFG_DATA))
}
