//! Where images of x87 state say in which page the last operand was.
//!
//! Of two linear pages that are the same memory the translator may name either.

use cpu::interp::insn::{operand_offset, operand_segment};
use cpu::state::State;
use iced_x86::{Code, Instruction, Mnemonic as M};

use crate::pool::STORES_X87_POINTERS;
use crate::world::offset_of;

/// The bytes of the page's number that `instruction`, executed in state `before`, has stored, by
/// their places in [`crate::world::World::contents`], each with those of its bits that are of the
/// number.
pub fn stored(before: &State, instruction: &Instruction) -> Vec<(usize, u8)> {
    if !STORES_X87_POINTERS.contains(&instruction.mnemonic()) {
        return Vec::new();
    }
    let base = before.segments[usize::from(operand_segment(instruction))].base;
    let Some(offset) = operand_offset(instruction, &before.gpr) else { return Vec::new() };
    let (first, bytes) = field(instruction);
    let masks = [0, 0xf0].into_iter().chain(std::iter::repeat(0xff)).take(bytes);
    let places = (offset.wrapping_add(base).wrapping_add(first)..).map(offset_of);
    places.zip(masks).filter_map(|(place, mask)| Some((place?, mask))).collect()
}

/// Where the image that `instruction` stores has FDP, and its bytes (SDM Vol. 1, "x87 FPU State
/// Image in Memory" and "FXSAVE Area").
fn field(instruction: &Instruction) -> (u64, usize) {
    match instruction.mnemonic() {
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave if is_16(instruction.code()) => (10, 2),
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave => (20, 4),
        M::Fxsave64 | M::Xsave64 | M::Xsavec64 | M::Xsaveopt64 | M::Xsaves64 => (16, 8),
        _ => (16, 4),
    }
}

fn is_16(code: Code) -> bool {
    matches!(code, Code::Fnstenv_m14byte | Code::Fstenv_m14byte)
        || matches!(code, Code::Fnsave_m94byte | Code::Fsave_m94byte)
}
