//! Doorbells that the kernel rings itself (KVM_IOEVENTFD): the guest is not left for them.
//!
//! The way back, an eventfd whose writes interrupt the guest (KVM_IRQFD), is in `routes`.
//!
//! Whatever the kernel does not take leaves the guest as any write to a device does, and the bus
//! rings.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;
use memory::{Doorbell, PhysicalSpace, PortSpace, Ringing, Width};

use crate::calls;

/// Of KVM_IOEVENTFD: only one value rings, a port, and not any more.
const MATCHING: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const PORT: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const AWAY: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;

/// A doorbell at its address or port.
struct Placed {
    address: u64,
    /// [`PORT`], or 0 for memory.
    place: u32,
    bell: Doorbell,
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        (self.address, self.place, self.bell.ringing)
            == (other.address, other.place, other.bell.ringing)
            && Arc::ptr_eq(&self.bell.event, &other.bell.event)
    }
}

impl Placed {
    fn tell(&self, fd: &VmFd, flags: u32) -> io::Result<()> {
        // No width stands for all of them.
        let (width, value) = match self.bell.ringing {
            Ringing::Any => (None, None),
            Ringing::Width(width) => (Some(width), None),
            Ringing::Value(width, value) => (Some(width), Some(value & width.mask())),
        };
        let matching = if value.is_some() { MATCHING } else { 0 };
        let wanted = kvm_ioeventfd {
            datamatch: value.unwrap_or(0),
            addr: self.address,
            len: width.map_or(0, Width::bytes) as u32,
            fd: self.bell.event.as_raw_fd(),
            flags: flags | self.place | matching,
            ..Default::default()
        };
        calls::io_event(fd, &wanted)
    }
}

/// The doorbells that the kernel has.
#[derive(Default)]
pub(crate) struct Doorbells {
    placed: Vec<Placed>,
}

impl Doorbells {
    /// Makes the kernel's doorbells those of `space` and `ports`.
    pub(crate) fn update(&mut self, fd: &VmFd, space: &PhysicalSpace, ports: &PortSpace) {
        let at = |place: u32| move |(address, bell)| Placed { address, place, bell };
        let memory = space.doorbells().into_iter().map(at(0));
        let ports = ports.doorbells().into_iter().map(at(PORT));
        let wanted: Vec<Placed> = memory.chain(ports).collect();
        self.placed.retain(|old| {
            let stays = wanted.contains(old);
            if !stays && let Err(error) = old.tell(fd, AWAY) {
                log::error!(target: "kvm::exit", "a doorbell at {:#x} stays: {error}", old.address);
            }
            stays
        });
        for new in wanted {
            if self.placed.contains(&new) {
                continue;
            }
            match new.tell(fd, 0) {
                Ok(()) => self.placed.push(new),
                Err(error) => {
                    log::debug!(target: "kvm::exit", "the bus rings {:#x}: {error}", new.address);
                }
            }
        }
    }
}
