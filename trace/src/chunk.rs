//! Chunks: what is written and read in one go.

use crate::INSNS_MAX;
use crate::varint::Damage;

/// Blocks that can be defined in a segment of a stream.
pub const BLOCKS_MAX: u32 = 1 << 20;
/// Bytes that the definitions of a segment of a stream may take in memory: hostile files included.
pub const CODE_BYTES_MAX: usize = 256 << 20;
/// Bytes of a chunk before it is packed, at most.
pub(crate) const RAW_MAX: u32 = 1 << 20;
/// Bytes of a record at most: a definition.
pub(crate) const RECORD_MAX: usize = 64 + INSNS_MAX * 32;
/// Bytes of a chunk's head.
pub(crate) const HEAD: usize = 40;

const MAGIC: u32 = 0x4b4e_4843;

/// What a chunk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Records.
    Records,
    /// Nothing: the file was closed.
    End,
}

/// The head of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) segment: u32,
    pub(crate) cpu: u16,
    pub(crate) kind: Kind,
    /// Bytes behind the head.
    pub(crate) packed: u32,
    /// Bytes when they are unpacked.
    pub(crate) raw: u32,
    /// CRC-32 of the packed bytes.
    pub(crate) sum: u32,
    pub(crate) count: u64,
    pub(crate) time_ns: u64,
}

impl Head {
    pub(crate) fn bytes(&self) -> [u8; HEAD] {
        let kind: u16 = match self.kind {
            Kind::Records => 0,
            Kind::End => 1,
        };
        let mut bytes = [0; HEAD];
        let fields = MAGIC
            .to_le_bytes()
            .into_iter()
            .chain(self.segment.to_le_bytes())
            .chain(self.cpu.to_le_bytes())
            .chain(kind.to_le_bytes())
            .chain(self.packed.to_le_bytes())
            .chain(self.raw.to_le_bytes())
            .chain(self.sum.to_le_bytes())
            .chain(self.count.to_le_bytes())
            .chain(self.time_ns.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    /// `None` if no chunk begins so.
    pub(crate) fn of(bytes: &[u8; HEAD]) -> Option<Result<Self, Damage>> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != MAGIC {
            return None;
        }
        let kind = match word(8) >> 16 {
            0 => Kind::Records,
            1 => Kind::End,
            _ => return Some(Err("it is of an unknown kind")),
        };
        let (packed, raw) = (word(12), word(16));
        if raw > RAW_MAX || packed > packed_max(RAW_MAX as usize) as u32 {
            return Some(Err("it is too long"));
        }
        Some(Ok(Self {
            segment: word(4),
            cpu: word(8) as u16,
            kind,
            packed,
            raw,
            sum: word(20),
            count: long(24),
            time_ns: long(32),
        }))
    }
}

/// Bytes that `raw` bytes are packed to at most.
pub(crate) fn packed_max(raw: usize) -> usize {
    lz4_flex::block::get_maximum_output_size(raw)
}
