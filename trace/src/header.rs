//! The header: what was recorded of which machine.

use std::ops::RangeInclusive;

use crate::varint::{Cursor, Damage, put, put_text};
use crate::{CPUS_MAX, TraceError, VERSION};

/// What a trace begins with.
pub(crate) const MAGIC: &[u8; 8] = b"VVTRACE\n";
/// Bytes of the body at most.
const BODY_MAX: u32 = 64 << 10;
/// Bytes of a text at most.
const TEXT_MAX: u64 = 4096;
/// Bytes before the body.
const FIXED: usize = 14;

/// What is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Blocks that were executed.
    pub const BLOCKS: Self = Self(1);
    /// Instructions that were executed: blocks, to be shown one by one.
    pub const INSNS: Self = Self(2);
    /// Accesses of instructions to memory.
    pub const MEMORY: Self = Self(4);
    /// Registers that changed.
    pub const REGISTERS: Self = Self(8);
    /// Interrupts.
    pub const INTERRUPTS: Self = Self(16);
    /// Exceptions.
    pub const EXCEPTIONS: Self = Self(32);
    /// Ports and devices' memory.
    pub const IO: Self = Self(64);
    /// Control registers.
    pub const CONTROL: Self = Self(128);
    /// Model-specific registers.
    pub const MSRS: Self = Self(256);
    const ALL: u32 = 511;

    /// These and `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if some of `other` is among these.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// True if blocks are recorded: where only events are, there are none.
    pub const fn has_code(self) -> bool {
        self.0 & (Self::BLOCKS.0 | Self::INSNS.0) != 0
    }

    /// True if it is nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// How guest time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// By the host's.
    Host,
    /// By instructions; all CPUs in turn.
    Counted {
        /// Nanoseconds of an instruction.
        ns_per_instruction: u64,
    },
}

/// What is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Instructions at other linear addresses.
    pub range: Option<RangeInclusive<u64>>,
    /// Other CPUs.
    pub cpu: Option<u16>,
    /// Other privilege levels.
    pub cpl: Option<u8>,
    /// Other address spaces, by CR3 without its low 12 bits and bit 63.
    pub cr3: Option<u64>,
    /// What comes before this, as the user wrote it.
    pub from: String,
    /// What comes behind this, as the user wrote it.
    pub to: String,
}

/// The header of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The machine, in words.
    pub machine: String,
    /// The engine that it ran on when the trace was begun.
    pub engine: String,
    /// How many CPUs it has; at least 1.
    pub cpus: u16,
    /// How guest time goes.
    pub clock: Clock,
    /// What is recorded.
    pub what: Kinds,
    /// What is left out.
    pub filters: Filters,
    /// Bytes of a slot, if the file is a ring.
    pub slot_bytes: Option<u64>,
}

impl Header {
    /// All bytes of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_text(&mut body, &self.machine);
        put_text(&mut body, &self.engine);
        put(&mut body, u64::from(self.cpus));
        put(
            &mut body,
            match self.clock {
                Clock::Host => 0,
                Clock::Counted { ns_per_instruction } => ns_per_instruction,
            },
        );
        put(&mut body, u64::from(self.what.0));
        self.filters.put(&mut body);
        put(&mut body, self.slot_bytes.unwrap_or(0));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes
    }

    /// How many bytes the header has that begins with `first`.
    pub(crate) fn length(first: &[u8; FIXED]) -> Result<usize, TraceError> {
        let (magic, rest) = first.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(TraceError::NoTrace);
        }
        let (version, length) = rest.split_at(2);
        let version = u16::from_le_bytes(version.try_into().unwrap_or_default());
        if version != VERSION {
            return Err(TraceError::Version(version));
        }
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        if length > BODY_MAX {
            return Err(TraceError::Header("it is too long"));
        }
        Ok(FIXED + length as usize + 4)
    }

    /// Reads all bytes of a header.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, TraceError> {
        let (body, sum) = bytes
            .get(FIXED..)
            .and_then(|rest| rest.split_last_chunk::<4>())
            .ok_or(TraceError::Header("it is cut off"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(TraceError::Header("its checksum is wrong"));
        }
        Self::of_body(&mut Cursor::new(body)).map_err(TraceError::Header)
    }

    fn of_body(from: &mut Cursor<'_>) -> Result<Self, Damage> {
        Ok(Self {
            machine: from.text(TEXT_MAX)?,
            engine: from.text(TEXT_MAX)?,
            cpus: match from.at_most(u64::from(CPUS_MAX), "there are too many CPUs")? {
                0 => return Err("there is no CPU"),
                cpus => cpus as u16,
            },
            clock: match from.varint()? {
                0 => Clock::Host,
                ns_per_instruction => Clock::Counted { ns_per_instruction },
            },
            what: Kinds(from.at_most(u64::from(Kinds::ALL), "unknown things are recorded")? as u32),
            filters: Filters::get(from)?,
            slot_bytes: Some(from.varint()?).filter(|bytes| *bytes != 0),
        })
    }
}

/// Bytes of a header that say how long it is.
pub(crate) const HEADER_FIXED: usize = FIXED;

impl Filters {
    fn put(&self, out: &mut Vec<u8>) {
        let has = u8::from(self.range.is_some())
            | u8::from(self.cpu.is_some()) << 1
            | u8::from(self.cpl.is_some()) << 2
            | u8::from(self.cr3.is_some()) << 3;
        out.push(has);
        if let Some(range) = &self.range {
            put(out, *range.start());
            put(out, *range.end());
        }
        self.cpu.into_iter().for_each(|cpu| put(out, u64::from(cpu)));
        self.cpl.into_iter().for_each(|cpl| put(out, u64::from(cpl)));
        self.cr3.into_iter().for_each(|cr3| put(out, cr3));
        put_text(out, &self.from);
        put_text(out, &self.to);
    }

    fn get(from: &mut Cursor<'_>) -> Result<Self, Damage> {
        let has = from.byte()?;
        if has >> 4 != 0 {
            return Err("there is an unknown filter");
        }
        let mut filters = Self::default();
        if has & 1 != 0 {
            let start = from.varint()?;
            filters.range = Some(start..=from.varint()?);
        }
        if has & 2 != 0 {
            filters.cpu =
                Some(from.at_most(u64::from(CPUS_MAX), "a CPU has too large a number")? as u16);
        }
        if has & 4 != 0 {
            filters.cpl = Some(from.at_most(3, "a privilege level is too large")? as u8);
        }
        if has & 8 != 0 {
            filters.cr3 = Some(from.varint()?);
        }
        filters.from = from.text(TEXT_MAX)?;
        filters.to = from.text(TEXT_MAX)?;
        Ok(filters)
    }
}
