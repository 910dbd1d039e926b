//! Commands that write the guest's memory to a file of the host.

use std::fs::File;
use std::io::{BufWriter, Write};

use super::memory::{Read, each_piece, read_physical};
use super::{Answer, Call, Command, reply};
use crate::debug::parse;

pub(super) const COMMANDS: &[Command] = &[
    Command::new(
        "memsave",
        &[],
        "ADDRESS BYTES FILE",
        "write memory at a linear address to a file",
        |call| save(call, &|cpu, at, out| cpu.inspect_bytes(at, out)),
    ),
    Command::new(
        "pmemsave",
        &[],
        "ADDRESS BYTES FILE",
        "write memory at a physical address to a file",
        |call| save(call, &read_physical),
    ),
];

fn save(call: &mut Call<'_>, read: &Read) -> Answer {
    let (address, rest) = super::word(call.arguments);
    let (count, file) = super::word(rest);
    let file = file.strip_prefix('"').and_then(|file| file.strip_suffix('"')).unwrap_or(file);
    if file.is_empty() {
        return Err("say what goes where, as in 0x7c00 512 boot.bin".into());
    }
    let most = call.machine.board().memory_bytes;
    let bytes = parse::number(count).filter(|bytes| (1..=most).contains(bytes));
    let bytes =
        bytes.ok_or_else(|| format!("{count}: take 1 to {most} bytes, the guest's memory"))?;
    let start = call.address_of(address)?;
    call.on_cpu(|cpu| {
        // A range that is not all there leaves the file alone.
        each_piece(cpu, start, bytes, read, &mut |_| Ok(()))?;
        let failed = |error| format!("cannot write to '{file}': {error}");
        let mut out = BufWriter::new(File::create(file).map_err(failed)?);
        each_piece(cpu, start, bytes, read, &mut |piece| out.write_all(piece).map_err(failed))?;
        out.flush().map_err(failed)
    })??;
    reply("")
}
