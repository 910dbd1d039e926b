//! Translated blocks as text: the guest's instructions and the host's, for `--log in_asm,out_asm`.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

/// The log target of the guest's instructions.
pub(crate) const GUEST: &str = "jit::in_asm";
/// The log target of the host's.
pub(crate) const HOST: &str = "jit::out_asm";

/// Logs the instructions of a block at `rip` that is being translated.
pub(crate) fn log_guest<'a>(rip: u64, insns: impl Iterator<Item = &'a Instruction>) {
    if log::log_enabled!(target: GUEST, log::Level::Debug) {
        log::debug!(target: GUEST, "block at {rip:#x}:{}", lines(insns));
    }
}

/// Logs the host's code of a block at `rip`, which begins at host address `at`.
pub(crate) fn log_host(rip: u64, at: usize, code: &[u8]) {
    if log::log_enabled!(target: HOST, log::Level::Debug) {
        let insns = Decoder::with_ip(64, code, at as u64, DecoderOptions::NONE);
        let insns: Vec<Instruction> = insns.into_iter().collect();
        log::debug!(target: HOST, "code of the block at {rip:#x}:{}", lines(insns.iter()));
    }
}

fn lines<'a>(insns: impl Iterator<Item = &'a Instruction>) -> String {
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    for insn in insns {
        let mut line = String::new();
        formatter.format(insn, &mut line);
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {:#014x}  {line}", insn.ip());
    }
    text
}
