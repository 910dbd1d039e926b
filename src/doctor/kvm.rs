//! Whether KVM can be used: not whether it should be there, but whether a guest runs on it.

use std::{fmt, io};

use anyhow::Error;
use kvm::{KvmError, Obstacle, Weakness};
use rustix::io::Errno;

/// How far a guest came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// /dev/kvm cannot be opened.
    Closed(Errno),
    /// KVM_GET_API_VERSION says something else than 12.
    Strange(i32),
    /// KVM_CREATE_VM fails.
    NoVm(Errno),
    /// KVM_CREATE_VCPU fails.
    NoVcpu(Errno),
    /// A VM with a vCPU is made, and this is what its guest does not do.
    Weak(String),
    /// The probe guest has done everything.
    Works,
}

impl Kvm {
    /// Runs the probe guest.
    pub(crate) fn probe() -> Self {
        match kvm::probe() {
            Ok(()) => Self::Works,
            Err(Weakness::Engine(KvmError::Obstacle(obstacle))) => Self::stopped_by(&obstacle),
            Err(weakness) => Self::Weak(format!("{:#}", Error::new(weakness))),
        }
    }

    fn stopped_by(obstacle: &Obstacle) -> Self {
        let errno = |error: &io::Error| Errno::from_io_error(error).unwrap_or(Errno::IO);
        match obstacle {
            Obstacle::Closed(error) => Self::Closed(errno(error)),
            Obstacle::Version(version) => Self::Strange(*version),
            Obstacle::NoVm(error) => Self::NoVm(errno(error)),
            Obstacle::NoVcpu(error) => Self::NoVcpu(errno(error)),
        }
    }

    /// What the user can do about it.
    pub(super) fn remedy(&self, has_flag: bool) -> Option<&'static str> {
        match self {
            Self::Works => None,
            Self::Closed(Errno::ACCESS | Errno::PERM) => Some(
                "/dev/kvm is closed to you: join its group, often `usermod -aG kvm $USER`, or \
                 start the container with `--device /dev/kvm`.",
            ),
            Self::Closed(Errno::NOENT) if has_flag => Some(
                "The processor has virtualization but /dev/kvm is missing: load kvm_intel or \
                 kvm_amd, or hand the device into the container with `--device /dev/kvm`.",
            ),
            Self::Closed(_) if !has_flag => Some(
                "This host has no virtualization to give; Volvelle runs without it. Where it is a \
                 guest, its own host could: enable nested virtualization there.",
            ),
            Self::NoVm(Errno::BUSY) | Self::NoVcpu(Errno::BUSY) => Some(
                "KVM is busy: another hypervisor has the processor's virtualization; end it, or \
                 unload its module.",
            ),
            Self::Weak(_) if !has_flag => Some(
                "KVM is there without vmx or svm and cannot run kernels; Volvelle runs without \
                 it. Where this host is a guest, its own host could enable nested virtualization.",
            ),
            _ => Some("KVM is there and does not work; Volvelle runs without it."),
        }
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(errno) => write!(f, "cannot be opened: {errno}"),
            Self::Weak(reason) => write!(f, "makes a VM and a vCPU, but {reason}"),
            Self::Strange(version) => write!(f, "has API version {version} instead of 12"),
            Self::NoVm(errno) => write!(f, "opens, but makes no VM: {errno}"),
            Self::NoVcpu(errno) => write!(f, "makes a VM, but no vCPU: {errno}"),
            Self::Works => write!(f, "works: the probe guest passed"),
        }
    }
}
