//! What of KVM's can fail.

use std::io;

/// Why the engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// A call of KVM's failed.
    #[error("{call} failed")]
    Call {
        /// The call's name.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel has another interface than the one that has been since 2007.
    #[error("/dev/kvm has API version {0} instead of 12")]
    Version(i32),
    /// The kernel's KVM is too old, or restricted.
    #[error("KVM on this host lacks {0}")]
    Lacks(&'static str),
}

impl KvmError {
    /// The error of `call`.
    pub(crate) fn of(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Call { call, source: io::Error::from_raw_os_error(error.errno()) }
    }
}
