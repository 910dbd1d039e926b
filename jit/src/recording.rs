//! What translated code tells a trace.
//!
//! Each block begins by noting its number, and where it is left before its last instruction it
//! notes how many are left, all by stores without a branch and without touching a flag: the notes
//! end in a guard page. A store that meets it is a safe point at the head of its block. The word of
//! an early exit always has room, since the block's own store reaches over the word behind it too.
//!
//! Whatever leaves a block by way of Rust (faults, handlers, safe points) is noted here. The notes
//! are told before anything else is, so all of it is in the order of execution.

use std::mem::offset_of;

use trace::Recorder;

use crate::asm::{Mem, Rm};
use crate::context::Context;
use crate::emit::Emitter;
use crate::plan::Step;
use crate::registers::S1;
use crate::vcpu::Inner;

const NOTES: Mem = Mem::context(offset_of!(Context, notes));
const WORD_BYTES: i32 = size_of::<u32>() as i32;

impl Emitter<'_> {
    /// Notes that the block is begun. Destroys S1.
    pub(crate) fn note_block(&mut self) {
        let Some(number) = self.around.recorded else { return };
        self.mark(0, self.flags.marked());
        self.note(Recorder::block_word(number), true);
    }

    /// Notes that the block is left before its last `left` instructions. Destroys S1.
    pub(crate) fn note_cut(&mut self, left: usize) {
        if left != 0 && self.around.recorded.is_some() {
            self.note(Recorder::cut_word(left as u32), false);
        }
    }

    /// Instructions behind the current one.
    pub(crate) fn steps_left(&self) -> usize {
        self.steps.len().saturating_sub(usize::from(self.current) + 1)
    }

    /// True if an exit behind the current step is to be noted.
    pub(crate) fn notes_exits(&self) -> bool {
        self.around.recorded.is_some() && self.steps_left() != 0
    }

    fn note(&mut self, word: u32, makes_room: bool) {
        self.asm.load(S1, NOTES);
        self.asm.op(makes_room, &[0xc7], 0, Rm::Mem(Mem::at(S1)));
        self.asm.raw(&word.to_le_bytes());
        self.asm.lea(S1, Mem::at(S1).with_disp(WORD_BYTES));
        self.asm.store(NOTES, S1);
    }
}

impl Inner {
    /// What a block of `steps` notes, if it is recorded.
    pub(crate) fn recorded_number(&mut self) -> Result<Option<u32>, TooManyBlocks> {
        if !self.cpu.records_code() {
            return Ok(None);
        }
        let is_told = self.cpu.records_mode()
            && self
                .scratch
                .steps
                .first()
                .is_some_and(|step| self.cpu.records_address(step.iced.ip()));
        if !is_told {
            return Ok(Some(Recorder::NO_BLOCK));
        }
        let mut block = self.cpu.empty_recorded_block();
        for Step { at, iced, .. } in &self.scratch.steps {
            let bytes = self.scratch.bytes.get(*at..at + iced.len()).unwrap_or_default();
            block.push(iced.ip(), bytes);
        }
        self.cpu.define_recorded(block).map(Some).ok_or(TooManyBlocks)
    }

    /// Tells the trace what translated code has noted.
    pub(crate) fn tell_notes(&mut self) {
        let context = self.slots.current_context();
        if let Some(notes) = &self.notes
            && context.notes != notes.start()
        {
            let end = std::mem::replace(&mut context.notes, notes.start());
            self.cpu.record_words(notes.words(end));
        }
    }

    /// Tells that the newest block was left before its last `left` instructions.
    pub(crate) fn tell_cut(&mut self, left: u64) {
        if self.notes.is_some() {
            self.tell_notes();
            self.cpu.record_cut(left);
        }
    }

    /// Lets recording begin or end, if that is due; how many of `budget` instructions may be
    /// executed until it may be next. Another thing to be recorded has all code made anew.
    pub(crate) fn follow_recording(&mut self, budget: u64) -> u64 {
        if !self.cpu.is_recorded() && !self.cpu.has_new_recording() {
            return budget;
        }
        self.cpu.settle_recording();
        if self.cpu.take_new_recording() {
            self.begin_notes();
            self.clear_cache();
        }
        self.cpu.unrecorded_count(budget)
    }

    fn begin_notes(&mut self) {
        if self.cpu.records_code() && self.notes.is_none() {
            match crate::code_memory::Notes::new() {
                Ok(notes) => self.notes = Some(notes),
                Err(error) => {
                    log::error!("the trace ends: {error}");
                    self.cpu.stop_recording();
                }
            }
        }
    }
}

/// The trace can take no more blocks.
pub(crate) struct TooManyBlocks;
