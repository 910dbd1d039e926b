//! What a guest that left for ports, devices and MSRs wants.

use cpu::Cpu;
use memory::{GuestPhysical, Width};

use crate::run_page::{MmioExit, RunPage};

/// Does the port accesses of the exit, one behind the other.
pub(crate) fn port(cpu: &Cpu, page: &mut RunPage) {
    let (exit, data) = page.port();
    let Some(width) = Width::from_bytes(exit.size) else { return };
    for item in data.chunks_exact_mut(exit.size) {
        if exit.is_in {
            let value = cpu.env.ports.read(exit.port, width);
            item.copy_from_slice(&value.to_le_bytes()[..exit.size]);
        } else {
            cpu.env.ports.write(exit.port, width, value_of(item) as u32);
        }
    }
}

/// Does the access of the exit. It may have come to memory that the kernel was told of too late.
pub(crate) fn mmio(cpu: &mut Cpu, page: &mut RunPage) {
    let MmioExit { address, is_write, data } = page.mmio();
    let mut done = 0;
    while done < data.len() {
        let at = GuestPhysical(address + done as u64);
        let size = largest(at.0, data.len() - done);
        let (Some(width), Some(part)) = (Width::from_bytes(size), data.get_mut(done..done + size))
        else {
            return;
        };
        if is_write {
            cpu.write_physical(at, width, value_of(part));
        } else {
            part.copy_from_slice(&cpu.read_physical(at, width).to_le_bytes()[..size]);
        }
        done += size;
    }
}

/// The largest power of two that `left` has and that `address` is a multiple of; a whole access of
/// a power of two stays whole.
fn largest(address: u64, left: usize) -> usize {
    if left.is_power_of_two() && left <= 8 {
        return left;
    }
    let aligned = 1 << address.trailing_zeros().min(3);
    let fits = 1 << left.ilog2().min(3);
    usize::min(aligned, fits)
}

fn value_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_of_odd_length_is_made_of_aligned_ones() {
        for (address, length, parts) in [
            (0, 8, &[8][..]),
            (1, 4, &[4]),
            (0, 3, &[2, 1]),
            (1, 3, &[1, 2]),
            (3, 5, &[1, 4]),
            (2, 6, &[2, 4]),
            (1, 7, &[1, 2, 4]),
        ] {
            let mut done = 0;
            let mut sizes = Vec::new();
            while done < length {
                let size = largest(address + done as u64, length - done);
                sizes.push(size);
                done += size;
            }
            assert_eq!(sizes, parts, "{length} at {address}");
        }
    }
}
