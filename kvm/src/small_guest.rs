//! A guest of a few instructions of real mode, to try what a host's KVM does where its word is not
//! enough. It leaves by itself.

use std::sync::Arc;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind};

use crate::KvmError;
use crate::run_page::RunPage;
use crate::slots::Slots;
use crate::vm::{create_vcpu, create_vm};

const RAM_BYTES: u64 = 0x4000;
/// Where it begins, in segment 0 as its data and its stack, which grows down from here.
pub(crate) const CODE: u64 = 0x1000;

/// Fields are dropped in their order: the kernel's view of memory goes before the memory.
pub(crate) struct SmallGuest {
    pub(crate) page: RunPage,
    pub(crate) fd: VcpuFd,
    pub(crate) vm: VmFd,
    _space: PhysicalSpace,
}

impl SmallGuest {
    /// A guest with each of `pieces` at its address. `prepare` gets the machine before it has a
    /// CPU.
    pub(crate) fn new(
        kvm: &Kvm,
        pieces: &[(u64, &[u8])],
        prepare: impl FnOnce(&VmFd) -> Result<(), KvmError>,
    ) -> Result<Self, KvmError> {
        let ram = Ram::new(RAM_BYTES).map_err(|_| KvmError::Lacks("memory for a guest"))?;
        for (address, bytes) in pieces {
            ram.write_bytes(*address, bytes);
        }
        let space = PhysicalSpace::new(Arc::new(ram));
        space
            .map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0))
            .map_err(|_| KvmError::Lacks("a place for a guest's memory"))?;
        let vm = create_vm(kvm)?;
        prepare(&vm)?;
        Slots::default().update(&vm, &space);
        let mut fd = create_vcpu(&vm, 0)?;
        set_up(&fd)?;
        Ok(Self { page: RunPage::of(&mut fd), fd, vm, _space: space })
    }

    /// Runs it until it leaves, and says why it did. A signal to this thread is no answer.
    pub(crate) fn run(&mut self) -> Result<u32, KvmError> {
        loop {
            match self.fd.run().map(drop) {
                Err(error) if error.errno() == libc::EINTR => {}
                outcome => {
                    outcome.map_err(KvmError::of("KVM_RUN"))?;
                    return Ok(self.page.reason());
                }
            }
        }
    }
}

fn set_up(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE, rsp: CODE, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))
}
