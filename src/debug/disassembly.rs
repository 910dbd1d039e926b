//! Instructions as text, in the mode that the CPU is in.

use std::fmt;
use std::sync::Arc;

use cpu::Cpu;
use cpu::state::seg;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};
use symbols::Symbols;

use crate::names::Named;

/// The longest instruction.
const INSTRUCTION_BYTES: usize = 15;

/// Instructions, one behind the other.
pub(crate) struct Disassembly {
    names: Arc<Symbols>,
    lines: Vec<Line>,
    /// Memory ends here, before as many as were wanted.
    end: Option<u64>,
}

/// An instruction as text.
pub(crate) struct Line {
    linear: u64,
    bytes: Vec<u8>,
    /// What it is.
    pub(crate) text: String,
    /// The linear address that it is about, if it has one.
    pub(crate) about: Option<u64>,
}

impl Line {
    /// Its bytes.
    pub(crate) fn digits(&self) -> String {
        self.bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// All of it, with the names of its addresses.
    pub(crate) fn named(&self, names: &Symbols) -> String {
        let name = Named(names.at(self.linear));
        let about = Named(self.about.and_then(|address| names.at(address)));
        format!("{:#x}{name}: {:<20} {}{about}", self.linear, self.digits(), self.text)
    }
}

impl Disassembly {
    /// `count` instructions from linear address `linear` on, as the CPU would execute them now.
    pub(crate) fn of(cpu: &Cpu, names: Arc<Symbols>, mut linear: u64, count: usize) -> Self {
        let mut instructions = Instructions::default();
        let mut this = Self { names, lines: Vec::new(), end: None };
        let base = if cpu.mode.is_64() { 0 } else { cpu.state.segments[seg::CS].base };
        for _ in 0..count {
            let mut bytes = [0; INSTRUCTION_BYTES];
            let readable = cpu.inspect_bytes(linear, &mut bytes);
            let bytes = bytes.get(..readable).unwrap_or_default();
            if bytes.is_empty() {
                this.end = Some(linear);
                break;
            }
            let rip = linear.wrapping_sub(base);
            let options = cpu.decoder_options();
            let decoder = Decoder::with_ip(cpu.mode.code_bits, bytes, rip, options);
            let line = instructions.decoded(decoder, bytes, linear);
            linear = linear.wrapping_add(line.bytes.len() as u64);
            this.lines.push(line);
        }
        this
    }
}

/// The target of a branch, or the memory that is addressed relative to the instruction.
fn about(instruction: &Instruction) -> Option<u64> {
    let is_near = instruction.is_call_near() || instruction.is_jmp_short_or_near();
    match is_near || instruction.is_jcc_short_or_near() {
        true => Some(instruction.near_branch_target()),
        false => {
            instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address())
        }
    }
}

/// Who writes instructions as text.
pub(crate) struct Instructions(NasmFormatter);

impl Default for Instructions {
    fn default() -> Self {
        let mut formatter = NasmFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_branch_leading_zeros(false);
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        Self(formatter)
    }
}

impl Instructions {
    /// The instruction in `bytes`, in code of `bits` bits, at offset `rip` of its segment.
    pub(crate) fn line(&mut self, bits: u32, bytes: &[u8], rip: u64, linear: u64) -> Line {
        let decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
        Line { bytes: bytes.to_vec(), ..self.decoded(decoder, bytes, linear) }
    }

    /// A byte that begins no instruction stands alone.
    fn decoded(&mut self, mut decoder: Decoder<'_>, bytes: &[u8], linear: u64) -> Line {
        let instruction = decoder.decode();
        let mut text = String::new();
        let length = if instruction.is_invalid() {
            text.push_str("(bad)");
            1
        } else {
            self.0.format(&instruction, &mut text);
            instruction.len()
        };
        let bytes = bytes.get(..length).unwrap_or_default().to_vec();
        // Offsets of code are those of its segment.
        let base = linear.wrapping_sub(instruction.ip());
        let about = about(&instruction).map(|offset| offset.wrapping_add(base));
        Line { linear, bytes, text, about }
    }
}

impl fmt::Display for Disassembly {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(out, "{}", line.named(&self.names)))?;
        match self.end {
            Some(end) => writeln!(out, "{end:#x}: nothing is mapped there, or a device"),
            None => Ok(()),
        }
    }
}
