//! [`PhysicalSpace`]: what answers at an address, and what becomes of accesses at its edges.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use memory::{
    BackedRange, Device, DmaError, GuestPhysical, IoError, MapError, PAGE_SIZE, PageFlags,
    PageKind, PhysicalSpace, Ram, RamRange, RegionKind, Width,
};
use proptest::prelude::*;

const RAM: u64 = 8 * PAGE_SIZE;

/// A device that answers with its offset in every byte, up to a width, and keeps what is written.
struct Echo {
    widest: Width,
    writes: Mutex<Vec<(u64, Width, u64)>>,
}

impl Echo {
    fn new(widest: Width) -> Arc<Self> {
        Arc::new(Self { widest, writes: Mutex::default() })
    }

    fn writes(&self) -> Vec<(u64, Width, u64)> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
}

impl Device for Echo {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        if width > self.widest {
            return Err(IoError::Width);
        }
        if offset == 0xee {
            return Err(IoError::NoRegister);
        }
        let bytes: [u8; 8] = std::array::from_fn(|n| offset.wrapping_add(n as u64) as u8);
        // More than was asked for: the bus cuts it.
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width > self.widest {
            return Err(IoError::Width);
        }
        self.writes.lock().unwrap().push((offset, width, value));
        Ok(())
    }
}

fn at(address: u64) -> GuestPhysical {
    GuestPhysical(address)
}

fn space() -> PhysicalSpace {
    PhysicalSpace::new(Arc::new(Ram::new(RAM).expect("32 KiB")))
}

/// A space with RAM in its first `pages` pages.
fn with_ram(pages: u64) -> PhysicalSpace {
    let space = space();
    space.map(at(0), pages * PAGE_SIZE, RegionKind::Ram(0)).expect("empty");
    space
}

#[test]
fn ranges_that_do_not_fit_are_refused() {
    let space = space();
    let device = || RegionKind::Device(Echo::new(Width::Qword));
    let rows = [
        (0, 0, device()),
        (1, u64::MAX, device()),
        (u64::MAX, 2, device()),
        (0, RAM + PAGE_SIZE, RegionKind::Ram(0)),
        (0, PAGE_SIZE, RegionKind::Ram(RAM)),
        (0, PAGE_SIZE, RegionKind::Rom(u64::MAX - PAGE_SIZE + 1)),
        (0, PAGE_SIZE, RegionKind::Ram(1)),
        (1, PAGE_SIZE, RegionKind::Ram(0)),
        (0, PAGE_SIZE + 1, RegionKind::Ram(0)),
    ];
    for (index, (base, size, kind)) in rows.into_iter().enumerate() {
        let expected = if index == 1 { Ok(()) } else { Err(MapError::OutOfRange { base, size }) };
        assert_eq!(space.map(at(base), size, kind), expected, "row {index}");
        space.unmap(at(base));
    }
}

#[test]
fn overlaps_are_refused_and_name_the_other_range() {
    let space = space();
    let device = || RegionKind::Device(Echo::new(Width::Qword));
    space.map(at(0x1000), 0x1000, device()).expect("empty");
    let overlap = |base| Err(MapError::Overlap { base, other: 0x1000 });
    for (base, size) in [(0x1000, 0x1000), (0xfff, 2), (0x1fff, 1), (0, 0x3000), (0x1800, 0x10)] {
        assert_eq!(space.map(at(base), size, device()), overlap(base), "{base:#x}");
    }
    assert_eq!(space.map(at(0xfff), 1, device()), Ok(()));
    assert_eq!(space.map(at(0x2000), u64::MAX - 0x1fff, device()), Ok(()));
    assert!(space.unmap(at(0x1000)));
    assert!(!space.unmap(at(0x1000)));
    assert_eq!(space.map(at(0x1000), 0x1000, device()), Ok(()));
}

#[test]
fn the_generation_moves_with_the_map_and_the_gate_only() {
    let space = space();
    let moves = |change: &dyn Fn()| {
        let before = space.generation();
        change();
        space.generation() != before
    };
    assert!(moves(&|| space.map(at(0), PAGE_SIZE, RegionKind::Ram(0)).unwrap()));
    assert!(!moves(&|| assert!(space.map(at(0), PAGE_SIZE, RegionKind::Ram(0)).is_err())));
    assert!(moves(&|| space.mask_a20(true)));
    assert!(!moves(&|| space.mask_a20(true)));
    assert!(moves(&|| space.mask_a20(false)));
    assert!(!moves(&|| assert!(!space.unmap(at(PAGE_SIZE)))));
    assert!(moves(&|| assert!(space.unmap(at(0)))));
    assert!(!moves(&|| space.write(at(0), Width::Qword, 1)));
}

#[test]
fn nothing_reads_as_ones_and_swallows_writes() {
    let space = space();
    for address in [0, 0xfff, u64::MAX, u64::MAX - 3, 1 << 63] {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            space.write(at(address), width, 0);
            assert_eq!(space.read(at(address), width), width.mask());
        }
    }
}

#[test]
fn rom_is_read_and_not_written() {
    let space = space();
    space.ram().store(PAGE_SIZE, 0x1234_5678_u32);
    space.map(at(0xf000), PAGE_SIZE, RegionKind::Rom(PAGE_SIZE)).unwrap();
    space.write(at(0xf000), Width::Dword, 0);
    assert_eq!(space.read(at(0xf000), Width::Dword), 0x1234_5678);
    assert_eq!(space.page(at(0xf123)), PageKind::Rom(PAGE_SIZE));
    assert!(space.dma_write(at(0xf000), &[0]).is_err());
    let mut out = [0; 2];
    space.dma_read(at(0xf000), &mut out).unwrap();
    assert_eq!(out, [0x78, 0x56]);
    assert_eq!(space.ram_ranges(), []);
}

#[test]
fn aliases_are_the_same_bytes_flags_and_generations() {
    let space = with_ram(2);
    space.map(at(0x10_0000), PAGE_SIZE, RegionKind::Ram(PAGE_SIZE)).unwrap();
    space.map(at(0x20_0000), PAGE_SIZE, RegionKind::Rom(PAGE_SIZE)).unwrap();
    space.ram().flags().mark_code(1, 0, PAGE_SIZE);
    space.write(at(0x10_0010), Width::Word, 0xbeef);
    assert_eq!(space.read(at(0x1010), Width::Word), 0xbeef);
    assert_eq!(space.read(at(0x20_0010), Width::Word), 0xbeef);
    assert_eq!(space.ram().flags().generation(1), 1);
    space.ram().flags().mark_code(1, 0, PAGE_SIZE);
    space.dma_write(at(0x1010), &[1]).unwrap();
    assert_eq!(space.read(at(0x20_0010), Width::Word), 0xbe01);
    assert_eq!(space.ram().flags().generation(1), 2);
    assert_eq!(space.ram().flags().get(1) & PageFlags::DIRTY, PageFlags::DIRTY);
    let range = |base, size, offset| RamRange { base, size, offset };
    assert_eq!(
        space.ram_ranges(),
        [range(0, 2 * PAGE_SIZE, 0), range(0x10_0000, PAGE_SIZE, PAGE_SIZE)]
    );
}

#[test]
fn the_a20_gate_folds_odd_megabytes_for_the_cpu_alone() {
    let space = with_ram(1);
    space.map(at(0x10_0000), PAGE_SIZE, RegionKind::Ram(PAGE_SIZE)).unwrap();
    space.write(at(0x10_0000), Width::Byte, 0x11);
    space.write(at(0), Width::Byte, 0x22);
    assert!(space.is_a20_enabled());
    space.mask_a20(true);
    assert!(!space.is_a20_enabled());
    assert_eq!(space.read(at(0x10_0000), Width::Byte), 0x22);
    assert_eq!(space.page(at(0x10_0000)), PageKind::Ram(0));
    assert_eq!(space.page(at(0x30_0000)), PageKind::Io);
    assert_eq!(space.ram_ranges(), []);
    let mut out = [0];
    space.dma_read(at(0x10_0000), &mut out).unwrap();
    assert_eq!(out, [0x11], "DMA does not pass the gate");
    space.mask_a20(false);
    assert_eq!(space.read(at(0x10_0000), Width::Byte), 0x11);
}

#[test]
fn devices_see_offsets_and_halves_of_what_is_too_wide() {
    let space = space();
    let device = Echo::new(Width::Word);
    space.map(at(0x4004), 0x200, RegionKind::Device(device.clone())).unwrap();
    assert_eq!(space.read(at(0x4008), Width::Dword), 0x0706_0504);
    assert_eq!(space.read(at(0x4008), Width::Byte), 0x04);
    space.write(at(0x4008), Width::Qword, 0x8877_6655_4433_2211);
    let word = |offset, value| (offset, Width::Word, value);
    let expected = [word(4, 0x2211), word(6, 0x4433), word(8, 0x6655), word(10, 0x8877)];
    assert_eq!(device.writes(), expected);
    assert_eq!(space.read(at(0x40f2), Width::Word), 0xffff, "no register");
    assert_eq!(space.page(at(0x4000)), PageKind::Io);
}

#[test]
fn accesses_over_an_edge_are_split_from_either_side() {
    let space = with_ram(1);
    let device = Echo::new(Width::Qword);
    space.map(at(0x1002), 0x10, RegionKind::Device(device.clone())).unwrap();
    space.ram().store(PAGE_SIZE - 2, 0xbbaa_u16);
    // RAM, two bytes of nothing, the device.
    assert_eq!(space.read(at(0xffe), Width::Qword), 0x0302_0100_ffff_bbaa);
    assert_eq!(space.read(at(0x1000), Width::Dword), 0x0100_ffff);
    assert_eq!(space.read(at(0x1010), Width::Dword), 0xffff_0f0e);
    space.write(at(0xffe), Width::Qword, 0x8877_6655_4433_2211);
    assert_eq!(space.ram().load::<u16>(PAGE_SIZE - 2), 0x2211);
    assert_eq!(device.writes(), [(0, Width::Dword, 0x8877_6655)]);
}

#[test]
fn a_write_over_two_pages_of_ram_notes_both() {
    let space = with_ram(4);
    space.write(at(2 * PAGE_SIZE - 2), Width::Dword, 0x4433_2211);
    assert_eq!(space.ram().flags().take_dirty(0..8), [1, 2]);
    assert_eq!(space.read(at(2 * PAGE_SIZE - 2), Width::Dword), 0x4433_2211);
}

#[test]
fn dma_crosses_ranges_and_stops_at_what_is_no_ram() {
    let space = space();
    // Two ranges side by side whose bytes are not.
    space.map(at(0), PAGE_SIZE, RegionKind::Ram(4 * PAGE_SIZE)).unwrap();
    space.map(at(PAGE_SIZE), PAGE_SIZE, RegionKind::Ram(PAGE_SIZE)).unwrap();
    space.map(at(3 * PAGE_SIZE), 8, RegionKind::Device(Echo::new(Width::Qword))).unwrap();
    space.dma_write(at(PAGE_SIZE - 2), &[1, 2, 3, 4]).unwrap();
    assert_eq!(space.ram().load::<u16>(5 * PAGE_SIZE - 2), 0x0201);
    assert_eq!(space.ram().load::<u16>(PAGE_SIZE), 0x0403);
    let mut out = [0; 4];
    space.dma_read(at(PAGE_SIZE - 2), &mut out).unwrap();
    assert_eq!(out, [1, 2, 3, 4]);

    let error = |address, bytes| Err(DmaError { address, bytes });
    for address in [2 * PAGE_SIZE - 2, 2 * PAGE_SIZE, 3 * PAGE_SIZE, u64::MAX - 1, u64::MAX] {
        assert_eq!(space.dma_read(at(address), &mut [0; 4]), error(address, 4));
        assert_eq!(space.dma_write(at(address), &[0; 4]), error(address, 4));
    }
    assert_eq!(space.dma_read(at(u64::MAX), &mut []), Ok(()));
}

#[test]
fn dma_does_not_wrap_at_the_end_of_the_address_space() {
    let space = with_ram(1);
    let top = u64::MAX - PAGE_SIZE + 1;
    space.map(at(top), PAGE_SIZE, RegionKind::Ram(PAGE_SIZE)).unwrap();
    assert_eq!(space.dma_read(at(u64::MAX), &mut [0]), Ok(()));
    assert!(space.dma_read(at(u64::MAX), &mut [0; 2]).is_err());
    assert!(space.dma_write(at(u64::MAX), &[0; 2]).is_err());
    assert_eq!(space.ram_ranges().len(), 2);
    space.write(at(u64::MAX), Width::Qword, 0x1122);
    assert_eq!(space.read(at(u64::MAX), Width::Byte), 0x22);
}

/// One change of the map.
#[derive(Clone, Debug)]
enum Change {
    Map { base: u64, size: u64, what: What },
    Unmap { base: u64 },
    Write { address: u64, value: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Ram(u64),
    Rom(u64),
    Device,
}

/// The model's space, in bytes.
const MODELLED: u64 = 16 * PAGE_SIZE;

fn change() -> impl Strategy<Value = Change> {
    let pages = |n: u64| (0..n).prop_map(|page| page * PAGE_SIZE);
    let base = prop_oneof![4 => pages(16), 1 => 0..MODELLED];
    let size = prop_oneof![4 => pages(5), 1 => 0..3 * PAGE_SIZE, 1 => any::<u64>()];
    let what =
        prop_oneof![pages(9).prop_map(What::Ram), pages(9).prop_map(What::Rom), Just(What::Device)];
    prop_oneof![
        (base.clone(), size, what).prop_map(|(base, size, what)| Change::Map { base, size, what }),
        base.prop_map(|base| Change::Unmap { base }),
        (0..MODELLED, any::<u8>()).prop_map(|(address, value)| Change::Write { address, value }),
    ]
}

/// The map as a list, and memory as a vector.
#[derive(Default)]
struct Model {
    ranges: Vec<(u64, u64, What)>,
    bytes: Vec<u8>,
}

impl Model {
    fn find(&self, address: u64) -> Option<(u64, What)> {
        let holds = |&&(base, size, _): &&(u64, u64, What)| {
            address >= base && u128::from(address) < u128::from(base) + u128::from(size)
        };
        self.ranges.iter().find(holds).map(|&(base, _, what)| (address - base, what))
    }

    fn map(&mut self, base: u64, size: u64, what: What) -> bool {
        let end = u128::from(base) + u128::from(size);
        let is_backed = match what {
            What::Ram(offset) | What::Rom(offset) => {
                u128::from(offset) + u128::from(size) <= u128::from(RAM)
                    && base.is_multiple_of(PAGE_SIZE)
                    && size.is_multiple_of(PAGE_SIZE)
            }
            What::Device => true,
        };
        let is_free = self.ranges.iter().all(|&(other, length, _)| {
            u128::from(other) >= end || u128::from(other) + u128::from(length) <= u128::from(base)
        });
        let fits = size != 0 && end <= 1 << 64 && is_backed && is_free;
        if fits {
            self.ranges.push((base, size, what));
        }
        fits
    }

    fn read(&self, address: u64) -> u8 {
        match self.find(address) {
            Some((offset, What::Ram(start) | What::Rom(start))) => {
                self.bytes[(start + offset) as usize]
            }
            Some((0xee, What::Device)) | None => 0xff,
            Some((offset, What::Device)) => offset as u8,
        }
    }

    fn page(&self, page: u64) -> PageKind {
        match self.find(page) {
            Some((offset, What::Ram(start))) => PageKind::Ram(start + offset),
            Some((offset, What::Rom(start))) => PageKind::Rom(start + offset),
            _ => PageKind::Io,
        }
    }
}

fn apply(space: &PhysicalSpace, model: &mut Model, change: &Change) {
    match *change {
        Change::Map { base, size, what } => {
            let kind = match what {
                What::Ram(offset) => RegionKind::Ram(offset),
                What::Rom(offset) => RegionKind::Rom(offset),
                What::Device => RegionKind::Device(Echo::new(Width::Byte)),
            };
            assert_eq!(space.map(at(base), size, kind).is_ok(), model.map(base, size, what));
        }
        Change::Unmap { base } => {
            let before = model.ranges.len();
            model.ranges.retain(|range| range.0 != base);
            assert_eq!(space.unmap(at(base)), model.ranges.len() != before);
        }
        Change::Write { address, value } => {
            space.write(at(address), Width::Byte, u64::from(value));
            if let Some((offset, What::Ram(start))) = model.find(address) {
                model.bytes[(start + offset) as usize] = value;
            }
        }
    }
}

proptest! {
    #[test]
    fn the_map_is_what_a_list_would_be(
        changes in prop::collection::vec(change(), 1..30),
        probes in prop::collection::vec(0..MODELLED, 30),
    ) {
        let space = space();
        let mut model = Model { bytes: vec![0; RAM as usize], ..Model::default() };
        for change in &changes {
            apply(&space, &mut model, change);
        }
        for page in (0..MODELLED).step_by(PAGE_SIZE as usize) {
            prop_assert_eq!(space.page(at(page)), model.page(page), "page {:#x}", page);
        }
        for address in probes {
            let expected: [u8; 8] = std::array::from_fn(|n| model.read(address + n as u64));
            let got = space.read(at(address), Width::Qword).to_le_bytes();
            prop_assert_eq!(got, expected, "at {:#x}", address);
        }
    }
}

#[test]
fn backed_ranges_are_what_a_cpu_sees() {
    let space = with_ram(2);
    space.map(at(0x10_0000), PAGE_SIZE, RegionKind::Ram(PAGE_SIZE)).unwrap();
    space.map(at(0xf000), PAGE_SIZE, RegionKind::Rom(PAGE_SIZE)).unwrap();
    let range = |base, size, offset, is_rom| BackedRange { base, size, offset, is_rom };
    let low = range(0, 2 * PAGE_SIZE, 0, false);
    let rom = range(0xf000, PAGE_SIZE, PAGE_SIZE, true);
    let high = range(0x10_0000, PAGE_SIZE, PAGE_SIZE, false);
    assert_eq!(space.backed_ranges(), [low, rom, high]);
    space.mask_a20(true);
    let again = |range: BackedRange| BackedRange { base: range.base | 0x10_0000, ..range };
    assert_eq!(space.backed_ranges(), [low, again(low), rom, again(rom)]);
}
