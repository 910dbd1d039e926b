//! What of KVM's can fail.

use std::io;

/// Why KVM cannot make a virtual machine with a CPU.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// The device cannot be opened.
    #[error("opening /dev/kvm failed")]
    Closed(#[source] io::Error),
    /// The kernel has another interface than the one that has been since 2007.
    #[error("/dev/kvm has API version {0} instead of 12")]
    Version(i32),
    /// There is no virtual machine.
    #[error("KVM_CREATE_VM failed")]
    NoVm(#[source] io::Error),
    /// There is no CPU in it.
    #[error("KVM_CREATE_VCPU failed")]
    NoVcpu(#[source] io::Error),
}

/// Why the engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// It begins with that.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    /// A call of KVM's failed.
    #[error("{call} failed")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel's KVM is too old, or restricted.
    #[error("KVM on this host lacks {0}")]
    Lacks(&'static str),
}

impl KvmError {
    /// The error of `call`.
    pub(crate) fn of(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Call { call, source: system(error) }
    }
}

/// The error as the standard library has it.
pub(crate) fn system(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
