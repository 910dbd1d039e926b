//! The MSRs that KVM keeps for a CPU.

use std::sync::Arc;

use cpu::msr::table::cell;
use cpu::state::State;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::{Clocks, KvmError, KvmVm};

/// IA32_TIME_STAMP_COUNTER, which goes on by itself.
const TSC: u32 = 0x10;
/// MSR_KVM_WALL_CLOCK and its old number: a write of it is an order to write to memory.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// KVM_EOI_EN, which the state has in a place of its own.
const PV_EOI: u32 = 0x4b56_4d04;
/// MTRRs, which KVM does not list everywhere.
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// The MSRs of one CPU that both KVM and the state have.
pub(crate) struct Shared {
    numbers: Vec<u32>,
    vm: Arc<KvmVm>,
    /// The time-stamp counter was set, and is KVM's since.
    has_tsc: bool,
}

impl Shared {
    /// Those of the MSRs that KVM keeps.
    pub(crate) fn of(state: &mut State, vm: &Arc<KvmVm>) -> Self {
        let all = vm.msrs().iter().copied().chain(MTRRS.into_iter().flatten());
        let mut is_shared =
            |number| !is_kvms(number) && !vm.owns_msr(number) && kept(state, number).is_some();
        let mut numbers: Vec<u32> = all.filter(|&number| is_shared(number)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Self { numbers, vm: Arc::clone(vm), has_tsc: vm.clocks() == Clocks::Machine }
    }

    /// True if KVM keeps MSR `number`.
    pub(crate) fn contains(&self, number: u32) -> bool {
        !self.vm.owns_msr(number) && is_kvms(number) || self.numbers.binary_search(&number).is_ok()
    }

    /// Takes them over.
    pub(crate) fn fetch(&mut self, fd: &VcpuFd, state: &mut State) -> Result<(), KvmError> {
        loop {
            let entries: Vec<_> = self.numbers.iter().map(|&number| entry(number, 0)).collect();
            let mut list = list(&entries)?;
            let count = fd.get_msrs(&mut list).map_err(KvmError::of("KVM_GET_MSRS"))?;
            if self.keeps_all(count) {
                for entry in list.as_slice() {
                    if let Some(kept) = kept(state, entry.index) {
                        *kept = entry.data;
                    }
                }
                return Ok(());
            }
        }
    }

    /// Gives KVM those of `state`, and at the first time what the time-stamp counter shows `now`.
    pub(crate) fn put(&mut self, fd: &VcpuFd, state: &mut State, now: u64) -> Result<(), KvmError> {
        loop {
            let values = self.numbers.iter().map(|&number| {
                let value = kept(state, number).map_or(0, |kept| *kept);
                entry(number, value)
            });
            let mut entries: Vec<_> = values.collect();
            if !self.has_tsc {
                entries.push(entry(TSC, now));
            }
            let count = fd.set_msrs(&list(&entries)?).map_err(KvmError::of("KVM_SET_MSRS"))?;
            if self.keeps_all(count) {
                self.has_tsc = true;
                return Ok(());
            }
        }
    }

    /// True if KVM took `count` of the MSRs and that is all. Else the next one is not shared.
    fn keeps_all(&mut self, count: usize) -> bool {
        if count < self.numbers.len() {
            let number = self.numbers.remove(count);
            log::debug!(target: "kvm::msr", "KVM does not keep MSR {number:#x}");
            return false;
        }
        true
    }
}

/// Where `state` keeps MSR `number`.
fn kept(state: &mut State, number: u32) -> Option<&mut u64> {
    match number {
        PV_EOI => Some(&mut state.msrs.kvm.pv_eoi),
        _ => cell(state, number),
    }
}

/// Writes one MSR, which is nobody's but the kernel's.
pub(crate) fn write(fd: &VcpuFd, number: u32, value: u64) -> Result<(), KvmError> {
    match fd.set_msrs(&list(&[entry(number, value)])?).map_err(KvmError::of("KVM_SET_MSRS"))? {
        0 => Err(KvmError::Lacks("an MSR of its local APICs")),
        _ => Ok(()),
    }
}

/// Reads one.
pub(crate) fn read(fd: &VcpuFd, number: u32) -> Result<u64, KvmError> {
    let mut list = list(&[entry(number, 0)])?;
    fd.get_msrs(&mut list).map_err(KvmError::of("KVM_GET_MSRS"))?;
    Ok(list.as_slice().first().map_or(0, |entry| entry.data))
}

/// True for an MSR that is KVM's alone.
fn is_kvms(number: u32) -> bool {
    number == TSC || WALL_CLOCK.contains(&number)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::Lacks("room for the MSRs"))
}
