//! KVM_RUN that executes nothing of the guest, but does all that comes before: it finishes the last
//! exit and requests the interrupts of a timer that has run down.
//!
//! `immediate_exit` is less: with it KVM leaves before it looks at interrupts. What makes it leave
//! right before the guest is a signal that waits already and is let through inside of KVM_RUN only
//! (KVM_SET_SIGNAL_MASK).
// UNSAFETY: changes the calling thread's signal mask for a while, and an ioctl that kvm-ioctls
// lacks.
#![expect(unsafe_code, reason = "unsafe island 4: a signal that KVM_RUN finds waiting")]

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

use kvm_ioctls::{Error, VcpuFd};

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
/// Bytes of a signal set as the kernel has it.
const KERNEL_SET_BYTES: u32 = 8;

/// `struct kvm_signal_mask` with its set, of which the C library's has the kernel's at its start.
#[repr(C)]
struct SignalMask {
    bytes: u32,
    set: [u8; KERNEL_SET_BYTES as usize],
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

/// Runs the CPU up to its guest. EINTR is how that ends unless something is to be served.
pub(crate) fn run(fd: &mut VcpuFd) -> Result<(), Error> {
    let only = only(signal());
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: 1. the sets are valid for the calls; 2. the signal goes to the calling thread, which
    // blocks it, so no handler is needed.
    let mut before = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const only, before.as_mut_ptr());
        libc::pthread_kill(libc::pthread_self(), signal());
        before.assume_init()
    };
    // SAFETY: the set is valid for the call.
    unsafe { libc::sigdelset(&raw mut before, signal()) };
    let outcome = set_mask(fd, Some(&before)).and_then(|()| fd.run().map(drop));
    let outcome = set_mask(fd, None).and(outcome);
    let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the sets and the time are valid for the calls; nobody wants the signal's details.
    unsafe {
        libc::sigtimedwait(&raw const only, null_mut(), &raw const no_time);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
    }
    outcome
}

fn only(signal: libc::c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the first call makes a set of what it gets, all zeroes or not.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}

/// Has KVM_RUN block the signals of `set` while it runs, or those that its thread does.
fn set_mask(fd: &VcpuFd, set: Option<&libc::sigset_t>) -> Result<(), Error> {
    let mask = set.map(|set| {
        // SAFETY: the C library's set begins with the kernel's, and is plain bytes.
        let set = unsafe { (&raw const *set).cast::<[u8; 8]>().read() };
        SignalMask { bytes: KERNEL_SET_BYTES, set }
    });
    let address = mask.as_ref().map_or(null(), |mask| &raw const *mask);
    // SAFETY: 1. the descriptor is a CPU's; 2. the kernel reads the structure that the call is
    // defined for, or none, and keeps no pointer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_SIGNAL_MASK, address) } {
        0 => Ok(()),
        _ => Err(Error::last()),
    }
}
