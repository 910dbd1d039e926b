//! Who asks CPUs for their stacks, and who keeps what they say.
//!
//! A thread marks each CPU that runs and posts to its mailbox, as for a stop of the machine. The
//! CPU's own thread finds the mark when it has left the guest, walks the stack and goes on; a CPU
//! that sleeps is not woken and counts for nothing. A CPU that has not answered by the next time is
//! not asked again, and counts as missed.
//!
//! Stacks are kept as addresses and named at the end, or before the guest resets: what the names
//! are may not be known before, and another kernel may have others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use cpu::Cpu;
use cpu::engine::VmExit;
use cpu::events::Events;
use symbols::Symbols;
use symbols::orc::Frame;

use super::flame;
use super::folded::Folded;
use crate::names::{Names, function_of};
use crate::vm::Engine;

/// Frames of a stack that are kept at most.
const FRAMES_MAX: usize = 127;
/// Different stacks that are kept at most; what comes later is missed.
const STACKS_MAX: usize = 100_000;
/// Where Linux has its modules.
const MODULES: std::ops::Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_ff00_0000;

/// `--profile`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProfileConfig {
    /// The picture; the stacks go beside it.
    pub(crate) path: PathBuf,
    /// How often a second each CPU is asked.
    pub(crate) hz: u32,
    /// The privilege level that counts, or each.
    pub(crate) cpl: Option<u8>,
}

/// A stack, and the privilege level of its innermost function.
#[derive(PartialEq, Eq, Hash)]
struct Stack {
    cpl: u8,
    frames: Box<[Frame]>,
}

/// One CPU as the thread sees it.
#[derive(Default)]
struct Slot {
    /// It is in the guest, as far as its thread has said.
    is_running: AtomicBool,
    /// It is to say where it is.
    is_due: AtomicBool,
}

/// What the CPUs have said.
pub(crate) struct Profile {
    config: ProfileConfig,
    names: Arc<Names>,
    slots: Vec<Slot>,
    stacks: Mutex<HashMap<Stack, u64>>,
    folded: Mutex<Folded>,
    missed: AtomicU64,
    files: Mutex<Option<Files>>,
}

/// Where the profile goes; made at the start, so that the end is not the first to know that it
/// cannot.
struct Files {
    svg: File,
    folded: File,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Profile {
    /// A profile of as many CPUs.
    pub(crate) fn new(config: &ProfileConfig, cpus: u32, names: Arc<Names>) -> Result<Arc<Self>> {
        let create = |path: PathBuf| {
            File::create(&path)
                .with_context(|| format!("--profile: cannot write to '{}'", path.display()))
        };
        let folded = create(config.path.with_extension("folded"))?;
        let svg = create(config.path.clone())?;
        Ok(Arc::new(Self {
            config: config.clone(),
            names,
            slots: (0..cpus).map(|_| Slot::default()).collect(),
            stacks: Mutex::default(),
            folded: Mutex::default(),
            missed: AtomicU64::new(0),
            files: Mutex::new(Some(Files { svg, folded })),
        }))
    }

    /// CPU `index` goes into the guest.
    pub(crate) fn enter(&self, index: u32) {
        if let Some(slot) = self.slots.get(index as usize) {
            slot.is_running.store(true, Ordering::Relaxed);
        }
    }

    /// CPU `index` has left it for `exit`: if it is to say where it is, and did not fall asleep
    /// meanwhile, it does. Called by its own thread.
    pub(crate) fn leave(&self, index: u32, engine: &mut Engine, exit: VmExit) {
        let Some(slot) = self.slots.get(index as usize) else { return };
        slot.is_running.store(false, Ordering::Relaxed);
        if !slot.is_due.swap(false, Ordering::Relaxed) || exit != VmExit::Requested {
            return;
        }
        let cpu = engine.cpu_mut();
        let cpl = cpu.state.cpl;
        if self.config.cpl.is_some_and(|wanted| wanted != cpl) {
            return;
        }
        let stack = self.names.walk(cpu, FRAMES_MAX).stack;
        let frames = stack.iter().map(|activation| activation.frame).collect();
        let mut stacks = locked(&self.stacks);
        let is_full = stacks.len() >= STACKS_MAX;
        let stack = Stack { cpl, frames };
        if is_full && !stacks.contains_key(&stack) {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *stacks.entry(stack).or_default() += 1;
    }

    /// Asks the CPUs that run.
    fn ask(&self, mailboxes: &[Arc<Events>]) {
        for (slot, events) in self.slots.iter().zip(mailboxes) {
            if !slot.is_running.load(Ordering::Relaxed) {
                continue;
            }
            if slot.is_due.swap(true, Ordering::Relaxed) {
                self.missed.fetch_add(1, Ordering::Relaxed);
            } else {
                events.request_exit();
            }
        }
    }

    /// Names the stacks so far, by the kernel that is on the CPU, which does not run.
    pub(crate) fn fold(&self, cpu: &mut Cpu) {
        let symbols = self.names.settle(cpu);
        let stacks = std::mem::take(&mut *locked(&self.stacks));
        let mut folded = locked(&self.folded);
        for (Stack { cpl, frames }, count) in stacks {
            let names: Vec<String> =
                frames.iter().rev().map(|frame| name(&symbols, frame, cpl)).collect();
            folded.add(names.iter().map(String::as_str), count);
        }
    }

    /// Writes the profile.
    pub(crate) fn finish(&self) -> Result<()> {
        let Some(Files { svg, folded: text }) = locked(&self.files).take() else { return Ok(()) };
        let folded = locked(&self.folded);
        let missed = self.missed.load(Ordering::Relaxed);
        log::info!("the profile has {} samples; {missed} were missed", folded.total());
        let (mut svg, mut text) = (BufWriter::new(svg), BufWriter::new(text));
        folded
            .write(&mut text)
            .and_then(|()| text.flush())
            .and_then(|()| flame::draw(&folded, "Guest profile", "samples", &mut svg))
            .and_then(|()| svg.flush())
            .with_context(|| format!("--profile: cannot write '{}'", self.config.path.display()))
    }
}

/// What a frame is called: its function, or what kind of place it is.
fn name(symbols: &Symbols, frame: &Frame, cpl: u8) -> String {
    let guess = if frame.is_guess { "?" } else { "" };
    match function_of(symbols, frame) {
        Some(place) => format!("{}{guess}", place.symbol.name),
        None if cpl == 3 && frame.address >> 63 == 0 => "[user]".into(),
        None if MODULES.contains(&frame.address) => "[module]".into(),
        None if frame.address >> 63 != 0 => "[kernel]".into(),
        None => "[unnamed]".into(),
    }
}

/// The thread that asks; it ends when this is dropped.
pub(crate) struct Sampling {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampling {
    /// Starts it.
    pub(crate) fn start(profile: &Arc<Profile>, mailboxes: &[Arc<Events>]) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (profile, mailboxes) = (Arc::clone(profile), mailboxes.to_vec());
        let period = Duration::from_secs(1) / profile.config.hz;
        let work = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(period) {
                profile.ask(&mailboxes);
            }
        };
        let thread = std::thread::Builder::new().name("profile".into()).spawn(work);
        let thread = thread.context("--profile: cannot start its thread")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the profile's thread died");
        }
    }
}
