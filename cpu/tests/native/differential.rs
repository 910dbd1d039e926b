//! Every form that the decoder's table gives to the host, in the guest and on the bare host: random
//! registers, operands, rounding, masks; all state compared.
//!
//! `VOLVELLE_STATES` sets the random states for each form (1,000 if unset).

use crate::forms::{Place, encode, host_has};
use crate::random::Random;
use cpu::exception::{Exception, Vector};
use cpu::fpu::FpuState;
use cpu::native::reference::{HostState, Reference, at_memory};
use cpu::state::rflags;
use cpu::testing::{Bench, CODE, DATA};
use decoder::{Class, Row};
use iced_x86::{Instruction, OpKind};

/// States before the registers of an instruction change.
const STATES_PER_REGISTERS: usize = 50;

fn states_per_form() -> usize {
    std::env::var("VOLVELLE_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

/// Compares all forms of `row` with the given place of their r/m operand.
fn compare_forms(bench: &mut Bench, random: &mut Random, row: &Row, place: Place) -> usize {
    let mut done = 0;
    for _ in 0..states_per_form().div_ceil(STATES_PER_REGISTERS) {
        let Some(mut instruction) = encode::random_form(row, place, random) else { break };
        at_memory(&mut instruction);
        let (Some(bytes), Some(reference)) =
            (encode::bytes(&instruction), Reference::new(&instruction))
        else {
            break;
        };
        bench.put_code_at(CODE, &bytes);
        for _ in 0..STATES_PER_REGISTERS {
            compare_once(bench, random, row, &instruction, &reference);
            done += 1;
        }
    }
    done
}

fn compare_once(
    bench: &mut Bench,
    random: &mut Random,
    row: &Row,
    instruction: &Instruction,
    reference: &Reference,
) {
    let address = operand_address(random, row, instruction);
    let before = prepare(bench, random, row, address);
    let mut host = before.clone();
    let host_faulted = reference.run(&mut host);
    let outcome = bench.step();
    let memory = bench.peek::<64>(address);
    let state = &bench.cpu.state;
    let context = || format!("{instruction} {:?}\nbefore {:x?}", row.code, before.fpu);
    let simd_exception = Err(Exception::plain(Vector::SimdFloatingPoint));
    let expected = if host_faulted { simd_exception } else { Ok(()) };
    assert_eq!(outcome, expected, "{}", context());
    assert_eq!(state.fpu.mxcsr, host.fpu.mxcsr, "MXCSR: {}", context());
    if host_faulted {
        assert_eq!(state.fpu.zmm, before.fpu.zmm, "written in spite of a fault: {}", context());
        return;
    }
    compare_fpu(&state.fpu, &host.fpu, &context);
    for number in (0..15).filter(|number| *number != 4) {
        assert_eq!(state.gpr[number], host.gpr[number], "GPR {number}: {}", context());
    }
    let flags = |value: u64| value & rflags::STATUS;
    assert_eq!(flags(state.rflags), flags(host.rflags), "flags: {}", context());
    assert_eq!(memory, host.memory, "memory: {}", context());
}

fn compare_fpu(guest: &FpuState, host: &FpuState, context: &dyn Fn() -> String) {
    for number in 0..32 {
        let bytes = ..crate::vector_bytes();
        assert_eq!(guest.zmm[number][bytes], host.zmm[number][bytes], "ZMM{number}: {}", context());
    }
    assert_eq!(guest.opmask, host.opmask, "opmask: {}", context());
    let x87 = |fpu: &FpuState| (fpu.fcw, fpu.fsw, fpu.ftw);
    assert_eq!(x87(guest), x87(host), "x87 words: {}", context());
    for number in 0..8 {
        assert_eq!(guest.x87[number], host.x87[number], "R{number}: {}", context());
    }
}

/// Where the operand is: aligned if it must be, else often over a page's end.
fn operand_address(random: &mut Random, row: &Row, instruction: &Instruction) -> u64 {
    let has_memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    match random.below(4) {
        _ if row.memory.is_aligned || !has_memory => DATA + 0x40 * random.below(64),
        0 => DATA + 0x40 * random.below(63) + random.below(64),
        _ => DATA + 0x1000 - random.below(64),
    }
}

/// A random state, in the guest and as the host takes it.
fn prepare(bench: &mut Bench, random: &mut Random, row: &Row, address: u64) -> HostState {
    let fpu = random.fpu(matches!(row.class, Class::X87));
    let mut gpr: [u64; 16] = std::array::from_fn(|_| random.next_u64());
    (gpr[4], gpr[15]) = (cpu::testing::STACK, address);
    let memory = random.operand();
    bench.poke(address, &memory);
    let flags = random.next_u64() & rflags::STATUS | rflags::FIXED;
    let state = &mut bench.cpu.state;
    (state.fpu, state.gpr, state.rflags, state.rip) = (fpu.clone(), gpr, flags, CODE);
    HostState::new(fpu, gpr, flags, memory)
}

fn compare_classes(classes: &[Class], least_forms: usize) {
    let mut bench = Bench::long64();
    let mut random = Random::new(0x5eed);
    let mut forms = 0;
    for row in decoder::rows().filter(|row| classes.contains(&row.class) && host_has(row)) {
        for place in [Place::Register, Place::Memory, Place::Broadcast] {
            forms += usize::from(compare_forms(&mut bench, &mut random, row, place) != 0);
        }
    }
    println!("{forms} forms of {classes:?}");
    assert!(forms >= crate::least(least_forms), "only {forms} forms of {classes:?}");
}

#[test]
fn x87_forms_equal_the_host() {
    compare_classes(&[Class::X87], 100);
}

#[test]
fn integer_vector_forms_equal_the_host() {
    compare_classes(&[Class::SimdInteger], 1000);
}

#[test]
fn float_vector_forms_equal_the_host() {
    compare_classes(&[Class::SimdFloat], 1000);
}

#[test]
fn opmask_and_crypto_forms_equal_the_host() {
    compare_classes(&[Class::Opmask, Class::Crypto], 60);
}
