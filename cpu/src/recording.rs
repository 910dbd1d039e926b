//! What a CPU tells a trace: the blocks it executes and what happens between and in them.
//!
//! The interpreter's loop tells each block before it executes it, and that it was left early
//! behind it; a translator has its code do the same. Events are told from where they happen. While
//! nothing is recorded all of this costs one flag for each block of the interpreter and each event.
//!
//! Accesses to memory and changes of registers are the interpreter's alone: while they are wanted a
//! translator executes nothing ([`Cpu::records_details`]), and no page is put into the translation
//! caches, so that each access takes the slow path, which tells it.
//!
//! What is recorded changes between blocks only: a trigger that is met inside of one counts from
//! the next on.

mod registers;

use std::ops::RangeInclusive;

use registers::Shown;
use trace::{Block, Event, InterruptSource, Kinds, Mode, Recorder, Register, Value, Width};

use crate::Cpu;
use crate::exception::{Exception, Vector};
use crate::interp::block::Block as CodeBlock;
use crate::mmu::Access;
use crate::state::{State, seg};

/// The longest block of the interpreter, in bytes and rounded up.
const NEAR_BYTES: u64 = 512;
/// Bits of CR3 that name an address space.
const CR3_BASE: u64 = 0x7fff_ffff_ffff_f000;

/// Where recording begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// When the CPU has retired so many instructions.
    Count(u64),
    /// Before the instruction at this linear address is executed.
    Address(u64),
    /// Behind the delivery of an interrupt or exception with this vector.
    Vector(u8),
}

/// What is recorded of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What of it.
    pub kinds: Kinds,
    /// Only instructions at these linear addresses.
    pub range: Option<RangeInclusive<u64>>,
    /// Only at this privilege level.
    pub cpl: Option<u8>,
    /// Only in this address space.
    pub cr3: Option<u64>,
    /// Where it begins, if not at once.
    pub from: Option<Trigger>,
    /// Where it ends.
    pub to: Option<Trigger>,
}

/// How far recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    On,
    Over,
}

/// What is recorded of a CPU, and how far.
pub(crate) struct Recording {
    recorder: Recorder,
    wishes: Wishes,
    phase: Phase,
    /// Something is recorded now: neither is it too early or late, nor the address space another.
    is_on: bool,
    /// The engine counts instructions exactly.
    has_counts: bool,
    /// Instructions of the newest block that are left, the current one included.
    left: u32,
    /// Guest time that was not told yet.
    time_ns: Option<u64>,
    /// A vector that is a trigger was delivered.
    is_triggered: bool,
    /// The interpreter executes what is not told, by its address or privilege level.
    is_outside: bool,
    /// The registers that were told last.
    shown: Shown,
}

impl Recording {
    fn wants(&self, kinds: Kinds) -> bool {
        self.is_on && self.wishes.kinds.has(kinds)
    }

    /// The same of what is told with instructions only.
    fn wants_detail(&self, kinds: Kinds) -> bool {
        self.wants(kinds) && !self.is_outside
    }

    fn settle_time(&mut self, count: u64) {
        if let Some(ns) = self.time_ns.take() {
            let count = self.has_counts.then_some(count);
            self.recorder.event(Event::Time { ns }, self.left, count);
        }
    }

    fn event(&mut self, event: Event, count: u64) {
        self.settle_time(count);
        self.recorder.event(event, self.left, self.has_counts.then_some(count));
    }

    /// Tells the registers that differ from those that were told last.
    fn registers(&mut self, state: &State, count: u64) {
        let mut shown = std::mem::take(&mut self.shown);
        shown.update(state, |register, value| {
            self.event(Event::Register { register, value }, count);
        });
        self.shown = shown;
    }

    fn is_met(&self, trigger: Trigger, count: u64, linear: u64) -> bool {
        match trigger {
            Trigger::Count(at) => count >= at,
            Trigger::Address(at) => linear == at,
            Trigger::Vector(_) => self.is_triggered,
        }
    }

    /// What ends the phase.
    fn trigger(&self) -> Option<Trigger> {
        match self.phase {
            Phase::Waiting => self.wishes.from,
            Phase::On => self.wishes.to,
            Phase::Over => None,
        }
    }
}

/// What the machine's owner does to a CPU that does not run.
impl Cpu {
    /// Begins to record. `has_counts` says that the engine counts instructions.
    pub fn start_recording(&mut self, recorder: Recorder, wishes: Wishes, has_counts: bool) {
        let phase = if wishes.from.is_some() { Phase::Waiting } else { Phase::On };
        self.recording = Some(Box::new(Recording {
            recorder,
            wishes,
            phase,
            is_on: false,
            has_counts,
            left: 0,
            time_ns: None,
            is_triggered: false,
            is_outside: false,
            shown: Shown::default(),
        }));
        self.recording_changed();
        self.note_recorded_time();
    }

    /// Ends recording; what was recorded is on its way to the file.
    pub fn stop_recording(&mut self) {
        if let Some(mut recording) = self.recording.take() {
            if recording.is_on {
                recording.event(Event::End, self.retired);
            }
            self.recording_changed();
        }
    }

    /// True while something is recorded or waits to be.
    #[inline]
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some() || self.logs_blocks
    }

    /// What was made for another way of recording goes.
    fn recording_changed(&mut self) {
        self.blocks.clear();
        self.flush_translations();
        self.has_new_recording = true;
    }
}

/// What engines ask.
impl Cpu {
    /// True, once, if code must be made anew, since it is recorded in another way.
    pub fn take_new_recording(&mut self) -> bool {
        std::mem::take(&mut self.has_new_recording)
    }

    /// True if [`Cpu::take_new_recording`] will say so.
    #[inline]
    pub fn has_new_recording(&self) -> bool {
        self.has_new_recording
    }

    /// True if blocks are told now, whatever the address space is.
    pub fn records_code(&self) -> bool {
        let is_on = |recording: &Recording| {
            recording.phase == Phase::On && recording.wishes.kinds.has_code()
        };
        self.recording.as_deref().is_some_and(is_on)
    }

    /// True if accesses to memory or changes of registers are told: each instruction is the
    /// interpreter's.
    pub fn records_details(&self) -> bool {
        let details = Kinds::MEMORY.with(Kinds::REGISTERS);
        let is_on = |recording: &Recording| {
            recording.phase == Phase::On && recording.wishes.kinds.has(details)
        };
        self.logs_blocks || self.recording.as_deref().is_some_and(is_on)
    }

    /// True if the instruction at `linear` is told, as far as that depends on where it is.
    pub fn records_address(&self, linear: u64) -> bool {
        let range = self.recording.as_deref().and_then(|recording| recording.wishes.range.as_ref());
        range.is_none_or(|range| range.contains(&linear))
    }

    /// True if a block must end before the instruction at `linear`, for recording begins or ends
    /// there.
    pub fn is_recording_trigger(&self, linear: u64) -> bool {
        let trigger = self.recording.as_deref().and_then(Recording::trigger);
        trigger == Some(Trigger::Address(linear))
    }

    /// True if code of the current mode is told.
    pub fn records_mode(&self) -> bool {
        let wished = self.recording.as_deref().and_then(|recording| recording.wishes.cpl);
        wished.is_none_or(|cpl| cpl == self.mode.cpl)
    }

    /// How many of `count` instructions may be executed until recording may begin or end.
    pub fn unrecorded_count(&self, count: u64) -> u64 {
        match self.recording.as_deref().and_then(Recording::trigger) {
            Some(Trigger::Count(at)) if at > self.retired => count.min(at - self.retired),
            Some(Trigger::Address(at)) => {
                let distance = at.wrapping_sub(self.linear_ip());
                if (1..NEAR_BYTES).contains(&distance) { count.min(1) } else { count }
            }
            _ => count,
        }
    }

    /// Makes a block of a translator's known; its number. `None` if there are too many: then all
    /// code is to be dropped.
    pub fn define_recorded(&mut self, block: Block) -> Option<u32> {
        self.recording.as_deref_mut()?.recorder.define(block)
    }

    /// All translated code was dropped, and with it the numbers of its blocks.
    pub fn forget_recorded(&mut self) {
        if let Some(recording) = self.recording.as_deref_mut() {
            recording.recorder.forget_blocks();
            self.blocks.clear();
        }
    }

    /// Tells the words of translated code.
    pub fn record_words(&mut self, words: &[u32]) {
        if let Some(recording) = self.recording.as_deref_mut()
            && recording.is_on
        {
            recording.settle_time(self.retired);
            recording.recorder.words(words);
        }
    }

    /// Tells that the newest block was left before its last `left` instructions.
    pub fn record_cut(&mut self, left: u64) {
        if left != 0 {
            self.record_words(&[Recorder::cut_word(left as u32)]);
        }
    }

    /// What is told next happens before the last `left` instructions of the newest block.
    pub fn set_recorded_left(&mut self, left: u64) {
        if let Some(recording) = self.recording.as_deref_mut() {
            recording.left = left as u32;
        }
    }

    /// Between two blocks: lets recording begin or end, if that is due.
    #[inline]
    pub fn settle_recording(&mut self) {
        if self.recording.is_some() {
            self.settle_recording_slowly();
        }
    }

    #[cold]
    fn settle_recording_slowly(&mut self) {
        let (count, linear, cr3) = (self.retired, self.linear_ip(), self.state.cr3);
        let Some(recording) = self.recording.as_deref_mut() else { return };
        if recording.recorder.is_closed() {
            return self.stop_recording();
        }
        let is_due =
            recording.trigger().is_some_and(|trigger| recording.is_met(trigger, count, linear));
        if is_due {
            recording.is_triggered = false;
            recording.phase = match recording.phase {
                Phase::Waiting => Phase::On,
                Phase::On | Phase::Over => Phase::Over,
            };
        }
        let is_wanted = |wish: u64| wish & CR3_BASE == cr3 & CR3_BASE;
        let is_on = recording.phase == Phase::On && recording.wishes.cr3.is_none_or(is_wanted);
        let was_on = recording.is_on;
        if is_on && !was_on {
            recording.is_on = true;
            recording.event(Event::Begin, count);
            self.tell_all_registers();
        } else if !is_on && was_on {
            recording.event(Event::End, count);
            recording.is_on = false;
        }
        if is_due {
            self.recording_changed();
        }
    }

    /// The vCPU starts to run: what it does next happens at the guest time of now, and is logged if
    /// the log wants it now.
    pub(crate) fn enter_recorded(&mut self) {
        self.logs_blocks = log::log_enabled!(target: "cpu::exec", log::Level::Debug);
        self.note_recorded_time();
    }

    fn note_recorded_time(&mut self) {
        if self.recording.is_some() {
            let ns = self.env.platform.now_ns(self.retired);
            if let Some(recording) = self.recording.as_deref_mut() {
                recording.time_ns = Some(ns);
            }
        }
    }

    /// The vCPU stops running: what was recorded is sent to be written, unless that is little and
    /// it goes on soon.
    pub fn pause_recording(&mut self, is_pausing: bool) {
        /// Words and events that are worth it.
        const MANY: usize = 4096;
        if let Some(recording) = self.recording.as_deref_mut()
            && (is_pausing || recording.recorder.waiting() >= MANY)
        {
            recording.recorder.send();
        }
    }
}

/// What the interpreter tells.
impl Cpu {
    /// Tells that `block` is begun, of which at most `count` instructions will be executed; how
    /// many that are, for what is told ends where the range does. False if it is not told.
    pub(crate) fn record_block(&mut self, block: &mut CodeBlock, count: usize) -> (bool, usize) {
        if self.logs_blocks {
            let (number, at) = (self.env.index, self.linear_ip());
            log::debug!(target: "cpu::exec", "CPU {number}: {at:#x}");
        }
        if self.recording.is_none() {
            return (false, count);
        }
        let base = if self.mode.is_64() { 0 } else { self.state.segments[seg::CS].base };
        let is_told = |cpu: &Self, ip: u64| cpu.records_address(base.wrapping_add(ip));
        let first = block.insns.first().is_some_and(|insn| is_told(self, insn.iced.ip()));
        let same = block.insns.iter().take_while(|insn| is_told(self, insn.iced.ip()) == first);
        let count = same.count().min(count);
        if self.is_block_outside(!first || !self.records_mode()) {
            return (false, count);
        }
        let is_on = self.recording.as_deref().is_some_and(|recording| recording.is_on);
        if !is_on || !self.records_code() {
            return (false, count);
        }
        if block.recorded.is_none() {
            block.recorded = self.define_code(block);
        }
        let Some(number) = block.recorded else { return (false, count) };
        self.record_words(&[Recorder::block_word(number)]);
        (true, count)
    }

    /// Notes whether the block that comes `is_outside` of what is told, and returns it. What code
    /// outside has done to registers is told before the first block that is not.
    fn is_block_outside(&mut self, is_outside: bool) -> bool {
        let Some(recording) = self.recording.as_deref_mut() else { return is_outside };
        let was_outside = std::mem::replace(&mut recording.is_outside, is_outside);
        if was_outside && !is_outside {
            self.record_registers(0);
        }
        is_outside
    }

    /// The number of a block of the interpreter's, if its instructions can be told.
    fn define_code(&mut self, block: &CodeBlock) -> Option<u32> {
        let mut told = self.empty_recorded_block();
        let mut bytes = &*block.bytes;
        for insn in &block.insns {
            let length = insn.iced.len();
            let Some((own, rest)) = bytes.split_at_checked(length) else { break };
            if !told.push(insn.iced.ip(), own) {
                break;
            }
            bytes = rest;
        }
        if told.len() != block.insns.len() {
            // An instruction that cannot be decoded is never retired.
            return None;
        }
        self.define_recorded(told.clone()).or_else(|| {
            self.forget_recorded();
            self.has_new_recording = true;
            self.define_recorded(told)
        })
    }

    /// A block of the current mode, to be filled.
    pub fn empty_recorded_block(&self) -> Block {
        let mode = Mode {
            width: Width::of_bits(self.mode.code_bits),
            cpl: self.mode.cpl,
            is_real: self.mode.operating == crate::mode::OperatingMode::Real,
            is_v86: self.mode.operating == crate::mode::OperatingMode::Virtual8086,
        };
        let base = if self.mode.is_64() { 0 } else { self.state.segments[seg::CS].base };
        Block::new(mode, base)
    }

    /// Tells an event, if `kinds` are told.
    #[inline]
    pub(crate) fn record(&mut self, kinds: Kinds, event: impl FnOnce() -> Event) {
        if let Some(recording) = self.recording.as_deref_mut()
            && recording.wants(kinds)
        {
            recording.event(event(), self.retired);
        }
    }

    /// Tells an interrupt.
    pub(crate) fn record_interrupt(&mut self, vector: u8, source: InterruptSource) {
        let rip = self.state.rip;
        log::debug!(target: "cpu::irq", "interrupt {vector:#x} ({source:?}) at {rip:#x}");
        self.note_vector(vector);
        self.record(Kinds::INTERRUPTS, || Event::Interrupt { vector, source });
    }

    /// Tells an exception.
    pub(crate) fn record_exception(&mut self, exception: Exception) {
        let vector = exception.vector as u8;
        self.note_vector(vector);
        let address = if exception.vector == Vector::PageFault { self.state.cr2 } else { 0 };
        let error_code = exception.error_code.map(u32::from);
        self.record(Kinds::EXCEPTIONS, || Event::Exception { vector, error_code, address });
    }

    fn note_vector(&mut self, vector: u8) {
        if let Some(recording) = self.recording.as_deref_mut()
            && recording.trigger() == Some(Trigger::Vector(vector))
        {
            recording.is_triggered = true;
        }
    }

    /// True if accesses to memory are told.
    #[inline]
    pub(crate) fn records_memory(&self) -> bool {
        self.recording.as_deref().is_some_and(|recording| recording.wants_detail(Kinds::MEMORY))
    }

    /// Tells an access to memory.
    #[inline]
    pub(crate) fn record_access(&mut self, access: Access, linear: u64, bytes: &[u8]) {
        if !self.records_memory() {
            return;
        }
        for (piece, address) in bytes.chunks(64).zip((linear..).step_by(64)) {
            let value = Value::of(piece);
            let access = told(access);
            self.record(Kinds::MEMORY, || Event::Memory { access, address, value });
        }
    }

    /// Tells an access to a port.
    pub(crate) fn record_port(&mut self, access: Access, port: u16, value: u64, bytes: u64) {
        log::trace!(target: "cpu::io", "port {port:#x}: {access:?} {value:#x}, {bytes} bytes");
        let value = Value::of_number(value, bytes as usize);
        let access = told(access);
        self.record(Kinds::IO, || Event::Port { access, port, value });
    }

    /// Tells an access to a device's memory.
    pub(crate) fn record_mmio(&mut self, access: Access, address: u64, value: u64, bytes: u64) {
        log::trace!(target: "cpu::io", "{address:#x}: {access:?} {value:#x}, {bytes} bytes");
        let value = Value::of_number(value, bytes as usize);
        let access = told(access);
        self.record(Kinds::IO, || Event::Mmio { access, address, value });
    }

    /// Tells an access to a model-specific register.
    pub(crate) fn record_msr(&mut self, access: Access, number: u32, value: u64) {
        log::trace!(target: "cpu::msr", "MSR {number:#x}: {access:?} {value:#x}");
        let access = told(access);
        self.record(Kinds::MSRS, || Event::Msr { access, number, value });
    }

    /// Tells what a control register holds now.
    pub(crate) fn record_control(&mut self, number: u8, value: u64) {
        log::debug!(target: "cpu::cr", "CR{number} is {value:#x} at {:#x}", self.state.rip);
        self.record(Kinds::CONTROL, || Event::ControlRegister { number, value });
    }

    /// Tells the registers that the last instruction has changed. `left` are those behind it.
    pub(crate) fn record_registers(&mut self, left: u32) {
        if let Some(recording) = self.recording.as_deref_mut()
            && recording.wants_detail(Kinds::REGISTERS)
        {
            recording.left = left;
            recording.registers(&self.state, self.retired);
        }
    }

    /// Tells the values of all registers, where recording begins.
    fn tell_all_registers(&mut self) {
        let Some(recording) = self.recording.as_deref_mut() else { return };
        recording.shown = Shown::default();
        recording.registers(&self.state, self.retired);
        let (register, value) = (Register::RIP, Value::of_number(self.state.rip, 8));
        recording.event(Event::Register { register, value }, self.retired);
    }
}

fn told(access: Access) -> trace::Access {
    if access == Access::Write { trace::Access::Write } else { trace::Access::Read }
}
