//! Where names, marks and addresses are, beside the table of tokens.
//!
//! ```text
//! up to Linux 6.4:  offsets, base, count, names, marks, (order of names,) tokens, index
//! from Linux 6.5:   count, names, marks, tokens, index, offsets, base, order of names
//! ```
//!
//! Each table starts at a multiple of 8. The marks say where in the names each 256th is: an
//! increasing row that starts with 0, found going down from the tokens. Where the names start
//! follows, but for a few bytes, from the last mark and is settled by the count before them; a walk
//! over all names must then meet every mark and end at the first one.

use crate::memory::{u32_at, u64_at};

/// Symbols for each mark.
const STRIDE: usize = 256;
/// Symbols at most.
const SYMBOLS_MAX: usize = 4 << 20;
/// Bytes of a compressed name at most, its length included.
const NAME_MAX: usize = 514;
/// How far below the tokens the marks end at most: the order of names may be between.
const GAP_MAX: usize = 16 << 20;
/// Rows of numbers that look like marks and are examined.
const CANDIDATES_MAX: usize = 64;
/// Names that are walked over at most, to see whether they are some.
const WALKED_MAX: usize = 16 * SYMBOLS_MAX;
/// Marks that there must be for a row of numbers to look like them: no kernel is that small.
const MARKS_MIN: usize = 4;

/// The tables of one kernel.
#[derive(Debug)]
pub struct Layout<'a> {
    names: &'a [u8],
    addresses: Addresses<'a>,
    count: usize,
}

/// The form of the addresses.
#[derive(Debug)]
enum Addresses<'a> {
    /// As they are.
    Plain(&'a [u8]),
    /// To be added to a base.
    Relative(&'a [u8], u64),
    /// Those that are not negative are as they are; others are below the base, and one less.
    RelativeWithAbsolute(&'a [u8], u64),
}

impl Addresses<'_> {
    fn get(&self, index: usize) -> Option<u64> {
        match *self {
            Self::Plain(bytes) => u64_at(bytes, 8 * index),
            Self::Relative(bytes, base) => {
                u32_at(bytes, 4 * index).map(|offset| base.wrapping_add(u64::from(offset)))
            }
            Self::RelativeWithAbsolute(bytes, base) => {
                u32_at(bytes, 4 * index).map(|offset| match offset as i32 {
                    offset if offset >= 0 => offset as u64,
                    offset => base.wrapping_sub(1).wrapping_sub(i64::from(offset) as u64),
                })
            }
        }
    }
}

impl<'a> Layout<'a> {
    /// Finds the tables in the bytes before the tokens, which end at a multiple of 8, and in those
    /// behind the index. What is missing otherwise.
    pub fn find(before: &'a [u8], behind: &'a [u8]) -> Result<Self, &'static str> {
        let mut missing = "marks";
        let mut candidates = 0;
        let mut walked = 0;
        // Multiples of 8 are counted from the end: where the bytes start says nothing.
        for up in (8..before.len().min(GAP_MAX)).step_by(8) {
            let at = before.len() - up;
            let Some(marks) = marks(before, at) else { continue };
            missing = "names";
            if let Some((start, count)) = find_names(before, at, marks, &mut walked) {
                let names = before.get(start..at).unwrap_or_default();
                let head = before.get(..start - 8).unwrap_or_default();
                let addresses = find_addresses(head, behind, count).ok_or("addresses")?;
                return Ok(Self { names, addresses, count });
            }
            candidates += 1;
            if candidates == CANDIDATES_MAX || walked > WALKED_MAX {
                break;
            }
        }
        Err(missing)
    }

    /// The compressed names with their addresses.
    pub fn symbols(&self) -> impl Iterator<Item = (&'a [u8], u64)> + '_ {
        let mut rest = self.names;
        (0..self.count).map_while(move |index| {
            let (head, count) = name_length(rest)?;
            let name = rest.get(head..head + count)?;
            rest = rest.get(head + count..)?;
            Some((name, self.addresses.get(index)?))
        })
    }
}

/// Bytes of a name's length, and the length.
fn name_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let low = usize::from(*bytes.first()?);
    if low & 0x80 == 0 {
        return (low != 0).then_some((1, low));
    }
    Some((2, low & 0x7f | usize::from(*bytes.get(1)?) << 7))
}

/// A row of numbers that may be the marks.
#[derive(Clone, Copy)]
struct Marks {
    /// Bytes of one.
    width: usize,
    /// How many there are at most; what follows may go on like them by chance.
    most: usize,
}

impl Marks {
    fn get(self, bytes: &[u8], at: usize, index: usize) -> Option<usize> {
        match self.width {
            4 => u32_at(bytes, at + 4 * index).map(|mark| mark as usize),
            _ => u64_at(bytes, at + 8 * index).and_then(|mark| usize::try_from(mark).ok()),
        }
    }
}

/// The marks at `at`, if they may be some: of 32 bits, or of 64 as in Linux before 4.20.
fn marks(bytes: &[u8], at: usize) -> Option<Marks> {
    [4, 8].into_iter().find_map(|width| {
        let mut marks = Marks { width, most: 0 };
        let mut last = marks.get(bytes, at, 0).filter(|&mark| mark == 0)?;
        marks.most = 1;
        while let Some(mark) = marks.get(bytes, at, marks.most) {
            let is_next = (2 * STRIDE..=NAME_MAX * STRIDE).contains(&mark.wrapping_sub(last));
            if !is_next || marks.most * STRIDE >= SYMBOLS_MAX {
                break;
            }
            marks.most += 1;
            last = mark;
        }
        (marks.most >= MARKS_MIN).then_some(marks)
    })
}

/// Where the names start that end before the marks at `at`, and how many there are.
fn find_names(bytes: &[u8], at: usize, marks: Marks, walked: &mut usize) -> Option<(usize, usize)> {
    // The row may be longer than the marks, by one or two that are there by chance.
    (marks.most.saturating_sub(2)..=marks.most).rev().find_map(|marks_count| {
        let last = marks.get(bytes, at, marks_count.checked_sub(1)?)?;
        (0..=STRIDE * NAME_MAX + 8).step_by(8).find_map(|down| {
            // Names start at a multiple of 8 as the marks do.
            let start = at.checked_sub((last.checked_add(7)? & !7) + down)?;
            let count = u32_at(bytes, start.checked_sub(8)?)? as usize;
            let is_padded = u32_at(bytes, start - 4)? == 0;
            let is_right = is_padded && count.div_ceil(STRIDE) == marks_count;
            let is_right = is_right && *walked <= WALKED_MAX && count <= SYMBOLS_MAX;
            let names = bytes.get(start..at).filter(|_| is_right)?;
            let mark = |index| marks.get(bytes, at, index);
            meets(names, count, mark, walked).then_some((start, count))
        })
    })
}

/// True if a walk over `count` names meets all marks and ends where the names do. What was walked
/// is added to `walked`.
fn meets(
    names: &[u8],
    count: usize,
    mark: impl Fn(usize) -> Option<usize>,
    walked: &mut usize,
) -> bool {
    let mut position = 0;
    for index in 0..count {
        if index % STRIDE == 0 && mark(index / STRIDE) != Some(position) {
            return false;
        }
        *walked += 1;
        let Some((head, length)) = names.get(position..).and_then(name_length) else {
            return false;
        };
        position += head + length;
    }
    position <= names.len() && names.len() - position < 8
}

/// The addresses of `count` symbols: behind the index, or at the end of `head`, which ends before
/// the count.
fn find_addresses<'a>(head: &'a [u8], behind: &'a [u8], count: usize) -> Option<Addresses<'a>> {
    let room = (4 * count).next_multiple_of(8);
    let newer = || relative(behind.get(..room)?, u64_at(behind, room)?, count);
    let older = || {
        let base = head.len().checked_sub(8)?;
        let offsets = head.get(base.checked_sub(room)?..base)?;
        relative(offsets, u64_at(head, base)?, count)
    };
    let plain = |bytes: Option<&'a [u8]>| ordered(Addresses::Plain(bytes?), count);
    newer()
        .or_else(older)
        .or_else(|| plain(behind.get(..8 * count)))
        .or_else(|| plain(head.get(head.len().checked_sub(8 * count)?..)))
}

fn relative(offsets: &[u8], base: u64, count: usize) -> Option<Addresses<'_>> {
    if base >> 47 != u64::MAX >> 47 {
        return None;
    }
    ordered(Addresses::RelativeWithAbsolute(offsets, base), count)
        .filter(|addresses| addresses.get(count - 1).is_some_and(|last| last >= base))
        .or_else(|| ordered(Addresses::Relative(offsets, base), count))
}

/// The addresses, if they are in order as the kernel has them.
fn ordered(addresses: Addresses<'_>, count: usize) -> Option<Addresses<'_>> {
    let mut last = 0;
    for index in 0..count {
        let address = addresses.get(index)?;
        if address < last {
            return None;
        }
        last = address;
    }
    (last >> 47 == u64::MAX >> 47).then_some(addresses)
}
