//! What every chip offers beside its registers: a name, reset, and its state in and out.

use serde::{Serialize, de::DeserializeOwned};

/// Why a saved state was refused. The chip is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are not a state of this chip.
    #[error("{chip}: the saved state is damaged")]
    Damaged {
        /// The chip's name.
        chip: &'static str,
    },
    /// The state was saved by a version of the chip that this one does not know.
    #[error("{chip}: saved state of version {found}, version {known} is known")]
    Version {
        /// The chip's name.
        chip: &'static str,
        /// The version in the saved state.
        found: u16,
        /// The version this chip writes.
        known: u16,
    },
    /// A field has a value that the chip can never have.
    #[error("{chip}: the saved {field} is impossible")]
    Value {
        /// The chip's name.
        chip: &'static str,
        /// The field of the saved structure.
        field: &'static str,
    },
}

/// A chip of the machine. Called with all vCPUs stopped, except `name`.
pub trait Chip: Send + Sync {
    /// The name in logs and saved states, such as `pit` or `lapic0`.
    fn name(&self) -> &str;
    /// Puts every register to its value after a hardware reset, and lowers its lines.
    fn reset(&self);
    /// The whole state, encoded by [`encode`].
    fn save(&self) -> Vec<u8>;
    /// Takes a state that [`Chip::save`] made, after checking it; nothing changes on error.
    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError>;
}

/// Encodes a versioned plain-data state.
pub fn encode<T: Serialize>(version: u16, state: &T) -> Vec<u8> {
    // Serialising plain data into a vector has no way to fail; an empty state would be refused
    // by `decode` all the same.
    postcard::to_stdvec(&(version, state)).unwrap_or_default()
}

/// Decodes what [`encode`] made, if it is of version `known`.
pub fn decode<T: DeserializeOwned>(
    chip: &'static str,
    known: u16,
    saved: &[u8],
) -> Result<T, RestoreError> {
    let damaged = RestoreError::Damaged { chip };
    let (found, rest) = postcard::take_from_bytes::<u16>(saved).map_err(|_| damaged.clone())?;
    if found != known {
        return Err(RestoreError::Version { chip, found, known });
    }
    let (state, rest) = postcard::take_from_bytes::<T>(rest).map_err(|_| damaged.clone())?;
    if rest.is_empty() { Ok(state) } else { Err(damaged) }
}
