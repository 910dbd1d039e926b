//! The functions on a CPU's stack.
//!
//! A Linux kernel without frame pointers says itself where its frames are (`symbols::orc`);
//! elsewhere frames are taken to be chained by RBP. A program that is not compiled so has a stack
//! that ends early, or functions that are none.

use cpu::Cpu;
use cpu::state::gpr;
use symbols::orc::{self, Frame, Orc, Registers};

use super::kernel::with_kernel_memory;

/// The functions on the stack of the CPU, the innermost first, `most` at most.
pub(super) fn frames(cpu: &mut Cpu, orc: Option<&Orc>, most: usize) -> Vec<Frame> {
    let registers = registers(cpu);
    let Some(orc) = orc.filter(|_| registers.rip >> 63 != 0) else {
        return orc::by_frame_pointers(registers, most, &mut |at, out| cpu.inspect_bytes(at, out));
    };
    with_kernel_memory(cpu, |read| orc.unwind(registers, most, read))
}

fn registers(cpu: &Cpu) -> Registers {
    let of = &cpu.state.gpr;
    Registers {
        rip: cpu.linear_ip(),
        rsp: of[gpr::RSP],
        rbp: of[gpr::RBP],
        rdx: of[gpr::RDX],
        rdi: of[gpr::RDI],
        r10: of[10],
        r13: of[13],
    }
}
