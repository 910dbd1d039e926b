//! The kernel's table of routes: what interrupt number (GSI) of a virtual machine stands for which
//! message. It has two uses. The kernel reports the ends of the messages behind its first numbers,
//! as it would to an I/O APIC; and where an eventfd is connected to one of the others, a write to
//! it sends the message without anybody of ours (KVM_IRQFD).
//!
//! The kernel takes the table as a whole. What is level-triggered and told of its end by an eventfd
//! it refuses beside an I/O APIC of ours: eventfds are for edges.
//!
//! Invariant: the kernel takes the count of an eventfd whenever it sends for it, and at last when
//! it is disconnected, which waits for what is being sent. So nothing is lost or doubled when
//! somebody else looks at it before or after.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQFD_FLAG_DEASSIGN, KVM_MAX_IRQ_ROUTES, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_irqfd,
};
use kvm_ioctls::VmFd;

use crate::apics::Message;
use crate::{KvmError, calls};

/// Messages whose ends the kernel can be asked to report; their numbers are the first.
pub(crate) const ENDS: u32 = 64;
/// One more than the last number that an eventfd can have.
const NUMBERS: u32 = KVM_MAX_IRQ_ROUTES as u32;

/// An eventfd, and what the kernel sends when it is written.
struct Irqfd {
    event: Arc<OwnedFd>,
    message: Message,
    is_connected: bool,
}

impl Irqfd {
    fn tell(&self, fd: &VmFd, gsi: u32, flags: u32) -> io::Result<()> {
        let event = self.event.as_raw_fd() as u32;
        calls::irq_event(fd, &kvm_irqfd { fd: event, gsi, flags, ..Default::default() })
    }

    fn disconnect(&self, fd: &VmFd, gsi: u32) {
        if self.is_connected
            && let Err(error) = self.tell(fd, gsi, KVM_IRQFD_FLAG_DEASSIGN)
        {
            log::error!(target: "kvm::apic", "the eventfd of GSI {gsi} stays: {error}");
        }
    }
}

/// What the kernel was told.
#[derive(Default)]
pub(crate) struct Routes {
    ends: Vec<Message>,
    /// By their numbers.
    events: BTreeMap<u32, Irqfd>,
    /// The table as the kernel has it.
    written: Vec<(u32, Message)>,
}

impl Routes {
    /// Has the kernel report the ends of `messages`.
    pub(crate) fn await_ends(&mut self, fd: &VmFd, messages: &[Message]) -> Result<(), KvmError> {
        self.ends = messages.iter().copied().take(ENDS as usize).collect();
        self.write(fd)
    }

    /// Has the kernel send each of these messages when its eventfd is written, and no others.
    /// Tells of each whether it does. Those that are no more among them have been sent, or are in
    /// their eventfds' counts.
    pub(crate) fn watch(&mut self, fd: &VmFd, wanted: &[(Arc<OwnedFd>, Message)]) -> Vec<bool> {
        let stay: BTreeSet<RawFd> = wanted.iter().map(|(event, _)| event.as_raw_fd()).collect();
        self.disconnect(fd, |old| !stay.contains(&old.event.as_raw_fd()));
        self.number(wanted);
        let outcome = match self.write(fd) {
            Ok(()) => self.connect(fd),
            Err(error) => {
                log::info!(target: "kvm::apic", "eventfds are read, not the kernel's: {error}");
                self.disconnect(fd, |_| true);
                self.write(fd)
            }
        };
        if let Err(error) = outcome {
            log::debug!(target: "kvm::apic", "eventfds are not the kernel's: {error}");
        }
        let connected: BTreeSet<RawFd> =
            self.events.values().map(|irqfd| irqfd.event.as_raw_fd()).collect();
        wanted.iter().map(|(event, _)| connected.contains(&event.as_raw_fd())).collect()
    }

    fn disconnect(&mut self, fd: &VmFd, is_meant: impl Fn(&Irqfd) -> bool) {
        self.events.retain(|&gsi, irqfd| {
            let stays = !is_meant(irqfd);
            if !stays {
                irqfd.disconnect(fd, gsi);
            }
            stays
        });
    }

    /// Has a number for each of `wanted`, the one that it has or the first that is free, as long as
    /// there are any.
    fn number(&mut self, wanted: &[(Arc<OwnedFd>, Message)]) {
        let known: BTreeMap<RawFd, u32> =
            self.events.iter().map(|(&gsi, irqfd)| (irqfd.event.as_raw_fd(), gsi)).collect();
        let taken: BTreeSet<u32> = self.events.keys().copied().collect();
        let mut free = (ENDS..NUMBERS).filter(|gsi| !taken.contains(gsi));
        for (event, message) in wanted {
            let gsi = known.get(&event.as_raw_fd()).copied().or_else(|| free.next());
            let Some(gsi) = gsi else { return };
            let new = || Irqfd { event: Arc::clone(event), message: *message, is_connected: false };
            self.events.entry(gsi).or_insert_with(new).message = *message;
        }
    }

    /// Connects what is not yet; what the kernel refuses is forgotten.
    fn connect(&mut self, fd: &VmFd) -> Result<(), KvmError> {
        let mut outcome = Ok(());
        self.events.retain(|&gsi, irqfd| {
            if irqfd.is_connected {
                return true;
            }
            let refused = irqfd.tell(fd, gsi, 0).err();
            irqfd.is_connected = refused.is_none();
            if let Some(source) = refused {
                outcome = Err(KvmError::Call { call: "KVM_IRQFD", source });
            }
            irqfd.is_connected
        });
        outcome
    }

    fn table(&self) -> Vec<(u32, Message)> {
        let ends = (0..).zip(self.ends.iter().copied());
        ends.chain(self.events.iter().map(|(&gsi, irqfd)| (gsi, irqfd.message))).collect()
    }

    /// Tells the kernel, if there is anything new.
    fn write(&mut self, fd: &VmFd) -> Result<(), KvmError> {
        let table = self.table();
        if table == self.written {
            return Ok(());
        }
        let entries: Vec<_> = table.iter().map(|(gsi, message)| entry(*gsi, message)).collect();
        let entries = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError::Lacks("room for the routes of interrupts"))?;
        fd.set_gsi_routing(&entries).map_err(KvmError::of("KVM_SET_GSI_ROUTING"))?;
        self.written = table;
        Ok(())
    }
}

fn entry(gsi: u32, message: &Message) -> kvm_irq_routing_entry {
    let (address_lo, address_hi, data) = message.msi();
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo, address_hi, data, ..Default::default() };
    entry
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn wanted(vector: u8) -> (Arc<OwnedFd>, Message) {
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        let message =
            Message { destination: 0, is_logical: false, delivery: 0, vector, is_level: false };
        (Arc::new(event), message)
    }

    fn vectors(routes: &Routes) -> Vec<(u32, u8)> {
        routes.table().iter().map(|(gsi, message)| (*gsi, message.vector)).collect()
    }

    #[test]
    fn numbers_stay_are_used_again_and_end() {
        let mut routes = Routes { ends: vec![wanted(0x20).1], ..Routes::default() };
        let all = [0x31, 0x32, 0x33].map(wanted);
        routes.number(&all);
        assert_eq!(vectors(&routes), [(0, 0x20), (64, 0x31), (65, 0x32), (66, 0x33)]);
        routes.events.remove(&65);
        let other = (Arc::clone(&all[2].0), wanted(0x43).1);
        routes.number(&[wanted(0x51), other, wanted(0x52)]);
        let expected = [(0, 0x20), (64, 0x31), (65, 0x51), (66, 0x43), (67, 0x52)];
        assert_eq!(vectors(&routes), expected);
        let one = wanted(0x60).0;
        routes.events.extend((ENDS..NUMBERS).map(|gsi| {
            (gsi, Irqfd { event: Arc::clone(&one), message: all[0].1, is_connected: false })
        }));
        routes.number(&[wanted(0x61)]);
        assert_eq!(routes.events.len() as u32, NUMBERS - ENDS);
        assert!(!vectors(&routes).iter().any(|&(_, vector)| vector == 0x61));
    }
}
