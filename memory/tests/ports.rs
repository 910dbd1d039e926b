//! [`PortSpace`]: who answers, and what is split.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, MapError, PortSpace, Width};

/// Answers with a number in every byte, and keeps what is written.
struct Chip {
    number: u8,
    widest: Width,
    writes: Mutex<Vec<(u64, Width, u64)>>,
}

impl Device for Chip {
    fn read(&self, _: u64, width: Width) -> Result<u64, IoError> {
        if width > self.widest {
            return Err(IoError::Width);
        }
        Ok(u64::from_le_bytes([self.number; 8]))
    }
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width > self.widest {
            return Err(IoError::Width);
        }
        self.writes.lock().unwrap().push((offset, width, value));
        Ok(())
    }
}

fn chip(number: u8, widest: Width) -> Arc<Chip> {
    Arc::new(Chip { number, widest, writes: Mutex::default() })
}

#[test]
fn empty_ports_read_as_ones_and_swallow_writes() {
    let ports = PortSpace::new();
    for port in [0, 0x80, 0xfffe, 0xffff] {
        ports.write(port, Width::Dword, 0);
        assert_eq!(ports.read(port, Width::Byte), 0xff);
        assert_eq!(ports.read(port, Width::Word), 0xffff);
        assert_eq!(ports.read(port, Width::Dword), 0xffff_ffff);
        // No port access is that wide: it is taken for the widest there is.
        assert_eq!(ports.read(port, Width::Qword), 0xffff_ffff);
        ports.write(port, Width::Qword, 0);
    }
}

#[test]
fn ranges_that_do_not_fit_or_overlap_are_refused() {
    let ports = PortSpace::new();
    let device = || chip(1, Width::Byte);
    let out_of_range = |base, size| Err(MapError::OutOfRange { base, size });
    assert_eq!(ports.map(0x60, 0, device()), out_of_range(0x60, 0));
    assert_eq!(ports.map(0xffff, 2, device()), out_of_range(0xffff, 2));
    assert_eq!(ports.map(1, u32::MAX, device()), out_of_range(1, u64::from(u32::MAX)));
    assert_eq!(ports.map(0, 0x1_0001, device()), out_of_range(0, 0x1_0001));
    assert_eq!(ports.map(0x3f8, 8, device()), Ok(()));
    for (first, count) in [(0x3f8, 8), (0x3ff, 1), (0x3f0, 9), (0, 0x1_0000)] {
        let expected = Err(MapError::Overlap { base: u64::from(first), other: 0x3f8 });
        assert_eq!(ports.map(first, count, device()), expected, "{first:#x}");
    }
    assert_eq!(ports.map(0x3f7, 1, device()), Ok(()));
    assert_eq!(ports.map(0x400, 0xfc00, device()), Ok(()));
    ports.unmap(0x3f8);
    ports.unmap(0x3f9);
    assert_eq!(ports.read(0x3f9, Width::Byte), 0xff);
    assert_eq!(ports.map(0x3f8, 8, device()), Ok(()));
}

#[test]
fn accesses_are_split_at_the_end_of_a_range_and_at_width() {
    let ports = PortSpace::new();
    let (narrow, wide) = (chip(0x11, Width::Byte), chip(0x22, Width::Dword));
    ports.map(0x70, 2, narrow.clone()).unwrap();
    ports.map(0x72, 4, wide.clone()).unwrap();
    assert_eq!(ports.read(0x70, Width::Word), 0x1111);
    assert_eq!(ports.read(0x70, Width::Dword), 0x2222_1111);
    assert_eq!(ports.read(0x71, Width::Dword), 0x2222_2211);
    assert_eq!(ports.read(0x74, Width::Dword), 0xffff_2222);
    ports.write(0x71, Width::Dword, 0x4433_2211);
    assert_eq!(*narrow.writes.lock().unwrap(), [(1, Width::Byte, 0x11)]);
    let expected = [(0, Width::Byte, 0x22), (1, Width::Word, 0x4433)];
    assert_eq!(*wide.writes.lock().unwrap(), expected);
}

#[test]
fn an_access_behind_the_last_port_goes_on_at_the_first() {
    let ports = PortSpace::new();
    ports.map(0xffff, 1, chip(0xaa, Width::Dword)).unwrap();
    ports.map(0, 1, chip(0xbb, Width::Dword)).unwrap();
    assert_eq!(ports.read(0xffff, Width::Word), 0xbbaa);
    assert_eq!(ports.read(0xfffe, Width::Dword), 0xffbb_aaff);
}
