//! What of KVM's can fail.

use std::io;
use std::time::Duration;

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
    /// There are more CPUs than it makes.
    #[error("KVM on this host makes {0} CPUs at most")]
    CpusMax(usize),
    /// The kernel's KVM is too old, or restricted.
    #[error("KVM on this host lacks {0}")]
    Lacks(&'static str),
}

/// Why guests should not run on this host's KVM though it makes virtual machines.
#[derive(Debug, thiserror::Error)]
pub enum Weakness {
    /// It cannot even begin.
    #[error(transparent)]
    Engine(#[from] KvmError),
    /// The probe guest does not get further.
    #[error("the probe guest fails at {part} (exit {exit})")]
    Part {
        /// What it was about to do.
        part: &'static str,
        /// KVM_EXIT_*.
        exit: u32,
    },
    /// It does, with wrong results.
    #[error("the probe guest computes wrong results, at last in {part}")]
    Wrong {
        /// What it did last.
        part: &'static str,
    },
    /// It takes too long.
    #[error("the probe guest is not done in {} ms, but at {part}", limit.as_millis())]
    Late {
        /// What it was doing.
        part: &'static str,
        /// What it may take.
        limit: Duration,
    },
    /// Its code is executed, but not by the processor.
    #[error(
        "a loop takes {} µs in the probe guest and {} µs outside", guest.as_micros(),
        native.as_micros()
    )]
    Slow {
        /// What the loop takes on KVM.
        guest: Duration,
        /// What it takes here.
        native: Duration,
    },
    /// Nobody can watch the probe guest.
    #[error("no thread can be started for the probe guest")]
    NoThread(#[source] io::Error),
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
