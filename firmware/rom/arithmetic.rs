//! Integer, x87, SSE2 and AVX arithmetic with known results.

use iced_x86::code_asm::*;

use crate::rom::layout::SCRATCH;
use crate::rom::stage::{Emit, Stage, Step};

/// round(1_000_000 * 355 / 113), computed by each unit.
const SCALED_PI: u32 = 3_141_593;

/// The steps.
pub fn steps(s: &mut Stage) -> Emit {
    enable_units(s)?;
    integer(s)?;
    x87(s)?;
    sse2(s)?;
    avx(s)
}

/// CR0.MP without EM and TS; CR4.OSFXSR and OSXMMEXCPT.
fn enable_units(s: &mut Stage) -> Emit {
    s.mov(rax, cr0)?;
    s.and(eax, !(1_u32 << 2 | 1 << 3) as i32)?;
    s.or(eax, 1 << 1)?;
    s.mov(cr0, rax)?;
    s.mov(rax, cr4)?;
    s.or(eax, 1 << 9 | 1 << 10)?;
    s.mov(cr4, rax)
}

/// A 128-bit product and its division, a shift through carry, and a locked 16-byte exchange.
fn integer(s: &mut Stage) -> Emit {
    let step = Step::new(s, "integer");
    s.mov(rax, 0x0123_4567_89AB_CDEF_u64)?;
    s.mov(rbx, 0xFEDC_BA98_7654_3211_u64)?;
    s.mov(rsi, rax)?;
    s.mul(rbx)?;
    s.div(rbx)?;
    s.test(rdx, rdx)?;
    s.jne(step.failed)?;
    s.cmp(rax, rsi)?;
    s.jne(step.failed)?;
    s.mov(eax, 1)?;
    s.stc()?;
    s.rcr(rax, 1)?;
    s.jae(step.failed)?;
    s.rol(rax, 1)?;
    s.cmp(rax, 1)?;
    s.jne(step.failed)?;
    step.passed(s, "128-bit MUL and DIV, RCR through carry")
}

fn x87(s: &mut Stage) -> Emit {
    let step = Step::new(s, "x87");
    s.fninit()?;
    for value in [355, 113, 1_000_000] {
        s.mov(dword_ptr(SCRATCH), value)?;
        s.fild(dword_ptr(SCRATCH))?;
    }
    // st0=1000000, st1=113, st2=355.
    s.fmul_2(st2, st0)?;
    s.fstp(st0)?;
    s.fdivp(st1, st0)?;
    s.fistp(dword_ptr(SCRATCH))?;
    s.cmp(dword_ptr(SCRATCH), SCALED_PI as i32)?;
    s.jne(step.failed)?;
    // The stack is empty again and only inexactness was met.
    s.fnstsw(ax)?;
    s.and(eax, 0x38DF)?;
    s.jne(step.failed)?;
    step.passed(s, "355/113 is 3.141593")
}

fn sse2(s: &mut Stage) -> Emit {
    let step = Step::new(s, "SSE2");
    for (register, value) in [(xmm0, 355), (xmm1, 113), (xmm2, 1_000_000)] {
        s.mov(eax, value)?;
        s.cvtsi2sd(register, eax)?;
    }
    s.divsd(xmm0, xmm1)?;
    s.mulsd(xmm0, xmm2)?;
    s.cvtsd2si(eax, xmm0)?;
    s.cmp(eax, SCALED_PI as i32)?;
    s.jne(step.failed)?;
    s.mov(eax, 0x7FFF_FFFE)?;
    s.movd(xmm3, eax)?;
    s.pshufd(xmm3, xmm3, 0)?;
    s.paddd(xmm3, xmm3)?;
    s.pmuludq(xmm3, xmm3)?;
    s.movq(rax, xmm3)?;
    // FFFFFFFCh squared.
    s.mov(rbx, 0xFFFF_FFF8_0000_0010_u64)?;
    s.cmp(rax, rbx)?;
    s.jne(step.failed)?;
    step.passed(s, "355/113 is 3.141593, PADDD and PMULUDQ agree")
}

/// AVX, where CPUID offers it and XCR0 takes it.
fn avx(s: &mut Stage) -> Emit {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    const CR4_OSXSAVE: i32 = 1 << 18;
    let step = Step::new(s, "AVX");
    let mut offered = s.create_label();
    s.mov(eax, 1)?;
    s.cpuid()?;
    s.and(ecx, XSAVE_AND_AVX as i32)?;
    s.cmp(ecx, XSAVE_AND_AVX as i32)?;
    s.je(offered)?;
    step.leave(s, "not offered")?;
    s.set_label(&mut offered)?;
    s.mov(rax, cr4)?;
    s.or(eax, CR4_OSXSAVE)?;
    s.mov(cr4, rax)?;
    s.xor(ecx, ecx)?;
    s.xor(edx, edx)?;
    s.mov(eax, 7)?;
    s.xsetbv()?;
    s.xgetbv()?;
    s.cmp(eax, 7)?;
    s.jne(step.failed)?;
    avx_sum(s, &step)?;
    step.passed(s, "VADDPS adds 8 floats, VZEROUPPER clears 4")
}

/// 1.5 + 1.5 in the upper lane, which VZEROUPPER then clears.
fn avx_sum(s: &mut Stage, step: &Step) -> Emit {
    s.mov(eax, 1.5_f32.to_bits())?;
    s.vmovd(xmm0, eax)?;
    s.vshufps(xmm0, xmm0, xmm0, 0)?;
    s.vinsertf128(ymm0, ymm0, xmm0, 1)?;
    s.vaddps(ymm1, ymm0, ymm0)?;
    s.vextractf128(xmm2, ymm1, 1)?;
    s.vmovd(eax, xmm2)?;
    s.cmp(eax, 3.0_f32.to_bits() as i32)?;
    s.jne(step.failed)?;
    s.vzeroupper()?;
    s.vextractf128(xmm2, ymm1, 1)?;
    s.vmovd(eax, xmm2)?;
    s.test(eax, eax)?;
    s.jne(step.failed)
}
