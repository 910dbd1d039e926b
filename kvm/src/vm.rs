//! A virtual machine of the kernel's.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use memory::{PhysicalSpace, PortSpace};

use crate::apics::{self, Message, Traffic};
use crate::cpuid::{self, Offer};
use crate::doorbells::Doorbells;
use crate::error::system;
use crate::routes::Routes;
use crate::slots::Slots;
use crate::{KvmError, Obstacle, apic_probe, msr_filter};

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
/// IA32_TSC_ADJUST, KVM's own but for KVM_EOI_EN, which is with the local APICs.
const CLOCK_MSRS: [std::ops::RangeInclusive<u32>; 4] =
    [0x10..=0x12, 0x3b..=0x3b, 0x4b56_4d00..=0x4b56_4d03, 0x4b56_4d05..=0x4b56_4d07];
/// KVM_CAP_EXIT_ON_EMULATION_FAILURE.
const EXIT_ON_EMULATION_FAILURE: u32 = 204;
/// Where the modules say whether they use EPT or nested paging.
const NESTED_PAGING: [&str; 2] =
    ["/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt"];
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

/// Whose the local APICs are while CPUs run on KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apics {
    /// The machine's: KVM only delivers what they give.
    Machine,
    /// The kernel's, which borrows the registers of the machine's ([`cpu::platform::Lapic`]).
    Kernel,
}

/// One virtual machine, for all CPUs of one board.
pub struct KvmVm {
    fd: VmFd,
    /// What this host's KVM can tell guests that they have.
    supported: Vec<kvm_cpuid_entry2>,
    /// The MSRs that it keeps.
    msrs: Vec<u32>,
    /// What it offers beside that.
    offer: Offer,
    traffic: Traffic,
    /// The MSRs that come to us are settled.
    has_msr_filter: OnceLock<()>,
    /// The processor walks the guest's page tables by itself.
    has_nested_paging: bool,
    /// How many CPUs it makes.
    cpus_max: usize,
    slots: Mutex<Slots>,
    doorbells: Mutex<Doorbells>,
    routes: Mutex<Routes>,
    /// The machine's memory and ports.
    maps: OnceLock<(Arc<PhysicalSpace>, Arc<PortSpace>)>,
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

/// Whether `kvm` has all that is needed; what it lacks.
pub(crate) fn check_extensions(kvm: &Kvm, needed: &[(Cap, &'static str)]) -> Result<(), KvmError> {
    match needed.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Lacks(name)),
        None => Ok(()),
    }
}

/// Has the virtual machine do what capability `cap` names.
pub(crate) fn enable_cap(fd: &VmFd, cap: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    fd.enable_cap(&kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() })
}

/// True if the host's KVM uses the processor's second level of page tables. Kernels that do not say
/// keep shadows of the guest's.
fn has_nested_paging() -> bool {
    let is_on = |path| fs::read_to_string(path).is_ok_and(|text| text.starts_with(['Y', '1']));
    NESTED_PAGING.into_iter().any(is_on)
}

impl KvmVm {
    /// A machine without memory and CPUs. Where the kernel's local APICs are wanted and no good,
    /// they are the machine's all the same.
    pub fn new(clocks: Clocks, apics: Apics) -> Result<Arc<Self>, KvmError> {
        let kvm = open()?;
        check_extensions(&kvm, &NEEDED)?;
        let fd = create_vm(&kvm)?;
        let has_apics = apics == Apics::Kernel && apic_probe::are_good(&kvm);
        if has_apics {
            apics::enable(&fd)?;
        }
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TASK_STATE).map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        let msrs = kvm.get_msr_index_list().map_err(KvmError::of("KVM_GET_MSR_INDEX_LIST"))?;
        let has_msr_exits = enable_cap(&fd, Cap::X86UserSpaceMsr as u32, MSR_EXITS).is_ok();
        if clocks == Clocks::Machine && !has_msr_exits {
            return Err(KvmError::Lacks("KVM_CAP_X86_USER_SPACE_MSR"));
        }
        // Else an instruction that KVM does not know is #UD; an old kernel has no choice.
        if enable_cap(&fd, EXIT_ON_EMULATION_FAILURE, 1).is_err() {
            log::debug!(target: "kvm::exit", "no KVM_CAP_EXIT_ON_EMULATION_FAILURE");
        }
        Ok(Arc::new(Self {
            fd,
            supported: supported.as_slice().to_vec(),
            msrs: msrs.as_slice().to_vec(),
            offer: Offer {
                has_msr_exits,
                has_apics,
                has_tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
                clocks,
            },
            traffic: Traffic::default(),
            has_msr_filter: OnceLock::new(),
            has_nested_paging: has_nested_paging(),
            cpus_max: kvm.get_max_vcpus(),
            slots: Mutex::default(),
            doorbells: Mutex::default(),
            routes: Mutex::default(),
            maps: OnceLock::new(),
        }))
    }

    /// Makes CPU `index` of the machine whose memory and ports `space` and `ports` are.
    pub(crate) fn create_vcpu(
        &self,
        index: u32,
        space: &Arc<PhysicalSpace>,
        ports: &Arc<PortSpace>,
    ) -> Result<VcpuFd, KvmError> {
        // All CPUs of a machine have the same.
        self.maps.get_or_init(|| (Arc::clone(space), Arc::clone(ports)));
        if index as usize >= self.cpus_max {
            return Err(KvmError::CpusMax(self.cpus_max));
        }
        Ok(create_vcpu(&self.fd, index)?)
    }

    /// Has the MSRs come to us that are ours, or that the guest does not have (`has_msr`). All CPUs
    /// of a machine have the same.
    pub(crate) fn limit_msrs(&self, has_msr: impl Fn(u32) -> bool) -> Result<(), KvmError> {
        if !self.offer.has_msr_exits || self.has_msr_filter.set(()).is_err() {
            return Ok(());
        }
        let clocks = CLOCK_MSRS.into_iter().flatten().filter(|&number| self.owns_msr(number));
        let surplus = self.msrs.iter().copied().filter(|&number| !has_msr(number));
        let outcome = msr_filter::set(&self.fd, &clocks.chain(surplus).collect::<Vec<_>>());
        if let (Err(error), Clocks::Kernel) = (&outcome, self.clocks()) {
            log::info!(target: "kvm::msr", "the guest finds all MSRs of KVM's: {error}");
            return Ok(());
        }
        outcome
    }

    /// What this host's KVM can tell guests that they have.
    pub(crate) fn supported(&self) -> &[kvm_cpuid_entry2] {
        &self.supported
    }

    /// The MSRs that it keeps.
    pub(crate) fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// What it offers beside that.
    pub(crate) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Who makes the guest's clocks.
    pub(crate) fn clocks(&self) -> Clocks {
        self.offer.clocks
    }

    /// True if MSR `number` never reaches KVM.
    pub(crate) fn owns_msr(&self, number: u32) -> bool {
        self.clocks() == Clocks::Machine && CLOCK_MSRS.iter().any(|range| range.contains(&number))
    }

    /// True if the local APICs of CPUs that run are the kernel's.
    pub fn has_apics(&self) -> bool {
        self.offer.has_apics
    }

    /// Which CPUs may be in the guest.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Has the kernel's local APICs take `message`. False if none does.
    pub fn send(&self, message: &Message) -> bool {
        message.send(&self.fd)
    }

    /// From now on CPUs tell [`cpu::platform::LapicLending::broadcast_eoi`] of the ends of these
    /// messages' interrupts.
    pub fn await_ends(&self, messages: &[Message]) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = routes.await_ends(&self.fd, messages) {
            log::error!(target: "kvm::apic", "level-triggered interrupts will stick: {error}");
        }
    }

    /// From now on the kernel's local APICs get each of these messages when its eventfd is written,
    /// and none else: what the others were written before this returns they have, or it is still in
    /// their counts. Tells of each whether the kernel does it.
    pub fn watch(&self, events: &[(Arc<OwnedFd>, Message)]) -> Vec<bool> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.watch(&self.fd, events)
    }

    /// True if guests can have the feature that CPUID shows in this bit.
    pub fn gives(&self, leaf: u32, subleaf: u32, register: usize, bit: u8) -> bool {
        cpuid::is_given((leaf, subleaf, register, bit), &self.supported, &self.offer)
    }

    /// Has the kernel forget what it knows of the guest's page tables, which somebody else has
    /// changed. Where the processor walks them it knows nothing but what is in TLBs, and each CPU
    /// flushes its own; else it goes with all memory.
    pub(crate) fn forget_page_tables(&self) {
        let Some((space, _)) = self.maps.get().filter(|_| !self.has_nested_paging) else { return };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clear(&self.fd, space);
    }

    /// Tells the kernel what memory and which doorbells the guest has now, if that has changed.
    pub(crate) fn update_memory(&self) {
        let Some((space, ports)) = self.maps.get() else { return };
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).update(&self.fd, space);
        let mut doorbells = self.doorbells.lock().unwrap_or_else(PoisonError::into_inner);
        doorbells.update(&self.fd, space, ports);
    }
}
