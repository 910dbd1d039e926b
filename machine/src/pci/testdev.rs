//! `pci-testdev`: counts accesses to a range of its memory and of its ports, for test suites.
//!
//! Source: QEMU documentation, "QEMU PCI test device". Each BAR has a header that says what to
//! write where, and how often that was done. Known departure: the tests that go by eventfd in
//! QEMU's KVM mode count like the first; a driver accepts either.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};

use super::bar::{BarKind, BarSpec};
use super::config_space::Identity;
use super::endpoint::{Endpoint, EndpointSpec, Wiring};
use crate::guard::lock;

/// What a driver writes.
const DATA: u8 = 0xfa;
/// The width of the tests' accesses in bytes.
const WIDTH: u8 = 1;
const NAMES: [&str; 3] = ["no-eventfd", "wildcard-eventfd", "datamatch-eventfd"];
const MEMORY_BYTES: u64 = 4096;
const PORT_BYTES: u64 = 256;
const HEADER_BYTES: usize = 48;

/// One BAR: its running test, and the number of accesses so far.
struct TestRange {
    /// Where in the range the test's accesses go.
    offset: u32,
    state: Mutex<(u8, u32)>,
}

impl TestRange {
    fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { offset: bytes as u32 / 2, state: Mutex::default() })
    }

    /// Test, width, padding, offset, data, count, name. A test that does not exist has width 0.
    fn header(&self) -> [u8; HEADER_BYTES] {
        let (test, count) = *lock(&self.state);
        let name = NAMES.get(usize::from(test));
        let width = name.map_or(0, |_| WIDTH);
        let words = [self.offset, DATA.into(), count].map(u32::to_le_bytes).concat();
        let bytes = [test, width, 0, 0].into_iter().chain(words);
        let bytes = bytes.chain(name.copied().unwrap_or("").bytes());
        let mut header = [0; HEADER_BYTES];
        header.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        header
    }
}

impl Device for TestRange {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let header = self.header();
        let bytes = header.get(offset as usize..).unwrap_or(&[]).iter();
        let bytes = bytes.take(width.bytes() as usize).zip(0u32..);
        Ok(bytes.fold(0, |value, (&byte, index)| value | u64::from(byte) << (8 * index)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        let mut state = lock(&self.state);
        if offset == 0 {
            *state = (value as u8, 0);
        } else if offset == self.offset.into()
            && width == Width::Byte
            && value == DATA.into()
            && usize::from(state.0) < NAMES.len()
        {
            state.1 = state.1.wrapping_add(1);
        }
        Ok(())
    }
}

/// The device; its test counts are not part of its saved state.
pub fn pci_testdev(wiring: Wiring) -> Arc<Endpoint> {
    let bar = |index: u8, kind: BarKind, bytes: u64| BarSpec {
        index,
        kind,
        bytes,
        device: TestRange::new(bytes),
    };
    let spec = EndpointSpec {
        name: "pci-testdev".into(),
        identity: Identity {
            vendor: 0x1b36,
            device: 0x0005,
            class: [0xff, 0, 0],
            subsystem: [0x1af4, 0x1100],
            ..Identity::default()
        },
        bars: vec![bar(0, BarKind::Memory32, MEMORY_BYTES), bar(1, BarKind::Io, PORT_BYTES)],
        ..EndpointSpec::default()
    };
    Endpoint::new(spec, wiring)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_counts_its_writes_until_no_test_is_left() {
        let range = TestRange::new(256);
        for (test, name) in (0u64..).zip(NAMES) {
            range.write(0, Width::Byte, test).unwrap();
            assert_eq!(range.read(1, Width::Byte), Ok(1));
            assert_eq!(range.read(12, Width::Dword), Ok(0));
            let offset = range.read(4, Width::Dword).unwrap();
            let data = range.read(8, Width::Dword).unwrap();
            for _ in 0..16 {
                range.write(offset, Width::Byte, data).unwrap();
            }
            range.write(offset, Width::Byte, data + 1).unwrap();
            range.write(offset, Width::Word, data).unwrap();
            assert_eq!(range.read(12, Width::Dword), Ok(16));
            let read = (16..48).map(|at| range.read(at, Width::Byte).unwrap() as u8);
            let read: Vec<u8> = read.take_while(|&byte| byte != 0).collect();
            assert_eq!(read, name.as_bytes());
        }
        range.write(0, Width::Byte, 3).unwrap();
        assert_eq!(range.read(1, Width::Byte), Ok(0));
        assert_eq!(range.read(5000, Width::Qword), Ok(0));
    }
}
