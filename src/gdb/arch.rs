//! The architecture as `gdbstub` wants it: registers by number, and all of them as one block.

use std::num::NonZeroUsize;

use gdbstub::arch::{Arch, RegId, Registers};

use super::description;
use crate::debug::registers::REGISTERS;

/// x86-64 with every register of [`crate::debug::registers`], in every mode.
pub(super) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Block;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;

    fn target_description_xml() -> Option<&'static str> {
        Some(description::xml())
    }
}

/// The number of a register in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegisterNumber(pub(super) usize);

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = REGISTERS.get(id)?;
        Some((Self(id), NonZeroUsize::new(register.bytes())))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// The values of all registers one behind the other; none for those that the processor has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// By number; shorter than the table if a client left some out.
    pub(super) values: Vec<Option<Vec<u8>>>,
}

impl Registers for Block {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let rip = REGISTERS.iter().position(|register| register.name == "rip");
        let value = rip.and_then(|number| self.values.get(number)?.as_ref());
        value.map_or(0, |bytes| bytes.iter().rev().fold(0, |pc, &b| pc << 8 | u64::from(b)))
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for (register, value) in REGISTERS.iter().zip(&self.values) {
            match value {
                Some(bytes) => bytes.iter().for_each(|&byte| write_byte(Some(byte))),
                None => (0..register.bytes()).for_each(|_| write_byte(None)),
            }
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.values.clear();
        let mut rest = bytes;
        for register in REGISTERS.iter() {
            let Some((value, later)) = rest.split_at_checked(register.bytes()) else { break };
            self.values.push(Some(value.to_vec()));
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(()) }
    }
}
