//! The programs' work in Rust, for the host to do.
//!
//! The compiler chooses the instructions. What it must not do is see through the work: the values
//! that it could know go through [`black_box`].

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use super::programs::memory;

pub(super) fn integer(iterations: u64) {
    let (mut a, mut b) = (0_u64, 0_u64);
    for count in (1..=iterations).rev() {
        a = a.wrapping_add(count);
        a ^= a << 7;
        a ^= a >> 9;
        b = a.wrapping_add(count.wrapping_mul(2)).wrapping_add(5);
        if b as i64 >= 0 {
            b = count;
        }
        black_box(&mut b);
    }
    black_box((a, b));
}

pub(super) fn branches(iterations: u64) {
    let mut sum = 0_u64;
    for count in (1..=iterations).rev() {
        for bit in [1, 2, 4, 8] {
            if black_box(count) & bit != 0 {
                // Out here, so that no arithmetic takes the branch's place.
                sum += black_box(bit);
            }
        }
    }
    black_box(sum);
}

#[inline(never)]
fn callee(value: u64, count: u64) -> u64 {
    black_box(value.wrapping_add(count))
}

pub(super) fn calls(iterations: u64) {
    let mut value = 0;
    for count in (1..=iterations).rev() {
        for _ in 0..4 {
            value = callee(value, count);
        }
    }
    black_box(value);
}

pub(super) fn indirect(iterations: u64) {
    const TARGETS: [fn(u64) -> u64; 8] = [
        |value| value.wrapping_add(1),
        |value| value.wrapping_add(2),
        |value| value.wrapping_add(3),
        |value| value.wrapping_add(4),
        |value| value.wrapping_add(5),
        |value| value.wrapping_add(6),
        |value| value.wrapping_add(7),
        |value| value.wrapping_add(8),
    ];
    let targets = black_box(TARGETS);
    let mut value = 0;
    for count in (1..=iterations).rev() {
        value = targets[count as usize & 7](value);
    }
    black_box(value);
}

/// Memory of as many bytes, as words.
fn words(bytes: u32) -> Vec<u64> {
    vec![1; bytes as usize / 8]
}

pub(super) fn reads(iterations: u64) {
    let table = words(memory::WINDOW_BYTES);
    let (mut sum, mut at) = (0_u64, 0);
    for _ in 0..iterations {
        for word in table.iter().skip(at).take(8) {
            sum = sum.wrapping_add(*black_box(word));
        }
        at = (at + 8) % table.len();
    }
    black_box(sum);
}

pub(super) fn writes(iterations: u64) {
    let mut table = words(memory::WINDOW_BYTES);
    let mut at = 0;
    for count in (1..=iterations).rev() {
        for word in table.iter_mut().skip(at).take(8) {
            *black_box(word) = count;
        }
        at = (at + 8) % table.len();
    }
    black_box(table);
}

pub(super) fn far_reads(iterations: u64) {
    let table = words(memory::FAR_BYTES);
    let (mut sum, mut at) = (0_u64, 0);
    for _ in 0..iterations {
        sum = sum.wrapping_add(table.get(black_box(at)).copied().unwrap_or(0));
        at = (at + memory::FAR_STRIDE as usize / 8) % table.len();
    }
    black_box(sum);
}

pub(super) fn locked(iterations: u64) {
    let counter = AtomicU64::new(0);
    for _ in 0..iterations {
        black_box(counter.fetch_add(1, Ordering::SeqCst));
    }
}

pub(super) fn copies(iterations: u64) {
    let from = vec![1_u8; memory::COPY_BYTES as usize];
    let mut to = vec![0; memory::COPY_BYTES as usize];
    for _ in 0..iterations {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
}
