//! What two threads may rely on: the promises of [`PageFlags`].

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memory::{PAGE_SIZE, PageFlags, Ram};

const PAGES: u64 = 512;
const ROUNDS: usize = 20;

/// The last value of each page's word.
const WRITTEN: u64 = 0xc0de_c0de;

/// One thread stores to pages that are not marked yet, two others mark them and read. Whoever got a
/// copy without the store must see the generation move: else it would run old code for ever.
#[test]
fn a_stale_copy_never_keeps_its_generation() {
    for _ in 0..ROUNDS {
        let ram = Ram::new(PAGES * PAGE_SIZE).expect("2 MiB");
        let start = Barrier::new(3);
        let copies = std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for page in 0..PAGES {
                    ram.store(page * PAGE_SIZE, WRITTEN);
                }
            });
            let readers = [0, 1].map(|_| scope.spawn(|| read_all(&ram, &start)));
            readers.map(|reader| reader.join().expect("a reader"))
        });
        for (page, (copy, generation)) in copies.iter().flat_map(|copy| (0..).zip(copy)) {
            let is_current = ram.flags().generation(page) == *generation;
            assert!(*copy == WRITTEN || !is_current, "page {page} is {copy:#x} and taken as good");
        }
    }
}

/// Marks every page and copies its word, as an engine that decodes it does.
fn read_all(ram: &Ram, start: &Barrier) -> Vec<(u64, u32)> {
    start.wait();
    let copy = |page: u64| {
        ram.flags().mark_code(page);
        let generation = ram.flags().generation(page);
        (ram.load::<u64>(page * PAGE_SIZE), generation)
    };
    (0..PAGES).map(copy).collect()
}

/// A copier that takes dirty pages until a writer is done ends with what the writer wrote.
#[test]
fn no_store_is_lost_to_a_cleared_dirty_flag() {
    let ram = Ram::new(4 * PAGE_SIZE).expect("16 KiB");
    let is_done = AtomicBool::new(false);
    let copied = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 1..=20_000u64 {
                ram.store(PAGE_SIZE, value);
            }
            is_done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            loop {
                let is_last = is_done.load(Ordering::SeqCst);
                for page in ram.flags().take_dirty(0..4) {
                    copied.store(ram.load(page * PAGE_SIZE), Ordering::SeqCst);
                }
                if is_last {
                    break;
                }
            }
        });
    });
    assert_eq!(copied.into_inner(), 20_000);
}

#[test]
fn locked_increments_of_two_threads_all_count() {
    let ram = Ram::new(PAGE_SIZE).expect("a page");
    let increment = || {
        for _ in 0..10_000 {
            // Unaligned and over a cache line: still one locked instruction.
            let mut old = ram.load::<u64>(61);
            while let Err(found) = ram.compare_exchange(61, old, old + 1) {
                old = found;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(increment);
        scope.spawn(increment);
    });
    assert_eq!(ram.load::<u64>(61), 20_000);
    assert_eq!(ram.flags().get(0), PageFlags::PLAIN_DIRTY);
}
