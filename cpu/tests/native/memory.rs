//! What thunks add to the host's instruction: memory through the guest's MMU, page ends, faults,
//! masks, gathers, and many thunks.

use crate::forms::{Place, encode, host_has};
use crate::random::Random;
use crate::run;
use cpu::exception::{Exception, Vector};
use cpu::native::reference::{HostState, Reference, at_memory};
use cpu::state::State;
use cpu::testing::{Bench, CODE, DATA, STACK, page};
use decoder::{MemoryShape, Row};
use iced_x86::code_asm::*;
use iced_x86::{Instruction, Register};

const NEXT_PAGE: u64 = DATA + 0x1000;
const OPEN: u64 = page::PRESENT | page::WRITABLE | page::USER;

/// Registers, for "nothing has changed".
fn visible(state: &State) -> (cpu::fpu::FpuState, [u64; 16], u64, u64) {
    (state.fpu.clone(), state.gpr, state.rflags, state.rip)
}

/// Rows of the host's with an operand of at least two bytes and no demand on its alignment.
fn rows_over_pages() -> impl Iterator<Item = &'static Row> {
    decoder::rows().filter(|row| host_has(row) && row.memory.size >= 2 && !row.memory.is_aligned)
}

fn memory_form(random: &mut Random, row: &Row) -> Option<Instruction> {
    let mut instruction = encode::random_form(row, Place::Memory, random)?;
    at_memory(&mut instruction);
    Some(instruction)
}

fn prepare(bench: &mut Bench, random: &mut Random, address: u64) {
    bench.cpu.state.fpu = random.fpu(true);
    bench.cpu.state.fpu.fcw |= 0x3f;
    bench.cpu.state.fpu.mxcsr = 0x1f80;
    bench.cpu.state.gpr = std::array::from_fn(|_| random.next_u64());
    (bench.cpu.state.gpr[4], bench.cpu.state.gpr[15]) = (STACK, address);
    bench.poke(address, &random.operand());
}

#[test]
fn an_operand_over_an_absent_page_changes_nothing() {
    let (mut bench, mut random) = (Bench::long64(), Random::new(1));
    bench.protect(NEXT_PAGE, 0);
    let mut forms = 0;
    for row in rows_over_pages() {
        let Some(instruction) = memory_form(&mut random, row) else { continue };
        prepare(&mut bench, &mut random, NEXT_PAGE - 1);
        // All elements, so that no mask saves the access.
        bench.cpu.state.fpu.opmask = [u64::MAX; 8];
        if matches!(row.memory.shape, MemoryShape::MaskedRead | MemoryShape::MaskedWrite) {
            bench.cpu.state.fpu.zmm = [[0xff; 64]; 32];
        }
        bench.put_code_at(CODE, &encode::bytes(&instruction).unwrap());
        let (before, memory) = (visible(&bench.cpu.state), bench.peek::<64>(NEXT_PAGE - 1));
        let fault = bench.step().expect_err(&format!("{instruction} does not fault"));
        assert_eq!(fault.vector, Vector::PageFault, "{instruction}");
        assert_eq!(bench.cpu.state.cr2, NEXT_PAGE, "{instruction}");
        assert!(before == visible(&bench.cpu.state), "{instruction} changed a register");
        assert_eq!(memory, bench.peek::<64>(NEXT_PAGE - 1), "{instruction} changed memory");
        forms += 1;
    }
    assert!(forms > crate::least(1000), "only {forms} forms");
}

#[test]
fn a_store_over_a_read_only_page_changes_nothing() {
    let (mut bench, mut random) = (Bench::long64(), Random::new(2));
    bench.cpu.state.cr0 |= 1 << 16;
    bench.cpu.mode_changed();
    bench.protect(NEXT_PAGE, page::PRESENT | page::USER);
    let mut forms = 0;
    for row in rows_over_pages().filter(|row| row.memory.shape == MemoryShape::Write) {
        let Some(instruction) = memory_form(&mut random, row) else { continue };
        prepare(&mut bench, &mut random, NEXT_PAGE - 1);
        bench.put_code_at(CODE, &encode::bytes(&instruction).unwrap());
        let (before, memory) = (visible(&bench.cpu.state), bench.peek::<64>(NEXT_PAGE - 1));
        assert_eq!(bench.step(), Err(Exception::pf(3)), "{instruction}");
        assert!(before == visible(&bench.cpu.state), "{instruction} changed a register");
        assert_eq!(memory, bench.peek::<64>(NEXT_PAGE - 1), "{instruction} changed memory");
        forms += 1;
    }
    assert!(forms > 40, "only {forms} forms");
}

#[test]
fn elements_that_the_mask_leaves_out_do_not_fault() {
    if !crate::host_has_avx512() {
        return;
    }
    let (mut bench, mut random) = (Bench::long64(), Random::new(3));
    bench.protect(NEXT_PAGE, 0);
    let mut forms = 0;
    let is_masked = |row: &&Row| {
        matches!(row.memory.shape, MemoryShape::MaskedRead | MemoryShape::MaskedWrite)
            && usize::from(row.memory.size) > usize::from(row.memory.element)
    };
    for row in rows_over_pages().filter(is_masked) {
        let Some(mut instruction) = memory_form(&mut random, row) else { continue };
        if row.code.op_code().can_use_op_mask_register() {
            instruction.set_op_mask(Register::K3);
        } else {
            continue;
        }
        let Some(reference) = Reference::new(&instruction) else { continue };
        let address = NEXT_PAGE - u64::from(row.memory.element);
        prepare(&mut bench, &mut random, address);
        bench.cpu.state.fpu.opmask[3] = 1;
        bench.put_code_at(CODE, &encode::bytes(&instruction).unwrap());
        let state = &bench.cpu.state;
        let memory = bench.peek::<64>(address);
        let mut host = HostState::new(state.fpu.clone(), state.gpr, state.rflags, memory);
        reference.run(&mut host);
        assert_eq!(bench.step(), Ok(()), "{instruction}");
        assert!(bench.cpu.state.fpu.zmm == host.fpu.zmm, "{instruction} differs in a vector");
        assert_eq!(bench.cpu.state.fpu.opmask, host.fpu.opmask, "{instruction}");
        assert_eq!(bench.peek::<64>(address), host.memory, "{instruction}");
        forms += 1;
    }
    assert!(forms > 300, "only {forms} forms");
}

#[test]
fn vmaskmov_reads_and_writes_selected_elements_only() {
    let mut bench = Bench::long64();
    bench.protect(NEXT_PAGE, 0);
    bench.cpu.state.gpr[0] = NEXT_PAGE - 8;
    bench.poke(NEXT_PAGE - 8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    bench.cpu.state.fpu.zmm[2][7] = 0x80;
    run(&mut bench, |a| a.vpmaskmovd(ymm1, ymm2, ymmword_ptr(rax))).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[1][..12], [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    bench.cpu.state.fpu.zmm[3] = [7; 64];
    run(&mut bench, |a| a.vpmaskmovd(ymmword_ptr(rax), ymm2, ymm3)).unwrap();
    assert_eq!(bench.peek::<8>(NEXT_PAGE - 8), [1, 0, 0, 0, 7, 7, 7, 7]);
    bench.cpu.state.fpu.zmm[2][11] = 0x80;
    let outcome = run(&mut bench, |a| a.vpmaskmovd(ymmword_ptr(rax), ymm2, ymm3));
    assert_eq!(outcome, Err(Exception::pf(2)));
}

#[test]
fn compress_and_expand_touch_as_many_elements_as_the_mask_has_bits() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = Bench::long64();
    bench.protect(NEXT_PAGE, 0);
    bench.cpu.state.gpr[0] = NEXT_PAGE - 8;
    bench.cpu.state.fpu.opmask[1] = 0x8001;
    bench.cpu.state.fpu.zmm[5][..4].fill(0x11);
    bench.cpu.state.fpu.zmm[5][60..].fill(0x22);
    run(&mut bench, |a| a.vpcompressd(zmmword_ptr(rax).k1(), zmm5)).unwrap();
    assert_eq!(bench.peek::<8>(NEXT_PAGE - 8), [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22]);
    run(&mut bench, |a| a.vpexpandd(zmm6.k1().z(), zmmword_ptr(rax))).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[6], bench.cpu.state.fpu.zmm[5]);
    bench.cpu.state.fpu.opmask[1] = 0x8003;
    let outcome = run(&mut bench, |a| a.vpcompressd(zmmword_ptr(rax).k1(), zmm5));
    assert_eq!(outcome, Err(Exception::pf(2)));
}

#[test]
fn gathers_and_scatters_equal_the_host() {
    let (mut bench, mut random) = (Bench::long64(), Random::new(4));
    let is_indexed =
        |row: &&Row| matches!(row.memory.shape, MemoryShape::Gather | MemoryShape::Scatter);
    let mut forms = 0;
    for row in decoder::rows().filter(is_indexed).filter(|row| crate::forms::host_has_features(row))
    {
        for _ in 0..1000 {
            let Some(instruction) = encode::random_indexed(row, &mut random) else { break };
            let reference = Reference::new(&instruction).unwrap();
            prepare(&mut bench, &mut random, DATA + 8);
            let index = instruction.memory_index().number();
            let has_dwords = encode::has_dword_index(row);
            for bytes in
                bench.cpu.state.fpu.zmm[index].chunks_exact_mut(if has_dwords { 4 } else { 8 })
            {
                bytes.fill(0);
                bytes[0] = random.below(57) as u8;
            }
            bench.put_code_at(CODE, &encode::bytes(&instruction).unwrap());
            let state = &bench.cpu.state;
            let memory = bench.peek::<64>(DATA + 8);
            let mut host = HostState::new(state.fpu.clone(), state.gpr, state.rflags, memory);
            reference.run(&mut host);
            assert_eq!(bench.step(), Ok(()), "{instruction}");
            for number in 0..32 {
                let bytes = ..crate::vector_bytes();
                let guest = &bench.cpu.state.fpu.zmm[number][bytes];
                assert_eq!(guest, &host.fpu.zmm[number][bytes], "{instruction}: ZMM{number}");
            }
            assert_eq!(bench.cpu.state.fpu.opmask, host.fpu.opmask, "{instruction}");
            assert_eq!(bench.peek::<64>(DATA + 8), host.memory, "{instruction}");
        }
        forms += 1;
    }
    assert!(forms >= crate::least(20), "only {forms} forms");
}

#[test]
fn a_gather_that_faults_has_done_the_elements_before() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = Bench::long64();
    bench.protect(NEXT_PAGE, 0);
    bench.poke(NEXT_PAGE - 4, &[9; 4]);
    let state = &mut bench.cpu.state;
    state.gpr[0] = NEXT_PAGE - 4;
    state.fpu.zmm[2][4] = 4;
    state.fpu.opmask[1] = 7;
    state.fpu.zmm[1] = [1; 64];
    let outcome = run(&mut bench, |a| a.vpgatherdd(zmm1.k1(), zmmword_ptr(rax + zmm2)));
    assert_eq!(outcome, Err(Exception::pf(0)));
    assert_eq!(bench.cpu.state.fpu.opmask[1], 6);
    assert_eq!(bench.cpu.state.fpu.zmm[1][..8], [9, 9, 9, 9, 1, 1, 1, 1]);
    bench.protect(NEXT_PAGE, OPEN);
    bench.poke(NEXT_PAGE, &[8; 4]);
    run(&mut bench, |a| a.vpgatherdd(zmm1.k1(), zmmword_ptr(rax + zmm2))).unwrap();
    assert_eq!(bench.cpu.state.fpu.opmask[1], 0);
    assert_eq!(bench.cpu.state.fpu.zmm[1][..12], [9, 9, 9, 9, 8, 8, 8, 8, 9, 9, 9, 9]);
}

#[test]
fn maskmovdqu_writes_selected_bytes_only() {
    let mut bench = Bench::long64();
    bench.protect(NEXT_PAGE, 0);
    bench.cpu.state.gpr[7] = NEXT_PAGE - 2;
    bench.cpu.state.fpu.zmm[1] = [5; 64];
    bench.cpu.state.fpu.zmm[2][1] = 0x80;
    run(&mut bench, |a| a.maskmovdqu(xmm1, xmm2)).unwrap();
    assert_eq!(bench.peek::<2>(NEXT_PAGE - 2), [0, 5]);
    bench.cpu.state.fpu.zmm[2][2] = 0x80;
    assert_eq!(run(&mut bench, |a| a.maskmovdqu(xmm1, xmm2)), Err(Exception::pf(2)));
}

#[test]
fn misaligned_operands_are_general_protection() {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[0] = DATA + 8;
    assert_eq!(run(&mut bench, |a| a.paddd(xmm1, xmmword_ptr(rax))), Err(Exception::GP0));
    assert_eq!(run(&mut bench, |a| a.movaps(xmmword_ptr(rax), xmm1)), Err(Exception::GP0));
    assert_eq!(run(&mut bench, |a| a.vmovdqa(ymm1, ymmword_ptr(rax))), Err(Exception::GP0));
    run(&mut bench, |a| a.movups(xmm1, xmmword_ptr(rax))).unwrap();
    run(&mut bench, |a| a.vpaddd(xmm1, xmm1, xmmword_ptr(rax))).unwrap();
}

#[test]
fn more_thunks_than_their_memory_holds_still_run() {
    if !crate::host_has_avx512() {
        return;
    }
    let mut bench = Bench::long64();
    bench.cpu.state.fpu.zmm[1] = [0xf0; 64];
    let mut early = Vec::new();
    for number in 0..60_000u32 {
        let (b, c, imm) = (number & 31, number >> 5 & 31, number >> 10 & 0xff);
        let mut instruction = Instruction::with4(
            iced_x86::Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8,
            Register::ZMM0,
            Register::ZMM0 + b,
            Register::ZMM0 + c,
            imm,
        )
        .unwrap();
        instruction.set_op_mask(Register::None);
        let bytes = encode::bytes(&instruction).unwrap();
        if number == 0 {
            early = bytes.clone();
        }
        bench.execute(&bytes).unwrap();
    }
    bench.execute(&early).unwrap();
    run(&mut bench, |a| a.pxor(xmm1, xmm1)).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[1][..17], [[0; 16].as_slice(), &[0xf0]].concat());
}
