//! From a running CPU to the file: what it has executed is collected in words, and encoded and
//! written by a thread.
//!
//! A [`Recorder`] belongs to a CPU's thread. It gives each block a number when it is made known
//! and then is told by a word that the block was begun, or that the newest one was left before its
//! end. Full batches go to the thread by a queue of a few: when the disk is slower than the guest
//! for long, the guest waits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::block::Block;
use crate::chunk::CODE_BYTES_MAX;
use crate::event::Event;
use crate::writer::Writer;

/// Words of a batch, about.
const BATCH_WORDS: usize = 64 << 10;
/// Marks of a batch, about.
const BATCH_MARKS: usize = 16 << 10;
/// Batches that wait to be written.
const QUEUE: usize = 8;
/// How long what was recorded may wait while nothing comes.
const FLUSH_AFTER: Duration = Duration::from_millis(500);
/// The bit of a word that says that it is a cut.
const CUT: u32 = 1 << 31;

/// What a CPU notes of its execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The block with this number is begun.
    Block(u32),
    /// The newest block was left before its last `left` instructions.
    Cut { left: u32 },
}

impl Word {
    #[inline]
    pub(crate) fn of(word: u32) -> Self {
        if word & CUT == 0 { Self::Block(word) } else { Self::Cut { left: word & !CUT } }
    }
}

/// What stands between words.
pub(crate) enum Mark {
    /// The next block.
    Block(Block),
    /// Blocks are numbered from 0 again.
    Forget,
    /// See [`crate::encoder::Encoder::event`].
    Event { event: Event, left: u32, count: Option<u64> },
}

/// What a CPU has executed.
pub(crate) struct Batch {
    pub(crate) cpu: u16,
    pub(crate) words: Vec<u32>,
    /// Each with the number of words before it.
    pub(crate) marks: Vec<(usize, Mark)>,
}

enum Message {
    Batch(Batch),
    Close,
}

/// What is recorded of one CPU, on the way to the file.
pub struct Recorder {
    batch: Batch,
    blocks: u32,
    /// Bytes that the encoder keeps of them.
    code_bytes: usize,
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
}

/// What the thread and the recorders know of each other.
struct Shared {
    is_closed: AtomicBool,
}

impl Recorder {
    /// The word that says that block number `number` is begun.
    pub const fn block_word(number: u32) -> u32 {
        number
    }

    /// The number of a block that is executed and not recorded.
    pub const NO_BLOCK: u32 = CUT - 1;

    /// The word that says that the newest block was left before its last `left` instructions.
    pub const fn cut_word(left: u32) -> u32 {
        CUT | left
    }

    /// True once nothing is written any more: because the disk is full, say.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Relaxed)
    }

    /// Makes a block known; its number. `None` if there are too many: then
    /// [`Recorder::forget_blocks`].
    pub fn define(&mut self, block: Block) -> Option<u32> {
        let code_bytes = self.code_bytes + block.size();
        if code_bytes > CODE_BYTES_MAX || block.is_empty() {
            return None;
        }
        let number = self.blocks;
        (self.blocks, self.code_bytes) = (number + 1, code_bytes);
        self.mark(Mark::Block(block));
        Some(number)
    }

    /// Numbers blocks from 0 again.
    pub fn forget_blocks(&mut self) {
        (self.blocks, self.code_bytes) = (0, 0);
        self.mark(Mark::Forget);
    }

    /// Appends a word.
    #[inline]
    pub fn word(&mut self, word: u32) {
        self.batch.words.push(word);
        if self.batch.words.len() >= BATCH_WORDS {
            self.send();
        }
    }

    /// Appends words.
    pub fn words(&mut self, words: &[u32]) {
        self.batch.words.extend_from_slice(words);
        if self.batch.words.len() >= BATCH_WORDS {
            self.send();
        }
    }

    /// Notes an event before the last `left` instructions of the newest block. `count` says how
    /// many instructions the CPU has retired before it, if that is known.
    pub fn event(&mut self, event: Event, left: u32, count: Option<u64>) {
        self.mark(Mark::Event { event, left, count });
    }

    fn mark(&mut self, mark: Mark) {
        self.batch.marks.push((self.batch.words.len(), mark));
        if self.batch.marks.len() >= BATCH_MARKS {
            self.send();
        }
    }

    /// How much waits to be sent.
    pub fn waiting(&self) -> usize {
        self.batch.words.len() + self.batch.marks.len()
    }

    /// Sends what there is to be written.
    pub fn send(&mut self) {
        if self.waiting() == 0 {
            return;
        }
        let next = Batch { cpu: self.batch.cpu, words: Vec::new(), marks: Vec::new() };
        let batch = std::mem::replace(&mut self.batch, next);
        if !self.is_closed() && self.queue.send(Message::Batch(batch)).is_err() {
            self.shared.is_closed.store(true, Ordering::Relaxed);
        }
    }
}

const _: () = assert!(CODE_BYTES_MAX / size_of::<Block>() < Recorder::NO_BLOCK as usize);

impl Drop for Recorder {
    fn drop(&mut self) {
        self.send();
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("cpu", &self.batch.cpu).finish_non_exhaustive()
    }
}

/// The thread that writes a trace.
pub struct Recording {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Recording {
    /// Starts the thread. `failed` is called once if the file cannot be written to: then the trace
    /// has ended.
    pub fn start(
        writer: Writer,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, batches) = sync_channel(QUEUE);
        let shared = Arc::new(Shared { is_closed: AtomicBool::new(false) });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("trace".into()).spawn(move || {
            if let Err(error) = write_all(writer, &batches) {
                for_thread.is_closed.store(true, Ordering::Relaxed);
                failed(error);
            }
            // Senders that wait for room are let go with the queue.
        })?;
        Ok(Self { queue, shared, thread: Some(thread) })
    }

    /// The recorder of CPU number `cpu`.
    pub fn recorder(&self, cpu: u16) -> Recorder {
        Recorder {
            batch: Batch { cpu, words: Vec::new(), marks: Vec::new() },
            blocks: 0,
            code_bytes: 0,
            shared: Arc::clone(&self.shared),
            queue: self.queue.clone(),
        }
    }

    /// True once nothing is written any more.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed.load(Ordering::Relaxed)
    }

    /// Closes the file behind what was sent so far, and waits until that is written.
    pub fn finish(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // An error is that of a thread that has ended.
        let _ = self.queue.send(Message::Close);
        let _ = thread.join();
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.finish();
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").field("is_closed", &self.is_closed()).finish_non_exhaustive()
    }
}

fn write_all(mut writer: Writer, batches: &Receiver<Message>) -> io::Result<()> {
    loop {
        match batches.recv_timeout(FLUSH_AFTER) {
            Ok(Message::Batch(mut batch)) => writer.batch(&mut batch)?,
            Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => return writer.finish(),
            Err(RecvTimeoutError::Timeout) => writer.flush()?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Mode, Width};
    use crate::{INSN_BYTES_MAX, INSNS_MAX};

    #[test]
    fn blocks_are_numbered_anew_before_they_take_too_much_memory() {
        let (queue, _) = sync_channel(1);
        let shared = Arc::new(Shared { is_closed: AtomicBool::new(true) });
        let batch = Batch { cpu: 0, words: Vec::new(), marks: Vec::new() };
        let mut recorder = Recorder { batch, blocks: 0, code_bytes: 0, shared, queue };
        let mode = Mode { width: Width::W64, cpl: 3, is_real: false, is_v86: false };
        let mut block = Block::new(mode, 0);
        while block.len() < INSNS_MAX {
            assert!(block.push(0x1000, &[0x90; INSN_BYTES_MAX]));
        }
        let mut count = 0;
        while let Some(number) = recorder.define(block.clone()) {
            assert_eq!(number, count);
            count += 1;
        }
        assert_eq!(count as usize, CODE_BYTES_MAX / block.size());
        recorder.forget_blocks();
        assert_eq!(recorder.define(block), Some(0));
    }
}
