//! The functions on a CPU's stack.
//!
//! A Linux kernel without frame pointers says itself where its frames are (`symbols::orc`);
//! elsewhere frames are taken to be chained by RBP. A program that is not compiled so has a stack
//! that ends early, or functions that are none.

use cpu::Cpu;
use cpu::state::gpr;
use symbols::orc::{self, Activation, Orc, Registers};

use super::kernel::with_kernel_memory;

/// What was used to walk a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The kernel's own tables.
    Orc,
    /// The chain of RBP.
    FramePointers,
}

/// The functions on a stack, the innermost first.
pub(crate) struct Walk {
    pub(crate) way: Way,
    pub(crate) stack: Vec<Activation>,
}

/// Walks the stack of the CPU, over `most` functions at most.
pub(super) fn walk(cpu: &mut Cpu, orc: Option<&Orc>, most: usize) -> Walk {
    let registers = registers(cpu);
    let Some(orc) = orc.filter(|_| registers.rip >> 63 != 0) else {
        let read = &mut |at, out: &mut [u8]| cpu.inspect_bytes(at, out);
        let stack = orc::by_frame_pointers(registers, most, read);
        return Walk { way: Way::FramePointers, stack };
    };
    let stack = with_kernel_memory(cpu, |read| orc.unwind(registers, most, read));
    Walk { way: Way::Orc, stack }
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
