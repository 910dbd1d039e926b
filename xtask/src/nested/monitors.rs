//! The two programs that run guests on the nested KVM, and how they are called alike.

use super::QEMU_IN_THERE;

/// A program that runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// Ours.
    Volvelle,
    /// The one that it stands beside.
    Qemu,
}

/// A Linux guest.
#[derive(Clone, Copy)]
pub struct Linux {
    /// The kernel's path in the first guest.
    pub kernel: &'static str,
    pub cpus: u32,
    /// Words added to its command line.
    pub words: &'static str,
}

impl Monitor {
    /// What is in the reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Volvelle => "Volvelle",
            Self::Qemu => "QEMU",
        }
    }

    /// The line for the first guest's shell. Nothing is said of the processor, so it is what each
    /// gives by itself for a fast guest.
    pub fn linux(self, guest: Linux) -> String {
        let Linux { kernel, cpus, words } = guest;
        let words = format!("console=ttyS0 quiet {words}");
        let words = words.trim_end();
        match self {
            Self::Volvelle => format!(
                "/kvm/volvelle run --accel kvm --no-reboot --memory 256M --cpus {cpus} \
                 --kernel {kernel} --initrd /kvm/initrd --append '{words}'"
            ),
            Self::Qemu => format!(
                "{} -no-reboot -m 256M -smp {cpus} -kernel {kernel} -initrd /kvm/initrd \
                 -append '{words}'",
                Self::qemu()
            ),
        }
    }

    /// The line for the built-in guest.
    pub fn built_in(self, accel: &str, cpus: u32) -> String {
        match self {
            Self::Volvelle => {
                format!("/kvm/volvelle run --accel {accel} --no-reboot --cpus {cpus}")
            }
            Self::Qemu => {
                format!("{} -no-reboot -smp {cpus} -bios /kvm/guest.rom </dev/null", Self::qemu())
            }
        }
    }

    fn qemu() -> String {
        format!(
            "{QEMU_IN_THERE} -accel kvm -cpu host -M q35 -nodefaults -display none -serial stdio"
        )
    }
}
