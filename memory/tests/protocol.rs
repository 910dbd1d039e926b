//! What two threads may rely on: the promises of [`PageFlags`].
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};
use std::time::Duration;

use memory::{CodeWatcher, PAGE_SIZE, PageFlags, Ram};

const PAGES: u64 = 512;
const ROUNDS: usize = 20;

/// The last value of each page's word.
const WRITTEN: u64 = 0xc0de_c0de;

/// What a page is before the race.
#[derive(Clone, Copy, Debug)]
enum Before {
    Plain,
    /// Another line is marked.
    Code,
    /// Marked, and the mark taken: CODE goes with the next store.
    Written,
}

/// One thread stores to pages where the word is not marked yet, two others derive from it. Whoever
/// got a copy without the store must see the generation move: else it would run old code for ever.
#[test]
fn a_stale_copy_never_keeps_its_generation() {
    for before in [Before::Plain, Before::Code, Before::Written] {
        for _ in 0..ROUNDS {
            race(before);
        }
    }
}

fn race(before: Before) {
    let ram = Ram::new(PAGES * PAGE_SIZE).expect("2 MiB");
    for page in 0..PAGES {
        match before {
            Before::Plain => {}
            Before::Code => ram.flags().mark_code(page, 0x800, 1),
            Before::Written => {
                ram.flags().mark_code(page, 0x800, 1);
                ram.store(page * PAGE_SIZE + 0x800, 0u64);
            }
        }
    }
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
    // Written once more, everything is old; a lost mark shows here.
    let after: Vec<u32> = (0..PAGES).map(|page| ram.flags().generation(page)).collect();
    for page in 0..PAGES {
        ram.store(page * PAGE_SIZE, !WRITTEN);
    }
    for (page, (copy, generation)) in copies.iter().flat_map(|copy| (0..).zip(copy)) {
        let is_current = after.get(page as usize) == Some(generation);
        assert!(*copy == WRITTEN || !is_current, "{before:?}: {page} is {copy:#x} and good");
        assert_ne!(ram.flags().generation(page), *generation, "{before:?}: {page} lost its mark");
    }
}

/// Copies the word of every page, as an engine that decodes it does.
fn read_all(ram: &Ram, start: &Barrier) -> Vec<(u64, u32)> {
    start.wait();
    (0..PAGES).map(|page| derive(ram, page * PAGE_SIZE)).collect()
}

/// Derives from the word at `offset` by the protocol: what it is, and the generation it is good
/// for.
fn derive(ram: &Ram, offset: u64) -> (u64, u32) {
    let page = offset / PAGE_SIZE;
    loop {
        let generation = ram.flags().generation(page);
        let copy = ram.load::<u64>(offset);
        ram.flags().mark_code(page, offset % PAGE_SIZE, 8);
        if ram.load::<u64>(offset) == copy {
            return (copy, generation);
        }
    }
}

/// Two threads count up, each in a line of its own of one page, and store beside; two others derive
/// from both lines. Whatever the four do to each other's marks, nobody ends with an old value.
#[test]
fn no_engine_keeps_an_old_value_of_a_line_that_is_written_for_long() {
    const LAST: u64 = 20_000;
    const PLACES: [u64; 2] = [PAGE_SIZE, PAGE_SIZE + 0x80];
    let ram = Ram::new(2 * PAGE_SIZE).expect("8 KiB");
    let start = Barrier::new(4);
    let writers_left = AtomicU64::new(2);
    let kept = std::thread::scope(|scope| {
        for place in PLACES {
            let (ram, start, writers_left) = (&ram, &start, &writers_left);
            scope.spawn(move || {
                start.wait();
                for value in 1..=LAST {
                    ram.store(place, value);
                    if value % 3 == 0 {
                        ram.store(PAGE_SIZE + 0x800, value);
                    }
                }
                writers_left.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                start.wait();
                let mut kept = PLACES.map(|place| derive(&ram, place));
                loop {
                    let is_last = writers_left.load(Ordering::SeqCst) == 0;
                    for (place, kept) in PLACES.into_iter().zip(&mut kept) {
                        if ram.flags().generation(1) != kept.1 {
                            *kept = derive(&ram, place);
                        }
                    }
                    if is_last {
                        return kept.map(|(value, _)| value);
                    }
                }
            })
        });
        readers.map(|reader| reader.join().expect("a reader"))
    });
    assert_eq!(kept, [[LAST; 2]; 2]);
}

/// The writer of code looks whether it is still good: at once, whoever else took the marks away.
#[test]
fn a_writer_never_finds_what_it_wrote_over_still_good() {
    const PLACES: [u64; 2] = [0, 0x40];
    let ram = Ram::new(PAGE_SIZE).expect("a page");
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for place in PLACES {
            let (ram, start) = (&ram, &start);
            scope.spawn(move || {
                start.wait();
                for value in 1..=20_000u64 {
                    let (copy, generation) = derive(ram, place);
                    assert_eq!(copy, value - 1);
                    ram.store(place, value);
                    assert_ne!(ram.flags().generation(0), generation, "{value} at {place:#x}");
                }
            });
        }
    });
}

/// Holds the first taking of marks up, and looks at what there is then.
struct Pause {
    ram: Arc<Ram>,
    is_entered: Barrier,
    others_done: AtomicU64,
    seen: Mutex<Vec<(u64, u32, u8)>>,
}

impl CodeWatcher for Pause {
    fn stores_must_be_noted(&self, _page: u64) {}

    fn code_written(&self, page: u64) {
        let mut seen = self.seen.lock().expect("no panic");
        if seen.is_empty() {
            self.is_entered.wait();
            std::thread::sleep(Duration::from_millis(30));
        }
        let flags = self.ram.flags();
        let others_done = self.others_done.load(Ordering::SeqCst);
        seen.push((others_done, flags.generation(page), flags.get(page) & PageFlags::CODE));
    }
}

/// Until the watchers know, the page is code with its lines, and nobody can mark: the mark would go
/// with the others.
#[test]
fn marks_go_only_when_everybody_knows() {
    let ram = Arc::new(Ram::new(PAGE_SIZE).expect("a page"));
    let pause = Arc::new(Pause {
        ram: Arc::clone(&ram),
        is_entered: Barrier::new(3),
        others_done: AtomicU64::new(0),
        seen: Mutex::default(),
    });
    let watcher: Weak<Pause> = Arc::downgrade(&pause);
    ram.flags().add_watcher(watcher);
    derive(&ram, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(ram.store(0, 1u64)));
        scope.spawn(|| {
            pause.is_entered.wait();
            assert!(ram.store(8, 2u64), "its line was marked when it was written");
            pause.others_done.fetch_add(1, Ordering::SeqCst);
        });
        scope.spawn(|| {
            pause.is_entered.wait();
            let (_, generation) = derive(&ram, 0x100);
            pause.others_done.fetch_add(1, Ordering::SeqCst);
            let is_current = ram.flags().generation(0) == generation;
            assert!(ram.store(0x100, 3u64) || !is_current, "the mark is there");
        });
    });
    let seen = pause.seen.lock().expect("no panic").clone();
    assert_eq!(seen.first(), Some(&(0, 1, PageFlags::CODE)));
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
