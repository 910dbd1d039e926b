//! Has an entry's block translated, and finds its parts.

use std::sync::Arc;

use cpu::engine::Vcpu;
use cpu::state::State;
use cpu::testing::{Bench, CODE, DATA, STACK};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use jit::{JitCpu, Options};

use crate::entry::Entry;

/// A block's host code, addresses counted from its first byte.
pub struct Block {
    pub bytes: Vec<u8>,
    /// The guest's instructions.
    pub guest: Vec<Instruction>,
    pub guest_bytes: Vec<u8>,
    /// Where blocks begin in code memory; below it are the thunks.
    pub origin: i64,
    /// Behind the entries, which end in it.
    pub body: u64,
    /// Where the flags are that the body begins with.
    pub wants: Wants,
    /// Where out-of-line code begins, and constants.
    pub hot_end: u64,
    pub code_end: u64,
}

/// Where a block wants the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Nothing,
    Live,
    Spilled,
}

/// Decodes `bytes` from `from` to `to`.
pub fn decode(bytes: &[u8], from: u64, to: u64) -> Vec<Instruction> {
    let bytes = bytes.get(from as usize..to as usize).unwrap_or_default();
    Decoder::with_ip(64, bytes, from, DecoderOptions::NONE).into_iter().collect()
}

fn assemble(entry: &Entry) -> (Vec<u8>, Vec<Instruction>) {
    let mut assembler = CodeAssembler::new(entry.bits).expect("an assembler");
    (entry.code)(&mut assembler).expect("instructions");
    let ip = CODE + entry.offset;
    let bytes = assembler.assemble(ip).expect("code");
    let decoder = Decoder::with_ip(entry.bits, &bytes, ip, DecoderOptions::NONE);
    let instructions: Vec<Instruction> = decoder.into_iter().collect();
    (bytes, instructions)
}

/// A bench whose code page is full of HLT, whose data is full of its address, and whose registers
/// point into data.
fn bench(entry: &Entry) -> (Bench, State) {
    let mut bench = if entry.bits == 64 { Bench::long64() } else { Bench::compatibility32() };
    bench.set_cpl(entry.cpl);
    let word: Vec<u8> = if entry.bits == 64 {
        CODE.to_le_bytes().to_vec()
    } else {
        (CODE as u32).to_le_bytes().to_vec()
    };
    let page: Vec<u8> = word.iter().copied().cycle().take(0x4000).collect();
    bench.poke(DATA, &page);
    bench.poke(STACK - 0x2000, &page);
    bench.poke(CODE - 0x1000, &[0xf4; 0x3000]);
    let mut state = bench.cpu.state.clone();
    for (number, register) in (0..).zip(&mut state.gpr) {
        *register = DATA + 0x100 * number + 0x400;
    }
    // A loop that counts it down is in its second turn when it becomes hot, and leaves a
    // superblock in the turn after those that it has.
    state.gpr[1] = 2 + entry.turns as u64;
    state.gpr[4] = STACK - 0x100;
    state.gpr[5] = STACK - 0x180;
    // For computed jumps: code.
    state.gpr[11] = CODE;
    state.gpr[15] = CODE;
    // For accesses over two pages.
    state.gpr[9] = DATA + 0xffc;
    (bench, state)
}

/// Translates `entry`.
pub fn of(entry: &Entry) -> Block {
    let (guest_bytes, guest) = assemble(entry);
    let (bench, state) = bench(entry);
    let rip = CODE + entry.offset;
    bench.poke(rip, &guest_bytes);
    let mut env = bench.cpu.env.clone();
    env.events = Arc::default();
    let options = Options {
        counting: entry.is_counting,
        block_size: guest.len() * entry.turns,
        superblock_after: u32::from(entry.turns > 1),
        cache_bytes: 1 << 20,
        ..Options::default()
    };
    let mut jit = JitCpu::new(env, &options).expect("a translator");
    jit.set_state(State { rip, ..state });
    jit.run(256);
    let mut found = jit.translated().into_iter().filter(|block| block.rip == rip);
    match found.nth(usize::from(entry.is_ungrouped)) {
        Some(block) => parts(entry, block.bytes, -(block.position as i64), (guest_bytes, guest)),
        None => panic!("{}: no block was made", entry.name),
    }
}

fn parts(
    entry: &Entry,
    bytes: Vec<u8>,
    origin: i64,
    (guest_bytes, guest): (Vec<u8>, Vec<Instruction>),
) -> Block {
    let all = decode(&bytes, 0, bytes.len() as u64);
    let is_guard =
        |i: &&Instruction| i.code() == Code::Cmp_rm8_imm8 && i.memory_segment() == Register::GS;
    let guards = all.iter().step_by(2).take_while(is_guard).count();
    let miss = all.get(1).filter(|miss| miss.code() == Code::Je_rel32_64);
    let hot_end = miss.expect("a check of the page").near_branch_target();
    let first = all.get(2 * guards).expect("an entry");
    let (body, wants) = match first.mnemonic() {
        Mnemonic::Nop => (first.next_ip(), Wants::Nothing),
        Mnemonic::Jmp => (first.near_branch_target(), Wants::Spilled),
        Mnemonic::Mov => {
            let restore = all.iter().position(|i| i.mnemonic() == Mnemonic::Sahf);
            let last = restore.and_then(|at| all.get(at + 1)).expect("flags put back");
            (last.next_ip(), Wants::Live)
        }
        other => panic!("{}: an entry begins with {other:?}", entry.name),
    };
    let constant =
        |i: &Instruction| i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address());
    let code_end = all.iter().filter_map(constant).filter(|&at| at >= hot_end).min();
    let code_end = code_end.unwrap_or(bytes.len() as u64);
    Block { bytes, guest, guest_bytes, origin, body, wants, hot_end, code_end }
}

impl Block {
    /// The instructions of the path that is expected.
    pub fn hot(&self) -> Vec<Instruction> {
        decode(&self.bytes, self.body, self.hot_end)
    }

    /// Instructions out of line.
    pub fn out_of_line(&self) -> usize {
        decode(&self.bytes, self.hot_end, self.code_end).len()
    }

    /// What a jump or call to `target` is for.
    pub fn target(&self, jump: &Instruction) -> Target {
        let target = jump.near_branch_target() as i64;
        if target < self.origin {
            return match jump.flow_control() {
                FlowControl::Call => Target::Handler,
                FlowControl::ConditionalBranch => Target::Mispredicted,
                _ => Target::Leave,
            };
        }
        if target < 0 || target >= self.bytes.len() as i64 {
            return Target::Link;
        }
        let target = target as u64;
        if target < self.hot_end {
            return if target > jump.ip() { Target::Inside(target) } else { Target::Link };
        }
        // Out of line: links leave at once, or jump to what they will be, or count before that.
        let path = decode(&self.bytes, target, self.code_end);
        let is_end = |host: &&Instruction| {
            host.flow_control() != FlowControl::Next && host.mnemonic() != Mnemonic::Jrcxz
        };
        let end = path.iter().find(is_end);
        match end {
            Some(end) if end.flow_control() == FlowControl::UnconditionalBranch => Target::Link,
            _ => Target::Slow,
        }
    }

    /// How many host instructions are executed from position `at` to the block's end, or to its way
    /// out, if everything is as expected: conditions do not hold.
    pub fn path_length(&self, at: u64) -> Option<usize> {
        let mut length = 0;
        for host in decode(&self.bytes, at, self.hot_end) {
            length += 1;
            let target = match host.flow_control() {
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    Some(self.target(&host))
                }
                _ => None,
            };
            let is_conditional = host.flow_control() == FlowControl::ConditionalBranch;
            match target {
                // Only the budget's check leads away where its condition does not hold.
                Some(Target::Inside(to)) if is_conditional => {
                    let other = || self.path_length(to);
                    return self.path_length(host.next_ip()).or_else(other).map(|n| n + length);
                }
                Some(Target::Inside(to)) => return self.path_length(to).map(|n| n + length),
                Some(Target::Leave) => return None,
                Some(_) if !is_conditional => break,
                _ => {}
            }
        }
        Some(length)
    }

    /// The constant that an operand relative to RIP is.
    pub fn constant(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes.get(address as usize..address as usize + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// What a jump is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On the same path, to this position.
    Inside(u64),
    /// The slow path of a memory access.
    Slow,
    /// Another block.
    Link,
    /// The helper that runs an interpreter's handler.
    Handler,
    /// Where returns go that the host did not predict.
    Mispredicted,
    /// The way out of translated code.
    Leave,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Inside(_) => "inside",
            Self::Slow => "slow",
            Self::Link => "link",
            Self::Handler => "handler",
            Self::Mispredicted => "mispredicted",
            Self::Leave => "leave",
        }
    }
}

/// The displacement of `host`'s operand in the context, if it has one.
pub fn context_displacement(host: &Instruction) -> Option<u64> {
    let has_memory = (0..host.op_count()).any(|n| host.op_kind(n) == iced_x86::OpKind::Memory);
    (has_memory && host.memory_segment() == Register::GS).then(|| host.memory_displacement64())
}
