//! CPUID.

use iced_x86::Code;

use crate::Cpu;
use crate::cpuid::CpuView;
use crate::exception::Exec;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::state::gpr::{RAX, RBX, RCX, RDX};

/// IA32_APIC_BASE.EN.
const APIC_ENABLE: u64 = 1 << 11;

impl Cpu {
    /// What CPUID answers on this CPU now: EAX, EBX, ECX, EDX.
    pub fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let view = CpuView {
            apic_id: self.env.index,
            cr4: self.state.cr4,
            xcr0: self.state.xcr0,
            xss: self.state.msrs.xss,
            is_apic_enabled: self.env.lapic.base() & APIC_ENABLE != 0,
            is_64: self.mode.is_64(),
        };
        self.env.cpuid.query(leaf, subleaf, &view)
    }
}

fn cpuid(cpu: &mut Cpu, _: &Insn) -> Exec {
    let [a, b, c, d] = cpu.cpuid(cpu.state.gpr[RAX] as u32, cpu.state.gpr[RCX] as u32);
    for (register, value) in [(RAX, a), (RBX, b), (RCX, c), (RDX, d)] {
        cpu.state.gpr[register] = u64::from(value);
    }
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    table.both(Code::Cpuid, cpuid);
}
