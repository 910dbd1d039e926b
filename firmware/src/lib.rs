//! The built-in boot ROM and guest: what Volvelle runs when it is given no kernel.
//!
//! [`IMAGE`] is a 64 KiB ROM whose last byte belongs at FFFF_FFFFh and, as on a PC, at F_FFFFh too.
//! The processor starts it as the hardware does, at F000:FFF0 with CS's base at FFFF_0000h, and it
//! walks through every mode: real, 16-bit and 32-bit protected, 64-bit, ring 3 and back. It prints
//! a line on COM1 for each of its [`STEPS`] and powers off by ACPI. It is a demonstration, a smoke
//! test that asks the same of every engine, and small enough for hosts on which kernels do not
//! boot.
//!
//! # What it needs
//!
//! A 16550 at 3F8h, 128 KiB of RAM at 0, the ROM at both places, a local APIC at FEE0_0000h whose
//! timer runs. It uses if present: fw_cfg at 510h for the number of processors, port 92h for A20,
//! an ICH9 or PIIX4 whose power-management block it places at 600h.
//!
//! # What it prints
//!
//! `volvelle: [step] finding` for a step that passed, and in the end `volvelle: all N steps
//! passed`; [`deviations`] compares. The same text comes from every engine and host, but for the
//! findings of the steps `cpuid` (vendor, brand string, hypervisor), `AVX` (whether offered) and
//! `processors` (how many). Two steps pass with a finding that begins with `not` where others'
//! processors fall short: `segment limit` under QEMU's TCG and under a KVM on the SVM that TCG
//! emulates, and `32-bit paging` under a KVM that pages in long mode only. (Such a KVM lacks LSL,
//! INT3 and IRETQ too, and ends the guest at the first of them with an emulation failure.)
//!
//! A step that fails is named (`volvelle: step [...] FAILED`) and is the last; so is an exception
//! that no step asked for. The guest then writes 1 to isa-debug-exit (port F4h), which ends a
//! machine that has it with status 3, before it powers off. Where power-off does not end the
//! machine it writes 0 there (status 1), and halts.
//!
//! # Sources
//!
//! `build.rs` assembles the image from `rom/`, one file a stage, with iced-x86's `CodeAssembler`.
//!
//! Neighbours: the command places [`IMAGE`] in guest memory; this crate knows no other of ours.
#![forbid(unsafe_code)]

pub mod guests;
mod steps;

pub use steps::{Finding, STEPS, Step, deviations};

/// The built-in guest: 64 KiB that end at 4 GiB and at 1 MiB.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.rom"));
