//! Reads a trace: all streams merged, or one CPU's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::block::Block;
use crate::chunk::{HEAD, Head, Kind};
use crate::decoder::{Decoded, Decoder};
use crate::event::Event;
use crate::header::{HEADER_FIXED, Header};
use crate::varint::Cursor;
use crate::{SLOTS, TraceError};

/// Bytes that can be read at any place.
pub trait Source: Send + Sync {
    /// Reads some bytes from `offset` on; how many.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let rest = rest.unwrap_or_default();
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(bytes.len().min(rest.len()))
    }
}

/// Reads until `bytes` is full or the source ends; how many bytes there are.
fn read_all(source: &dyn Source, offset: u64, bytes: &mut [u8]) -> Result<usize, TraceError> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match source.read_at(offset.saturating_add(done as u64), rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// How a trace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was closed.
    Closed,
    /// It is cut off, or goes on being written.
    Cut,
}

/// What happened next on a CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// All of a block's instructions were executed.
    Block(Arc<Block>),
    /// Something else.
    Event(Event),
}

/// An item with when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The CPU.
    pub cpu: u16,
    /// How many instructions the CPU had retired before, as far as anybody has counted them.
    pub count: u64,
    /// The guest time that the CPU was last known to run at.
    pub time_ns: u64,
    /// What happened.
    pub item: Item,
}

/// A trace to be read.
pub struct Reader {
    source: Arc<dyn Source>,
    header: Header,
    /// Where runs of chunks are, in their order: where each begins and ends, and its segment.
    runs: Arc<[Run]>,
}

/// A run of chunks.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
    /// The only segment in it, in a ring.
    segment: Option<u32>,
}

impl Reader {
    /// Opens the trace in a file.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        Self::new(Arc::new(File::open(path)?))
    }

    /// Opens a trace.
    pub fn new(source: Arc<dyn Source>) -> Result<Self, TraceError> {
        let mut first = [0; HEADER_FIXED];
        if read_all(&*source, 0, &mut first)? != first.len() {
            return Err(TraceError::NoTrace);
        }
        let mut bytes = vec![0; Header::length(&first)?];
        if read_all(&*source, 0, &mut bytes)? != bytes.len() {
            return Err(TraceError::Header("it is cut off"));
        }
        let header = Header::of(&bytes)?;
        let runs = runs(&*source, bytes.len() as u64, header.slot_bytes)?;
        Ok(Self { source, header, runs: runs.into() })
    }

    /// What the trace is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How it ends. Looks at the heads of all chunks.
    pub fn ending(&self) -> Result<Ending, TraceError> {
        let mut chunks = Chunks::new(self);
        while let Some((head, _)) = chunks.next_head()? {
            if head.kind == Kind::End {
                return Ok(Ending::Closed);
            }
        }
        Ok(Ending::Cut)
    }

    /// The records of one CPU.
    pub fn cpu(&self, cpu: u16) -> Records {
        Records {
            cpu,
            chunks: Chunks::new(self),
            decoder: None,
            segment: None,
            chunk: Chunk::default(),
            count: 0,
            time_ns: 0,
            is_over: false,
        }
    }

    /// The records of all CPUs, in the order of time.
    pub fn merged(&self) -> Merged {
        Merged {
            streams: (0..self.header.cpus)
                .map(|cpu| Stream { records: self.cpu(cpu), next: None })
                .collect(),
            is_begun: false,
            current: 0,
        }
    }
}

/// Finds the runs of chunks of a file whose header has `start` bytes.
fn runs(source: &dyn Source, start: u64, slot: Option<u64>) -> Result<Vec<Run>, TraceError> {
    let Some(slot) = slot else {
        return Ok(vec![Run { start, end: u64::MAX, segment: None }]);
    };
    let mut runs = Vec::new();
    for number in 0..u64::from(SLOTS) {
        let at = start.saturating_add(number.saturating_mul(slot));
        let mut bytes = [0; HEAD];
        let is_whole = read_all(source, at, &mut bytes)? == HEAD;
        if let Some(Ok(head)) = Head::of(&bytes).filter(|_| is_whole) {
            let end = at.saturating_add(slot);
            runs.push(Run { start: at, end, segment: Some(head.segment) });
        }
    }
    runs.sort_by_key(|run| run.segment);
    // What is older than a turn of the ring was being overwritten.
    let newest = runs.last().and_then(|run| run.segment).unwrap_or(0);
    runs.retain(|run| run.segment.is_some_and(|segment| newest - segment < SLOTS));
    Ok(runs)
}

/// The heads of chunks, one behind the other.
struct Chunks {
    source: Arc<dyn Source>,
    runs: Arc<[Run]>,
    run: usize,
    at: u64,
}

impl Chunks {
    fn new(reader: &Reader) -> Self {
        let at = reader.runs.first().map_or(0, |run| run.start);
        Self { source: Arc::clone(&reader.source), runs: Arc::clone(&reader.runs), run: 0, at }
    }

    /// The next chunk's head and where its bytes are.
    fn next_head(&mut self) -> Result<Option<(Head, u64)>, TraceError> {
        while let Some(&run) = self.runs.get(self.run) {
            if let Some(head) = self.head_in(run)? {
                let at = self.at + HEAD as u64;
                self.at = at + u64::from(head.packed);
                return Ok(Some((head, at)));
            }
            self.run += 1;
            self.at = self.runs.get(self.run).map_or(0, |run| run.start);
        }
        Ok(None)
    }

    fn head_in(&self, run: Run) -> Result<Option<Head>, TraceError> {
        if self.at.checked_add(HEAD as u64).is_none_or(|end| end > run.end) {
            return Ok(None);
        }
        let mut bytes = [0; HEAD];
        if read_all(&*self.source, self.at, &mut bytes)? != HEAD {
            return Ok(None);
        }
        let head = match Head::of(&bytes) {
            Some(Ok(head)) => head,
            Some(Err(what)) => return Err(TraceError::Chunk { at: self.at, what }),
            None if run.segment.is_none() && bytes != [0; HEAD] => {
                return Err(TraceError::Chunk { at: self.at, what: "it does not begin as one" });
            }
            None => return Ok(None),
        };
        let is_of_run = run.segment.is_none_or(|segment| segment == head.segment);
        Ok(is_of_run.then_some(head))
    }
}

/// A chunk that is being read.
#[derive(Default)]
struct Chunk {
    at: u64,
    bytes: Vec<u8>,
    done: usize,
}

/// The records of one CPU, in the order of execution. Behind an error there are none.
pub struct Records {
    cpu: u16,
    chunks: Chunks,
    decoder: Option<Decoder>,
    segment: Option<u32>,
    chunk: Chunk,
    count: u64,
    time_ns: u64,
    is_over: bool,
}

impl Records {
    fn next_record(&mut self) -> Result<Option<Record>, TraceError> {
        loop {
            if let Some(record) = self.next_of_chunk()? {
                return Ok(Some(record));
            }
            if !self.next_chunk()? {
                return Ok(None);
            }
        }
    }

    /// The next record of the chunk that is being read.
    fn next_of_chunk(&mut self) -> Result<Option<Record>, TraceError> {
        let Some(decoder) = &mut self.decoder else { return Ok(None) };
        let rest = self.chunk.bytes.get(self.chunk.done..).unwrap_or_default();
        let mut cursor = Cursor::new(rest);
        let decoded = decoder.next(&mut cursor);
        self.chunk.done += rest.len() - cursor.left();
        let decoded = decoded.map_err(|what| TraceError::Chunk { at: self.chunk.at, what })?;
        let Some(decoded) = decoded else { return Ok(None) };
        if let Decoded::Event(Event::Time { ns }) = decoded {
            self.time_ns = ns;
        }
        let (cpu, count, time_ns) = (self.cpu, self.count, self.time_ns);
        let item = match decoded {
            Decoded::Block(block) => {
                self.count = self.count.saturating_add(block.len() as u64);
                Item::Block(block)
            }
            Decoded::Event(event) => {
                if let Event::Skipped { instructions } = event {
                    self.count = self.count.saturating_add(instructions);
                }
                Item::Event(event)
            }
        };
        Ok(Some(Record { cpu, count, time_ns, item }))
    }

    /// Reads the CPU's next chunk. False if there is none.
    fn next_chunk(&mut self) -> Result<bool, TraceError> {
        while let Some((head, at)) = self.chunks.next_head()? {
            if head.kind == Kind::End {
                return Ok(false);
            }
            if head.cpu != self.cpu {
                continue;
            }
            let damage = |what| TraceError::Chunk { at: at - HEAD as u64, what };
            let mut packed = vec![0; head.packed as usize];
            if read_all(&*self.chunks.source, at, &mut packed)? != packed.len() {
                // The file is cut off here.
                return Ok(false);
            }
            if crc32fast::hash(&packed) != head.sum {
                return Err(damage("its checksum is wrong"));
            }
            let bytes = lz4_flex::block::decompress(&packed, head.raw as usize)
                .map_err(|_| damage("it cannot be unpacked"))?;
            if bytes.len() != head.raw as usize {
                return Err(damage("it has another length than it says"));
            }
            if self.segment != Some(head.segment) {
                self.decoder = Some(Decoder::new());
                self.segment = Some(head.segment);
            }
            self.chunk = Chunk { at: at - HEAD as u64, bytes, done: 0 };
            (self.count, self.time_ns) = (head.count, head.time_ns);
            return Ok(true);
        }
        Ok(false)
    }
}

impl Iterator for Records {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_record();
        self.is_over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// A stream with its next record.
struct Stream {
    records: Records,
    next: Option<Result<Record, TraceError>>,
}

impl Stream {
    /// The time of its next record, if it has one.
    fn time(&self) -> Option<u64> {
        match &self.next {
            Some(Ok(record)) => Some(record.time_ns),
            // To be told at once.
            Some(Err(_)) => Some(0),
            None => None,
        }
    }
}

/// The records of all CPUs in the order of time: those of one CPU stay together as long as its time
/// is the same.
pub struct Merged {
    streams: Vec<Stream>,
    is_begun: bool,
    current: usize,
}

impl Merged {
    /// The stream whose next record is the earliest; of several, the first.
    fn earliest(&self) -> Option<usize> {
        let times = self.streams.iter().enumerate();
        let times = times.filter_map(|(index, stream)| stream.time().map(|time| (time, index)));
        times.min().map(|(_, index)| index)
    }
}

impl Iterator for Merged {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !std::mem::replace(&mut self.is_begun, true) {
            for stream in &mut self.streams {
                stream.next = stream.records.next();
            }
            self.current = self.earliest()?;
        }
        let stream = self.streams.get_mut(self.current)?;
        let record = stream.next.take()?;
        stream.next = stream.records.next();
        let is_same_time =
            matches!((&record, stream.time()), (Ok(record), Some(time)) if record.time_ns == time);
        if !is_same_time && let Some(earliest) = self.earliest() {
            self.current = earliest;
        }
        Some(record)
    }
}
