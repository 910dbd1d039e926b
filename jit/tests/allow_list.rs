//! Which host instructions translated code is made of: for every form of guest instruction that
//! there is, in 64-bit and in 32-bit code, at CPL 0 and CPL 3, and for random bytes.
//!
//! Nothing that the kernel or the processor's owner would notice may be among them, nor anything
//! that reaches memory but by the scratch registers and the context.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use cpu::engine::Vcpu;
use cpu::state::State;
use cpu::testing::forms::{Chooser, build, encode};
use cpu::testing::random::Random;
use cpu::testing::{Bench, CODE, DATA, STACK};
use decoder::{Class, Privilege, Row};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, MemoryOperand, Mnemonic,
    NasmFormatter, OpKind, Register,
};
use jit::{JitCpu, Options};

/// Bytes between two programs.
const STRIDE: u64 = 64;
/// Instructions of a program at most: what jumps at random ends by it.
const BUDGET: u64 = 32;

/// The instructions of classes that are allowed in part.
const ALLOWED: &[(Class, &[Mnemonic])] = &[
    (Class::Nop, &[Mnemonic::Nop, Mnemonic::Pause]),
    (Class::Cache, &[Mnemonic::Mfence, Mnemonic::Lfence, Mnemonic::Sfence]),
    (Class::Flag, &[Mnemonic::Clc, Mnemonic::Stc, Mnemonic::Cmc, Mnemonic::Lahf, Mnemonic::Sahf]),
    // What of it a guest sees is computed from the count, and not the host's.
    (Class::System, &[Mnemonic::Rdtsc]),
    // On ranges that were checked, with RSI and RDI host addresses meanwhile.
    (Class::String, STRINGS),
];

const STRINGS: &[Mnemonic] = &[
    Mnemonic::Movsb,
    Mnemonic::Movsw,
    Mnemonic::Movsd,
    Mnemonic::Movsq,
    Mnemonic::Stosb,
    Mnemonic::Stosw,
    Mnemonic::Stosd,
    Mnemonic::Stosq,
    Mnemonic::Cmpsb,
    Mnemonic::Cmpsw,
    Mnemonic::Cmpsd,
    Mnemonic::Cmpsq,
    Mnemonic::Scasb,
    Mnemonic::Scasw,
    Mnemonic::Scasd,
    Mnemonic::Scasq,
];

fn is_allowed(row: &Row) -> bool {
    let is_whole_class = matches!(
        row.class,
        Class::Alu
            | Class::Bit
            | Class::Branch
            | Class::Condition
            | Class::Crypto
            | Class::Exchange
            | Class::Mov
            | Class::MulDiv
            | Class::Opmask
            | Class::Shift
            | Class::SimdFloat
            | Class::SimdInteger
            | Class::X87
    );
    let is_in_part = ALLOWED
        .iter()
        .any(|(class, mnemonics)| *class == row.class && mnemonics.contains(&row.code.mnemonic()));
    // CR4.TSD is clear where translated code runs.
    matches!(row.privilege, Privilege::Any | Privilege::Tsd) && (is_whole_class || is_in_part)
}

/// Why host instruction `host` must not be there.
fn objection(host: &Instruction) -> Option<String> {
    if host.is_invalid() {
        return Some("is none".into());
    }
    if !is_allowed(decoder::row(host.code())) {
        return Some("is not allowed".into());
    }
    if host.code().op_code().is_privileged() {
        return Some("is not for programs".into());
    }
    let has_memory = (0..host.op_count()).any(|n| host.op_kind(n) == OpKind::Memory);
    let is_context = has_memory && host.memory_segment() == Register::GS;
    if matches!(host.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
        && !is_context
    {
        return Some("goes where nobody looked".into());
    }
    let is_narrow = (0..host.op_count())
        .any(|n| matches!(host.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    if is_narrow || host.has_segment_prefix() && !is_context {
        return Some("has an address of another kind".into());
    }
    stack_objection(host, is_context).or_else(|| memory_objection(host, is_context))
}

/// RSP is the stack of return predictions: calls and returns alone change it, and the switch
/// between the two of them.
fn stack_objection(host: &Instruction, is_context: bool) -> Option<String> {
    let is_stack = |register: Register| register.full_register() == Register::RSP;
    let is_named = (0..host.op_count())
        .any(|n| host.op_kind(n) == OpKind::Register && is_stack(host.op_register(n)));
    let is_switch = host.mnemonic() == Mnemonic::Mov
        && is_context
        && host.memory_base() == Register::None
        && host.memory_index() == Register::None;
    let has_segment = (0..host.op_count())
        .any(|n| host.op_kind(n) == OpKind::Register && host.op_register(n).is_segment_register());
    if is_named && !is_switch {
        return Some("names RSP".into());
    }
    has_segment.then(|| "names a segment register".into())
}

/// Memory is reached by the context, or by addresses that were checked and are in R14 (or, with a
/// high byte register beside them, in RDI), or by the safe point's load.
fn memory_objection(host: &Instruction, is_context: bool) -> Option<String> {
    let has_memory = (0..host.op_count()).any(|n| host.op_kind(n) == OpKind::Memory);
    if !has_memory || matches!(host.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return None;
    }
    let (base, index) = (host.memory_base(), host.memory_index());
    if is_context {
        let is_scratch = |register| matches!(register, Register::None | Register::R15);
        return (!is_scratch(base) || !is_scratch(index)).then(|| "strays from the context".into());
    }
    let is_safe_point = base == Register::R15
        && index == Register::None
        && host.code() == Code::Mov_r64_rm64
        && host.op0_register() == Register::R15;
    let is_lent =
        base == Register::RDI && index == Register::None && host.memory_displacement64() == 0;
    let is_known = base == Register::R14 || is_safe_point || is_lent;
    (!is_known || host.has_segment_prefix()).then(|| "reaches memory by other ways".into())
}

/// The mode of a sweep.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    bits: u32,
    cpl: u8,
    is_counting: bool,
}

/// Chooses operands that are all in the data page, mostly.
struct Operands {
    random: Random,
    bits: u32,
    wants_memory: bool,
    ip: u64,
}

impl Chooser for Operands {
    fn random(&mut self) -> &mut Random {
        &mut self.random
    }
    fn wants_memory(&mut self) -> bool {
        self.wants_memory
    }
    fn general(&mut self, bytes: u32, _: u32, _: &Row) -> u32 {
        let count = if self.bits == 64 { 16 } else { 8 };
        match self.random.below(4) {
            0 if bytes == 1 => 16 + self.random.below(4) as u32,
            _ => self.random.below(count) as u32,
        }
    }
    fn address(&mut self, _: &Row, vector: Option<Register>) -> MemoryOperand {
        let first = if self.bits == 64 { Register::RAX } else { Register::EAX };
        let count = if self.bits == 64 { 16 } else { 8 };
        let base = first + self.random.below(count) as u32;
        let index = match vector {
            Some(first) => first + self.random.below(8) as u32,
            None if self.random.chance(30) => first + self.random.below(3) as u32,
            None => Register::None,
        };
        let displacement = self.random.pick(&[0, 8, -64, 0x1234]);
        let segment_prefix =
            self.random.pick(&[Register::None, Register::None, Register::FS, Register::GS]);
        let displ_size = if displacement == 0 { 0 } else { self.bits / 8 };
        let displacement =
            if self.bits == 64 { displacement } else { i64::from(displacement as u32) };
        MemoryOperand {
            segment_prefix,
            base,
            index,
            scale: 1,
            displacement,
            displ_size,
            is_broadcast: false,
        }
    }
    fn target(&mut self) -> u64 {
        self.ip + 0x20
    }
}

fn bench(sweep: Sweep) -> (Bench, State) {
    let mut bench = if sweep.bits == 64 { Bench::long64() } else { Bench::compatibility32() };
    bench.set_cpl(sweep.cpl);
    let word = CODE.to_le_bytes();
    let page: Vec<u8> = word.iter().copied().cycle().take(0x4000).collect();
    bench.poke(DATA, &page);
    bench.poke(STACK - 0x2000, &page);
    bench.poke(CODE, &[0xf4; 64]);
    let mut state = bench.cpu.state.clone();
    for (number, register) in (0..).zip(&mut state.gpr) {
        *register = DATA + 0x100 * number + 0x400;
    }
    state.gpr[1] = 3;
    state.gpr[4] = STACK - 0x100;
    state.gpr[5] = STACK - 0x180;
    (bench, state)
}

/// The code of two instructions of each form of `codes`; the second one may share a check.
fn programs(sweep: Sweep, rows: &[&'static Row]) -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let mut programs = Vec::new();
    for (row, wants_memory) in rows.iter().flat_map(|row| [(row, false), (row, true)]) {
        let ip = CODE + STRIDE * (programs.len() as u64 + 1);
        let seed = random.bits();
        let one = |ip| {
            (0..20).find_map(|attempt| {
                let random = Random::new(seed + attempt);
                let mut operands = Operands { random, bits: sweep.bits, wants_memory, ip };
                let instruction = build(&mut operands, sweep.bits, row).ok()?;
                encode(&instruction, sweep.bits, ip)
            })
        };
        let Some(first) = one(ip) else { continue };
        let second = one(ip + first.len() as u64).unwrap_or_default();
        programs.push([first, second, vec![0xf4; 4]].concat());
    }
    programs
}

/// Translates `programs` and gives what was objected to, by host instruction.
fn objections(sweep: Sweep, programs: &[Vec<u8>]) -> BTreeMap<String, String> {
    let (bench, state) = bench(sweep);
    for (number, program) in (1..).zip(programs) {
        bench.poke(CODE + STRIDE * number, program);
    }
    let mut env = bench.cpu.env.clone();
    env.events = Arc::default();
    let options = Options { counting: sweep.is_counting, ..Options::default() };
    let mut jit = JitCpu::new(env, &options).expect("a translator");
    let mut objections = BTreeMap::new();
    for number in 1..=programs.len() as u64 {
        let start = State { rip: CODE + STRIDE * number, ..state.clone() };
        jit.set_state(start);
        jit.run(BUDGET);
    }
    let mut blocks = 0;
    for block in jit.translated() {
        blocks += 1;
        look_at(sweep, (block.rip, &block.bytes), &mut objections);
    }
    println!("{sweep:?}: {} programs, {blocks} blocks", programs.len());
    assert!(blocks * 4 > programs.len(), "{sweep:?}: only {blocks} blocks");
    objections
}

fn look_at(sweep: Sweep, (rip, bytes): (u64, &[u8]), objections: &mut BTreeMap<String, String>) {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    while decoder.can_decode() {
        let host = decoder.decode();
        if let Some(why) = objection(&host) {
            let mut text = String::new();
            NasmFormatter::new().format(&host, &mut text);
            let place = format!("{sweep:?}, block of {rip:#x}");
            objections.entry(format!("{text:<40} {why}")).or_insert(place);
        }
    }
}

fn check(sweep: Sweep, programs: &[Vec<u8>]) {
    let found = objections(sweep, programs);
    let lines: Vec<String> =
        found.iter().map(|(what, place)| format!("{what} ({place})")).collect();
    assert!(lines.is_empty(), "{} host instructions:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn what_is_harmful_is_objected_to() {
    const HARMFUL: [&[u8]; 24] = [
        &[0x0f, 0x01, 0xf9],                         // rdtscp
        &[0x0f, 0x01, 0xd0],                         // xgetbv
        &[0x0f, 0x05],                               // syscall
        &[0xcd, 0x80],                               // int 80h
        &[0xf4],                                     // hlt
        &[0xe4, 0x60],                               // in al, 60h
        &[0x9c],                                     // pushf
        &[0x9d],                                     // popf
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0],             // wrfsbase rax
        &[0xf3, 0x0f, 0xc7, 0xf8],                   // rdpid rax
        &[0x0f, 0xae, 0x26],                         // xsave [rsi]
        &[0x41, 0x0f, 0xae, 0x16],                   // ldmxcsr [r14]
        &[0xc7, 0xf8, 0, 0, 0, 0],                   // xbegin
        &[0x8e, 0xd8],                               // mov ds, eax
        &[0x50],                                     // push rax
        &[0x48, 0x8b, 0x04, 0x24],                   // mov rax, [rsp]
        &[0x48, 0x89, 0xe0],                         // mov rax, rsp
        &[0x48, 0x8b, 0x00],                         // mov rax, [rax]
        &[0x48, 0x8b, 0x05, 0, 0, 0, 0],             // mov rax, [rip]
        &[0x65, 0x48, 0x8b, 0x00],                   // mov rax, [gs:rax]
        &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0], // mov rax, [fs:0]
        &[0xff, 0xe0],                               // jmp rax
        &[0x67, 0xf3, 0xa4],                         // rep movsb [edi], [esi]
        &[0x0f, 0x0b],                               // ud2
    ];
    for bytes in HARMFUL {
        let host = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        assert!(objection(&host).is_some(), "nothing is said against {host}");
    }
}

const SWEEPS: [(u32, u8); 4] = [(64, 0), (64, 3), (32, 0), (32, 3)];

#[test]
fn every_form_becomes_harmless_code() {
    let rows: Vec<&Row> = decoder::rows().collect();
    for (bits, cpl) in SWEEPS {
        let sweep = Sweep { bits, cpl, is_counting: true };
        check(sweep, &programs(sweep, &rows));
    }
}

/// Without a budget only what comes to an end by itself.
#[test]
fn forms_that_share_checks_become_harmless_code() {
    let is_tame = |row: &&Row| {
        is_allowed(row) && row.class != Class::Branch || matches!(row.class, Class::Stack)
    };
    let rows: Vec<&Row> = decoder::rows().filter(is_tame).collect();
    for (bits, cpl) in SWEEPS {
        let sweep = Sweep { bits, cpl, is_counting: false };
        check(sweep, &programs(sweep, &rows));
    }
}

#[test]
fn random_bytes_become_harmless_code() {
    let mut random = Random::new(11);
    let opcode = |random: &mut Random| match random.below(4) {
        0 => vec![0x0f, random.bits() as u8],
        1 => vec![0x0f, random.pick(&[0x38, 0x3a]), random.bits() as u8],
        _ => vec![random.bits() as u8],
    };
    for (bits, cpl) in SWEEPS {
        let programs: Vec<Vec<u8>> = (0..8000)
            .map(|_| {
                let mut code = Vec::new();
                while code.len() < 40 {
                    for _ in 0..random.below(3) {
                        let prefixes = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x48, 0x41, 0x44, 0x64, 0x65];
                        code.push(random.pick(&prefixes));
                    }
                    code.extend_from_slice(&opcode(&mut random));
                    code.extend_from_slice(
                        &random.bits().to_le_bytes()[..1 + random.below(5) as usize],
                    );
                }
                code
            })
            .collect();
        check(Sweep { bits, cpl, is_counting: true }, &programs);
    }
}
