//! [`Ram`]: its bounds, its accesses, and the flags and generations that it keeps.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex, Weak};

use memory::{CodeWatcher, PAGE_SIZE, PageFlags, Ram, RamError, Scalar};
use proptest::prelude::*;

const SIZE: u64 = 4 * PAGE_SIZE;

fn ram() -> Ram {
    Ram::new(SIZE).expect("16 KiB")
}

fn bytes(ram: &Ram, offset: u64, count: usize) -> Vec<u8> {
    let mut out = vec![0; count];
    ram.read_bytes(offset, &mut out);
    out
}

#[test]
fn sizes_that_are_no_pages_are_refused() {
    for size in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, u64::MAX] {
        assert!(
            matches!(Ram::new(size), Err(RamError::Size { size: s }) if s == size),
            "{size:#x}"
        );
    }
}

#[test]
fn a_size_that_no_host_has_is_an_error_and_not_a_panic() {
    assert!(matches!(Ram::new(1 << 63), Err(RamError::Map { size, .. }) if size == 1 << 63));
}

#[test]
fn memory_starts_as_zeroes_and_clean() {
    let ram = ram();
    assert_eq!(bytes(&ram, 0, SIZE as usize), vec![0; SIZE as usize]);
    assert_eq!(ram.flags().take_dirty(0..u64::MAX), []);
    assert_eq!((ram.size(), ram.flags().page_count()), (SIZE, 4));
}

/// Offsets of which a `bytes`-wide access would leave the mapping, the overflowing ones too.
fn outside(bytes: u64) -> impl Iterator<Item = u64> {
    let near = (SIZE - bytes + 1)..=SIZE + 1;
    near.chain([u64::MAX, u64::MAX - bytes, 1 << 63, SIZE.wrapping_neg(), (SIZE - 1) | 1 << 63])
}

fn check_outside<T: Scalar + std::fmt::Debug>() {
    let ram = ram();
    let ones = T::from_u64(u64::MAX);
    for offset in outside(T::BYTES) {
        assert_eq!(ram.load::<T>(offset), ones, "{offset:#x}");
        assert!(!ram.store(offset, ones));
        assert_eq!(ram.compare_exchange(offset, T::default(), ones), Err(ones));
        assert!(!ram.fill(offset, ones, 1));
        assert!(!ram.fill(0, ones, u64::MAX));
    }
    assert_eq!(bytes(&ram, 0, SIZE as usize), vec![0; SIZE as usize]);
    assert_eq!(ram.flags().take_dirty(0..4), []);
}

#[test]
fn scalars_outside_read_as_ones_and_write_nothing() {
    check_outside::<u8>();
    check_outside::<u16>();
    check_outside::<u32>();
    check_outside::<u64>();
}

#[test]
fn bytes_outside_read_as_ones_and_write_nothing() {
    let ram = ram();
    for offset in outside(9) {
        assert_eq!(bytes(&ram, offset, 9), [0xff; 9], "{offset:#x}");
        assert!(!ram.write_bytes(offset, &[1; 9]));
        assert!(!ram.copy_forward(offset, 0, 9));
        assert!(!ram.copy_forward(0, offset, 9));
        assert_eq!(ram.compare_exchange_16(offset & !15, 0, 1).is_ok(), offset & !15 <= SIZE - 16);
        ram.fill(SIZE - 16, 0u64, 2);
    }
    assert!(!ram.copy_forward(0, 0, u64::MAX));
    assert_eq!(bytes(&ram, 0, SIZE as usize), vec![0; SIZE as usize]);
}

#[test]
fn the_last_byte_is_inside() {
    let ram = ram();
    ram.store(SIZE - 8, 0x1122_3344_5566_7788u64);
    assert_eq!(ram.load::<u64>(SIZE - 8), 0x1122_3344_5566_7788);
    assert_eq!(ram.load::<u8>(SIZE - 1), 0x11);
    assert_eq!(ram.load::<u16>(SIZE - 3), 0x2233);
}

#[test]
fn compare_exchange_works_at_every_alignment() {
    let ram = ram();
    for offset in 0..64 {
        ram.store(offset, 5u64);
        assert_eq!(ram.compare_exchange(offset, 6u64, 7), Err(5));
        assert_eq!(ram.load::<u64>(offset), 5);
        assert_eq!(ram.compare_exchange(offset, 5u64, 7), Ok(5));
        assert_eq!(ram.load::<u64>(offset), 7);
        assert_eq!(ram.compare_exchange(offset, 7u8, 9), Ok(7));
        assert_eq!(ram.compare_exchange(offset, 9u16, 11), Ok(9));
        assert_eq!(ram.compare_exchange(offset, 11u32, 13), Ok(11));
    }
}

#[test]
fn sixteen_bytes_exchange_only_when_all_of_them_match() {
    let ram = ram();
    let (old, new) = (0x1111_2222_3333_4444_5555_6666_7777_8888_u128, !0x0123_u128);
    ram.write_bytes(32, &old.to_le_bytes());
    assert_eq!(ram.compare_exchange_16(32, old ^ 1, new), Err(old));
    assert_eq!(ram.compare_exchange_16(32, old ^ 1 << 127, new), Err(old));
    assert_eq!(bytes(&ram, 32, 16), old.to_le_bytes());
    assert_eq!(ram.compare_exchange_16(32, old, new), Ok(old));
    assert_eq!(bytes(&ram, 32, 16), new.to_le_bytes());
    assert_eq!(ram.compare_exchange_16(40, 0, 1), Err(u128::MAX), "unaligned");
}

#[test]
fn an_overlapping_copy_upwards_repeats_and_one_downwards_does_not() {
    let ram = ram();
    ram.write_bytes(0, &[1, 2, 3]);
    ram.copy_forward(3, 0, 6);
    assert_eq!(bytes(&ram, 0, 9), [1, 2, 3, 1, 2, 3, 1, 2, 3]);
    ram.write_bytes(100, &[9, 8, 7, 6]);
    ram.copy_forward(99, 100, 4);
    assert_eq!(bytes(&ram, 99, 5), [9, 8, 7, 6, 6]);
}

type Write = fn(&Ram, u64) -> bool;
/// Every way to write eight bytes inside a page.
const WRITES: [(&str, Write); 6] = [
    ("store", |ram, at| ram.store(at, 1u64)),
    ("write_bytes", |ram, at| ram.write_bytes(at, &[1; 8])),
    ("copy_forward", |ram, at| ram.copy_forward(at, 0, 8)),
    ("fill", |ram, at| ram.fill(at, 1u32, 2)),
    ("compare_exchange", |ram, at| {
        moves_generation(ram, at, || ram.compare_exchange(at, 0u64, 1).is_ok())
    }),
    ("compare_exchange_16", |ram, at| {
        moves_generation(ram, at, || ram.compare_exchange_16(at, 0, 1).is_ok())
    }),
];

fn moves_generation(ram: &Ram, at: u64, exchange: impl Fn() -> bool) -> bool {
    let before = ram.flags().generation(at / PAGE_SIZE);
    exchange();
    ram.flags().generation(at / PAGE_SIZE) != before
}

#[test]
fn every_write_sets_dirty_and_moves_the_generation_of_code() {
    for (name, write) in WRITES {
        let ram = ram();
        let flags = ram.flags();
        assert!(!write(&ram, 2 * PAGE_SIZE + 16), "{name}: plain data");
        assert_eq!(flags.take_dirty(0..4), [2], "{name}");
        assert_eq!(flags.take_dirty(0..4), [], "{name}: cleared");
        flags.mark_code(2, 39, 1);
        let before = flags.generation(2);
        assert!(write(&ram, 2 * PAGE_SIZE + 32), "{name}: code");
        assert_ne!(flags.generation(2), before, "{name}");
        assert_eq!(flags.take_dirty(2..3), [2], "{name}");
        assert_eq!([flags.generation(1), flags.generation(3)], [0, 0], "{name}: neighbours");
    }
}

#[test]
fn data_beside_code_leaves_the_mark_alone() {
    for (name, write) in WRITES {
        let ram = ram();
        let flags = ram.flags();
        flags.mark_code(2, 0x81, 0x3f);
        let marked = flags.get(2);
        for at in [0, 0x70, 0xc0, 0xff0] {
            assert!(!write(&ram, 2 * PAGE_SIZE + at), "{name}: data at {at:#x}");
            assert_eq!(flags.generation(2), 0, "{name}: data at {at:#x}");
        }
        assert_eq!(flags.get(2), marked | PageFlags::DIRTY, "{name}");
        for at in [0x80, 0xb0] {
            flags.mark_code(2, 0x81, 0x3f);
            assert!(write(&ram, 2 * PAGE_SIZE + at), "{name}: code at {at:#x}");
        }
        assert_eq!(flags.generation(2), 2, "{name}");
    }
}

/// A store over code takes the marks, the next one finds none and takes CODE.
#[test]
fn a_page_that_held_code_becomes_plain() {
    for (name, write) in WRITES {
        let ram = ram();
        let flags = ram.flags();
        for round in 1..4 {
            flags.mark_code(2, 0, 8);
            flags.mark_code(2, 0x100, 8);
            assert!(!flags.is_plain(2), "{name}");
            assert!(write(&ram, 2 * PAGE_SIZE), "{name}: code");
            assert!(!write(&ram, 2 * PAGE_SIZE + 0x100), "{name}: its mark went with the other");
            assert!(flags.is_plain(2), "{name}");
            assert!(!write(&ram, 2 * PAGE_SIZE), "{name}: data");
            assert_eq!(flags.generation(2), round, "{name}");
        }
    }
}

#[test]
fn code_that_is_marked_again_at_once_stays_code() {
    let ram = ram();
    for round in 1..4u64 {
        ram.flags().mark_code(2, 0, 8);
        assert!(ram.store(2 * PAGE_SIZE, round));
        assert_ne!(ram.flags().get(2) & PageFlags::CODE, 0);
        ram.flags().mark_code(2, 0x100, 8);
        assert!(!ram.store(2 * PAGE_SIZE, round), "not marked");
        assert_ne!(ram.flags().get(2) & PageFlags::CODE, 0);
    }
}

/// What a watcher was called for.
#[derive(Default)]
struct Calls(Mutex<Vec<(&'static str, u64)>>);

impl CodeWatcher for Calls {
    fn stores_must_be_noted(&self, page: u64) {
        self.0.lock().expect("no panic").push(("noted", page));
    }

    fn code_written(&self, page: u64) {
        self.0.lock().expect("no panic").push(("written", page));
    }
}

impl Calls {
    fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

#[test]
fn watchers_are_called_while_they_live() {
    let ram = ram();
    let flags = ram.flags();
    let [first, second] = [0, 1].map(|_| Arc::new(Calls::default()));
    for watcher in [&first, &second] {
        let watcher: Weak<Calls> = Arc::downgrade(watcher);
        flags.add_watcher(watcher);
    }
    flags.mark_code(2, 0, 1);
    flags.mark_code(2, 0x800, 1);
    assert_eq!(first.take(), [("noted", 2)], "the second mark changes nothing for stores");
    ram.store(2 * PAGE_SIZE + 0x400, 1u64);
    assert_eq!(first.take(), [], "data");
    ram.store(2 * PAGE_SIZE, 1u64);
    assert_eq!(first.take(), [("written", 2)]);
    flags.mark_code(2, 0, 1);
    assert_eq!(first.take(), [], "stores were noted all the time");
    ram.store(2 * PAGE_SIZE, 1u64);
    ram.store(2 * PAGE_SIZE, 1u64);
    flags.mark_code(2, 0, 1);
    assert_eq!(first.take(), [("written", 2), ("noted", 2)], "it was plain meanwhile");
    ram.store(0, 1u64);
    assert_eq!(flags.take_dirty(0..4), [0, 2]);
    assert_eq!(first.take(), [("noted", 0), ("noted", 2)]);
    assert_eq!(flags.take_dirty(0..4), []);
    assert_eq!(first.take(), []);
    assert_eq!(second.take().len(), 6, "as the first");
    drop(second);
    flags.mark_code(1, 0, 1);
    assert_eq!(first.take(), [("noted", 1)]);
}

#[test]
fn a_range_over_pages_touches_the_flags_of_each() {
    let ram = ram();
    ram.flags().mark_code(2, 0, 1);
    assert!(ram.write_bytes(PAGE_SIZE - 1, &vec![1; PAGE_SIZE as usize + 2]));
    assert_eq!(ram.flags().take_dirty(0..4), [0, 1, 2]);
    ram.flags().mark_code(2, 0, 1);
    assert!(ram.fill(2 * PAGE_SIZE - 8, 1u64, 2));
    assert_eq!(ram.flags().take_dirty(0..4), [1, 2]);
    ram.flags().mark_code(1, PAGE_SIZE - 1, 1);
    assert!(!ram.copy_forward(PAGE_SIZE - 8, 0, PAGE_SIZE - 64), "up to the line before");
    assert!(ram.copy_forward(PAGE_SIZE - 8, 0, PAGE_SIZE), "into the last line");
    assert_eq!(ram.flags().take_dirty(0..4), [0, 1]);
    assert!(!ram.copy_forward(3 * PAGE_SIZE, 0, 0), "nothing to copy");
    assert!(!ram.write_bytes(2 * PAGE_SIZE, &[]), "nothing to write");
    assert_eq!(ram.flags().take_dirty(0..4), []);
}

#[test]
fn pages_that_do_not_exist_are_plain_and_stay_so() {
    let ram = ram();
    for page in [4, 1 << 52, u64::MAX] {
        ram.flags().mark_code(page, 0, PAGE_SIZE);
        assert!(!ram.flags().note_store(page, 0, PAGE_SIZE));
        assert!(ram.flags().is_plain(page));
        assert_eq!(ram.flags().get(page), PageFlags::PLAIN_DIRTY);
        assert_eq!(ram.flags().generation(page), 0);
    }
    assert_eq!(ram.flags().take_dirty(5..u64::MAX), []);
}

#[test]
fn host_addresses_lie_one_behind_the_other() {
    let ram = ram();
    let base = ram.host_address(0).expect("inside").0;
    assert_eq!(base % PAGE_SIZE, 0);
    assert_eq!(ram.host_address(SIZE - 1).map(|at| at.0), Some(base + SIZE - 1));
    assert_eq!(ram.host_address(SIZE), None);
    assert_eq!(ram.host_address(u64::MAX), None);
}

/// One write, as a model on a plain vector does it.
#[derive(Clone, Debug)]
enum Op {
    Scalar { offset: u64, bytes: u32, value: u64 },
    Bytes { offset: u64, data: Vec<u8> },
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { offset: u64, value: u32, count: u64 },
    Exchange { offset: u64, old: u16, new: u16 },
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..SIZE + 16, 1 => any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (offset(), 0u32..4, any::<u64>()).prop_map(|(offset, log, value)| Op::Scalar {
            offset,
            bytes: 1 << log,
            value
        }),
        (offset(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(offset, data)| Op::Bytes { offset, data }),
        (offset(), offset(), prop_oneof![0..64u64, 0..SIZE, any::<u64>()])
            .prop_map(|(to, from, bytes)| Op::Copy { to, from, bytes }),
        (offset(), any::<u32>(), prop_oneof![0..64u64, any::<u64>()])
            .prop_map(|(offset, value, count)| Op::Fill { offset, value, count }),
        (offset(), 0..2u16, any::<u16>()).prop_map(|(offset, old, new)| Op::Exchange {
            offset,
            old,
            new
        }),
    ]
}

fn fits(at: u64, bytes: u64) -> bool {
    at.checked_add(bytes).is_some_and(|end| end <= SIZE)
}

fn put(memory: &mut [u8], at: u64, data: &[u8]) {
    if fits(at, data.len() as u64) {
        memory[at as usize..][..data.len()].copy_from_slice(data);
    }
}

/// The bytes that `op` leaves behind, if it is inside; one at a time, lowest first.
fn model(memory: &mut [u8], op: &Op) {
    match op {
        Op::Scalar { offset, bytes, value } => {
            put(memory, *offset, &value.to_le_bytes()[..*bytes as usize]);
        }
        Op::Bytes { offset, data } => put(memory, *offset, data),
        Op::Copy { to, from, bytes } if fits(*to, *bytes) && fits(*from, *bytes) => {
            for n in 0..*bytes {
                memory[(to + n) as usize] = memory[(from + n) as usize];
            }
        }
        Op::Fill { offset, value, count }
            if count.checked_mul(4).is_some_and(|bytes| fits(*offset, bytes)) =>
        {
            for n in 0..*count {
                put(memory, offset + 4 * n, &value.to_le_bytes());
            }
        }
        Op::Exchange { offset, old, new } if fits(*offset, 2) => {
            let at = *offset as usize;
            if memory[at..at + 2] == old.to_le_bytes() {
                put(memory, *offset, &new.to_le_bytes());
            }
        }
        _ => {}
    }
}

fn perform(ram: &Ram, op: &Op) {
    match op {
        Op::Scalar { offset, bytes: 1, value } => ram.store(*offset, *value as u8),
        Op::Scalar { offset, bytes: 2, value } => ram.store(*offset, *value as u16),
        Op::Scalar { offset, bytes: 4, value } => ram.store(*offset, *value as u32),
        Op::Scalar { offset, value, .. } => ram.store(*offset, *value),
        Op::Bytes { offset, data } => ram.write_bytes(*offset, data),
        Op::Copy { to, from, bytes } => ram.copy_forward(*to, *from, *bytes),
        Op::Fill { offset, value, count } => ram.fill(*offset, *value, *count),
        Op::Exchange { offset, old, new } => ram.compare_exchange(*offset, *old, *new).is_ok(),
    };
}

proptest! {
    #[test]
    fn memory_holds_what_a_vector_would(ops in prop::collection::vec(op(), 1..40)) {
        let ram = ram();
        let mut expected = vec![0; SIZE as usize];
        for op in &ops {
            perform(&ram, op);
            model(&mut expected, op);
        }
        prop_assert!(bytes(&ram, 0, SIZE as usize) == expected, "after {:x?}", ops);
    }
}
