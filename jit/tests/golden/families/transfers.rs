//! Jumps, calls, returns, and what only the interpreter executes.

use cpu::testing::CODE;
use iced_x86::code_asm::*;

use crate::entry::{Family, entry};

/// Before and behind the entries' code, on its page.
const BEFORE: u64 = CODE + 0x80;
const BEHIND: u64 = CODE + 0x400;

pub fn families() -> Vec<Family> {
    vec![branch(), call(), superblock(), system(), counted()]
}

fn branch() -> Family {
    let entries = [
        entry("forward", |a| a.jmp(BEHIND)),
        entry("back", |a| a.jmp(BEFORE)),
        entry("on a comparison", |a| {
            a.cmp(rax, rbx)?;
            a.jl(BEHIND)
        }),
        entry("back on a comparison", |a| {
            a.dec(rcx)?;
            a.jne(BEFORE)
        }),
        entry("on flags that were spilled", |a| {
            a.cmp(rax, qword_ptr(rbx))?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.je(BEHIND)
        }),
        entry("two in a block", |a| {
            a.test(rax, rax)?;
            a.je(BEHIND)?;
            a.cmp(rcx, 5)?;
            a.ja(BEHIND + 0x40)
        }),
        entry("counted", |a| a.loop_(BEFORE + 0x40)),
        entry("on RCX", |a| a.jrcxz(BEHIND - 0x2c0)),
        entry("by a register", |a| a.jmp(r11)),
        entry("by R15", |a| a.jmp(r15)),
        entry("by memory", |a| a.jmp(qword_ptr(rbx + rcx * 8))),
        entry("by a register at CPL 3", |a| a.jmp(r11)).user(),
        entry("32-bit code", |a| {
            a.cmp(eax, ebx)?;
            a.jb(BEHIND)
        })
        .narrow(),
    ];
    Family::new("branch", "jumps", entries)
}

fn superblock() -> Family {
    let entries = [
        entry("a loop", |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(rax, rdx)?;
            a.dec(ecx)?;
            a.jne(top)
        })
        .hot(4),
        entry("accesses of all turns", |a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.add(rax, qword_ptr(rbx))?;
            a.add(rbx, 8)?;
            a.dec(ecx)?;
            a.jne(top)
        })
        .hot(4),
        entry("a way inside that is taken", |a| {
            let (mut top, mut over) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.test(edx, edx)?;
            a.jne(over)?;
            a.nop()?;
            a.set_label(&mut over)?;
            a.dec(ecx)?;
            a.jne(top)
        })
        .hot(2),
        entry("a jump inside", |a| {
            let (mut top, mut over) = (a.create_label(), a.create_label());
            a.set_label(&mut top)?;
            a.inc(rax)?;
            a.jmp(over)?;
            a.nop()?;
            a.set_label(&mut over)?;
            a.dec(ecx)?;
            a.jne(top)
        })
        .hot(2),
    ];
    Family::new("superblock", "superblocks", entries)
}

fn call() -> Family {
    let entries = [
        entry("call", |a| a.call(BEHIND)),
        entry("call by a register", |a| a.call(r11)),
        entry("call by memory", |a| a.call(qword_ptr(rbx + 8))),
        entry("return", |a| a.ret()),
        entry("return that releases", |a| a.ret_1(16)),
        entry("call at CPL 3", |a| a.call(BEHIND)).user(),
        entry("return at CPL 3", |a| a.ret()).user(),
        entry("epilogue and return", |a| {
            a.pop(rbx)?;
            a.pop(rbp)?;
            a.ret()
        }),
        entry("call in 32-bit code", |a| a.call(BEHIND)).narrow(),
        entry("return in 32-bit code", |a| a.ret()).narrow(),
    ];
    Family::new("call", "calls and returns", entries)
}

fn system() -> Family {
    let entries = [
        entry("CPUID", |a| a.cpuid()),
        entry("RDTSC", |a| a.rdtsc()),
        entry("MOV from CR3", |a| a.mov(rax, cr3)),
        entry("MOV to CR3", |a| a.mov(cr3, rax)),
        entry("RDMSR", |a| a.rdmsr()),
        entry("IN", |a| a.in_(al, dx)),
        entry("HLT", |a| a.hlt()),
        entry("between others", |a| {
            a.add(rax, rbx)?;
            a.swapgs()?;
            a.add(rcx, rdx)
        }),
    ];
    Family::new("system", "instructions of the interpreter's", entries)
}

fn counted() -> Family {
    let entries = [
        entry("plain", |a| {
            a.add(rax, rbx)?;
            a.mov(rcx, qword_ptr(rdx))
        })
        .counting()
        .with_entries(),
        entry("a branch in the middle", |a| {
            a.cmp(rax, rbx)?;
            a.je(BEHIND)?;
            a.inc(rcx)
        })
        .counting(),
        entry("a call", |a| a.call(BEHIND)).counting(),
        entry("a return", |a| a.ret()).counting(),
    ];
    Family::new("counted", "blocks that count instructions", entries)
}
