//! `--jit-cross-check`: every translated block is executed by the interpreter too, from the same
//! state and the same memory, and the results are compared.
//!
//! Strategy: a block runs alone (no links are made), under a journal: the TLBs are empty when it
//! begins, so the first store to each page passes the slow path, which keeps the page as it was.
//! Then
//! memory and state are put back, and the interpreter executes as many instructions. The guest goes
//! on with the interpreter's results. What cannot be taken back (handlers, devices) never runs in a
//! translated block in this mode.
//!
//! Known limits: memory that other vCPUs or devices change meanwhile looks like a difference.

use cpu::engine::Vcpu;
use cpu::fpu::{FSW_TOP, FpuState};
use cpu::state::State;
use memory::PAGE_SIZE;

use crate::context::VIEWS;
use crate::exit::Exit;
use crate::vcpu::Inner;

/// A page of RAM as it was before the block's first store to it.
pub(crate) struct KeptPage {
    ram_page: u64,
    bytes: Box<[u8]>,
}

/// The flags of MXCSR that say which exceptions there were.
const EXCEPTION_FLAGS: u32 = 0x3f;
/// The tags of MMX operation: no register is empty.
const MMX_FTW: u8 = 0xff;
/// Blocks of the interpreter that as many instructions as one translated block may take.
const MOST_BLOCKS: u32 = 256;

impl Inner {
    /// Keeps page `ram_page` for the journal, if there is one.
    pub(crate) fn keep_page(&mut self, ram_page: u64) {
        let Some(journal) = &mut self.journal else { return };
        if journal.iter().any(|kept| kept.ram_page == ram_page) {
            return;
        }
        let mut bytes = vec![0; PAGE_SIZE as usize].into_boxed_slice();
        self.cpu.ram().read_bytes(ram_page, &mut bytes);
        journal.push(KeptPage { ram_page, bytes });
    }

    /// True if the page tables still map the code at RIP, as they need not while a TLB has it.
    pub(crate) fn is_mapped(&mut self) -> bool {
        let rip = self.cpu.state.rip;
        self.keeping_cr2(|inner| inner.cpu.code_page(rip)).is_ok()
    }

    /// Begins a journal.
    pub(crate) fn begin_check(&mut self) -> State {
        self.settle_x87();
        for view in VIEWS {
            self.slots.current_context().clear_tlb(view);
        }
        self.journal = Some(Vec::new());
        self.cpu.state.clone()
    }

    /// Executes again what the block that was left by `exit` has executed since `before`, by the
    /// interpreter, and reports differences. The state's RIP is where translated code has got to.
    pub(crate) fn end_check(&mut self, before: State, executed: u64, exit: Exit) {
        self.settle_x87();
        let journal = self.journal.take().unwrap_or_default();
        let rip = before.rip;
        let pointers = Pointers::of(&before.fpu);
        let mut translated = std::mem::replace(&mut self.cpu.state, before);
        self.cpu.mode_changed();
        let pages: Vec<Box<[u8]>> = journal.iter().map(|kept| self.exchange(kept)).collect();
        let start = self.cpu.retired();
        for _ in 0..MOST_BLOCKS {
            let done = self.cpu.retired().wrapping_sub(start);
            if done >= executed {
                break;
            }
            self.cpu.interpret(executed - done);
        }
        let done = self.cpu.retired().wrapping_sub(start);
        // Counted already.
        self.cpu.add_retired(done.wrapping_neg());
        if exit == Exit::Signal {
            take_back_stopped(&mut translated.fpu, &self.cpu.state.fpu);
        }
        let mut differences = compare(&translated, &self.cpu.state);
        differences.extend(pointers.compare(&translated.fpu, &self.cpu.state.fpu));
        if done != executed {
            differences.push(format!("{executed} instructions, interpreted {done}"));
        }
        for (kept, bytes) in journal.iter().zip(&pages) {
            self.compare_page(kept.ram_page, bytes, &mut differences);
        }
        self.slow.checked += 1;
        if !differences.is_empty() {
            self.slow.mismatches += 1;
            log::error!(
                target: "jit",
                "the engines differ behind {executed} instructions from {rip:#x} on, \
                left by {exit:?}: {}",
                differences.join("; ")
            );
        }
        self.mode_is_stale();
    }

    /// Puts a kept page back; what was there instead.
    fn exchange(&self, kept: &KeptPage) -> Box<[u8]> {
        let mut bytes = vec![0; PAGE_SIZE as usize].into_boxed_slice();
        self.cpu.ram().read_bytes(kept.ram_page, &mut bytes);
        self.cpu.ram().write_bytes(kept.ram_page, &kept.bytes);
        bytes
    }

    fn compare_page(&self, ram_page: u64, translated: &[u8], differences: &mut Vec<String>) {
        let mut now = vec![0; PAGE_SIZE as usize];
        self.cpu.ram().read_bytes(ram_page, &mut now);
        let first = now.iter().zip(translated).position(|(a, b)| a != b);
        if let Some((at, (a, b))) =
            first.zip(first.and_then(|at| now.get(at).zip(translated.get(at))))
        {
            let address = ram_page + at as u64;
            differences.push(format!("RAM {address:#x}: {b:#x}, interpreted {a:#x}"));
        }
    }
}

/// Takes back what the host has done for an instruction that it stopped at, and that is to be
/// interpreted yet: flags of exceptions, and the change to MMX operation, which a conversion to an
/// MMX register makes before it raises #XM.
fn take_back_stopped(translated: &mut FpuState, interpreted: &FpuState) {
    let raised = translated.mxcsr & !interpreted.mxcsr & EXCEPTION_FLAGS;
    translated.mxcsr &= !raised;
    if translated.fsw & FSW_TOP == 0 && translated.ftw == MMX_FTW {
        translated.fsw |= interpreted.fsw & FSW_TOP;
        translated.ftw = interpreted.ftw;
    }
}

/// The last x87 instruction and operand before a block.
struct Pointers {
    instruction: (u64, u16, u16),
    data: (u64, u16),
}

impl Pointers {
    fn of(fpu: &FpuState) -> Self {
        Self { instruction: fpu.instruction_pointer(), data: fpu.data_pointer() }
    }

    /// Which of the pointers differ. The host may lose its own in a switch of threads; then they
    /// are what they were.
    fn compare(&self, translated: &FpuState, interpreted: &FpuState) -> Vec<String> {
        let (now, expected) = (Self::of(translated), Self::of(interpreted));
        let mut differences = Vec::new();
        if ![self.instruction, expected.instruction].contains(&now.instruction) {
            let (now, expected) = (now.instruction, expected.instruction);
            differences.push(format!("x87 FIP, FCS, FOP {now:x?}, interpreted {expected:x?}"));
        }
        if ![self.data, expected.data].contains(&now.data) {
            let (now, expected) = (now.data, expected.data);
            differences.push(format!("x87 FDP, FDS {now:x?}, interpreted {expected:x?}"));
        }
        differences
    }
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// What differs between the two states, in words.
fn compare(translated: &State, interpreted: &State) -> Vec<String> {
    let mut differences = Vec::new();
    let mut note = |name: &str, a: u64, b: u64| {
        if a != b {
            differences.push(format!("{name} {a:#x}, interpreted {b:#x}"));
        }
    };
    for (name, (&a, &b)) in NAMES.iter().zip(translated.gpr.iter().zip(&interpreted.gpr)) {
        note(name, a, b);
    }
    note("rip", translated.rip, interpreted.rip);
    note("rflags", translated.rflags, interpreted.rflags);
    let (a, b) = (&translated.fpu, &interpreted.fpu);
    note("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    note("fcw", a.fcw.into(), b.fcw.into());
    note("fsw", a.fsw.into(), b.fsw.into());
    note("ftw", a.ftw.into(), b.ftw.into());
    for number in 0..a.zmm.len() {
        if a.zmm.get(number) != b.zmm.get(number) {
            differences.push(format!("zmm{number}"));
        }
    }
    if a.opmask != b.opmask {
        differences.push("mask registers".into());
    }
    if a.x87 != b.x87 {
        differences.push("x87 registers".into());
    }
    differences
}
