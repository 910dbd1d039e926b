//! Whether KVM can be used: not whether it should be there, but whether a VM and a vCPU are made.

use std::{fmt, io};

use kvm::Obstacle;
use rustix::io::Errno;

/// How far the making of a vCPU came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// /dev/kvm cannot be opened.
    Closed(Errno),
    /// KVM_GET_API_VERSION says something else than 12.
    Strange(i32),
    /// KVM_CREATE_VM fails.
    NoVm(Errno),
    /// KVM_CREATE_VCPU fails.
    NoVcpu(Errno),
    /// A VM with a vCPU was made.
    Works,
}

impl Kvm {
    /// Makes a VM with a vCPU, and lets go of both.
    pub(crate) fn probe() -> Self {
        let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        match kvm::probe() {
            Ok(()) => Self::Works,
            Err(Obstacle::Closed(error)) => Self::Closed(errno(error)),
            Err(Obstacle::Version(version)) => Self::Strange(version),
            Err(Obstacle::NoVm(error)) => Self::NoVm(errno(error)),
            Err(Obstacle::NoVcpu(error)) => Self::NoVcpu(errno(error)),
        }
    }

    /// What the user can do about it.
    pub(super) fn remedy(self, has_flag: bool) -> Option<&'static str> {
        match self {
            Self::Works => None,
            Self::Closed(Errno::ACCESS | Errno::PERM) => {
                Some("/dev/kvm is closed to you: join its group, often `usermod -aG kvm $USER`.")
            }
            Self::Closed(Errno::NOENT) if has_flag => Some(
                "The processor has virtualization but /dev/kvm is missing: load kvm_intel or \
                 kvm_amd, or hand the device into the container with `--device /dev/kvm`.",
            ),
            Self::Closed(_) if !has_flag => {
                Some("This host has no virtualization to give; Volvelle runs without it.")
            }
            _ => Some("KVM is there and does not work; Volvelle runs without it."),
        }
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(errno) => write!(f, "cannot be opened: {errno}"),
            Self::Strange(version) => write!(f, "has API version {version} instead of 12"),
            Self::NoVm(errno) => write!(f, "opens, but makes no VM: {errno}"),
            Self::NoVcpu(errno) => write!(f, "makes a VM, but no vCPU: {errno}"),
            Self::Works => write!(f, "works: a VM and a vCPU were made"),
        }
    }
}
