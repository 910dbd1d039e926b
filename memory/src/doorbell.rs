//! Doorbells: writes that tell a thread of something and do nothing else, so that no device needs
//! to see them.
//!
//! A device names its doorbells when it is mapped ([`Device::doorbells`]). The bus adds one to the
//! eventfd of a doorbell instead of giving the write to the device; an engine with a faster way
//! (KVM does it in the kernel, without leaving the guest) asks the maps where doorbells are.
//! Whoever waits at the eventfd finds the same number on every engine.
//!
//! [`Device::doorbells`]: crate::Device::doorbells

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::Width;

/// Which writes at its offset ring a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ringing {
    /// All.
    Any,
    /// Those of this width.
    Width(Width),
    /// Those of this width and this value.
    Value(Width, u64),
}

impl Ringing {
    fn includes(self, width: Width, value: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Width(own) => own == width,
            Self::Value(own, number) => own == width && (number ^ value) & width.mask() == 0,
        }
    }
}

/// One doorbell of a device.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// Where it is, from the start of the mapped range.
    pub offset: u64,
    /// Which writes there ring it.
    pub ringing: Ringing,
    /// The eventfd that counts them.
    pub event: Arc<OwnedFd>,
}

impl Doorbell {
    /// A doorbell with an eventfd of its own, which never blocks.
    pub fn new(offset: u64, ringing: Ringing) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { offset, ringing, event: Arc::new(event) })
    }

    /// How often it has rung since the last call.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        // An eventfd at which nothing has happened is an error.
        rustix::io::read(&*self.event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    fn ring(&self) {
        // Nobody takes what is there if there is no more room: it stays rung.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }
}

/// The doorbells of a range, of which there are hardly ever any.
pub(crate) type Doorbells = Option<Arc<[Doorbell]>>;

/// The doorbells of `device`.
pub(crate) fn of(device: &dyn crate::Device) -> Doorbells {
    let all = device.doorbells();
    (!all.is_empty()).then(|| all.into())
}

/// Those of a range from `first` to `last`, with their addresses.
pub(crate) fn placed(
    doorbells: &Doorbells,
    first: u64,
    last: u64,
) -> impl Iterator<Item = (u64, Doorbell)> {
    let inside = doorbells.iter().flat_map(|all| all.iter());
    inside
        .filter(move |bell| bell.offset <= last - first)
        .map(move |bell| (first + bell.offset, bell.clone()))
}

/// True if a write rings one of `doorbells`, which is done then.
pub(crate) fn rings(doorbells: &Doorbells, offset: u64, width: Width, value: u64) -> bool {
    let is_meant = |bell: &&Doorbell| bell.offset == offset && bell.ringing.includes(width, value);
    let found = doorbells.as_ref().and_then(|all| all.iter().find(is_meant));
    found.inspect(|bell| bell.ring()).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Device, GuestPhysical, IoError, PhysicalSpace, PortSpace, Ram, RegionKind};

    /// Remembers what comes to it.
    struct Chip {
        bells: Vec<Doorbell>,
        writes: Mutex<Vec<(u64, Width, u64)>>,
    }

    impl Device for Chip {
        fn read(&self, _: u64, _: Width) -> Result<u64, IoError> {
            Ok(0)
        }
        fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
            self.writes.lock().unwrap().push((offset, width, value));
            Ok(())
        }
        fn doorbells(&self) -> Vec<Doorbell> {
            self.bells.clone()
        }
    }

    fn chip() -> Arc<Chip> {
        let bells = [
            (0, Ringing::Any),
            (4, Ringing::Width(Width::Word)),
            (8, Ringing::Value(Width::Word, 3)),
            (8, Ringing::Value(Width::Word, 0x1_0004)),
        ];
        let bells = bells.map(|(offset, ringing)| Doorbell::new(offset, ringing).unwrap());
        Arc::new(Chip { bells: bells.into(), writes: Mutex::default() })
    }

    /// Writes by `write` what rings and what does not.
    fn check(chip: &Chip, write: impl Fn(u64, Width, u64)) {
        for (offset, width, value) in [
            (0, Width::Byte, 1),
            (0, Width::Dword, 2),
            (4, Width::Word, 3),
            (4, Width::Dword, 4),
            (8, Width::Word, 3),
            (8, Width::Word, 5),
            (8, Width::Dword, 3),
            (8, Width::Word, 4),
            (8, Width::Word, 4),
            (6, Width::Word, 1),
        ] {
            write(offset, width, value);
        }
        let rung: Vec<u64> = chip.bells.iter().map(Doorbell::take).collect();
        assert_eq!(rung, [2, 1, 1, 2]);
        assert!(chip.bells.iter().all(|bell| bell.take() == 0));
        let passed =
            [(4, Width::Dword, 4), (8, Width::Word, 5), (8, Width::Dword, 3), (6, Width::Word, 1)];
        assert_eq!(*chip.writes.lock().unwrap(), passed);
    }

    #[test]
    fn writes_to_memory_ring_where_they_are_meant_to() {
        let (chip, space) = (chip(), PhysicalSpace::new(Arc::new(Ram::new(0x1000).unwrap())));
        let device = RegionKind::Device(Arc::clone(&chip) as _);
        space.map(GuestPhysical(0x8000), 0x10, device).unwrap();
        check(&chip, |offset, width, value| {
            space.write(GuestPhysical(0x8000 + offset), width, value);
        });
        let places: Vec<u64> = space.doorbells().iter().map(|(address, _)| *address).collect();
        assert_eq!(places, [0x8000, 0x8004, 0x8008, 0x8008]);
        space.unmap(GuestPhysical(0x8000));
        assert!(space.doorbells().is_empty());
    }

    #[test]
    fn writes_to_ports_ring_where_they_are_meant_to() {
        let (chip, ports) = (chip(), PortSpace::new());
        let before = ports.generation();
        ports.map(0xc000, 0x10, Arc::clone(&chip) as _).unwrap();
        assert_ne!(ports.generation(), before);
        check(&chip, |offset, width, value| {
            ports.write(0xc000 + offset as u16, width, value as u32);
        });
        assert_eq!(ports.doorbells().len(), 4);
        ports.unmap(0xc000);
        assert!(ports.doorbells().is_empty());
    }

    #[test]
    fn a_full_counter_stays_rung() {
        let bell = Doorbell::new(0, Ringing::Any).unwrap();
        rustix::io::write(&*bell.event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        bell.ring();
        assert_eq!(bell.take(), u64::MAX - 1);
    }
}
