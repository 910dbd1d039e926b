//! String instructions, bit strings and other implied operands: the translator against the
//! interpreter, from the same state over the same memory.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use cpu::engine::{Vcpu, VmExit};
use cpu::state::{State, gpr, rflags};
use cpu::testing::random::Random;
use cpu::testing::{Bench, CODE, DATA, IDT, STACK, page};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::{JitCpu, Options};

/// Where every exception goes: to a HLT.
const HANDLER: u64 = CODE + 0xf00;
/// The memory that is compared, and which the stack is apart from.
const FIRST: u64 = DATA - 0x2000;
const BYTES: usize = 0x6000;

/// What a run leaves.
#[derive(PartialEq, Eq)]
struct Outcome {
    registers: [String; 16],
    rflags: u64,
    rip: u64,
    memory: Vec<u8>,
    stack: [u8; 64],
    is_halt: bool,
}

fn outcome(bench: &Bench, state: &State, exit: VmExit) -> Outcome {
    Outcome {
        registers: state.gpr.map(|value| format!("{value:#x}")),
        rflags: state.rflags,
        rip: state.rip,
        memory: bench.peek::<BYTES>(FIRST).to_vec(),
        stack: bench.peek(STACK - 64),
        is_halt: matches!(exit, VmExit::Halt { .. }),
    }
}

/// A bench with `code` whose exceptions end in a HLT, registers and memory full of values.
fn bench(code: &[u8]) -> Bench {
    let mut bench = Bench::long64();
    for number in (0..16).filter(|&number| number != gpr::RSP) {
        bench.cpu.state.gpr[number] = 0x0123_4567_89ab_cdef_u64.rotate_left(5 * number as u32);
    }
    for vector in 0..32 {
        let gate = (HANDLER & 0xffff) | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
        bench.poke(IDT + 16 * vector, &gate.to_le_bytes());
    }
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8 ^ (at >> 9) as u8).collect();
    bench.poke(FIRST, &bytes);
    bench.poke(HANDLER, &[0xf4]);
    bench.put_code_at(CODE, code);
    bench
}

/// Runs the program (behind it comes a HLT) on both engines, on the translator twice.
fn check(
    name: &str,
    setup: impl Fn(&mut Bench),
    program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut assembler = CodeAssembler::new(64).expect("64-bit");
    program(&mut assembler).expect("a program");
    assembler.hlt().expect("room");
    check_code(name, setup, &assembler.assemble(CODE).expect("code"));
}

fn check_code(name: &str, setup: impl Fn(&mut Bench), code: &[u8]) {
    let mut bench = bench(code);
    setup(&mut bench);
    bench.control_changed();
    let (state, memory) = (bench.cpu.state.clone(), bench.peek::<BYTES>(FIRST));
    let restore = |bench: &Bench| {
        bench.poke(FIRST, &memory);
        bench.poke(STACK - 64, &[0; 64]);
    };
    let options = Options { cache_bytes: 4 << 20, ..Options::default() };
    let mut jit = JitCpu::new(bench.cpu.env.clone(), &options).expect("a translator");
    let runs = [0; 2].map(|_| {
        restore(&bench);
        jit.set_state(state.clone());
        let exit = jit.run(100_000);
        outcome(&bench, jit.state(), exit)
    });
    restore(&bench);
    bench.cpu.set_state(state);
    let exit = bench.cpu.run(100_000);
    let expected = outcome(&bench, &bench.cpu.state, exit);
    for (run, found) in runs.iter().enumerate() {
        compare(&format!("{name}, run {run}, {code:02x?}"), found, &expected);
    }
}

fn compare(what: &str, found: &Outcome, expected: &Outcome) {
    assert_eq!(found.registers, expected.registers, "registers of {what}");
    assert_eq!(found.rflags, expected.rflags, "flags of {what}");
    assert_eq!(found.rip, expected.rip, "rip of {what}");
    let differing = (0..BYTES).find(|&at| found.memory[at] != expected.memory[at]);
    assert_eq!(differing.map(|at| FIRST + at as u64), None, "memory of {what}");
    assert!(found == expected, "stack or exit of {what}");
}

/// Sets registers: RSI, RDI, RCX.
fn at(from: u64, to: u64, count: u64) -> impl Fn(&mut Bench) {
    move |bench| {
        bench.cpu.state.gpr[gpr::RSI] = from;
        bench.cpu.state.gpr[gpr::RDI] = to;
        bench.cpu.state.gpr[gpr::RCX] = count;
    }
}

/// The opcodes of bytes: MOVS, CMPS, STOS, LODS, SCAS.
const OPCODES: [u8; 5] = [0xa4, 0xa6, 0xaa, 0xac, 0xae];

/// The encoding of a string instruction between instructions that set and read flags.
fn encoded(repeat: u8, size: u8, opcode: u8, then: &[u8]) -> Vec<u8> {
    let mut code = vec![0x4d, 0x01, 0xc8]; // add r8, r9
    code.extend((repeat != 0).then_some(repeat));
    match size {
        2 => code.push(0x66),
        8 => code.push(0x48),
        _ => {}
    }
    code.push(opcode | u8::from(size > 1));
    code.extend(then);
    code.push(0xf4);
    code
}

/// `pushfq; pop rdx; adc r10, r11; setc bl`.
const READ_FLAGS: [u8; 8] = [0x9c, 0x5a, 0x4d, 0x11, 0xda, 0x0f, 0x92, 0xc3];

/// How many random cases there are: `usual`, or what the environment asks for.
fn cases(usual: u64) -> u64 {
    std::env::var("STRING_CASES").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

fn address(random: &mut Random) -> u64 {
    let page = DATA - 0x1000 + 0x1000 * random.below(4);
    match random.below(4) {
        0 => page + random.below(64),
        1 => page + 0xfc0 + random.below(64),
        2 => page + 0xff0 + random.below(16),
        _ => page + random.below(0x1000),
    }
}

fn count(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => 1,
        2..=4 => random.below(20),
        5 => random.below(600),
        6 => 4096 / random.pick(&[1, 2, 4, 8]),
        _ => random.below(5000),
    }
}

/// Any string instruction anywhere, with pages that fault or have code, and either direction.
#[test]
fn any_string_instruction() {
    for seed in 1..=cases(400) {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let repeat = random.pick(&[0, 0xf3, 0xf3, 0xf2]);
        let (size, opcode) = (random.pick(&[1, 2, 4, 8]), random.pick(&OPCODES));
        let (from, to) = (address(&mut random), address(&mut random));
        let to = if random.below(6) == 0 { from + random.below(20) } else { to };
        let count = count(&mut random);
        let special = random.below(10);
        let value = random.bits();
        let then: &[u8] = if random.below(2) == 0 { &READ_FLAGS } else { &[] };
        let code = encoded(repeat, size, opcode, then);
        let hole = DATA - 0x1000 + 0x1000 * random.below(4);
        let is_even = random.below(3) != 0;
        let name = format!("seed {seed}: {from:#x} {to:#x} {count} special {special}");
        let setup = |bench: &mut Bench| {
            at(from, to, count)(bench);
            bench.cpu.state.gpr[gpr::RAX] = value;
            match special {
                0 => bench.protect(hole, 0),
                1 => bench.protect(hole, page::PRESENT),
                2 => bench.cpu.state.rflags |= rflags::DF,
                // Below the page table's end, but above RAM: no page at all.
                3 => bench.cpu.state.gpr[gpr::RDI] = 0x8000_0000_0000,
                _ => {}
            }
            bench.cpu.state.cr0 |= 1 << 16;
            if is_even {
                // Something for comparisons to agree about.
                bench.poke(FIRST, &[value as u8; BYTES]);
                bench.poke(FIRST + value % BYTES as u64, &[7]);
                bench.cpu.state.gpr[gpr::RAX] = u64::from(value as u8) * 0x0101_0101_0101_0101;
            }
        };
        check_code(&name, setup, &code);
    }
}

#[test]
fn stores_to_the_page_that_runs() {
    // rep stosb over the HLT behind it: NOPs, then what follows them.
    check("own page", at(0, CODE + 64, 24), |a| {
        a.mov(al, 0x90)?;
        a.rep().stosb()?;
        (0..80).try_for_each(|_| a.inc(ebx))
    });
    check("own page by elements", at(DATA, CODE + 16, 3), |a| {
        a.movsb()?;
        a.stosd()?;
        (0..20).try_for_each(|_| a.inc(ebx))
    });
}

#[test]
fn overlapping_runs() {
    for distance in [0, 1, 2, 3, 7, 8, 9, 63] {
        check("upwards", at(DATA + 5, DATA + 5 + distance, 100), |a| a.rep().movsb());
        check("downwards", at(DATA + 5 + distance, DATA + 5, 100), |a| a.rep().movsb());
        check("words", at(DATA + 5, DATA + 5 + distance, 100), |a| a.rep().movsq());
    }
}

#[test]
fn runs_in_a_loop() {
    check("memcpy", at(DATA, DATA + 0x800, 0), |a| {
        let mut top = a.create_label();
        a.mov(r12, 40u64)?;
        a.set_label(&mut top)?;
        a.mov(ecx, r12d)?;
        a.mov(rsi, DATA + 17)?;
        a.rep().movsb()?;
        a.mov(rcx, 5u64)?;
        a.lea(rsi, qword_ptr(rdi - 9))?;
        a.repe().cmpsb()?;
        a.adc(rbx, rcx)?;
        a.mov(eax, r12d)?;
        a.repne().scasb()?;
        a.adc(rbp, 0)?;
        a.lodsd()?;
        a.stosw()?;
        a.dec(r12)?;
        a.jne(top)
    });
}

/// Runs in one page, elements at its end, bit strings: none of them is the interpreter's.
#[test]
fn expected_forms_need_no_handler() {
    let mut assembler = CodeAssembler::new(64).expect("64-bit");
    let program = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.rep().movsb()?;
        a.mov(rcx, 512u64)?;
        a.mov(rdi, DATA)?;
        a.rep().stosq()?;
        a.mov(rdi, DATA)?;
        a.mov(rcx, 100u64)?;
        a.repne().scasb()?;
        a.mov(rcx, 0u64)?;
        a.repe().cmpsb()?;
        a.movsq()?;
        a.scasd()?;
        a.cmpsw()?;
        a.lodsb()?;
        a.mov(rcx, -100i64)?;
        a.lock().bts(qword_ptr(rdi), rcx)?;
        a.bt(dword_ptr(rdi), r13d)?;
        a.btc(word_ptr(rdi), cx)?;
        a.mov(ebx, DATA as u32)?;
        a.xlatb()?;
        a.hlt()
    };
    program(&mut assembler).expect("a program");
    let mut bench = bench(&assembler.assemble(CODE).expect("code"));
    at(DATA + 0x100, DATA + 0x1300, 77)(&mut bench);
    bench.cpu.state.gpr[13] = 0x55;
    let options = Options { cache_bytes: 4 << 20, ..Options::default() };
    let mut jit = JitCpu::new(bench.cpu.env.clone(), &options).expect("a translator");
    jit.set_state(bench.cpu.state.clone());
    assert!(matches!(jit.run(100_000), VmExit::Halt { .. }));
    let figures = jit.statistics().to_string();
    // The HLT is one.
    assert!(figures.contains("handlers 1,") || figures.contains("handlers 0,"), "{figures}");
}

#[test]
fn segments_and_short_addresses() {
    check("by GS", at(DATA, DATA + 64, 9), |a| a.rep().movsb());
    for code in [
        &[0x65, 0xf3, 0xa4, 0xf4][..],
        &[0x64, 0xa5, 0xf4],
        &[0x65, 0xaa, 0xae, 0xf4],
        &[0x67, 0xf3, 0xa5, 0xf4],
        &[0x67, 0xac, 0xf4],
    ] {
        let setup = |bench: &mut Bench| {
            at(DATA + 0x100, DATA + 0x300, 5)(bench);
            bench.cpu.state.segments[cpu::state::seg::GS].base = 0x110;
            bench.cpu.state.segments[cpu::state::seg::FS].base = 0x120;
        };
        check_code("a prefix", setup, code);
    }
}

#[test]
fn implied_operands() {
    check(
        "xlat",
        |bench| {
            bench.cpu.state.gpr[gpr::RBX] = DATA + 0xff0;
            bench.cpu.state.gpr[gpr::RAX] = 0x1234_5678_9abc_de18;
        },
        |a| {
            a.xlatb()?;
            a.xlatb()?;
            a.adc(rax, rbx)
        },
    );
    let address = DATA + 0xffc;
    for opcode in 0xa0..=0xa3 {
        for prefix in [&[][..], &[0x66], &[0x48], &[0x64]] {
            for prefixed in [false, true] {
                let mut code = vec![0x4d, 0x01, 0xc8];
                code.extend(prefixed.then_some(0x67));
                code.extend(prefix);
                code.push(opcode);
                let bytes = address.to_le_bytes();
                code.extend(&bytes[..if prefixed { 4 } else { 8 }]);
                code.extend(READ_FLAGS);
                code.push(0xf4);
                check_code("moffs", |_| {}, &code);
            }
        }
    }
    check_code("moffs fault", |_| {}, &[0xa1, 0, 0, 0, 0, 0, 0, 0, 0x40, 0xf4]);
    check_code("moffs hole", |b| b.protect(DATA, 0), &[0xa3, 0, 0, 0x20, 0, 0, 0, 0, 0, 0xf4]);
    check_code("xlat fault", |b| b.cpu.state.gpr[gpr::RBX] = 1 << 62, &[0xd7, 0xf4]);
}

/// BT and its kin on memory: every width, register, prefix and several forms of address.
#[test]
fn any_bit_string() {
    for seed in 1..=cases(600) {
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let opcode = random.pick(&[0xa3, 0xab, 0xb3, 0xbb]);
        let size = random.pick(&[2, 4, 8]);
        let number = random.pick(&[0u8, 1, 2, 6, 7, 8, 12, 13, 14, 15]);
        let offset = match random.below(4) {
            0 => random.below(64),
            1 => random.below(4096 * 8 * 2),
            2 => random.below(4096 * 8).wrapping_neg(),
            _ => random.below(1 << 16) | random.bits() << 32,
        };
        let mut code = vec![0x4d, 0x01, 0xc8];
        code.extend((random.below(3) == 0 && opcode != 0xa3).then_some(0xf0));
        code.extend((random.below(5) == 0).then_some(0x67));
        code.extend((random.below(5) == 0).then_some(0x65));
        code.extend((size == 2).then_some(0x66));
        // By [rbx], [rbx + r9 * 2 + 5], [rip + x] or an absolute address.
        let form = random.below(4);
        let rex = u8::from(size == 8) << 3 | number >> 3 << 2 | u8::from(form == 1) << 1;
        code.extend([0x40 | rex, 0x0f, opcode]);
        let reg = (number & 7) << 3;
        let near = (DATA + 0xffc) as u32;
        match form {
            0 => code.push(reg | 3),
            1 => code.extend([reg | 0x44, 0x4b, 5]),
            2 => {
                code.push(reg | 5);
                let next = CODE as u32 + code.len() as u32 + 4;
                code.extend(near.wrapping_sub(next).to_le_bytes());
            }
            _ => {
                code.extend([reg | 4, 0x25]);
                code.extend(near.to_le_bytes());
            }
        }
        if random.below(2) == 0 {
            code.extend(READ_FLAGS);
        }
        code.push(0xf4);
        let base = DATA + 0xff0 + random.below(16);
        let hole = (random.below(6) == 0).then(|| DATA + 0x1000 * random.below(2));
        let setup = |bench: &mut Bench| {
            let state = &mut bench.cpu.state;
            state.gpr[gpr::RBX] = base;
            state.gpr[9] = 3;
            state.gpr[usize::from(number)] = offset;
            state.segments[cpu::state::seg::GS].base = 0x30;
            if let Some(hole) = hole {
                bench.protect(hole, 0);
            }
        };
        check_code(&format!("seed {seed}: offset {offset:#x}"), setup, &code);
    }
}
