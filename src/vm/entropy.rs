//! The one door through which random numbers enter.

use std::sync::{Mutex, PoisonError};

/// A source of random numbers for RDRAND and RDSEED.
pub(crate) enum Entropy {
    /// The host's.
    Host,
    /// A repeatable sequence, for machines whose runs repeat.
    Seeded(Mutex<u64>),
}

impl Entropy {
    /// A repeatable sequence.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self::Seeded(Mutex::new(seed))
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        match self {
            Self::Host => host_random(),
            Self::Seeded(state) => {
                splitmix64(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }
}

fn host_random() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // getrandom of so few bytes does not fail once the pool is ready; before that, and on
        // kernels without it, the standard library's own keys are seeded from the same place.
        _ => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
    }
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_sequence_repeats_and_does_not_stand_still() {
        let (a, b, other) = (Entropy::seeded(1), Entropy::seeded(1), Entropy::seeded(2));
        let first: Vec<u64> = (0..100).map(|_| a.next()).collect();
        assert_eq!(first, (0..100).map(|_| b.next()).collect::<Vec<_>>());
        assert_ne!(first, (0..100).map(|_| other.next()).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), 100);
    }
}
