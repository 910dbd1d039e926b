//! What a translator says of its run.

use cpu::testing::{DATA, PML4};
use iced_x86::code_asm::*;
use jit::Options;

use crate::{run, translator, with_program};

/// Loads with an index, by an address, and by a register twice, which is one look for both.
#[test]
fn looks_into_the_tlb_are_counted_where_they_are_asked_for() {
    let bench = with_program(|a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx + rcx))?;
        a.mov(rax, qword_ptr(DATA + 0x1000))?;
        a.add(rax, qword_ptr(rbx + 8))?;
        a.add(rax, qword_ptr(rbx + 16))?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    });
    let figures = |count_accesses| {
        let options = Options { count_accesses, ..Options::default() };
        let mut jit = translator(&bench, &options);
        run(&mut jit);
        jit.statistics().to_string()
    };
    let counted = figures(true);
    assert!(counted.contains("looks into the TLB 3000, hits 99.9"), "{counted}");
    assert!(!figures(false).contains("looks into the TLB"));
}

/// A page table's accessed bit that the guest has cleared is no difference: the comparison itself
/// must not set it.
#[test]
fn a_check_sets_no_accessed_bits() {
    const PRESENT_WRITABLE_USER: i32 = 7;
    let bench = with_program(|a| {
        a.mov(edx, PML4 as u32)?;
        for _ in 0..4 {
            let mut next = a.create_label();
            a.mov(byte_ptr(rdx), PRESENT_WRITABLE_USER)?;
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.nop()?;
        }
        a.hlt()
    });
    let options = Options { cross_check: true, ..Options::default() };
    let mut jit = translator(&bench, &options);
    run(&mut jit);
    assert_eq!(jit.statistics().mismatches(), 0);
}
