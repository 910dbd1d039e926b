//! Stacks of a Linux kernel that keeps no frame pointers, by its own tables (ORC).
//!
//! For each piece of code the kernel says where the caller's frame is: an offset from the stack
//! pointer or from another register. The tables are found by their symbols and read once; a stack
//! is then unwound with a look-up for each frame. Their form is that of Linux 5.10 and later
//! (`arch/x86/include/asm/orc_types.h`); Linux 6.4 gave the types other numbers, which show by
//! which of them is the most frequent.
//!
//! Known departures: loadable modules have tables of their own, which are not read: behind a frame
//! of a module the stack is searched for a return address of the kernel, which is marked as a
//! guess.

use crate::Module;
use crate::memory::{Reader, read_up, u32_at, u64_at};

/// Entries that are read at most.
const ENTRIES_MAX: usize = 8 << 20;
/// Bytes of an entry, and of the address of its code.
const ENTRY: usize = 6;
const IP: usize = 4;
/// Words of a stack that are searched for a return address.
const SEARCH_WORDS: usize = 256;

/// What is known of a register's place.
const PREVIOUS_SP: u8 = 1;
const DX: u8 = 2;
const DI: u8 = 3;
const BP: u8 = 4;
const SP: u8 = 5;
const R10: u8 = 6;
const R13: u8 = 7;
const BP_INDIRECT: u8 = 8;
const SP_INDIRECT: u8 = 9;

/// Where `struct pt_regs` has a register.
const REGS_BP: u64 = 32;
const REGS_R10: u64 = 56;
const REGS_R13: u64 = 16;
const REGS_DX: u64 = 96;
const REGS_DI: u64 = 112;
const REGS_IRET: u64 = 128;
/// Where the frame of IRETQ has the stack pointer.
const IRET_SP: u64 = 24;

/// The registers that unwinding starts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The instruction.
    pub rip: u64,
    /// The stack.
    pub rsp: u64,
    /// The frame, where there is one.
    pub rbp: u64,
    /// Others that a frame may be relative to.
    pub rdx: u64,
    /// See `rdx`.
    pub rdi: u64,
    /// See `rdx`.
    pub r10: u64,
    /// See `rdx`.
    pub r13: u64,
}

/// One function on a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Where it is: what is executed next, or where a call returns to.
    pub address: u64,
    /// It was found by searching, and may be a remnant of something else.
    pub is_guess: bool,
    /// It is where a call returns to: its call is before.
    pub is_return: bool,
}

/// One function on a stack with the registers that it goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Where it is.
    pub frame: Frame,
    /// Its stack.
    pub rsp: u64,
    /// Its RBP, which is the caller's where it does not keep one itself.
    pub rbp: u64,
}

impl Activation {
    /// Where unwinding starts.
    fn first(registers: &Registers) -> Self {
        let frame = Frame { address: registers.rip, is_guess: false, is_return: false };
        Self { frame, rsp: registers.rsp, rbp: registers.rbp }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Undefined,
    End,
    Call,
    Registers,
    IretFrame,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    sp_offset: i16,
    bp_offset: i16,
    flags: u16,
}

impl Entry {
    fn sp_register(self) -> u8 {
        (self.flags & 0xf) as u8
    }

    fn bp_register(self) -> u8 {
        (self.flags >> 4 & 0xf) as u8
    }

    /// Its kind, with the numbers of Linux before or from 6.4.
    fn kind(self, is_newer: bool) -> Kind {
        if !is_newer && self.flags >> 10 & 3 != 0 {
            return Kind::End;
        }
        match (is_newer, self.flags >> 8 & if is_newer { 7 } else { 3 }) {
            (true, 1) => Kind::End,
            (true, 2) | (false, 0) => Kind::Call,
            (true, 3) | (false, 1) => Kind::Registers,
            (true, 4) | (false, 2) => Kind::IretFrame,
            _ => Kind::Undefined,
        }
    }
}

/// The tables of a kernel.
#[derive(Debug)]
pub struct Orc {
    /// Where the code of each entry starts, sorted.
    starts: Vec<u64>,
    entries: Vec<Entry>,
    is_newer: bool,
    /// Where code is: what stays, and what is for the start alone.
    text: [(u64, u64); 2],
}

impl Orc {
    /// True if these are the symbols of a kernel with such tables.
    pub fn is_of(symbols: &Module) -> bool {
        symbols.find("__start_orc_unwind_ip").is_some()
    }

    /// Reads the tables of the kernel with these symbols; `None` if it has none.
    pub fn read(symbols: &Module, read: &mut Reader<'_>) -> Option<Self> {
        let address = |name| symbols.find(name).map(|symbol| symbol.address);
        let first = address("__start_orc_unwind_ip")?;
        let bytes = usize::try_from(address("__stop_orc_unwind_ip")?.checked_sub(first)?).ok()?;
        let count = (bytes / IP).min(ENTRIES_MAX);
        let places = read_up(read, first, count * IP);
        let entries = read_up(read, address("__start_orc_unwind")?, count * ENTRY);
        let mut rows: Vec<(u64, Entry)> = (0..count)
            .map_while(|index| {
                let place = u32_at(&places, index * IP)? as i32;
                let entry = entries.get(index * ENTRY..(index + 1) * ENTRY)?;
                let half =
                    |at: usize| Some(u16::from_le_bytes(entry.get(at..at + 2)?.try_into().ok()?));
                let (sp_offset, bp_offset) = (half(0)? as i16, half(2)? as i16);
                let from = first.wrapping_add((index * IP) as u64);
                let entry = Entry { sp_offset, bp_offset, flags: half(4)? };
                Some((from.wrapping_add(i64::from(place) as u64), entry))
            })
            .collect();
        rows.sort_by_key(|(start, _)| *start);
        // Most of the code is functions, which are of this type.
        let of_type = |kind| rows.iter().filter(|(_, entry)| entry.flags >> 8 & 7 == kind).count();
        let is_newer = of_type(2) > of_type(0);
        let (first, last) = (rows.first()?.0, rows.last()?.0);
        let range = |start, end| address(start).zip(address(end));
        let text = range("_stext", "_etext").unwrap_or((first, last));
        let text = [text, range("_sinittext", "_einittext").unwrap_or_default()];
        let (starts, entries) = rows.into_iter().unzip();
        Some(Self { starts, entries, is_newer, text })
    }

    fn entry(&self, address: u64) -> Option<Entry> {
        let behind = self.starts.partition_point(|&start| start <= address);
        self.entries.get(behind.checked_sub(1)?).copied()
    }

    fn is_text(&self, address: u64) -> bool {
        self.text.iter().any(|&(start, end)| (start..end).contains(&address))
    }

    /// The functions on the stack, the innermost first: `most` of them at most.
    pub fn unwind(
        &self,
        registers: Registers,
        most: usize,
        read: &mut Reader<'_>,
    ) -> Vec<Activation> {
        let mut at = Position { registers, has_all: true, is_return: false };
        let mut frames = vec![Activation::first(&registers)];
        while frames.len() < most {
            let before = at.registers.rsp;
            let is_guess = match self.step(&mut at, read) {
                Step::Done => false,
                Step::End => break,
                Step::Lost if self.search(&mut at, read) => true,
                Step::Lost => break,
            };
            // A stack grows down: whoever called is further up, but for a change of stacks.
            let is_stuck = at.registers.rsp == before && at.is_return;
            if is_stuck || at.registers.rip >> 47 == 0 {
                break;
            }
            let Registers { rip, rsp, rbp, .. } = at.registers;
            let frame = Frame { address: rip, is_guess, is_return: at.is_return };
            frames.push(Activation { frame, rsp, rbp });
        }
        frames
    }

    /// Goes to the caller.
    fn step(&self, at: &mut Position, read: &mut Reader<'_>) -> Step {
        let here = at.registers;
        let address = here.rip.wrapping_sub(u64::from(at.is_return));
        let entry = self.entry(address).filter(|_| self.is_text(address));
        let Some(entry) = entry else { return Step::Lost };
        match entry.kind(self.is_newer) {
            Kind::End => return Step::End,
            Kind::Undefined => return Step::Lost,
            _ => {}
        }
        self.go_up(at, entry, read).map_or(Step::Lost, |()| Step::Done)
    }

    fn go_up(&self, at: &mut Position, entry: Entry, read: &mut Reader<'_>) -> Option<()> {
        let here = at.registers;
        let sp = frame_of(at, entry, read)?;
        match entry.kind(self.is_newer) {
            Kind::Registers => {
                let mut register = |offset| word(read, sp.wrapping_add(offset));
                at.registers = Registers {
                    rip: register(REGS_IRET)?,
                    rsp: register(REGS_IRET + IRET_SP)?,
                    rbp: register(REGS_BP)?,
                    rdx: register(REGS_DX)?,
                    rdi: register(REGS_DI)?,
                    r10: register(REGS_R10)?,
                    r13: register(REGS_R13)?,
                };
                (at.has_all, at.is_return) = (true, false);
            }
            Kind::IretFrame => {
                at.registers.rip = word(read, sp)?;
                at.registers.rsp = word(read, sp.wrapping_add(IRET_SP))?;
                (at.has_all, at.is_return) = (false, false);
            }
            _ => {
                at.registers.rip = word(read, sp.wrapping_sub(8))?;
                at.registers.rsp = sp;
                (at.has_all, at.is_return) = (false, true);
            }
        }
        let offset = i64::from(entry.bp_offset) as u64;
        match entry.bp_register() {
            PREVIOUS_SP => at.registers.rbp = word(read, sp.wrapping_add(offset))?,
            BP => at.registers.rbp = word(read, here.rbp.wrapping_add(offset))?,
            _ => {}
        }
        Some(())
    }

    /// Goes to the nearest word of the stack that is a return address of the kernel.
    fn search(&self, at: &mut Position, read: &mut Reader<'_>) -> bool {
        let stack = read_up(read, at.registers.rsp, 8 * SEARCH_WORDS);
        for index in 0..stack.len() / 8 {
            let Some(address) = u64_at(&stack, 8 * index) else { return false };
            if self.is_text(address) && follows_call(address, read) {
                at.registers.rip = address;
                at.registers.rsp = at.registers.rsp.wrapping_add(8 * (index as u64 + 1));
                (at.has_all, at.is_return) = (false, true);
                return true;
            }
        }
        false
    }
}

/// How far unwinding has come.
struct Position {
    registers: Registers,
    /// All registers are those of the frame; else only RIP, RSP and RBP are.
    has_all: bool,
    is_return: bool,
}

enum Step {
    Done,
    End,
    Lost,
}

/// Where the caller's frame is.
fn frame_of(at: &Position, entry: Entry, read: &mut Reader<'_>) -> Option<u64> {
    let here = &at.registers;
    let offset = i64::from(entry.sp_offset) as u64;
    let other = |value: u64| at.has_all.then(|| value.wrapping_add(offset));
    match entry.sp_register() {
        SP => Some(here.rsp.wrapping_add(offset)),
        BP => Some(here.rbp.wrapping_add(offset)),
        SP_INDIRECT => word(read, here.rsp).map(|sp| sp.wrapping_add(offset)),
        BP_INDIRECT => word(read, here.rbp.wrapping_add(offset)),
        DX => other(here.rdx),
        DI => other(here.rdi),
        R10 => other(here.r10),
        R13 => other(here.r13),
        _ => None,
    }
}

fn word(read: &mut Reader<'_>, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (read(at, &mut bytes) == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// True if the instruction before `address` is a near call: by a displacement, or through a
/// register or memory.
fn follows_call(address: u64, read: &mut Reader<'_>) -> bool {
    let mut code = [0; 7];
    if read(address.wrapping_sub(7), &mut code) < code.len() {
        return false;
    }
    let [_, _, relative, ..] = code;
    // FF /2 with as many bytes behind it as there can be: none, a displacement of 8 or of 32 bits,
    // each without and with a SIB byte.
    let indirect = [5, 4, 3, 1, 0].into_iter().any(|at| {
        let pair = code.get(at..at + 2).unwrap_or_default();
        matches!(pair, [0xff, modrm] if modrm >> 3 & 7 == 2)
    });
    relative == 0xe8 || indirect
}

/// The functions on a stack whose frames are chained by RBP, the innermost first.
pub fn by_frame_pointers(
    registers: Registers,
    most: usize,
    read: &mut Reader<'_>,
) -> Vec<Activation> {
    let mut frames = vec![Activation::first(&registers)];
    let mut frame = registers.rbp;
    let is_kernel = |address: u64| address >> 63 != 0;
    while frames.len() < most && frame.is_multiple_of(8) {
        let Some(up) = word(read, frame) else { break };
        let Some(address) = word(read, frame.wrapping_add(8)) else { break };
        // Nothing is called from below, and a kernel returns to a program by other ways.
        if up <= frame || address < 4096 || is_kernel(address) != is_kernel(registers.rip) {
            break;
        }
        let caller = Frame { address, is_guess: false, is_return: true };
        frames.push(Activation { frame: caller, rsp: frame.wrapping_add(16), rbp: up });
        frame = up;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Builder;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const IPS: u64 = 0xffff_ffff_8200_0000;
    const ORC: u64 = 0xffff_ffff_8200_1000;
    const STACK: u64 = 0xffff_c900_0000_0000;

    /// Rows of a table: offset of the code, offset of the frame, its register, type.
    type Row = (u64, i16, u8, u16);

    fn symbols() -> Module {
        let mut builder = Builder::new("vmlinux");
        for (address, name) in [
            (TEXT, "_stext"),
            (TEXT + 0x1000, "_etext"),
            (IPS, "__start_orc_unwind_ip"),
            (IPS + 16, "__stop_orc_unwind_ip"),
            (ORC, "__start_orc_unwind"),
        ] {
            builder.push(address, 0, 'T', name).expect("there is room");
        }
        builder.finish()
    }

    /// Memory: the tables, 4 KiB of code that is calls alone, and a stack.
    fn memory(rows: &[Row; 4], stack: &[u64]) -> impl FnMut(u64, &mut [u8]) -> usize + use<> {
        let (mut places, mut entries) = (Vec::new(), Vec::new());
        for (index, &(offset, sp, register, kind)) in (0..).zip(rows) {
            let difference = (TEXT + offset).wrapping_sub(IPS + 4 * index);
            places.extend((difference as u32).to_le_bytes());
            entries.extend(sp.to_le_bytes());
            entries.extend(0i16.to_le_bytes());
            entries.extend((u16::from(register) | kind << 8).to_le_bytes());
        }
        let stack: Vec<u8> = stack.iter().flat_map(|word| word.to_le_bytes()).collect();
        let regions = [(IPS, places), (ORC, entries), (TEXT, vec![0xe8; 0x1000]), (STACK, stack)];
        move |at, out| {
            let inside = regions
                .iter()
                .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&at));
            let Some((start, bytes)) = inside else { return 0 };
            let rest = &bytes[(at - start) as usize..];
            let count = rest.len().min(out.len());
            out[..count].copy_from_slice(&rest[..count]);
            count
        }
    }

    fn stack_of(rows: &[Row; 4], stack: &[u64], rip: u64) -> Vec<(u64, bool)> {
        let mut read = memory(rows, stack);
        let orc = Orc::read(&symbols(), &mut read).expect("there are tables");
        let registers = Registers { rip, rsp: STACK, ..Registers::default() };
        let frames = orc.unwind(registers, 16, &mut read);
        let frames = frames.iter().map(|activation| activation.frame);
        frames.map(|frame| (frame.address - TEXT, frame.is_guess)).collect()
    }

    /// Types of Linux before 6.4: a call, registers, the end.
    const OLD: [Row; 4] = [(0, 8, SP, 0), (0x100, 24, SP, 0), (0x200, 16, SP, 0), (0x300, 0, 0, 4)];
    /// The same from 6.4 on.
    const NEW: [Row; 4] = [(0, 8, SP, 2), (0x100, 24, SP, 2), (0x200, 16, SP, 2), (0x300, 0, 0, 1)];

    #[test]
    fn frames_are_where_the_tables_say() {
        let stack = [TEXT + 0x110, 1, 2, TEXT + 0x210, 3, TEXT + 0x310, 4];
        let expected = [(0x10, false), (0x110, false), (0x210, false), (0x310, false)];
        for rows in [&OLD, &NEW] {
            assert_eq!(stack_of(rows, &stack, TEXT + 0x10), expected);
        }
    }

    #[test]
    fn a_call_at_the_end_of_its_function_is_of_that_function() {
        // It returns to where the next function begins, which has another frame.
        let stack = [TEXT + 0x200, 1, 2, TEXT + 0x310];
        let expected = [(0x10, false), (0x200, false), (0x310, false)];
        assert_eq!(stack_of(&NEW, &stack, TEXT + 0x10), expected);
    }

    #[test]
    fn interrupts_go_on_where_they_came() {
        // struct pt_regs, of which RIP and RSP are the words 16 and 19.
        let mut stack = vec![0; 24];
        (stack[16], stack[19]) = (TEXT + 0x310, STACK + 0x1000);
        let rows = [(0, 0, SP, 3), (0x100, 8, SP, 2), (0x200, 8, SP, 2), (0x300, 0, 0, 1)];
        assert_eq!(stack_of(&rows, &stack, TEXT), [(0, false), (0x310, false)]);
    }

    #[test]
    fn behind_what_is_not_known_the_stack_is_searched() {
        let module = TEXT + 0x4000_0000;
        let stack = [1, TEXT - 8, 0x1234, TEXT + 0x310];
        let frames = stack_of(&NEW, &stack, module);
        assert_eq!(frames, [(0x4000_0000, false), (0x310, true)]);
    }

    #[test]
    fn a_stack_that_leads_nowhere_ends() {
        assert_eq!(stack_of(&NEW, &[], TEXT + 0x10).len(), 1);
        // A frame that is its own caller.
        let rows = [(0, 8, BP_INDIRECT, 2), (1, 8, SP, 2), (2, 8, SP, 2), (0x300, 0, 0, 1)];
        assert!(stack_of(&rows, &[STACK + 8, TEXT, TEXT], TEXT).len() <= 16);
    }

    #[test]
    fn frame_pointers_go_up_and_end() {
        let words = [STACK + 16, 0x1000, STACK + 48, 0x2000, 0, 0, 0, 0x3000];
        let mut read = memory(&OLD, &words);
        // The code is at addresses of a program.
        let registers = Registers { rip: 0x4000, rsp: STACK, rbp: STACK, ..Registers::default() };
        let frames = by_frame_pointers(registers, 16, &mut read);
        let frames: Vec<_> =
            frames.iter().map(|one| (one.frame.address, one.rsp - STACK, one.rbp)).collect();
        let callers = [(0x1000, 16, STACK + 16), (0x2000, 32, STACK + 48)];
        assert_eq!(frames, [(0x4000, 0, STACK), callers[0], callers[1]]);
    }
}
