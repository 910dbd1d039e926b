//! KVM's hypercalls: number in RAX, arguments in RBX, RCX, RDX, RSI, result in RAX.

use decoder::Feature as I;

use crate::Cpu;
use crate::cpuid::Feature;
use crate::exception::Exec;
use crate::state::gpr::{RAX, RBX, RCX, RDX, RSI};

const VAPIC_POLL_IRQ: u64 = 1;
const KICK_CPU: u64 = 5;
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;

const EPERM: i64 = 1;
const EINVAL: i64 = 22;
const ENOSYS: i64 = 1000;

/// ICR bits of an IPI that name no destination: vector, delivery mode, level and trigger.
const ICR_COMMAND: u64 = 0xc7ff;
/// ICR bits that would name one: the shorthand, and the logical destination mode.
const ICR_DESTINATION: u64 = 0x000c_0800;

impl Cpu {
    /// VMCALL or VMMCALL: on processors of either vendor both are taken.
    pub(crate) fn hypercall(&mut self) -> Exec {
        let mask = if self.mode.is_64() { u64::MAX } else { 0xffff_ffff };
        let argument = |register: usize| self.state.gpr[register] & mask;
        let number = argument(RAX);
        let arguments = [RBX, RCX, RDX, RSI].map(argument);
        let result =
            if self.state.cpl == 0 { self.perform_hypercall(number, arguments) } else { -EPERM };
        self.state.gpr[RAX] = result as u64 & mask;
        Ok(())
    }

    fn perform_hypercall(&mut self, number: u64, [a0, a1, a2, a3]: [u64; 4]) -> i64 {
        let has = |feature| self.env.cpuid.has(feature);
        match number {
            VAPIC_POLL_IRQ => 0,
            KICK_CPU if has(Feature::KvmPvUnhalt) => {
                if let Some(cpu) = self.cpu_number(a1) {
                    self.env.platform.kick(cpu);
                }
                0
            }
            SEND_IPI if has(Feature::KvmPvIpi) => self.send_ipis(a0, a1, a2, a3),
            SCHED_YIELD if has(Feature::KvmPvSchedYield) => {
                std::thread::yield_now();
                0
            }
            _ => -ENOSYS,
        }
    }

    /// The CPU of an APIC ID, if there is one.
    fn cpu_number(&self, apic_id: u64) -> Option<u32> {
        u32::try_from(apic_id).ok().filter(|&id| id < self.env.cpu_count)
    }

    /// KVM_HC_SEND_IPI: to the CPUs of a bitmap in two registers, whose bit 0 is APIC ID `first`.
    /// Gives how many were reached.
    fn send_ipis(&mut self, low: u64, high: u64, first: u64, icr: u64) -> i64 {
        if icr & ICR_DESTINATION != 0 {
            return -EINVAL;
        }
        let bits_a_register =
            if self.env.cpuid.has_instructions(I::Lm) && self.mode.is_64() { 64 } else { 32 };
        let bitmap = u128::from(low) | u128::from(high) << bits_a_register;
        let targets = (0..128u64)
            .filter(|bit| bitmap >> bit & 1 != 0)
            .filter_map(|bit| self.cpu_number(first.saturating_add(bit)));
        let mut count = 0;
        for target in targets {
            self.env.lapic.send_icr(icr & ICR_COMMAND | u64::from(target) << 32);
            count += 1;
        }
        self.break_block = true;
        count
    }
}
