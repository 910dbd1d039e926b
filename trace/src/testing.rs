//! Reads anything as a trace, for fuzzing: whole files, and records in a file that is whole.

use std::sync::Arc;

use crate::chunk::{Head, Kind, RAW_MAX};
use crate::header::{Clock, Filters, Header, Kinds};
use crate::reader::Reader;
use crate::{SLOTS, TraceError};

/// Records that are read of an input at most: a byte can stand for 128.
const RECORDS_MAX: usize = 1 << 20;

/// Reads `input` as a file, or behind a first byte that is odd as the records of a chunk, in a
/// linear file or a ring.
pub fn read(input: &[u8]) -> Result<(), TraceError> {
    let file = match input.split_first() {
        Some((form, records)) if form & 1 != 0 => file_of(records, form & 2 != 0),
        _ => input.to_vec(),
    };
    let reader = Reader::new(Arc::new(file))?;
    reader.ending()?;
    for record in reader.merged().take(RECORDS_MAX) {
        record?;
    }
    Ok(())
}

/// A file with `records` in a chunk for each of two CPUs.
fn file_of(records: &[u8], is_ring: bool) -> Vec<u8> {
    let records = records.get(..records.len().min(RAW_MAX as usize)).unwrap_or_default();
    let packed = lz4_flex::block::compress(records);
    let slot_bytes = 2 * (crate::chunk::HEAD + packed.len()) as u64;
    let header = Header {
        machine: String::new(),
        engine: String::new(),
        cpus: 2,
        clock: Clock::Host,
        what: Kinds::INSNS,
        filters: Filters::default(),
        slot_bytes: is_ring.then_some(slot_bytes),
    };
    let mut file = header.bytes();
    for number in 0..if is_ring { SLOTS } else { 1 } {
        for cpu in 0..2 {
            let head = Head {
                segment: number,
                cpu,
                kind: Kind::Records,
                packed: packed.len() as u32,
                raw: records.len() as u32,
                sum: crc32fast::hash(&packed),
                count: 0,
                time_ns: 0,
            };
            file.extend(head.bytes());
            file.extend_from_slice(&packed);
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_too_strange_to_be_read(
            input in prop::collection::vec(prop_oneof![any::<u8>(), 0xbeu8..0xd4, 0u8..4], 0..300)
        ) {
            let _ = read(&input);
        }
    }

    #[test]
    fn records_in_a_whole_file_are_reached() {
        // A definition of one NOP at RIP 8 in 64-bit mode, the block itself, and its repetition.
        let records = [0xc1, 8, 0, 1, 16, 1, 0x90, 0x80, 0, 0];
        for form in [1, 3] {
            assert!(read(&[&[form][..], &records].concat()).is_ok());
            assert!(read(&[&[form][..], &records, &[0x81, 0]].concat()).is_err());
        }
    }
}
