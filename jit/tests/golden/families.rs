//! The families of instructions.

mod integer;
mod memory;
mod transfers;
mod vector;

use crate::entry::Family;

/// All of them, in the ledger's order.
pub fn all() -> Vec<Family> {
    [integer::families(), memory::families(), transfers::families(), vector::families()]
        .into_iter()
        .flatten()
        .collect()
}
