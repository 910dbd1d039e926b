//! Integer instructions on registers, and what becomes of their flags.

use iced_x86::code_asm::*;

use crate::entry::{Family, entry};

pub fn families() -> Vec<Family> {
    vec![
        alu(),
        mov(),
        shift(),
        muldiv(),
        bit(),
        condition(),
        exchange(),
        flag(),
        extra_registers(),
        high_bytes(),
        flags_kept(),
    ]
}

fn alu() -> Family {
    let entries = [
        entry("two registers", |a| {
            a.add(rax, rbx)?;
            a.sub(ecx, edx)?;
            a.xor(si, di)?;
            a.cmp(r8b, r9b)
        }),
        entry("constants", |a| {
            a.add(rax, 8)?;
            a.sub(ecx, 0x1234_5678)?;
            a.and(r12d, 0xff)?;
            a.cmp(bl, 7)
        }),
        entry("with carry", |a| {
            a.add(rax, rbx)?;
            a.adc(rcx, rdx)?;
            a.sbb(rsi, rdi)
        }),
        entry("one operand", |a| {
            a.inc(rax)?;
            a.dec(ecx)?;
            a.neg(rdx)?;
            a.not(rbx)
        }),
        entry("the stack pointer", |a| {
            a.sub(rsp, 0x28)?;
            a.and(rsp, -16)?;
            a.add(rsp, rax)?;
            a.cmp(rbp, rsp)
        }),
        entry("tests", |a| {
            a.test(rax, rax)?;
            a.test(cl, 1)?;
            a.test(r10d, r11d)
        }),
        entry("32-bit code", |a| {
            a.add(eax, ebx)?;
            a.sub(ecx, 1)?;
            a.inc(edx)?;
            a.cmp(esp, ebp)
        })
        .narrow(),
    ];
    Family::new("alu", "additions, logic and comparisons of registers", entries)
}

fn mov() -> Family {
    let entries = [
        entry("registers", |a| {
            a.mov(rax, rbx)?;
            a.mov(ecx, r8d)?;
            a.mov(dx, si)?;
            a.mov(dil, r9b)
        }),
        entry("constants", |a| {
            a.mov(eax, 1)?;
            a.mov(rcx, 0x1234_5678_9abc_def0u64)?;
            a.mov(rdx, -1i64)
        }),
        entry("extensions", |a| {
            a.movzx(eax, bl)?;
            a.movsx(rcx, dx)?;
            a.movsxd(rsi, edi)?;
            a.cdqe()?;
            a.cqo()
        }),
        entry("addresses", |a| {
            a.lea(rax, qword_ptr(rbx + rcx * 4 + 8))?;
            a.lea(edx, dword_ptr(rsi + 1))?;
            a.lea(rdi, qword_ptr(rsp + 0x20))?;
            a.lea(rsp, qword_ptr(rsp - 8))
        }),
        entry("nothing", |a| {
            a.nop()?;
            a.endbr64()?;
            a.pause()
        }),
    ];
    Family::new("mov", "moves, extensions and addresses", entries)
}

fn shift() -> Family {
    let entries = [
        entry("by constants", |a| {
            a.shl(rax, 4)?;
            a.shr(ecx, 1)?;
            a.sar(rdx, 63)?;
            a.rol(ebx, 8)?;
            a.ror(si, 3)
        }),
        entry("by CL", |a| {
            a.shl(rax, cl)?;
            a.sar(edx, cl)?;
            a.rcl(rbx, cl)
        }),
        entry("double", |a| {
            a.shld(rax, rdx, 12)?;
            a.shrd(ebx, esi, cl)
        }),
        entry("BMI2", |a| {
            a.shlx(rax, rbx, rcx)?;
            a.sarx(edx, esi, edi)?;
            a.rorx(r8, r9, 5)
        }),
    ];
    Family::new("shift", "shifts and rotations of registers", entries)
}

fn muldiv() -> Family {
    let entries = [
        entry("multiplications", |a| {
            a.imul_2(rax, rbx)?;
            a.imul_3(ecx, edx, 100)?;
            a.mul(rbx)?;
            a.imul(esi)
        }),
        entry("divisions", |a| {
            a.xor(edx, edx)?;
            a.mov(ecx, 3)?;
            a.div(rcx)?;
            a.cdq()?;
            a.idiv(ecx)
        }),
        entry("MULX", |a| a.mulx(rax, rbx, rcx)),
    ];
    Family::new("muldiv", "multiplications and divisions", entries)
}

fn bit() -> Family {
    let entries = [
        entry("tests", |a| {
            a.bt(rax, 5)?;
            a.bts(ecx, edx)?;
            a.btr(rbx, 63)?;
            a.btc(esi, edi)
        }),
        entry("scans", |a| {
            a.bsf(rax, rbx)?;
            a.bsr(ecx, edx)?;
            a.tzcnt(rsi, rdi)?;
            a.lzcnt(r8d, r9d)?;
            a.popcnt(r10, r11)
        }),
        entry("BMI", |a| {
            a.andn(rax, rbx, rcx)?;
            a.blsr(edx, esi)?;
            a.bzhi(rdi, r8, r9)?;
            a.pdep(r10, r11, r12)
        }),
        entry("a bit string in memory", |a| {
            a.bt(qword_ptr(rbx), rcx)?;
            a.lock().bts(dword_ptr(rdx), ecx)
        }),
        entry("bytes", |a| {
            a.bswap(rax)?;
            a.bswap(ecx)?;
            a.crc32(eax, bl)
        }),
    ];
    Family::new("bit", "bits: tests, scans, BMI", entries)
}

fn condition() -> Family {
    let entries = [
        entry("moves", |a| {
            a.cmp(rax, rbx)?;
            a.cmove(rcx, rdx)?;
            a.cmovl(esi, edi)
        }),
        entry("sets", |a| {
            a.test(rax, rax)?;
            a.sete(cl)?;
            a.seta(dl)?;
            a.movzx(ecx, cl)
        }),
        entry("from memory", |a| {
            a.cmp(rax, rbx)?;
            a.cmovne(rcx, qword_ptr(rdx))
        }),
        entry("to memory", |a| {
            a.cmp(rax, rbx)?;
            a.setb(byte_ptr(rdx))
        }),
    ];
    Family::new("condition", "SETcc and CMOVcc", entries)
}

fn exchange() -> Family {
    let entries = [
        entry("registers", |a| {
            a.xchg(rax, rbx)?;
            a.xadd(ecx, edx)?;
            a.cmpxchg(rsi, rdi)
        }),
        entry("with memory", |a| a.xchg(qword_ptr(rbx), rax)),
        entry("compared", |a| a.lock().cmpxchg(qword_ptr(rbx), rcx)),
        entry("compared, 16 bytes", |a| a.lock().cmpxchg16b(xmmword_ptr(rsi))),
        entry("of the stack pointer", |a| a.xchg(rsp, rax)),
    ];
    Family::new("exchange", "XCHG, XADD, CMPXCHG", entries)
}

fn flag() -> Family {
    let entries = [
        entry("carry", |a| {
            a.clc()?;
            a.stc()?;
            a.cmc()
        }),
        entry("by AH", |a| {
            a.lahf()?;
            a.sahf()
        }),
        entry("direction", |a| {
            a.std()?;
            a.cld()
        }),
        entry("interrupts off", |a| a.cli()),
        entry("interrupts on", |a| {
            a.sti()?;
            a.nop()
        }),
        entry("interrupts on for a wait", |a| {
            a.sti()?;
            a.hlt()
        }),
        entry("pushed", |a| a.pushfq()),
        entry("popped", |a| a.popfq()),
        entry("user pages closed", |a| a.clac()),
        entry("user pages open", |a| a.stac()),
    ];
    Family::new("flag", "flags by name", entries)
}

fn extra_registers() -> Family {
    let entries = [
        entry("one is a source", |a| {
            a.mov(rax, r13)?;
            a.add(rcx, r14)
        }),
        entry("one is the target", |a| {
            a.mov(r13, rax)?;
            a.add(r14, rcx)
        }),
        entry("two", |a| {
            a.add(r13, r14)?;
            a.cmp(r15d, r13d)?;
            a.mov(r15, r14)
        }),
        entry("an address", |a| a.mov(rax, qword_ptr(r13 + 8))),
        entry("an address of two", |a| a.mov(r15, qword_ptr(r13 + r14 * 8))),
        entry("parts", |a| {
            a.mov(r13d, eax)?;
            a.mov(r14b, cl)?;
            a.inc(r15w)
        }),
        entry("grouped", |a| {
            a.mov(r14, qword_ptr(r13))?;
            a.mov(r15, qword_ptr(r13 + 8))?;
            a.mov(qword_ptr(r13 + 16), r14)
        }),
    ];
    Family::new("r13-r15", "registers that are in the context", entries)
}

fn high_bytes() -> Family {
    let entries = [
        entry("registers", |a| {
            a.mov(ah, bl)?;
            a.add(ch, dh)?;
            a.movzx(eax, ah)
        }),
        entry("loaded", |a| a.mov(ah, byte_ptr(rbx))),
        entry("stored", |a| a.mov(byte_ptr(rbx + rcx), dh)),
        entry("compared", |a| a.cmp(byte_ptr(rbx), ah)),
        entry("grouped", |a| {
            a.mov(ah, byte_ptr(rbx))?;
            a.mov(byte_ptr(rbx + 1), ah)
        }),
    ];
    Family::new("high-bytes", "AH, CH, DH and BH", entries)
}

fn flags_kept() -> Family {
    let entries = [
        entry("live across moves", |a| {
            a.cmp(rax, rbx)?;
            a.mov(rcx, rdx)?;
            a.lea(rsi, qword_ptr(rdi + 1))?;
            a.sete(al)
        }),
        entry("spilled by a load, then read", |a| {
            a.cmp(rax, rbx)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.sete(al)
        }),
        entry("dead behind a load: a recipe", |a| {
            a.cmp(rax, rbx)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.test(rsi, rsi)
        }),
        entry("dead behind a load: no recipe", |a| {
            a.inc(rax)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.test(rsi, rsi)
        }),
        entry("dead before a load", |a| {
            a.add(rax, rbx)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.add(rcx, rax)
        }),
        entry("carry across loads", |a| {
            a.add(rax, qword_ptr(rdx))?;
            a.adc(rcx, qword_ptr(rsi))
        }),
        entry("put back once", |a| {
            a.cmp(rax, rbx)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.sete(al)?;
            a.setl(bl)
        }),
        entry("a block that begins with a load", |a| a.mov(rax, qword_ptr(rbx))).with_entries(),
        entry("a block that begins with a reader", |a| a.sete(al)).with_entries(),
        entry("a block that begins with a writer", |a| a.test(eax, eax)).with_entries(),
    ];
    Family::new("flags", "status flags: live, spilled, computed again", entries)
}
