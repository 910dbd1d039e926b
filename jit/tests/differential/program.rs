//! Programs: instructions that name each other, and their bytes.

use std::fmt::Write as _;

use cpu::testing::forms::encode;
use iced_x86::{Decoder, Formatter, Instruction, NasmFormatter, OpKind, Register};

use crate::ignored;

/// What of an instruction depends on where another one is. Indices may be one past the last item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The target of a near branch.
    Branch(usize),
    /// The address of the memory operand.
    Address(usize),
    /// The immediate.
    Value(usize),
    /// The memory operand is this many bytes before the end of the item, seen through another
    /// mapping if `is_again`.
    Site {
        /// The item.
        item: usize,
        /// Bytes from the operand to the item's end.
        back: u64,
        /// Through [`crate::world::CODE_AGAIN`].
        is_again: bool,
    },
}

impl Aim {
    fn item(self) -> usize {
        match self {
            Self::Branch(item) | Self::Address(item) | Self::Value(item) => item,
            Self::Site { item, .. } => item,
        }
    }

    fn set_item(&mut self, new: usize) {
        match self {
            Self::Branch(item) | Self::Address(item) | Self::Value(item) => *item = new,
            Self::Site { item, .. } => *item = new,
        }
    }
}

/// One instruction of a program.
#[derive(Clone, Debug)]
pub struct Item {
    /// The instruction.
    pub instruction: Instruction,
    /// Bytes put before it.
    pub prefix: Vec<u8>,
    /// Bits that are flipped because they say nothing, as [`ignored::flip`] names them.
    pub ignored: u8,
    /// What it says of another item.
    pub aim: Option<Aim>,
}

impl Item {
    /// An instruction that depends on no other.
    pub fn plain(instruction: Instruction) -> Self {
        Self { instruction, prefix: Vec::new(), ignored: 0, aim: None }
    }

    /// An instruction that does.
    pub fn aimed(instruction: Instruction, aim: Aim) -> Self {
        Self { aim: Some(aim), ..Self::plain(instruction) }
    }
}

/// Instructions and the table of their addresses that some jump by.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The instructions in order.
    pub items: Vec<Item>,
    /// Items whose addresses are in memory.
    pub table: Vec<usize>,
}

/// A program's bytes.
#[derive(Clone, Debug, Default)]
pub struct Assembled {
    /// The address of each item, and the end.
    pub addresses: Vec<u64>,
    /// All code.
    pub bytes: Vec<u8>,
}

impl Program {
    /// The program's bytes at `base`; `None` if some instruction cannot be encoded.
    pub fn assemble(&self, bits: u32, base: u64) -> Option<Assembled> {
        const PASSES: usize = 8;
        let guess = (0..=self.items.len() as u64).map(|n| base + 4 * n).collect();
        let mut assembled = Assembled { addresses: guess, bytes: Vec::new() };
        for _ in 0..PASSES {
            let next = self.pass(bits, base, &assembled.addresses)?;
            if next.addresses == assembled.addresses {
                return Some(next);
            }
            assembled = next;
        }
        None
    }

    fn pass(&self, bits: u32, base: u64, addresses: &[u64]) -> Option<Assembled> {
        let mut next = Assembled { addresses: vec![base], bytes: Vec::new() };
        for item in &self.items {
            let ip = base + next.bytes.len() as u64;
            next.bytes.extend_from_slice(&item.encode(bits, ip, addresses)?);
            next.addresses.push(base + next.bytes.len() as u64);
        }
        Some(next)
    }

    /// The program without item `gone`.
    pub fn without(&self, gone: usize) -> Self {
        let moved = |item: usize| item - usize::from(item > gone);
        let mut program = self.clone();
        program.items.remove(gone);
        for aim in program.items.iter_mut().filter_map(|item| item.aim.as_mut()) {
            aim.set_item(moved(aim.item()));
        }
        for item in &mut program.table {
            *item = moved(*item);
        }
        program
    }
}

impl Item {
    fn encode(&self, bits: u32, ip: u64, addresses: &[u64]) -> Option<Vec<u8>> {
        let mut instruction = self.instruction;
        if let Some(aim) = self.aim {
            resolve(&mut instruction, aim, addresses)?;
        }
        let ip = ip + self.prefix.len() as u64;
        let mut code = encode(&instruction, bits, ip).or_else(|| {
            // Too far for a byte.
            instruction.as_near_branch();
            encode(&instruction, bits, ip)
        })?;
        if self.ignored != 0 {
            ignored::flip(&mut code, &instruction, self.ignored);
        }
        let mut bytes = self.prefix.clone();
        bytes.extend_from_slice(&code);
        (bytes.len() <= 15).then_some(bytes)
    }
}

fn resolve(instruction: &mut Instruction, aim: Aim, addresses: &[u64]) -> Option<()> {
    use crate::world::CODE_AGAIN;
    let address = *addresses.get(aim.item())?;
    match aim {
        Aim::Branch(_) => match instruction.op0_kind() {
            OpKind::NearBranch64 => instruction.set_near_branch64(address),
            _ => instruction.set_near_branch32(address as u32),
        },
        Aim::Address(_) => instruction.set_memory_displacement64(address),
        Aim::Value(_) => {
            let operand = instruction.op_count() - 1;
            match instruction.op_kind(operand) {
                OpKind::Immediate64 => instruction.set_immediate64(address),
                OpKind::Immediate32to64 => instruction.set_immediate32to64(address as i32 as i64),
                _ => instruction.set_immediate32(address as u32),
            }
        }
        Aim::Site { item, back, is_again } => {
            let end = *addresses.get(item + 1)?;
            let site = end.wrapping_sub(back);
            let is_first_page = site & 0xf000 == 0;
            let again = site & !0xff_ffff | CODE_AGAIN | site & 0xfff;
            let address = if is_again && is_first_page { again } else { site };
            instruction.set_memory_displacement64(address);
        }
    }
    Some(())
}

/// A memory operand that only its address names.
pub fn set_absolute(instruction: &mut Instruction, bits: u32, operand: u32, address: u64) {
    instruction.set_op_kind(operand, OpKind::Memory);
    let base = if bits == 64 { Register::RIP } else { Register::None };
    instruction.set_memory_base(base);
    instruction.set_memory_displacement64(address);
    instruction.set_memory_displ_size(bits / 8);
}

/// `bytes` as text, one instruction a line.
pub fn disassembly(bytes: &[u8], bits: u32, base: u64, options: u32) -> String {
    let mut text = String::new();
    let mut decoder = Decoder::with_ip(bits, bytes, base, options);
    let mut formatter = NasmFormatter::new();
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        let hex: String =
            bytes[at..decoder.position()].iter().map(|b| format!("{b:02x}")).collect();
        let mut words = String::new();
        formatter.format(&instruction, &mut words);
        let _ = writeln!(text, "    {:#x}: {hex:<22} {words}", instruction.ip());
    }
    text
}
