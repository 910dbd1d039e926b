//! RDMSR, WRMSR, RDPKRU and WRPKRU.

use iced_x86::Code;

use crate::Cpu;
use crate::debugger::Caught;
use crate::exception::{Exception, Exec};
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::mmu::Access;
use crate::state::cr4;
use crate::state::gpr::{RAX, RCX, RDX};

fn rdmsr(cpu: &mut Cpu, _: &Insn) -> Exec {
    let number = cpu.state.gpr[RCX] as u32;
    let value = cpu.read_msr(number)?;
    cpu.note_msr(Access::Read, number, value);
    cpu.set_edx_eax(value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Insn) -> Exec {
    let (number, value) = (cpu.state.gpr[RCX] as u32, cpu.edx_eax());
    cpu.write_msr(number, value)?;
    cpu.note_msr(Access::Write, number, value);
    Ok(())
}

impl Cpu {
    /// Tells a trace and a debugger of an access that did not fault.
    fn note_msr(&mut self, access: Access, number: u32, value: u64) {
        self.record_msr(access, number, value);
        let is_write = access == Access::Write;
        self.catch(|| Caught::Msr { number, value, is_write });
    }
}

/// SDM Vol. 2B, "RDPKRU": #UD without CR4.PKE, #GP if ECX is not zero.
fn pkru_gate(cpu: &Cpu) -> Exec {
    if cpu.state.cr4 & cr4::PKE == 0 {
        return Err(Exception::UD);
    }
    if cpu.state.gpr[RCX] as u32 != 0 { Err(Exception::GP0) } else { Ok(()) }
}

fn rdpkru(cpu: &mut Cpu, _: &Insn) -> Exec {
    pkru_gate(cpu)?;
    cpu.set_edx_eax(u64::from(cpu.state.pkru));
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Insn) -> Exec {
    pkru_gate(cpu)?;
    if cpu.state.gpr[RDX] as u32 != 0 {
        return Err(Exception::GP0);
    }
    let value = cpu.state.gpr[RAX] as u32;
    if value != cpu.state.pkru {
        cpu.state.pkru = value;
        // Cached translations were checked under the old rights.
        cpu.flush_translations();
    }
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    table.both(Code::Rdmsr, rdmsr);
    table.both(Code::Wrmsr, wrmsr);
    table.both(Code::Rdpkru, rdpkru);
    table.both(Code::Wrpkru, wrpkru);
}
