//! Instructions as text, in the mode that the CPU is in.

use std::fmt;

use cpu::Cpu;
use cpu::state::seg;
use iced_x86::{Decoder, Formatter, Instruction, NasmFormatter};

/// The longest instruction.
const INSTRUCTION_BYTES: usize = 15;

/// Instructions, one behind the other.
pub(crate) struct Disassembly {
    lines: Vec<Line>,
    /// Memory ends here, before as many as were wanted.
    end: Option<u64>,
}

struct Line {
    linear: u64,
    bytes: Vec<u8>,
    text: String,
}

impl Disassembly {
    /// `count` instructions from linear address `linear` on, as the CPU would execute them now.
    pub(crate) fn of(cpu: &Cpu, mut linear: u64, count: usize) -> Self {
        let mut formatter = NasmFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_branch_leading_zeros(false);
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        let mut this = Self { lines: Vec::new(), end: None };
        let base = if cpu.mode.is_64() { 0 } else { cpu.state.segments[seg::CS].base };
        for _ in 0..count {
            let mut bytes = [0; INSTRUCTION_BYTES];
            let readable = cpu.inspect_bytes(linear, &mut bytes);
            let bytes = bytes.get(..readable).unwrap_or_default();
            if bytes.is_empty() {
                this.end = Some(linear);
                break;
            }
            let offset = linear.wrapping_sub(base);
            let options = cpu.decoder_options();
            let mut decoder = Decoder::with_ip(cpu.mode.code_bits, bytes, offset, options);
            let instruction = decoder.decode();
            let line = line(&mut formatter, &instruction, linear, bytes);
            linear = linear.wrapping_add(line.bytes.len() as u64);
            this.lines.push(line);
        }
        this
    }
}

/// A byte that begins no instruction stands alone.
fn line(
    formatter: &mut NasmFormatter,
    instruction: &Instruction,
    linear: u64,
    bytes: &[u8],
) -> Line {
    let mut text = String::new();
    let length = if instruction.is_invalid() {
        text.push_str("(bad)");
        1
    } else {
        formatter.format(instruction, &mut text);
        instruction.len()
    };
    Line { linear, bytes: bytes.get(..length).unwrap_or_default().to_vec(), text }
}

impl fmt::Display for Disassembly {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { linear, bytes, text } in &self.lines {
            let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(out, "{linear:#x}: {bytes:<20} {text}")?;
        }
        match self.end {
            Some(end) => writeln!(out, "{end:#x}: nothing is mapped there, or a device"),
            None => Ok(()),
        }
    }
}
