//! The time-stamp counter and what reads it: RDTSC, RDTSCP, RDPRU; RDPID beside them.

use iced_x86::Code;

use crate::Cpu;
use crate::exception::Exec;
use crate::interp::dispatch::Table;
use crate::interp::insn::Insn;
use crate::native::ticks;
use crate::platform::LinearTime;
use crate::state::gpr::{RAX, RCX, RDX};
use crate::timing::ns_to_ticks;

impl Cpu {
    /// The time-stamp counter now.
    pub fn tsc(&self) -> u64 {
        self.machine_tsc().wrapping_add(self.state.msrs.tsc_offset)
    }

    /// The time-stamp counter as a function of the host's, if it is one now.
    pub fn linear_tsc(&self) -> Option<LinearTime> {
        const NS_HZ: u64 = 1_000_000_000;
        if let Some(base) = self.env.platform.host_tsc_base() {
            let start_ns = base.wrapping_add(self.state.msrs.tsc_offset);
            return Some(LinearTime { start_ticks: 0, multiplier: 1 << 32, start_ns });
        }
        let time = self.env.platform.linear_time()?;
        let start_ns = time.start_ns.wrapping_add(self.state.msrs.tsc_offset);
        (self.env.cpuid.tsc_hz() == NS_HZ).then_some(LinearTime { start_ns, ..time })
    }

    /// The machine's time stamp, before this CPU's offset.
    pub(crate) fn machine_tsc(&self) -> u64 {
        if let Some(base) = self.env.platform.host_tsc_base() {
            return ticks::now().wrapping_add(base);
        }
        let now_ns = self.env.platform.now_ns(self.retired);
        ns_to_ticks(now_ns, self.env.cpuid.tsc_hz())
    }

    /// Puts `value` into EDX:EAX.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[RAX] = value & 0xffff_ffff;
        self.state.gpr[RDX] = value >> 32;
    }
}

fn rdtsc(cpu: &mut Cpu, _: &Insn) -> Exec {
    let tsc = cpu.tsc();
    cpu.set_edx_eax(tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _: &Insn) -> Exec {
    let tsc = cpu.tsc();
    cpu.set_edx_eax(tsc);
    cpu.state.gpr[RCX] = cpu.state.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPRU: both registers that it knows run at the rate of the time stamp here; all others read as
/// zero (APM Vol. 3, "RDPRU").
fn rdpru(cpu: &mut Cpu, _: &Insn) -> Exec {
    let value = if cpu.state.gpr[RCX] as u32 <= 1 { cpu.tsc() } else { 0 };
    cpu.set_edx_eax(value);
    Ok(())
}

fn rdpid32(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, cpu.state.msrs.tsc_aux as u32);
    Ok(())
}

fn rdpid64(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.set_reg(insn.dst, cpu.state.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// Adds the family's rows.
pub(crate) fn register(table: &mut Table) {
    table.both(Code::Rdtsc, rdtsc);
    table.both(Code::Rdtscp, rdtscp);
    table.both(Code::Rdpru, rdpru);
    table.both(Code::Rdpid_r32, rdpid32);
    table.both(Code::Rdpid_r64, rdpid64);
}
