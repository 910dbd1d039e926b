//! Writes the file: header, chunks, segments, and the slots of a ring.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::SLOTS;
use crate::chunk::{HEAD, Head, Kind, RAW_MAX, RECORD_MAX, packed_max};
use crate::encoder::{Encoder, Raw};
use crate::event::Event;
use crate::header::Header;
use crate::recorder::{Batch, Mark};

/// Bytes of a chunk before it is packed, about.
const CHUNK_BYTES: usize = 256 << 10;
/// The least of them, for small rings of many CPUs.
const CHUNK_BYTES_MIN: usize = 4096;
/// The smallest ring.
pub const RING_BYTES_MIN: u64 = 1 << 20;

const _: () = assert!(CHUNK_BYTES + RECORD_MAX < RAW_MAX as usize);

/// Where a trace is written.
pub trait Target: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Target for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

/// A trace that is being written.
pub struct Writer {
    file: Box<dyn Target>,
    encoders: Vec<Encoder>,
    /// Where the next chunk goes.
    at: u64,
    segment: u32,
    ring: Option<Ring>,
}

#[derive(Clone, Copy)]
struct Ring {
    /// Where the first slot is.
    start: u64,
    slot_bytes: u64,
    /// Room that the chunks at the end of a segment may need.
    reserve: u64,
}

impl Writer {
    /// Creates a file, as a ring of about `ring_bytes` if there are some.
    pub fn create(path: &Path, header: &Header, ring_bytes: Option<u64>) -> io::Result<Self> {
        Self::new(Box::new(File::create(path)?), header, ring_bytes)
    }

    /// Begins a trace in an empty file; see [`Writer::create`].
    pub fn new(
        file: Box<dyn Target>,
        header: &Header,
        ring_bytes: Option<u64>,
    ) -> io::Result<Self> {
        let cpus = u64::from(header.cpus.max(1));
        let slot_bytes = ring_bytes.map(|bytes| (bytes / u64::from(SLOTS)) & !7);
        let chunk_bytes = slot_bytes.map_or(CHUNK_BYTES, |bytes| {
            let share = usize::try_from(bytes / (4 * cpus)).unwrap_or(CHUNK_BYTES);
            share.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES)
        });
        let reserve = cpus * (HEAD + packed_max(chunk_bytes + RECORD_MAX)) as u64 + HEAD as u64;
        if slot_bytes.is_some_and(|bytes| bytes < 2 * reserve) {
            let least = (2 * reserve * u64::from(SLOTS)).max(RING_BYTES_MIN);
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("for {cpus} CPUs the ring must have {least} bytes at least"),
            ));
        }
        let bytes = Header { slot_bytes, ..header.clone() }.bytes();
        file.write_at(0, &bytes)?;
        let at = bytes.len() as u64;
        let encoders = (0..cpus).map(|_| Encoder::new(chunk_bytes)).collect();
        let ring = slot_bytes.map(|slot_bytes| Ring { start: at, slot_bytes, reserve });
        Ok(Self { file, encoders, at, segment: 0, ring })
    }

    /// Writes what a CPU has executed.
    pub(crate) fn batch(&mut self, batch: &mut Batch) -> io::Result<()> {
        let cpu = batch.cpu;
        let mut done = 0;
        for (position, mark) in batch.marks.drain(..) {
            let words = batch.words.get(done..position).unwrap_or_default();
            self.words(cpu, words)?;
            done = done.max(position);
            let Some(encoder) = self.encoders.get_mut(usize::from(cpu)) else { return Ok(()) };
            match mark {
                Mark::Block(block) => encoder.define(block),
                Mark::Forget => encoder.forget(),
                Mark::Event { event, left, count } => encoder.event(event, left, count),
            }
            self.write_if_due(cpu)?;
        }
        self.words(cpu, batch.words.get(done..).unwrap_or_default())
    }

    fn words(&mut self, cpu: u16, mut words: &[u32]) -> io::Result<()> {
        while !words.is_empty() {
            let Some(encoder) = self.encoders.get_mut(usize::from(cpu)) else { return Ok(()) };
            let taken = encoder.words(words);
            words = words.get(taken..).unwrap_or_default();
            self.write_if_due(cpu)?;
        }
        Ok(())
    }

    /// Writes the CPU's chunk if it is long enough, and begins another segment where it must.
    fn write_if_due(&mut self, cpu: u16) -> io::Result<()> {
        let Some(encoder) = self.encoders.get_mut(usize::from(cpu)) else { return Ok(()) };
        let is_full = encoder.is_full();
        if !encoder.has_chunk() && !is_full {
            return Ok(());
        }
        let raw = encoder.take_chunk();
        self.write(cpu, &raw)?;
        let has_room = self.ring.is_none_or(|ring| self.slot_left(ring) >= ring.reserve);
        if is_full || !has_room {
            self.next_segment()?;
        }
        Ok(())
    }

    fn slot_left(&self, ring: Ring) -> u64 {
        (self.slot_start(ring) + ring.slot_bytes).saturating_sub(self.at)
    }

    fn slot_start(&self, ring: Ring) -> u64 {
        ring.start + u64::from(self.segment % SLOTS) * ring.slot_bytes
    }

    fn next_segment(&mut self) -> io::Result<()> {
        self.flush()?;
        self.encoders.iter_mut().for_each(Encoder::begin_segment);
        self.segment = self.segment.wrapping_add(1);
        if let Some(ring) = self.ring {
            self.at = self.slot_start(ring);
        }
        Ok(())
    }

    /// Writes what there is of all CPUs.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        for cpu in 0..self.encoders.len() {
            let Some(encoder) = self.encoders.get_mut(cpu) else { continue };
            if encoder.has_some() {
                let raw = encoder.take_chunk();
                self.write(cpu as u16, &raw)?;
            }
        }
        Ok(())
    }

    /// Says that nothing comes any more.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        for cpu in 0..self.encoders.len() {
            let Some(encoder) = self.encoders.get_mut(cpu) else { continue };
            encoder.event(Event::End, 0, None);
            self.write_if_due(cpu as u16)?;
        }
        self.flush()?;
        let head = Head {
            segment: self.segment,
            cpu: 0,
            kind: Kind::End,
            packed: 0,
            raw: 0,
            sum: crc32fast::hash(&[]),
            count: 0,
            time_ns: 0,
        };
        self.file.write_at(self.at, &head.bytes())?;
        self.at += HEAD as u64;
        self.end_slot()
    }

    fn write(&mut self, cpu: u16, raw: &Raw) -> io::Result<()> {
        let packed = lz4_flex::block::compress(&raw.bytes);
        let head = Head {
            segment: self.segment,
            cpu,
            kind: Kind::Records,
            packed: packed.len() as u32,
            raw: raw.bytes.len() as u32,
            sum: crc32fast::hash(&packed),
            count: raw.count,
            time_ns: raw.time_ns,
        };
        let mut bytes = head.bytes().to_vec();
        bytes.extend_from_slice(&packed);
        self.file.write_at(self.at, &bytes)?;
        self.at += bytes.len() as u64;
        self.end_slot()
    }

    /// What stands behind the newest chunk of a slot is of an older segment, if anything: its first
    /// chunk might be taken for one that was cut off.
    fn end_slot(&mut self) -> io::Result<()> {
        let Some(ring) = self.ring else { return Ok(()) };
        if self.slot_left(ring) >= 4 {
            self.file.write_at(self.at, &[0; 4])?;
        }
        Ok(())
    }
}
