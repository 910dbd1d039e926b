//! Blocks: runs of instructions that were executed one behind the other.

use crate::varint::{Cursor, Damage, put, put_signed};
use crate::{INSN_BYTES_MAX, INSNS_MAX};

/// The width of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 16-bit code.
    W16,
    /// 32-bit code.
    W32,
    /// 64-bit code.
    W64,
}

impl Width {
    /// 16, 32 or 64.
    pub fn bits(self) -> u32 {
        match self {
            Self::W16 => 16,
            Self::W32 => 32,
            Self::W64 => 64,
        }
    }

    /// That of `bits`; what is no width is 64.
    pub fn of_bits(bits: u32) -> Self {
        match bits {
            16 => Self::W16,
            32 => Self::W32,
            _ => Self::W64,
        }
    }
}

/// The mode that a block was executed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// The width of code.
    pub width: Width,
    /// The privilege level.
    pub cpl: u8,
    /// CR0.PE was 0.
    pub is_real: bool,
    /// Virtual-8086 mode.
    pub is_v86: bool,
}

impl Mode {
    fn byte(self) -> u8 {
        let width = match self.width {
            Width::W16 => 0,
            Width::W32 => 1,
            Width::W64 => 2,
        };
        self.cpl & 3 | width << 2 | u8::from(self.is_real) << 4 | u8::from(self.is_v86) << 5
    }

    fn of(byte: u8) -> Result<Self, Damage> {
        let width = match byte >> 2 & 3 {
            0 => Width::W16,
            1 => Width::W32,
            2 => Width::W64,
            _ => return Err("a block has no width"),
        };
        if byte >> 6 != 0 {
            return Err("a block has an unknown mode");
        }
        let (is_real, is_v86) = (byte & 0x10 != 0, byte & 0x20 != 0);
        Ok(Self { width, cpl: byte & 3, is_real, is_v86 })
    }
}

/// An instruction of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn<'a> {
    /// Its offset in CS.
    pub rip: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Where an instruction of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    rip: u64,
    length: u8,
}

/// Instructions that were executed one behind the other: at least one, at most [`INSNS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    mode: Mode,
    base: u64,
    places: Vec<Place>,
    bytes: Vec<u8>,
}

impl Block {
    /// A block without instructions yet, in `mode` and a code segment that begins at `base`.
    pub fn new(mode: Mode, base: u64) -> Self {
        Self { mode, base, places: Vec::new(), bytes: Vec::new() }
    }

    /// Appends an instruction. False, and nothing done, if it is none or the block is full.
    pub fn push(&mut self, rip: u64, bytes: &[u8]) -> bool {
        let is_insn = (1..=INSN_BYTES_MAX).contains(&bytes.len());
        if !is_insn || self.places.len() == INSNS_MAX {
            return false;
        }
        self.places.push(Place { rip, length: bytes.len() as u8 });
        self.bytes.extend_from_slice(bytes);
        true
    }

    /// The mode that it was executed in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The base of CS.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The offset in CS of its first instruction.
    pub fn rip(&self) -> u64 {
        self.places.first().map_or(0, |place| place.rip)
    }

    /// The linear address of what is at offset `rip` of its code segment.
    pub fn linear(&self, rip: u64) -> u64 {
        match self.mode.width {
            Width::W64 => rip,
            _ => self.base.wrapping_add(rip) & 0xffff_ffff,
        }
    }

    /// How many instructions it has.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if it has none, which no block of a trace is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Its instructions.
    pub fn insns(&self) -> impl Iterator<Item = Insn<'_>> {
        let mut rest = self.bytes.as_slice();
        self.places.iter().map_while(move |place| {
            let (bytes, others) = rest.split_at_checked(usize::from(place.length))?;
            rest = others;
            Some(Insn { rip: place.rip, bytes })
        })
    }

    /// How many instructions from number `first` on are the same, one behind the other, as those
    /// from number `other_first` of `other` on.
    pub fn common(&self, first: usize, other: &Self, other_first: usize) -> usize {
        if (self.mode, self.base) != (other.mode, other.base) {
            return 0;
        }
        let (ours, theirs) = (self.rest(first), other.rest(other_first));
        let places = ours.0.iter().zip(theirs.0).take_while(|(ours, theirs)| ours == theirs);
        let (mut count, mut at) = (0, 0);
        for (place, _) in places {
            let bytes = at..at + usize::from(place.length);
            if ours.1.get(bytes.clone()) != theirs.1.get(bytes.clone()) {
                break;
            }
            (count, at) = (count + 1, bytes.end);
        }
        count
    }

    /// The places of the instructions from number `first` on, and their bytes.
    fn rest(&self, first: usize) -> (&[Place], &[u8]) {
        let (before, places) = self.places.split_at(first.min(self.places.len()));
        let start = before.iter().map(|place| usize::from(place.length)).sum();
        (places, self.bytes.get(start..).unwrap_or_default())
    }

    /// Bytes that it takes in memory, about.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len() + self.places.len() * size_of::<Place>() + size_of::<Self>()
    }

    /// Its instructions from number `first` on, `count` of them.
    pub(crate) fn part(&self, first: usize, count: usize) -> Option<Self> {
        let places = self.places.get(first..first.checked_add(count)?)?;
        let mut part = Self::new(self.mode, self.base);
        for insn in self.insns().skip(first).take(count) {
            part.push(insn.rip, insn.bytes);
        }
        (!places.is_empty()).then_some(part)
    }

    /// Writes the definition; RIP is told by its difference to `last_rip`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, last_rip: u64) {
        out.push(self.mode.byte());
        put(out, self.base);
        out.push(self.places.len() as u8);
        put_signed(out, self.rip().wrapping_sub(last_rip));
        let mut expected = self.rip();
        for Insn { rip, bytes } in self.insns() {
            let has_jumped = rip != expected;
            out.push(bytes.len() as u8 | u8::from(has_jumped) << 4);
            if has_jumped {
                put_signed(out, rip.wrapping_sub(expected));
            }
            out.extend_from_slice(bytes);
            expected = rip.wrapping_add(bytes.len() as u64);
        }
    }

    /// Reads what [`Block::put`] has written.
    pub(crate) fn get(from: &mut Cursor<'_>, last_rip: u64) -> Result<Self, Damage> {
        let mut block = Self::new(Mode::of(from.byte()?)?, from.varint()?);
        let count = from.byte()?;
        if !(1..=INSNS_MAX).contains(&usize::from(count)) {
            return Err("a block has too few or too many instructions");
        }
        let mut rip = last_rip.wrapping_add(from.signed()?);
        for _ in 0..count {
            let form = from.byte()?;
            if form >> 5 != 0 {
                return Err("an instruction has an unknown form");
            }
            if form & 0x10 != 0 {
                rip = rip.wrapping_add(from.signed()?);
            }
            let bytes = from.bytes(usize::from(form & 0xf))?;
            if !block.push(rip, bytes) {
                return Err("an instruction has no bytes");
            }
            rip = rip.wrapping_add(bytes.len() as u64);
        }
        Ok(block)
    }
}
