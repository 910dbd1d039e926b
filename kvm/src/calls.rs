//! Calls of KVM's that kvm-ioctls does not have.
// UNSAFETY: ioctls on descriptors of KVM's.
#![expect(unsafe_code, reason = "unsafe island 4: ioctls")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_interrupt, kvm_ioeventfd,
    kvm_irqfd,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::KvmError;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;
/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: libc::c_ulong = 0x4020_ae76;
/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
/// `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`.
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// Has the guest take interrupt `vector` when it is entered. True if it will.
pub(crate) fn inject(fd: &VcpuFd, vector: u8) -> bool {
    let interrupt = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: 1. the descriptor is a CPU's; 2. the kernel reads the structure that the call is
    // defined for, and keeps no pointer.
    unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) == 0 }
}

/// Has the kernel ring a doorbell when the guest writes somewhere, or not any more.
pub(crate) fn io_event(fd: &VmFd, wanted: &kvm_ioeventfd) -> io::Result<()> {
    // SAFETY: 1. the descriptor is a virtual machine's; 2. the kernel reads the structure that the
    // call is defined for, keeps no pointer, and holds the eventfd in it by itself.
    match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_IOEVENTFD, &raw const *wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel send an interrupt when an eventfd is written, or not any more.
pub(crate) fn irq_event(fd: &VmFd, wanted: &kvm_irqfd) -> io::Result<()> {
    // SAFETY: 1. the descriptor is a virtual machine's; 2. the kernel reads the structure that the
    // call is defined for, keeps no pointer, and holds the eventfd in it by itself.
    match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_IRQFD, &raw const *wanted) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the guest's time-stamp counter be the host's and `offset`. Writing the MSR would have KVM
/// guess which of several CPUs' writes are meant to be the same.
pub(crate) fn set_tsc_offset(fd: &VcpuFd, mut offset: u64) -> Result<(), KvmError> {
    tsc_offset(fd, KVM_SET_DEVICE_ATTR, &mut offset)
        .map_err(|source| KvmError::Call { call: "KVM_SET_DEVICE_ATTR", source })
}

/// True if that has an effect: there are hosts whose KVM says so, and does nothing.
pub(crate) fn has_tsc_offset(fd: &VcpuFd) -> bool {
    const SOME: u64 = 1 << 40;
    let mut found = 0;
    set_tsc_offset(fd, SOME).is_ok()
        && tsc_offset(fd, KVM_GET_DEVICE_ATTR, &mut found).is_ok()
        && found == SOME
}

/// Reads or writes KVM_VCPU_TSC_OFFSET from or to `offset`.
fn tsc_offset(fd: &VcpuFd, call: libc::c_ulong, offset: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        // The kernel gets it as a number, and takes it for an address.
        addr: (&raw mut *offset).expose_provenance() as u64,
    };
    // SAFETY: 1. the descriptor is a CPU's; 2. the kernel reads the structure that both calls are
    // defined for, and reads or writes the eight bytes at `addr`, which are borrowed for writing as
    // long as the call takes; it keeps no pointer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), call, &raw const attribute) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
