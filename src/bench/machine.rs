//! A PC whose CPU starts a program in 64-bit mode, with the memory the programs count on.

use anyhow::{Context, Result, bail};
use cpu::engine::VmExit;
use cpu::state::{State, TableRegister, cr0, cr4, efer};
use machine::loader::{BootState, FlatRegisters, TableRegister as BootTable};

use super::programs::{self, Gate, Program, memory};
use crate::config::{Accel, Config, JitConfig};
use crate::vm::Vm;

const MEMORY_BYTES: u64 = 32 << 20;
/// A program is a page of code; what it measures is not the room for it.
const CACHE_BYTES: u64 = 16 << 20;

/// Where tables are, below the loop's code.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PD_HIGH: u64 = 0x4000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const PAGE_OPEN: u64 = 0b111;
const LARGE_PAGE_UNCACHED: u64 = 0b1001_0111;

/// Null, unused, code and data, an unused TSS of two entries, and CPL 3's data and code: where
/// [`BootState`] has the selectors, and for SYSRET in the order it wants.
const DESCRIPTORS: [u64; 8] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
/// STAR: SYSCALL's CS and SS, and what SYSRET's are counted from.
const STAR: u64 = (BootState::CODE_SELECTOR as u64) << 32 | 0x2b << 48;
/// An interrupt gate's type, present, and DPL 0.
const INTERRUPT_GATE: u64 = 0x8e;

/// A machine that has a program.
pub(super) struct Machine {
    vm: Vm,
    name: &'static str,
    start: State,
}

impl Machine {
    pub(super) fn new(program: &Program, accel: Accel) -> Result<Self> {
        let jit = JitConfig { cache_bytes: Some(CACHE_BYTES), ..JitConfig::default() };
        let vm = Vm::new(&Config { accel, jit, memory_bytes: MEMORY_BYTES, ..Config::default() })?;
        let code = programs::assemble(program)
            .with_context(|| format!("cannot assemble the bench {}", program.name))?;
        vm.enter(&BootState::Long64 {
            entry: memory::CODE,
            registers: FlatRegisters { rax: 0, rbx: 0, rsi: 0, rsp: memory::STACK },
            cr3: PML4,
            gdt: BootTable { base: GDT, limit: DESCRIPTORS.len() as u16 * 8 - 1 },
        });
        let start = {
            let mut engine = vm.first_cpu().context("a machine without a CPU")?;
            let cpu = engine.cpu_mut();
            let ram = cpu.env.space.ram();
            let put = |address, bytes: &[u8]| {
                ram.write_bytes(address, bytes);
            };
            put(memory::CODE, &code.bytes);
            put_tables(&put, &code.gates);
            let mut state = cpu.state.clone();
            state.idtr = TableRegister { base: IDT, limit: 0xfff };
            state.cr0 |= cr0::MP | cr0::NE;
            state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
            state.msrs.efer |= efer::SCE;
            state.msrs.star = STAR;
            state.msrs.lstar = code.syscall_entry;
            state
        };
        Ok(Self { vm, name: program.name, start })
    }

    /// Runs the program's loop so many times.
    pub(super) fn run(&mut self, iterations: u64) -> Result<()> {
        let mut engine = self.vm.first_cpu().context("a machine without a CPU")?;
        let cpu = engine.vcpu_mut();
        let mut state = self.start.clone();
        state.gpr[programs::COUNTER] = iterations;
        cpu.set_state(state);
        let exit = cpu.run(u64::MAX);
        let state = cpu.state();
        if !matches!(exit, VmExit::Halt { .. }) || state.gpr[programs::COUNTER] != 0 {
            let (left, rip) = (state.gpr[programs::COUNTER], state.rip);
            bail!("the bench {} ended by {exit:?} at {rip:#x}, {left} iterations early", self.name);
        }
        Ok(())
    }

    /// Everything but the time that the last run left behind, for comparison.
    #[cfg(test)]
    fn registers(&self) -> [u64; 16] {
        self.vm.first_cpu().unwrap().vcpu().state().gpr
    }
}

/// Descriptors, gates, and page tables: RAM at its own address by 4 KiB pages, open to CPL 3, and
/// the chips' addresses by a large one.
fn put_tables(put: &dyn Fn(u64, &[u8]), gates: &[Gate]) {
    let entry = |table: u64, index: u64, value: u64| put(table + 8 * index, &value.to_le_bytes());
    (0..).zip(DESCRIPTORS).for_each(|(index, descriptor)| entry(GDT, index, descriptor));
    for gate in gates {
        let (index, address) = (u64::from(gate.vector) * 2, gate.entry);
        let selector = u64::from(BootState::CODE_SELECTOR);
        let low = address & 0xffff | selector << 16 | INTERRUPT_GATE << 40;
        entry(IDT, index, low | (address >> 16 & 0xffff) << 48);
        entry(IDT, index + 1, address >> 32);
    }
    entry(PML4, 0, PDPT | PAGE_OPEN);
    entry(PDPT, 0, PD_LOW | PAGE_OPEN);
    entry(PDPT, memory::HPET >> 30, PD_HIGH | PAGE_OPEN);
    let large = memory::HPET >> 21;
    entry(PD_HIGH, large & 0x1ff, large << 21 | LARGE_PAGE_UNCACHED);
    for table in 0..MEMORY_BYTES >> 21 {
        entry(PD_LOW, table, (memory::PAGE_TABLE + 0x1000 * table) | PAGE_OPEN);
    }
    for page in 0..MEMORY_BYTES >> 12 {
        entry(memory::PAGE_TABLE, page, page << 12 | PAGE_OPEN);
    }
}

#[cfg(test)]
mod tests {
    use cpu::state::gpr;

    use super::super::programs::{PROGRAMS, Unit};
    use super::*;

    #[test]
    fn every_program_ends_the_same_on_both_engines() {
        for program in PROGRAMS {
            let registers = |accel| {
                let mut machine = Machine::new(program, accel).unwrap();
                machine.run(1).unwrap();
                machine.run(1000).unwrap();
                machine.registers()
            };
            let mut interp = registers(Accel::Interp);
            let mut jit = registers(Accel::Jit);
            if program.name == "rdtsc" {
                for gpr in [gpr::RAX, gpr::RDX] {
                    (interp[gpr], jit[gpr]) = (0, 0);
                }
            }
            assert_eq!(interp, jit, "{}", program.name);
        }
    }

    #[test]
    fn a_loop_has_as_many_instructions_as_its_row_says() {
        for program in PROGRAMS.iter().filter(|program| program.unit == Unit::Mips) {
            let mut machine = Machine::new(program, Accel::Interp).unwrap();
            let mut retired = || {
                machine.run(1000).unwrap();
                machine.vm.first_cpu().unwrap().vcpu().retired()
            };
            let (before, after) = (retired(), retired());
            let each = (after - before) / 1000;
            assert_eq!(each, u64::from(program.events), "{}", program.name);
        }
    }
}
