//! Guest basic blocks.

use crate::{FeatureSet, Vendor, decoder_options, row};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

/// The longest instruction, in bytes; a longer one is #GP(0).
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// Why a block ends where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEnd {
    /// Its last instruction says so ([`crate::Row::ends_block`]).
    Instruction,
    /// It has as many instructions as were asked for.
    Limit,
    /// The window ends, perhaps inside an instruction; the next one needs more bytes.
    Window,
    /// The next instruction is invalid: #UD.
    Invalid,
    /// The next instruction is longer than [`MAX_INSTRUCTION_BYTES`]: #GP(0).
    TooLong,
}

/// Instructions that follow each other without a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The instructions, none of them invalid. May be empty.
    pub instructions: Vec<Instruction>,
    /// How many bytes they take.
    pub length_bytes: usize,
    /// Why there are not more.
    pub end: BlockEnd,
}

/// Finds basic blocks as a given processor would decode them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockScanner {
    options: u32,
}

impl BlockScanner {
    /// A scanner for a processor of `vendor` that offers `features`.
    pub fn new(vendor: Vendor, features: FeatureSet) -> Self {
        Self { options: decoder_options(vendor, features) }
    }

    /// Decodes at most `max` instructions of `bytes`, which lie at `ip` in a code segment of
    /// `bitness` 16, 32 or 64 (any other decodes as 64).
    ///
    /// An instruction that its row calls undefined is part of the block: whether it is #UD may
    /// depend on state, and it ends the block anyway.
    pub fn scan(&self, bytes: &[u8], ip: u64, bitness: u32, max: usize) -> Block {
        let mut decoder = self.decoder(bytes, ip, bitness, self.options);
        let mut instructions = Vec::with_capacity(max.min(bytes.len()).min(16));
        let mut length_bytes = 0;
        let end = loop {
            if instructions.len() == max {
                break BlockEnd::Limit;
            }
            if !decoder.can_decode() {
                break BlockEnd::Window;
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                let rest = bytes.get(length_bytes..).unwrap_or_default();
                break self.why_invalid(decoder.last_error(), rest, instruction.len(), bitness);
            }
            length_bytes = decoder.position();
            instructions.push(instruction);
            if row(instruction.code()).ends_block {
                break BlockEnd::Instruction;
            }
        };
        Block { instructions, length_bytes, end }
    }

    /// iced reports an instruction of more than 15 bytes as one invalid instruction of 15. So does
    /// it report one of exactly 15 with a misplaced LOCK, which decodes without the check.
    fn why_invalid(
        &self,
        error: DecoderError,
        rest: &[u8],
        length: usize,
        bitness: u32,
    ) -> BlockEnd {
        if error == DecoderError::NoMoreBytes {
            return self.why_cut(rest, bitness);
        }
        if length < MAX_INSTRUCTION_BYTES {
            return BlockEnd::Invalid;
        }
        let lenient = self.options | DecoderOptions::NO_INVALID_CHECK;
        match self.decoder(rest, 0, bitness, lenient).decode().is_invalid() {
            true => BlockEnd::TooLong,
            false => BlockEnd::Invalid,
        }
    }

    /// iced asks for one byte behind some opcodes that no byte can make valid (POP SS in 64-bit
    /// mode). At the end of a page it matters: #UD comes before the fetch of the next page can
    /// fault.
    fn why_cut(&self, rest: &[u8], bitness: u32) -> BlockEnd {
        let mut bytes = [rest, &[0]].concat();
        let is_hopeless = (0..=u8::MAX).all(|next| {
            bytes[rest.len()] = next;
            let mut decoder = self.decoder(&bytes, 0, bitness, self.options);
            decoder.decode().is_invalid() && decoder.last_error() != DecoderError::NoMoreBytes
        });
        if is_hopeless { BlockEnd::Invalid } else { BlockEnd::Window }
    }

    fn decoder<'a>(&self, bytes: &'a [u8], ip: u64, bitness: u32, options: u32) -> Decoder<'a> {
        // iced panics on any other bitness.
        let bitness = if matches!(bitness, 16 | 32) { bitness } else { 64 };
        Decoder::with_ip(bitness, bytes, ip, options)
    }
}
