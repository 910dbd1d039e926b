//! KVM_INTERRUPT, which kvm-ioctls does not have.
// UNSAFETY: an ioctl on a descriptor of KVM's.
#![expect(unsafe_code, reason = "unsafe island 4: an ioctl")]

use std::os::fd::AsRawFd;

use kvm_bindings::kvm_interrupt;
use kvm_ioctls::VcpuFd;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Has the guest take interrupt `vector` when it is entered. True if it will.
pub(crate) fn inject(fd: &VcpuFd, vector: u8) -> bool {
    let interrupt = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: 1. the descriptor is a CPU's; 2. the kernel reads the structure that the call is
    // defined for, and keeps no pointer.
    unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) == 0 }
}
