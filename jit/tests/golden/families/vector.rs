//! SSE, AVX and x87.

use iced_x86::code_asm::*;

use crate::entry::{Family, entry};

pub fn families() -> Vec<Family> {
    vec![sse(), avx(), x87()]
}

fn sse() -> Family {
    let entries = [
        entry("registers", |a| {
            a.pxor(xmm0, xmm0)?;
            a.movaps(xmm1, xmm2)?;
            a.addsd(xmm3, xmm4)?;
            a.pshufd(xmm5, xmm6, 0x1b)
        }),
        entry("loads and stores", |a| {
            a.movdqu(xmm0, xmmword_ptr(rsi))?;
            a.movdqu(xmmword_ptr(rdi), xmm0)
        }),
        entry("aligned", |a| {
            a.movaps(xmm1, xmmword_ptr(rsi))?;
            a.paddd(xmm1, xmmword_ptr(rdi))
        }),
        entry("grouped", |a| {
            a.movups(xmm0, xmmword_ptr(rsi))?;
            a.movups(xmm1, xmmword_ptr(rsi + 16))?;
            a.movups(xmmword_ptr(rdi), xmm0)?;
            a.movups(xmmword_ptr(rdi + 16), xmm1)
        }),
        entry("to and from registers", |a| {
            a.movq(rax, xmm0)?;
            a.movd(xmm1, ecx)?;
            a.cvtsi2sd(xmm2, rdx)?;
            a.cvttsd2si(rbx, xmm3)?;
            a.pmovmskb(r13d, xmm4)
        }),
        entry("comparison", |a| {
            a.ucomisd(xmm0, xmm1)?;
            a.seta(al)
        }),
        entry("scalar from memory", |a| a.mulsd(xmm0, qword_ptr(rbx + rcx * 8))),
    ];
    Family::new("sse", "SSE", entries)
}

fn avx() -> Family {
    let entries = [
        entry("registers", |a| {
            a.vpxor(ymm0, ymm1, ymm2)?;
            a.vaddps(ymm3, ymm4, ymm5)?;
            a.vpcmpeqb(xmm6, xmm7, xmm8)?;
            a.vfmadd231pd(ymm9, ymm10, ymm11)
        }),
        entry("loads and stores", |a| {
            a.vmovdqu(ymm0, ymmword_ptr(rsi))?;
            a.vpaddd(ymm1, ymm0, ymmword_ptr(rdx))?;
            a.vmovdqu(ymmword_ptr(rdi), ymm1)
        }),
        entry("to registers", |a| {
            a.vpmovmskb(eax, ymm0)?;
            a.vmovq(r13, xmm1)?;
            a.vzeroupper()
        }),
        entry("masked", |a| {
            a.vpmaskmovd(ymm0, ymm1, ymmword_ptr(rbx))?;
            a.vpmaskmovd(ymmword_ptr(rdi), ymm1, ymm0)
        }),
    ];
    Family::new("avx", "AVX, AVX2 and FMA", entries)
}

fn x87() -> Family {
    let entries = [
        entry("stack", |a| {
            a.fld1()?;
            a.fldz()?;
            a.faddp(st1, st0)?;
            a.fxch(st0, st1)
        }),
        entry("memory", |a| {
            a.fld(qword_ptr(rbx))?;
            a.fmul(dword_ptr(rcx))?;
            a.fstp(qword_ptr(rdx))
        }),
        entry("comparison", |a| {
            a.fucomi(st0, st1)?;
            a.seta(al)
        }),
        entry("control", |a| {
            a.fnstcw(word_ptr(rbx))?;
            a.fldcw(word_ptr(rbx))
        }),
        entry("status", |a| a.fnstsw(ax)),
    ];
    Family::new("x87", "x87", entries)
}
