//! What gdb reads of the machine beside registers and memory: which addresses are memory, and which
//! file on this host it may take for the guest's program.
//!
//! gdb is given the file's name alone, and none of its bytes: it opens the file where gdb runs.

use gdbstub::common::Pid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::exec_file::ExecFile;
use gdbstub::target::ext::memory_map::MemoryMap;

use super::target::GdbTarget;

/// Addresses are linear, and what is behind them moves with the guest's page tables: all of them
/// may be memory. The length of both halves together would be 0.
const MEMORY_MAP: &str = "<?xml version=\"1.0\"?>\n\
    <!DOCTYPE memory-map PUBLIC \"+//IDN gnu.org//DTD GDB Memory Map V1.0//EN\" \
    \"http://sourceware.org/gdb/gdb-memory-map.dtd\">\n<memory-map>\n\
    <memory type=\"ram\" start=\"0x0\" length=\"0x8000000000000000\"/>\n\
    <memory type=\"ram\" start=\"0x8000000000000000\" length=\"0x8000000000000000\"/>\n\
    </memory-map>\n";

impl MemoryMap for GdbTarget {
    fn memory_map_xml(
        &self,
        offset: u64,
        length: usize,
        out: &mut [u8],
    ) -> TargetResult<usize, Self> {
        Ok(piece(MEMORY_MAP.as_bytes(), offset, length, out))
    }
}

impl ExecFile for GdbTarget {
    fn get_exec_file(
        &self,
        _: Option<Pid>,
        offset: u64,
        length: usize,
        out: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let path = self.machine().names().program().unwrap_or_default();
        Ok(piece(path.as_os_str().as_encoded_bytes(), offset, length, out))
    }
}

/// Gives what of `all` was asked for and has room; how many bytes that are.
fn piece(all: &[u8], offset: u64, length: usize, out: &mut [u8]) -> usize {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
    let rest = all.get(start..).unwrap_or_default();
    let count = rest.len().min(length).min(out.len());
    if let (Some(to), Some(from)) = (out.get_mut(..count), rest.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_put_together_are_the_whole() {
        let mut out = [0; 8];
        assert_eq!(piece(b"0123456789", 0, 100, &mut out), 8);
        assert_eq!(&out, b"01234567");
        assert_eq!(piece(b"0123456789", 8, 1, &mut out), 1);
        assert_eq!(&out[..1], b"8");
        assert_eq!(piece(b"0123456789", 10, 4, &mut out), 0);
        assert_eq!(piece(b"0123456789", u64::MAX, usize::MAX, &mut out), 0);
    }
}
