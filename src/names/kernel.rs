//! The kernel that runs on a CPU, and its memory.

use cpu::Cpu;
use cpu::state::efer;
use symbols::orc::Orc;
use symbols::{Module, Reader, SymbolError, Symbols, kallsyms};

/// Where SYSCALL goes in 64-bit mode.
const IA32_LSTAR: u32 = 0xc000_0082;
/// What Linux sets in CR3 while a program runs, if it keeps page tables of its own for them
/// (page-table isolation): without it are those of the kernel.
const USER_TABLES: u64 = 1 << 12;

/// Where SYSCALL enters the kernel, if one is there that is in the upper half.
pub(super) fn syscall_entry(cpu: &mut Cpu) -> Option<u64> {
    let is_long = cpu.state.msrs.efer & efer::LMA != 0;
    cpu.read_msr(IA32_LSTAR).ok().filter(|address| is_long && address >> 63 != 0)
}

/// Reads the symbols of the kernel that `code` is an address in.
pub(super) fn read(cpu: &mut Cpu, code: u64) -> Result<Module, SymbolError> {
    with_kernel_memory(cpu, |read| kallsyms::find(code, read)).map(|kernel| kernel.symbols)
}

/// Reads what the kernel of that name among `symbols` says of its stacks.
pub(super) fn read_orc(cpu: &mut Cpu, symbols: &Symbols) -> Option<Orc> {
    let kernel = symbols.modules().iter().rev().find(|module| Orc::is_of(module))?;
    with_kernel_memory(cpu, |read| Orc::read(kernel, read))
}

/// Has `act` read linear memory as the kernel sees it, also while a program runs.
pub(super) fn with_kernel_memory<T>(cpu: &mut Cpu, act: impl FnOnce(&mut Reader<'_>) -> T) -> T {
    let cr3 = cpu.state.cr3;
    if cpu.state.cpl == 3 && cr3 & USER_TABLES != 0 {
        cpu.state.cr3 = cr3 & !USER_TABLES;
    }
    let out = act(&mut |at, bytes| cpu.inspect_bytes(at, bytes));
    cpu.state.cr3 = cr3;
    out
}
