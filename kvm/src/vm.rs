//! A virtual machine of the kernel's.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{
    Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd,
};
use memory::PhysicalSpace;

use crate::error::system;
use crate::slots::Slots;
use crate::{KvmError, Obstacle, cpuid};

/// The version of the interface.
const API_VERSION: i32 = 12;
/// Where a host without unrestricted guests keeps a page table and a task state segment for real
/// mode: four pages that no chip and no memory of a PC has.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_STATE: usize = 0xfeff_d000;
/// KVM_CAP_X86_USER_SPACE_MSR: exits for MSRs that KVM does not know, whose values it refuses, or
/// that it is told to leave alone.
const MSR_EXITS: u64 = 1 << 0 | 1 << 1 | 1 << 2;
/// The MSRs of clocks, by ranges: IA32_TIME_STAMP_COUNTER and the old numbers of KVM's clock,
/// IA32_TSC_ADJUST, KVM's own.
const CLOCK_MSRS: [std::ops::RangeInclusive<u32>; 3] =
    [0x10..=0x12, 0x3b..=0x3b, 0x4b56_4d00..=0x4b56_4d07];
/// KVM_CAP_EXIT_ON_EMULATION_FAILURE.
const EXIT_ON_EMULATION_FAILURE: u32 = 204;
/// What the engine cannot do without.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// Who makes the guest's clocks: time-stamp counter, kvmclock, steal time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// The kernel.
    Kernel,
    /// The machine, for all engines that its CPUs may be moved to:
    /// [`cpu::platform::Platform::host_tsc_base`] says what the time-stamp counter shows, and the
    /// CPU beside each of KVM's does the rest.
    Machine,
}

impl Clocks {
    /// True if MSR `number` never reaches KVM.
    pub(crate) fn own(self, number: u32) -> bool {
        self == Self::Machine && CLOCK_MSRS.iter().any(|range| range.contains(&number))
    }
}

/// One virtual machine, for all CPUs of one board.
pub struct KvmVm {
    fd: VmFd,
    /// What this host's KVM can tell guests that they have.
    supported: Vec<kvm_cpuid_entry2>,
    /// The MSRs that it keeps.
    msrs: Vec<u32>,
    /// MSRs that it does not know come to us.
    has_msr_exits: bool,
    clocks: Clocks,
    /// How many CPUs it makes.
    cpus_max: usize,
    slots: Mutex<Slots>,
    space: OnceLock<Arc<PhysicalSpace>>,
}

/// The frequency at which the time-stamp counter of guests runs. Only a CPU knows it, and CPUs are
/// made after everything that depends on it.
pub fn tsc_hz() -> Result<u64, KvmError> {
    let khz = first_vcpu()?.get_tsc_khz().map_err(KvmError::of("KVM_GET_TSC_KHZ"))?;
    Ok(u64::from(khz) * 1000)
}

/// The first CPU of a virtual machine of its own.
fn first_vcpu() -> Result<VcpuFd, Obstacle> {
    create_vcpu(&create_vm(&open()?)?, 0)
}

pub(crate) fn create_vcpu(vm: &VmFd, index: u32) -> Result<VcpuFd, Obstacle> {
    vm.create_vcpu(u64::from(index)).map_err(|error| Obstacle::NoVcpu(system(error)))
}

pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Obstacle> {
    kvm.create_vm().map_err(|error| Obstacle::NoVm(system(error)))
}

pub(crate) fn open() -> Result<Kvm, Obstacle> {
    let kvm = Kvm::new().map_err(|error| Obstacle::Closed(system(error)))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => Err(Obstacle::Version(version)),
    }
}

/// Has the MSRs of clocks come to us.
fn take_clocks(fd: &VmFd, has_msr_exits: bool) -> Result<(), KvmError> {
    if !has_msr_exits {
        return Err(KvmError::Lacks("KVM_CAP_X86_USER_SPACE_MSR"));
    }
    let ranges = CLOCK_MSRS.map(|range| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: *range.start(),
        msr_count: range.count() as u32,
        bitmap: &[0],
    });
    fd.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(KvmError::of("KVM_X86_SET_MSR_FILTER"))
}

impl KvmVm {
    /// A machine without memory and CPUs.
    pub fn new(clocks: Clocks) -> Result<Arc<Self>, KvmError> {
        let kvm = open()?;
        if let Some((_, name)) = NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Lacks(name));
        }
        let fd = create_vm(&kvm)?;
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TASK_STATE).map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        let msrs = kvm.get_msr_index_list().map_err(KvmError::of("KVM_GET_MSR_INDEX_LIST"))?;
        let mut exits = kvm_enable_cap { cap: Cap::X86UserSpaceMsr as u32, ..Default::default() };
        exits.args[0] = MSR_EXITS;
        let has_msr_exits = fd.enable_cap(&exits).is_ok();
        if clocks == Clocks::Machine {
            take_clocks(&fd, has_msr_exits)?;
        }
        // Else an instruction that KVM does not know is #UD; an old kernel has no choice.
        let failures = kvm_enable_cap {
            cap: EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        if fd.enable_cap(&failures).is_err() {
            log::debug!(target: "kvm::exit", "no KVM_CAP_EXIT_ON_EMULATION_FAILURE");
        }
        Ok(Arc::new(Self {
            fd,
            supported: supported.as_slice().to_vec(),
            msrs: msrs.as_slice().to_vec(),
            has_msr_exits,
            clocks,
            cpus_max: kvm.get_max_vcpus(),
            slots: Mutex::default(),
            space: OnceLock::new(),
        }))
    }

    /// Makes CPU `index` of the machine whose memory `space` is.
    pub(crate) fn create_vcpu(
        &self,
        index: u32,
        space: &Arc<PhysicalSpace>,
    ) -> Result<VcpuFd, KvmError> {
        // All CPUs of a machine have the same space.
        self.space.get_or_init(|| Arc::clone(space));
        if index as usize >= self.cpus_max {
            return Err(KvmError::CpusMax(self.cpus_max));
        }
        Ok(create_vcpu(&self.fd, index)?)
    }

    /// What this host's KVM can tell guests that they have.
    pub(crate) fn supported(&self) -> &[kvm_cpuid_entry2] {
        &self.supported
    }

    /// The MSRs that it keeps.
    pub(crate) fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// True if the MSRs that it does not know come to us.
    pub(crate) fn has_msr_exits(&self) -> bool {
        self.has_msr_exits
    }

    /// Who makes the guest's clocks.
    pub(crate) fn clocks(&self) -> Clocks {
        self.clocks
    }

    /// True if guests can have the feature that CPUID shows in this bit.
    pub fn gives(&self, leaf: u32, subleaf: u32, register: usize, bit: u8) -> bool {
        cpuid::is_given((leaf, subleaf, register, bit), &self.supported, self.has_msr_exits)
    }

    /// Has the kernel forget all memory, and with it whatever it knows of the guest's page tables,
    /// which somebody else has changed.
    pub(crate) fn forget_memory(&self) {
        let Some(space) = self.space.get() else { return };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clear(&self.fd, space);
    }

    /// Tells the kernel what memory the guest has now, if that has changed.
    pub(crate) fn update_memory(&self) {
        let Some(space) = self.space.get() else { return };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.update(&self.fd, space);
    }
}
