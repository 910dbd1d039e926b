//! Memory operands of every form.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

use crate::entry::{Family, entry};

pub fn families() -> Vec<Family> {
    vec![single(), grouped(), relative(), based(), locked(), stack(), string(), page_end()]
}

fn single() -> Family {
    let entries = [
        entry("load", |a| a.mov(rax, qword_ptr(rbx))),
        entry("load with a displacement", |a| a.mov(eax, dword_ptr(rbx + 0x40))),
        entry("load with an index", |a| a.movzx(eax, byte_ptr(rbx + rcx * 4 + 8))),
        entry("store", |a| a.mov(qword_ptr(rbx), rax)),
        entry("store of a constant", |a| a.mov(dword_ptr(rbx + 4), 7)),
        entry("change", |a| a.add(qword_ptr(rbx), rax)),
        entry("comparison", |a| a.cmp(byte_ptr(rbx), 0)),
        entry("32-bit address", |a| a.mov(eax, dword_ptr(ebx + 8))),
        entry("by the stack pointer", |a| a.mov(rax, qword_ptr(rsp + 8))),
        entry("an absolute address", |a| a.mov(eax, dword_ptr(0x20_0000u64))),
        entry("load of CPL 3", |a| a.mov(rax, qword_ptr(rbx))).user(),
        entry("store of CPL 3", |a| a.mov(qword_ptr(rbx), rax)).user(),
        entry("32-bit code", |a| {
            a.mov(eax, dword_ptr(ebx + 4))?;
            a.add(dword_ptr(esi), eax)
        })
        .narrow(),
        entry("a table of bytes", |a| a.xlatb()),
    ];
    Family::new("memory-single", "accesses that are checked alone", entries)
}

fn grouped() -> Family {
    let entries = [
        entry("two loads", |a| {
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(rcx, qword_ptr(rbx + 8))
        }),
        entry("load and store", |a| {
            a.mov(rax, qword_ptr(rbx + 8))?;
            a.add(rax, rcx)?;
            a.mov(qword_ptr(rbx + 8), rax)
        }),
        entry("four stores", |a| {
            a.mov(qword_ptr(rdi), rax)?;
            a.mov(qword_ptr(rdi + 8), rax)?;
            a.mov(qword_ptr(rdi + 16), rax)?;
            a.mov(qword_ptr(rdi + 24), rax)
        }),
        entry("two bases", |a| {
            a.mov(rax, qword_ptr(rsi))?;
            a.mov(qword_ptr(rdi), rax)?;
            a.mov(rax, qword_ptr(rsi + 8))?;
            a.mov(qword_ptr(rdi + 8), rax)
        }),
        entry("a base that moves", |a| {
            a.mov(rax, qword_ptr(rsi))?;
            a.add(rsi, 8)?;
            a.add(rcx, qword_ptr(rsi))
        }),
        entry("by the stack pointer", |a| {
            a.mov(qword_ptr(rsp + 8), rax)?;
            a.mov(rcx, qword_ptr(rsp + 16))?;
            a.mov(qword_ptr(rsp + 24), rcx)
        }),
        entry("the block for groups over two pages", |a| {
            a.mov(rax, qword_ptr(r9 - 4))?;
            a.mov(rcx, qword_ptr(r9 + 4))
        })
        .ungrouped(),
    ];
    Family::new("memory-grouped", "accesses that share a check", entries)
}

/// An instruction with a register and memory at `target`, relative to RIP.
fn relative_to_rip(
    a: &mut CodeAssembler,
    code: Code,
    register: Register,
    target: i64,
) -> Result<(), IcedError> {
    let memory = MemoryOperand::with_base_displ(Register::RIP, target);
    let is_store = code == Code::Mov_rm64_r64;
    a.add_instruction(if is_store {
        Instruction::with2(code, memory, register)?
    } else {
        Instruction::with2(code, register, memory)?
    })
}

fn relative() -> Family {
    let entries = [
        entry("load", |a| relative_to_rip(a, Code::Mov_r64_rm64, Register::RAX, 0x20_0010)),
        entry("store", |a| relative_to_rip(a, Code::Mov_rm64_r64, Register::RCX, 0x20_0010)),
        entry("comparison", |a| relative_to_rip(a, Code::Cmp_r32_rm32, Register::EDX, 0x20_0020)),
        entry("address", |a| relative_to_rip(a, Code::Lea_r64_m, Register::RSI, 0x20_0010)),
        entry("load at CPL 3", |a| {
            relative_to_rip(a, Code::Mov_r64_rm64, Register::RAX, 0x20_0010)
        })
        .user(),
    ];
    Family::new("memory-rip", "addresses relative to RIP", entries)
}

fn based() -> Family {
    let entries = [
        entry("FS and a constant", |a| a.mov(rax, qword_ptr(0x20_0028u64).fs())),
        entry("GS and a constant", |a| a.mov(rax, qword_ptr(0x20_0028u64).gs())),
        entry("GS and a register", |a| a.add(qword_ptr(rbx + 8).gs(), rax)),
        entry("FS in 32-bit code", |a| a.mov(eax, dword_ptr(ebx).fs())).narrow(),
    ];
    Family::new("memory-segment", "addresses by the bases of FS and GS", entries)
}

fn locked() -> Family {
    let entries = [
        entry("addition", |a| a.lock().add(dword_ptr(rbx), eax)),
        entry("increment", |a| a.lock().inc(qword_ptr(rbx + 8))),
        entry("exchange and add", |a| a.lock().xadd(dword_ptr(rdx), ecx)),
        entry("bit", |a| a.lock().bts(dword_ptr(rsi), 3)),
    ];
    Family::new("lock", "locked instructions", entries)
}

fn stack() -> Family {
    let entries = [
        entry("push", |a| a.push(rbx)),
        entry("pop", |a| a.pop(rbx)),
        entry("prologue", |a| {
            a.push(rbp)?;
            a.mov(rbp, rsp)?;
            a.push(rbx)?;
            a.sub(rsp, 0x18)
        }),
        entry("epilogue", |a| {
            a.add(rsp, 0x18)?;
            a.pop(rbx)?;
            a.pop(rbp)
        }),
        entry("leave", |a| a.leave()),
        entry("constants and memory", |a| {
            a.push(7)?;
            a.push(qword_ptr(rbx))
        }),
        entry("from the context", |a| {
            a.push(r14)?;
            a.push(r13)?;
            a.pop(r15)
        }),
        entry("the stack pointer", |a| {
            a.push(rsp)?;
            a.pop(rsp)
        }),
        entry("CPL 3", |a| {
            a.push(rbp)?;
            a.push(rbx)
        })
        .user(),
        entry("32-bit code", |a| {
            a.push(ebp)?;
            a.mov(ebp, esp)?;
            a.pop(ebx)
        })
        .narrow(),
    ];
    Family::new("stack", "PUSH, POP, LEAVE", entries)
}

fn string() -> Family {
    let entries = [
        entry("MOVSQ", |a| a.movsq()),
        entry("STOSB", |a| a.stosb()),
        entry("LODSD", |a| a.lodsd()),
        entry("SCASB", |a| a.scasb()),
        entry("CMPSB", |a| a.cmpsb()),
        entry("REP MOVSB", |a| a.rep().movsb()),
        entry("REP MOVSQ", |a| a.rep().movsq()),
        entry("REP STOSQ", |a| a.rep().stosq()),
        entry("REPNE SCASB", |a| a.repne().scasb()),
        entry("REPE CMPSB", |a| a.repe().cmpsb()),
    ];
    Family::new("string", "string instructions; one element of REP", entries)
}

fn page_end() -> Family {
    let entries = [
        entry("an instruction over two pages", |a| a.add(rax, 0x1234_5678))
            .at(0xffd)
            .with_entries(),
        entry("the last instruction of a page", |a| a.add(rax, rbx)).at(0xffd),
        entry("a branch out of the page", |a| {
            a.cmp(rax, rbx)?;
            a.je(cpu::testing::CODE + 0x1010)
        })
        .at(0xff0),
        entry("a jump out of the page", |a| a.jmp(cpu::testing::CODE + 0x1010)).at(0xff0),
    ];
    Family::new("page-end", "code at the end of a page", entries)
}
