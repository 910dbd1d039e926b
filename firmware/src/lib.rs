//! The built-in boot ROM and guest: what Volvelle runs when it is given no kernel.
//!
//! [`IMAGE`] is a 64 KiB ROM whose last byte belongs at FFFF_FFFFh and, as on a PC, at F_FFFFh too.
//! The processor starts it as the hardware does, at F000:FFF0 with CS's base at FFFF_0000h, and it
//! walks through every mode: real, 16-bit and 32-bit protected, 64-bit, ring 3 and back. It prints a
//! line on COM1 for each of its [`STEPS`] and powers off by ACPI. It is a demonstration, a smoke
//! test that asks the same of every engine, and small enough for hosts on which kernels do not boot.
//!
//! # What it needs
//!
//! A 16550 at 3F8h, 128 KiB of RAM at 0, the ROM at both places, a local APIC at FEE0_0000h whose
//! timer runs. It uses if present: fw_cfg at 510h for the number of processors, port 92h for A20,
//! an ICH9 or PIIX4 whose power-management block it places at 600h.
//!
//! # What it prints
//!
//! `volvelle: [step] finding` for a step that passed, and in the end [`PASSED`]. The same text comes
//! from every engine and host, but for the findings of the steps `cpuid` (vendor, brand string,
//! hypervisor), `AVX` (whether offered) and `processors` (how many). Two steps pass with a finding
//! that begins with `not` where others' processors fall short: `segment limit` under QEMU's TCG and
//! `32-bit paging` under a KVM that pages in long mode only.
//!
//! A step that fails is named (`volvelle: step [...] FAILED`) and is the last; so is an exception
//! that no step asked for. The guest then writes 1 to isa-debug-exit (port F4h), which ends a
//! machine that has it with status 3, before it powers off. Where power-off does not end the machine
//! it writes 0 there (status 1), and halts.
//!
//! # Sources
//!
//! `build.rs` assembles the image from `rom/`, one file a stage, with iced-x86's `CodeAssembler`.
//!
//! Neighbours: the command places [`IMAGE`] in guest memory; this crate knows no other of ours.
#![forbid(unsafe_code)]

/// The built-in guest: 64 KiB that end at 4 GiB and at 1 MiB.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.rom"));

/// How the line begins that the guest prints when it is through; the number of steps follows.
pub const PASSED: &str = "volvelle: all ";

/// A step of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The name in brackets at the head of its line.
    pub name: &'static str,
    /// What it checks.
    pub checks: &'static str,
}

/// The steps in the order in which they run.
#[rustfmt::skip]
pub const STEPS: &[Step] = &[
    step("real mode", "the far jump at the reset vector, RAM, and that A20 is open"),
    step("INT 60h", "an interrupt through the IVT; IRET restores FLAGS and SP"),
    step("real-mode #DE", "a divide error through vector 0, with the DIV's own IP"),
    step("string", "REP MOVSB upwards and downwards over overlapping ranges, REPE SCASB"),
    step("segment wrap", "16-bit effective addresses and DI wrap at 64 KiB"),
    step("16-bit protected mode", "CR0.PE, a far return to a new CS, a segment base"),
    step("protected mode", "flat 32-bit segments; the ROM's two copies are the same"),
    step("segment limit", "#GP(0) one byte past a data segment's limit"),
    step("selectors", "#NP and #GP with the selector as error code"),
    step("32-bit paging", "two pages of one frame; accessed and dirty bits"),
    step("long mode", "EFER.LMA, RIP-relative data, zero extension of 32-bit results"),
    step("LSL and VERR", "descriptors read and judged by LSL, LAR, VERR and VERW"),
    step("cpuid", "the features every x86-64 has; prints vendor, brand, hypervisor"),
    step("rdtsc", "the time-stamp counter never goes back, and moves"),
    step("integer", "128-bit MUL and DIV, RCR and ROL"),
    step("x87", "FILD, FMUL, FDIVP, FISTP, and the status word after them"),
    step("SSE2", "scalar doubles, packed integers, conversions"),
    step("AVX", "XCR0 and 256-bit arithmetic, if CPUID offers them"),
    step("#UD", "UD2, and LOCK on a register"),
    step("#DE", "division by zero, and a quotient that does not fit"),
    step("#BP", "INT3 saves the next instruction's RIP"),
    step("#GP", "a non-canonical address; a vector beyond the IDT's limit"),
    step("page fault", "CR2 and error code; the handler maps the page, the write is retried"),
    step("write protection", "CR0.WP holds ring 0 back, and nothing is written"),
    step("no execute", "EFER.NXE and an instruction fetch"),
    step("timer", "a one-shot interrupt of the local APIC's timer"),
    step("CR8", "the task priority holds an interrupt back in IRR"),
    step("hlt", "STI's shadow and HLT, woken by the timer"),
    step("ring 3", "IRETQ to CPL 3; OUT is #GP(0), the supervisor's page #PF(5)"),
    step("syscall", "SYSCALL's RCX, R11, FMASK, CS and SS; SYSRET"),
    step("INT 80h", "a gate of DPL 3 and the stack from the TSS"),
    step("processors", "INIT and SIPI; all processors count at once with LOCK"),
];

const fn step(name: &'static str, checks: &'static str) -> Step {
    Step { name, checks }
}
