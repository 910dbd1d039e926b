//! Commands that write the guest's memory to a file of the host.

use std::fs::File;
use std::io::{BufWriter, Write};

use cpu::Cpu;

use super::memory::read_physical;
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
        |call| save(call, &|cpu, at, out| read_physical(cpu, at, out)),
    ),
];

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

/// Reads memory as far as it is there; how many bytes that are.
type Read = dyn Fn(&Cpu, u64, &mut [u8]) -> usize;

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

fn each_piece(
    cpu: &Cpu,
    start: u64,
    bytes: u64,
    read: &Read,
    take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut buffer = vec![0; PIECE.min(bytes) as usize];
    let mut done = 0;
    while done < bytes {
        let length = PIECE.min(bytes - done) as usize;
        let piece = buffer.get_mut(..length).unwrap_or_default();
        let count = read(cpu, start.wrapping_add(done), piece);
        if count < length {
            let end = start.wrapping_add(done).wrapping_add(count as u64);
            return Err(format!("{end:#x}: nothing is there, or a device"));
        }
        take(piece)?;
        done += length as u64;
    }
    Ok(())
}
